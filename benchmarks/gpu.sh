#!/usr/bin/env bash
# All that needs a GPU, in at most nine minutes and without a network: is it right, does it stay within its memory, how fast.
#
#   benchmarks/gpu.sh [--stages build,tests,memcheck,bench] [--seconds 530]
#
# Stages run by priority, each under a time limit; one that fails does not stop the next. Logs and CSV go to $OUT, default
# benchmarks/results. PYTHON (default python3) must have torch, triton, numpy, tqdm, pytest and what the build needs
# (setuptools, pybind11, ninja). The exit status is 0 if the tests passed, or, where they were not asked for, if every
# stage did; 3 if there is no GPU.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

stages=build,tests,memcheck,bench
seconds=530
while (($#)); do
    case $1 in
        --stages) stages=${2:?--stages wants a list}; shift 2 ;;
        --seconds) seconds=${2:?--seconds wants a number}; shift 2 ;;
        *) sed -n '2,9s/^# \{0,1\}//p' "$0"; [[ $1 == --help ]]; exit ;;
    esac
done
for stage in ${stages//,/ }; do
    [[ $stage =~ ^(build|tests|memcheck|bench)$ ]] || { echo "gpu.sh: unknown stage '$stage'" >&2; exit 2; }
done
python=${PYTHON:-python3}
out=${OUT:-benchmarks/results}
venv=${GPU_VENV:-build/gpu-venv}
mkdir -p "$out"
out=$(cd "$out" && pwd)
export OUT=$out PYTHONUNBUFFERED=1
PFGM_COMMIT=${PFGM_COMMIT:-$(git describe --always --dirty --exclude='*' 2>/dev/null || echo unknown)}
export PFGM_COMMIT

if [[ $stages != build ]] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu.sh: there is no GPU that the PyTorch of $python can use: nothing was run" >&2
    exit 3
fi

declare -A status=()
has() { [[ ,$stages, == *,$1,* ]]; }
left() { echo $((seconds - SECONDS)); }

# run NAME LIMIT FUNCTION: within the limit and the time that is left; its output also goes to $OUT/NAME.log.
run() {
    local name=$1 limit=$2 work=$3
    has "$name" || return 0
    ((limit > $(left))) && limit=$(left)
    if ((limit < 10)); then
        status[$name]="no time was left"
        return 0
    fi
    echo "== $name, at most $limit s"
    local start=$SECONDS
    limit=$limit "$work" 2>&1 | tee "$out/$name.log"
    local code=${PIPESTATUS[0]}
    case $code in
        0) status[$name]=ok ;;
        124 | 137) status[$name]="ran out of its $limit s" ;;
        *) status[$name]="failed ($code)" ;;
    esac
    echo "== $name: ${status[$name]}, $((SECONDS - start)) s"
}

# bounded SECONDS COMMAND...: killed, with all it started, some seconds after it ignored the polite request.
bounded() { timeout --kill-after=5 "$@"; }

# An editable install in an environment of its own, which sees the packages of $PYTHON: first without the extension, which
# nothing here waits for, then with it, by the nvcc that is there and for this GPU alone.
build() {
    "$python" -m venv --without-pip "$venv" || return
    "$python" -c 'import sysconfig; paths = sysconfig.get_paths(); print(paths["purelib"], paths["platlib"], sep="\n")' \
        >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer.pth" || return
    PFGM_EXT=off "$venv/bin/python" -m pip install --quiet --no-build-isolation --no-deps --no-index \
        --disable-pip-version-check --root-user-action=ignore -e . || return
    local arch
    arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d '. ')
    PFGM_CUDA_ARCHS=${PFGM_CUDA_ARCHS:-$arch} bounded $((limit * 3 / 4)) \
        "$venv/bin/python" setup.py --quiet build_ext --inplace || echo "no extension: status $?"
    "$venv/bin/python" -c 'import pfgm_fast; print(pfgm_fast.info())'
}

# The small tests side by side, where pytest-xdist is there: their time is that of the compiler. Then the large ones, which
# need the memory for themselves.
tests() {
    local workers=() code=0 start=$SECONDS
    "$venv/bin/python" -c 'import xdist' 2>/dev/null && workers=(-n "$(($(nproc) < 12 ? $(nproc) : 12))")
    local always=(-q -p no:cacheprovider --durations=10 --benchmark-disable)
    bounded $((limit * 2 / 3)) "$venv/bin/python" -m pytest "${always[@]}" "${workers[@]}" -k 'not full_size' \
        --junitxml="$out/tests.xml" tests/test_gpu.py "${shared[@]}" || code=$?
    bounded $((limit - (SECONDS - start))) "$venv/bin/python" -m pytest "${always[@]}" -k full_size \
        --junitxml="$out/tests-full-size.xml" tests/test_gpu.py || code=$?
    return $code
}
# they take the GPU where there is one
shared=(tests/test_gpu_ode.py tests/test_kernels_noise.py tests/test_kernels_tiles.py tests/test_kernels_update.py)

# Compiled first, side by side and unwatched; then once more under the checker.
memcheck() {
    local checker width start=$SECONDS jobs=() code=0
    checker=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
    [[ -x $checker ]] || { echo "compute-sanitizer is not here"; return 1; }
    for width in 2 100 784; do
        bounded $((limit / 2)) "$venv/bin/python" -m benchmarks.gpu.small --widths "$width" &
        jobs+=($!)
    done
    for job in "${jobs[@]}"; do wait "$job" || code=$?; done
    ((code == 0)) || return $code
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 bounded $((limit - (SECONDS - start))) \
        "$checker" --tool memcheck --target-processes application-only --error-exitcode 9 --print-limit 20 \
        "$venv/bin/python" -m benchmarks.gpu.small || code=$?
    bounded $((limit - (SECONDS - start))) \
        "$checker" --tool racecheck --target-processes application-only --error-exitcode 9 --print-limit 20 \
        "$venv/bin/python" -m benchmarks.gpu.small --widths 2 || code=$?
    return $code
}

# It ends by itself; the limit is for a kernel that hangs. Rows are written block by block.
bench() {
    bounded "$limit" "$venv/bin/python" -m benchmarks.gpu --seconds $((limit * 4 / 5))
}

[[ -x $venv/bin/python ]] || has build || { echo "gpu.sh: $venv is missing: run the stage build first" >&2; exit 2; }
run build 90 build
run tests 250 tests
run memcheck 90 memcheck
run bench "$seconds" bench

echo "== ${SECONDS} s of $seconds; in $out:"
ls -l "$out"
code=0
for stage in ${stages//,/ }; do
    echo "$stage: ${status[$stage]}"
    [[ ${status[$stage]} == ok ]] || code=1
done
has tests && { [[ ${status[tests]} == ok ]]; exit; }
exit $code
