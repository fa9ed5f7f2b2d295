"""Measures the registry and writes benchmarks/results/<device>.csv: `python -m benchmarks.run`.

The tests of the operations run first; while one is red, nothing is measured. Each number of threads gets a process of
its own, bound to as many processors. Rows are written block by block; Ctrl-C keeps those that are finished.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import bars, check, gate
from benchmarks.checkout import ROOT, commit, results
from benchmarks.registry import OPERATIONS
from pfgm_fast.bench import machine, report, rows
from pfgm_fast.bench.cells import aligned
from pfgm_fast.bench.core import Operation
from pfgm_fast.bench.rows import SKIPPED, Table

INTERRUPTED, NO_GPU = 130, 3


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("there is no GPU here that PyTorch can use", file=sys.stderr)
        return NO_GPU
    chosen = [OPERATIONS[name] for name in options.operation or OPERATIONS]
    if options.quick and not (options.out or options.check):
        print("--quick needs --out: its rows would replace full ones of the same key")
        return 2
    known = [name for operation in chosen for name in operation.cases]
    if options.case and not any(part in name for part in options.case for name in known):
        print(f"no case matches {options.case}; known: {', '.join(known)}")
        return 2
    if options.check:
        if device.type != "cpu":
            print(f"--check measures on the CPU, got --device {device}", file=sys.stderr)
            return 2
        try:
            check.commit_of(options.check)  # before the tests
        except check.RevisionError as error:
            print(error, file=sys.stderr)
            return 2
    if options.tests == "run":
        if not gate.passed(gate.tests_of(chosen, device)):
            print("the tests are red: nothing is measured (--tests skip measures, but no speed-up is reported)")
            return 1
        options.tests = "passed"
    if options.check:
        return check.main(options.check, [operation.name for operation in chosen], options.case, options.quick)
    out = options.out or results() / machine.file_name(machine.origin(device).device)
    measured, code = commit(), 0
    processes, deadline = _processes(chosen, device, options.threads), time.monotonic() + options.seconds
    for place, (threads, group) in enumerate(processes):
        command = _command(options, out, measured, [operation.name for operation in group], threads)
        command += [f"--seconds={(deadline - time.monotonic()) / (len(processes) - place)}"]
        code = _wait(command, {"TRITON_INTERPRET": "1"} if device.type == "cpu" and group[0].interpreted else {})
        if code:
            break
    print(_summary(rows.read(out), chosen))
    print(f"\n{'finished rows' if code else 'rows'} are in {out}")
    return code


def _processes(
    operations: Sequence[Operation[Any]], device: torch.device, threads: list[int]
) -> list[tuple[int, list[Operation[Any]]]]:
    """Number of threads and operations of each process."""
    if device.type == "cuda":
        return [(1, list(operations))]
    groups: dict[str, list[Operation[Any]]] = {}
    for operation in operations:
        groups.setdefault(operation.name if operation.alone or operation.interpreted else "", []).append(operation)
    return [(count, group) for group in groups.values() for count in threads if _any(group, count)]


def _any(operations: Iterable[Operation[Any]], threads: int) -> bool:
    return any(threads in case.threads for operation in operations for case in operation.cases.values())


def _command(options: argparse.Namespace, out: Path, commit: str, names: list[str], threads: int) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.worker", "--device", options.device, "--threads", str(threads)]
    command += ["--out", str(out.resolve()), "--commit", commit, "--tests", options.tests, "--operation", *names]
    for name in ("case", "provider"):
        command += [f"--{name}", *getattr(options, name)] if getattr(options, name) else []
    return [*command, *(["--quick"] if options.quick else []), *(["--resume"] if options.resume else [])]


def _wait(command: list[str], environment: dict[str, str]) -> int:
    """The exit code of a process that gets Ctrl-C as well, and may finish its file."""
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | environment) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue


def _summary(table: Table, operations: Iterable[Operation[Any]]) -> str:
    """Every block of the operations, what was skipped, and the bars."""
    parts = []
    for operation in operations:
        mine = table.where(operation=operation.name)
        for case, variant, threads in dict.fromkeys((row.case, row.variant, row.threads) for row in mine):
            block = mine.where(case=case, variant=variant, threads=threads)
            title = f"{operation.name}: {case}, {variant}, {threads} thread{'s' * (threads > 1)}"
            parts.append(f"{title}\n{aligned(*report.block(operation, block))}\n")
    skipped = dict.fromkeys(f"skipped: {row.provider}: {row.remark}" for row in table if row.status == SKIPPED)
    return "\n".join([*parts, *skipped, "", aligned(bars.HEADER, bars.lines(table))])


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--operation", nargs="+", choices=list(OPERATIONS), help="default: all")
    parser.add_argument("--case", nargs="+", metavar="PART", help="cases whose name holds a PART; default: all")
    parser.add_argument("--provider", nargs="+", metavar="PART", help="providers whose name holds a PART; default: all")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="N", help="on a CPU; default: 1 2")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=math.inf,
                        help="until no new provider is begun, shared by the processes; default: no limit")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="fewer repeats, no memory")
    parser.add_argument("--resume", action="store_true", help="leave out blocks that the file has from this commit")
    parser.add_argument("--tests", choices=("run", "passed", "skip"), default="run",
                        help="run them first (default); passed: they just did; skip: report no speed-ups")  # fmt: skip
    parser.add_argument(
        "--check", metavar="BASE", help="bench this revision of the library beside that one, nothing else"
    )
    parser.add_argument(
        "--out", type=Path, metavar="CSV", help="default: <device>.csv in the folder $OUT, else benchmarks/results"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
