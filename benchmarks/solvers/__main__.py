"""Measures the solvers beside the alternatives and writes benchmarks/results/solvers-<machine>.csv."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import machine, results
from benchmarks.solvers import page, peers
from benchmarks.solvers.measure import PROBLEMS
from benchmarks.solvers.rows import PREFIX, Row, Table


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    out = options.out or results.FOLDER / (PREFIX + machine.file_name(machine.origin().machine))
    for name in peers.NAMES:
        if why := peers.missing(name):
            print(f"skipped: {name}: {why}")
    code = 0
    with tempfile.TemporaryDirectory() as scratch:
        for threads in options.threads:
            command = [sys.executable, "-m", "benchmarks.solvers.measure", "--threads", str(threads)]
            command += ["--out", str(out.resolve()), "--scratch", scratch, "--only", *options.only]
            command += ["--quick"] * options.quick
            code = _wait(command)
            if code:
                break
    table = Table(results.read(out, Row))
    if table.rows:
        print(f"\n{page.goals(table)}")
    print(f"\n{'finished rows' if code else 'rows'} are in {out}")
    return code


def _wait(command: list[str]) -> int:
    """The exit code of a process that gets Ctrl-C as well, and may finish its file."""
    with subprocess.Popen(command, cwd=machine.ROOT) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.solvers", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS), help="default: all")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="N", help="default: 1 2")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, no sweep of the peers' tolerances")
    parser.add_argument("--out", type=Path, metavar="CSV", help="default: benchmarks/results/solvers-<machine>.csv")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
