#!/usr/bin/env bash
# All that needs a GPU, in at most nine minutes and without a network: is it right, what was open, how fast, and why.
#
#   benchmarks/gpu.sh [--stages build,tests,sanitize,questions,bench,profile] [--seconds 530]
#
# Stages run in that order, each in its share of the time that is left, so that later calls with fewer of them give these
# more; one that fails does not stop the next. $OUT, default benchmarks/results, gets gpu.log and the CSV files. PYTHON
# (default python3) must have torch, triton, numpy, tqdm, pytest and what the build needs (setuptools, pybind11, ninja).
# The exit status is 0 if the tests passed, or, where they were not asked for, if every stage did; 3 if there is no GPU.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

order=(build tests sanitize questions bench profile)
declare -A share=([build]=60 [tests]=190 [sanitize]=90 [questions]=60 [bench]=90 [profile]=40)
stages=$(IFS=,; echo "${order[*]}")
seconds=530
while (($#)); do
    case $1 in
        --stages) stages=${2:?--stages wants a list}; shift 2 ;;
        --seconds) seconds=${2:?--seconds wants a number}; shift 2 ;;
        *) sed -n '2,9s/^# \{0,1\}//p' "$0"; [[ $1 == --help ]]; exit ;;
    esac
done
[[ $seconds =~ ^[0-9]+$ ]] || { echo "gpu.sh: --seconds wants a whole number, got '$seconds'" >&2; exit 2; }
for stage in ${stages//,/ }; do
    [[ -n ${share[$stage]:-} ]] || { echo "gpu.sh: unknown stage '$stage'; known: ${order[*]}" >&2; exit 2; }
done
python=${PYTHON:-python3}
out=${OUT:-benchmarks/results}
venv=${GPU_VENV:-build/gpu-venv}

if [[ $stages != build ]] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu.sh: there is no GPU that the PyTorch of $python can use: nothing was run" >&2
    exit 3
fi
mkdir -p "$out"
out=$(cd "$out" && pwd)
export OUT=$out PYTHONUNBUFFERED=1
PFGM_COMMIT=${PFGM_COMMIT:-$("$python" -c 'from benchmarks.checkout import commit; print(commit())')}
export PFGM_COMMIT

declare -A status=()
has() { [[ ,$stages, == *,$1,* ]]; }
left() { echo $((seconds - SECONDS)); }

# say TEXT: to the terminal and to the log.
say() { echo "$1" | tee -a "$out/gpu.log"; }

# run NAME: within its share of the time that is left; its output also goes to the log.
run() {
    local name=$1 ahead=0 stage code start=$SECONDS
    local -i limit
    has "$name" || return 0
    for stage in "${order[@]}"; do
        [[ -z ${status[$stage]:-} ]] && has "$stage" && ((ahead += share[$stage]))
    done
    limit=$(($(left) * share[$name] / ahead))
    if ((limit < 10)); then
        status[$name]="no time was left"
        return 0
    fi
    say "== $name, at most $limit s"
    limit=$limit "$name" 2>&1 | tee -a "$out/gpu.log"
    code=${PIPESTATUS[0]}
    case $code in
        0) status[$name]=ok ;;
        77) status[$name]=skipped ;;
        124 | 137) status[$name]="ran out of its $limit s" ;;
        *) status[$name]="failed ($code)" ;;
    esac
    say "== $name: ${status[$name]}, $((SECONDS - start)) s"
}

# bounded SECONDS COMMAND...: killed, with all it started, some seconds after it ignored the polite request.
bounded() {
    (($1 > 0)) || return 124
    timeout --kill-after=5 "$@"
}

# An editable install in an environment of its own, which sees the packages of $PYTHON: first without the extension, so that
# what needs none runs in any case, then with it, by the nvcc that is there and for this GPU alone.
build() {
    local arch code=0
    "$python" -m venv --without-pip "$venv" || return
    "$python" -c 'import sysconfig; paths = sysconfig.get_paths(); print(paths["purelib"], paths["platlib"], sep="\n")' \
        >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer.pth" || return
    PFGM_EXT=off "$venv/bin/python" -m pip install --quiet --no-build-isolation --no-deps --no-index \
        --disable-pip-version-check --root-user-action=ignore -e . || return
    arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d '. ')
    PFGM_EXT=on PFGM_CUDA_ARCHS=${PFGM_CUDA_ARCHS:-$arch} bounded $((limit * 3 / 4)) \
        "$venv/bin/python" setup.py --quiet build_ext --inplace || { code=$?; echo "no extension: status $code"; }
    "$venv/bin/python" -c 'import pfgm_fast; print(pfgm_fast.info())' || code=$?
    return "$code"
}

