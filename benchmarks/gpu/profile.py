"""The largest kernels under Nsight Compute: `python -m benchmarks.gpu.profile`.

How fast memory is read, how busy the tensor cores are, and what warps wait for. What ncu said goes to profile.csv in
$OUT or benchmarks/results. The exit status is 77 where ncu is missing or may not read the counters.
"""

from __future__ import annotations

import argparse
import csv
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

import pfgm_fast as pf
from benchmarks.checkout import ROOT, results
from pfgm_fast.bench import queries
from pfgm_fast.bench.cells import aligned, number
from pfgm_fast.bench.queries import Shape

SKIPPED = 77
CASES = {
    "images": Shape(128, 50_000, 3072, 2048, pixels=True),
    "latents": Shape(16_384, 1_000_000, 64, 128),
}
KERNELS = "regex:_weigh_digits|_blend|_fused"
SECTIONS = (
    *("SpeedOfLight", "MemoryWorkloadAnalysis", "ComputeWorkloadAnalysis"),
    *("SchedulerStats", "WarpStateStats", "Occupancy", "LaunchStats"),
)
REFUSALS = ("ERR_NVGPUCTRPERM", "LibraryNotLoaded", "Failed to initialize the profiler")
HEADER = ("kernel", "ms", "TB/s", "memory", "multiprocessors", "tensor cores", "occupancy", "registers", "waits for")
Numbers = Mapping[str, float]
Command = Callable[[str, str, Path], Sequence[str]]


def launch(case: str) -> None:
    """What is profiled: one call, after one that compiles."""
    query = queries.make(CASES[case], queries.SPREAD, torch.device("cuda"))
    field = pf.EmpiricalField(query.data, query.D, backend="triton")
    for profiled in (False, True):
        torch.cuda.synchronize()
        if profiled:
            torch.cuda.profiler.start()
        field(query.x, query.sigma)
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def command_of(ncu: str, case: str, log: Path) -> Sequence[str]:
    chosen = [word for section in SECTIONS for word in ("--section", section)]
    return [
        *(ncu, "--csv", "--page", "raw", "--print-units", "base", "--log-file", str(log), "--clock-control", "none"),
        *("--profile-from-start", "off", "--kernel-name", KERNELS, "--launch-count", "3", *chosen),
        *(sys.executable, "-m", "benchmarks.gpu.profile", "--launch", case),
    ]


def profile(ncu: str, case: str, seconds: float, log: Path, command: Command = command_of) -> str:
    """What ncu wrote, and then what else was printed."""
    try:
        done = subprocess.run(
            command(ncu, case, log), cwd=ROOT, capture_output=True, text=True, timeout=max(seconds, 1), check=False
        )
        rest = done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        rest = f"{case} took more than {seconds:.0f} s"
    return (log.read_text() if log.exists() else "") + rest


def parsed(text: str) -> Iterator[tuple[str, Numbers]]:
    """The kernels in ncu's table: a line of names, one of units, then one for each launch."""
    lines = iter(line for line in text.splitlines() if line.startswith('"'))
    rows = csv.reader(lines)
    names = next(rows, [])
    next(rows, None)
    for row in rows:
        values = dict(zip(names, row, strict=False))
        yield values.get("Kernel Name", "?"), {name: _number(value) for name, value in values.items() if _is(value)}


def _is(value: str) -> bool:
    return re.fullmatch(r"-?[\d,]*\.?\d+(e[+-]?\d+)?", value) is not None


def _number(value: str) -> float:
    return float(value.replace(",", ""))


def line_of(kernel: str, numbers: Numbers) -> tuple[str, ...]:
    nanoseconds = numbers.get("gpu__time_duration.sum")
    rate = numbers.get("dram__bytes.sum.per_second")
    return (
        kernel,
        number(None if nanoseconds is None else nanoseconds / 1e6),
        number(None if rate is None else rate / 1e12),
        _percent(numbers, r"(gpu__compute_memory|gpu__dram|dram_)_throughput\.avg\.pct\w*elapsed"),
        _percent(numbers, r"sm__throughput\.avg\.pct\w*elapsed"),
        _percent(numbers, r"sm__\w*pipe_tensor\w*\.(avg|sum)\.pct\w*"),
        _percent(numbers, r"sm__warps_active\.avg\.pct\w*"),
        number(numbers.get("launch__registers_per_thread")),
        waits(numbers),
    )


def _percent(numbers: Numbers, pattern: str) -> str:
    """The largest of the metrics of that name."""
    found = [value for name, value in numbers.items() if re.fullmatch(pattern, name)]
    return f"{max(found):.0f} %" if found else ""


def waits(numbers: Numbers, most: int = 3) -> str:
    """What warps wait for, and how many cycles for each instruction issued."""
    name = re.compile(r"smsp__average_warps?_(?:latency_)?issue_stalled_(\w+?)(?:_per_issue_active)?\.(?:ratio|pct)")
    found: dict[str, float] = {}
    for metric, value in numbers.items():
        match = name.fullmatch(metric)
        if match and match[1] != "selected" and not match[1].endswith("_not_issued"):
            found[match[1].replace("_", " ")] = value
    largest = sorted(found, key=lambda key: -found[key])[:most]
    return ", ".join(f"{key} {found[key]:.1f}" for key in largest)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.profile", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="for all of it (default: %(default)g)")
    parser.add_argument("--launch", choices=CASES, help="only make the calls that are to be profiled")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("there is no GPU here that PyTorch can use", file=sys.stderr)
        return 3
    if options.launch:
        launch(options.launch)
        return 0
    ncu = shutil.which("ncu") or "/usr/local/cuda/bin/ncu"
    if not Path(ncu).exists():
        print("skipped: ncu (Nsight Compute) is not here")
        return SKIPPED
    return report(ncu, options.seconds, results())


def report(ncu: str, seconds: float, folder: Path, command: Command = command_of) -> int:
    """Profiles the cases, prints the table and keeps all that ncu wrote."""
    deadline, texts, lines = time.monotonic() + seconds, [], list[tuple[str, ...]]()
    for place, case in enumerate(CASES):
        log = folder / f"profile-{case}.part"
        text = profile(ncu, case, (deadline - time.monotonic()) / (len(CASES) - place), log, command)
        log.unlink(missing_ok=True)
        texts.append(text)
        found = [line_of(f"{case}: {kernel}", numbers) for kernel, numbers in parsed(text)]
        if not found:
            print(f"{case}: nothing was profiled\n{text[-2000:]}")
        lines += found
    if lines:
        (folder / "profile.csv").write_text("\n".join(texts))
        print(f"{aligned(HEADER, lines)}\n\nall that ncu wrote is in {folder / 'profile.csv'}")
        return 0
    refusals = [word for word in REFUSALS if any(word in text for text in texts)]
    if refusals:
        print(f"skipped: ncu cannot read the counters here: {refusals[0]}")
    return SKIPPED if refusals else 1


if __name__ == "__main__":
    sys.exit(main())