# What only a GPU tells, and what the interpreter stands in for elsewhere; then what needs most of the memory, alone; then the
# rest of the suite, where the backend "triton" takes its turn with the others. Side by side where pytest-xdist is there: the
# time is mostly that of the compiler.
tests() {
    local workers=() code=0 start=$SECONDS
    "$venv/bin/python" -c 'import xdist' 2>/dev/null && workers=(-n "$(workers 12)" --dist worksteal)
    rm -f "$venv/passed"
    pytest $((limit / 2)) "${workers[@]}" "${on_gpu[@]}" || code=$?
    pytest $(((limit - (SECONDS - start)) * 2 / 3)) tests/test_gpu_full_size.py || code=$?
    pytest $((limit - (SECONDS - start))) "${workers[@]}" "${on_gpu[@]/#/--ignore=}" "${left_out[@]}" tests || code=$?
    ((code)) || echo "$PFGM_COMMIT" >"$venv/passed"
    return "$code"
}
on_gpu=(tests/test_gpu.py tests/test_gpu_ode.py tests/test_op.py tests/test_kernels_{direct,noise,update,wide}.py)
# They run on their own, have the hard cases of test_gpu.py for backends on the CPU, build packages, or compile for other GPUs.
left_out=(
    --ignore=tests/test_gpu_full_size.py --ignore=tests/test_accuracy.py --ignore=tests/test_packaging.py
    --ignore=tests/test_kernels_compiled.py
)

# workers MOST: processes side by side.
workers() { echo $(($(nproc) < $1 ? $(nproc) : $1)); }

# pytest SECONDS ARGUMENT...: interrupted when they are over, so that it tells what failed until then; a test that hangs is
# named. An extension that is missing is an error.
pytest() {
    local most=$1
    shift
    ((most > 0)) || return 124
    PFGM_EXT=on timeout --signal=INT --kill-after=10 "$most" "$venv/bin/python" -m pytest -q -p no:cacheprovider \
        --durations=10 -o faulthandler_timeout=$((most / 2 + 1)) "$@"
}

# The small calls, compiled side by side and unwatched; then each share of them under each of the checkers.
sanitize() {
    local checker part tool start=$SECONDS jobs=() code=0 folder port=49152
    checker=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
    [[ -x $checker ]] || { echo "compute-sanitizer is not here"; return 1; }
    for part in {1..12}; do
        bounded $((limit / 2)) "$venv/bin/python" -m benchmarks.gpu.small --share "$part/12" &
        jobs+=($!)
    done
    for job in "${jobs[@]}"; do wait "$job" || code=$?; done
    folder=$(mktemp -d)
    for tool in memcheck racecheck initcheck synccheck; do
        for part in 1/4 2/4 3/4 4/4 graph; do
            while (($(jobs -rp | wc -l) >= $(workers 16))); do wait -n; done
            ((port += 16))
            sanitized $((limit - (SECONDS - start))) "$tool" "$part" "$port" >"$folder/$tool ${part/\// of }" 2>&1 &
        done
    done
    wait
    verdicts "$folder" || code=$?
    rm -rf "$folder"
    return "$code"
}

# sanitized SECONDS TOOL PART PORT: the last line is the status. Each tensor in an allocation of its own, where memory is
# watched and no graph captured; kernels of PyTorch are left out where they could not spoil ours.
sanitized() {
    local options=(--tool "$2" --port "$4" --target-processes application-only --error-exitcode 9 --print-limit 20)
    local calls=(--without graph --share "$3") caching=0
    [[ $3 == graph ]] && calls=(--only graph)
    case $2 in
        memcheck) options+=(--report-api-errors no) ;;
        racecheck | synccheck) options+=(--kernel-name-exclude "kns=2at6native") ;;
    esac
    [[ $2 == memcheck || $2 == initcheck ]] && [[ $3 != graph ]] && caching=1
    PYTORCH_NO_CUDA_MEMORY_CACHING=$caching bounded "$1" "$checker" "${options[@]}" \
        "$venv/bin/python" -m benchmarks.gpu.small "${calls[@]}"
    echo "status $?"
}

# verdicts FOLDER: a line for each check, and all that it said if it found something; whether none did.
verdicts() {
    local file verdict code=0
    for file in "$1"/*; do
        verdict=$(tail -n 1 "$file")
        if [[ $verdict == "status 0" ]]; then
            echo "${file##*/}: ok, $(grep -c ': done$' "$file") calls"
        else
            echo "${file##*/}: $verdict"
            tail -n 200 "$file"
            code=1
        fi
    done
    return "$code"
}

# They end by themselves; the limit is for a kernel that hangs. What is finished is written at once.
questions() {
    bounded "$limit" "$venv/bin/python" -m benchmarks.gpu.questions --seconds $((limit * 9 / 10))
}

bench() {
    local tests=skip
    [[ $(cat "$venv/passed" 2>/dev/null) == "$PFGM_COMMIT" ]] && tests=passed
    bounded "$limit" "$venv/bin/python" -m benchmarks.run --device cuda --seconds $((limit * 4 / 5)) --tests "$tests"
}

profile() {
    bounded "$limit" "$venv/bin/python" -m benchmarks.gpu.profile --seconds $((limit * 9 / 10))
}

[[ -x $venv/bin/python ]] || has build || { echo "gpu.sh: $venv is missing: run the stage build first" >&2; exit 2; }
say "== $(date -u +%FT%TZ), $PFGM_COMMIT, stages $stages in $seconds s"
for stage in "${order[@]}"; do run "$stage"; done

say "== ${SECONDS} s of $seconds; in $out:"
ls -l "$out"
code=0
for stage in "${order[@]}"; do
    has "$stage" || continue
    say "$stage: ${status[$stage]}"
    [[ ${status[$stage]} == ok || ${status[$stage]} == skipped ]] || code=1
done
has tests && { [[ ${status[tests]} == ok ]]; exit; }
exit "$code"
