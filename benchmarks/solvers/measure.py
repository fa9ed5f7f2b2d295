"""Measures problems with one number of threads: a process of its own, which `python -m benchmarks.solvers` starts.

The process may run on as many processors as there are threads: that binds JAX too, whose threads have no other switch.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks import machine, results, timing
from benchmarks.machine import Origin
from benchmarks.solvers import linear, nfe, overhead, poisson
from benchmarks.solvers.core import Answer, Block, Effort, Run, tensor
from benchmarks.solvers.rows import Row, versions

PROBLEMS = {problem.name: problem for problem in (poisson.PROBLEM, linear.PROBLEM, overhead.PROBLEM, nfe.PROBLEM)}


def rows(problem: str, effort: Effort, origin: Origin, bar: tqdm[Any] | None = None) -> Iterator[list[Row]]:
    """The rows of each block of a problem; the first call of a run gives its errors and is not timed."""
    with timing.torch_threads(effort.threads):
        for block in PROBLEMS[problem].blocks(effort):
            answers: dict[int, Answer] = {}
            for i, run in enumerate(block.runs):
                _show(bar, problem, block.title, run.provider, run.setting)
                answers[i] = run.solve()
            _show(bar, problem, block.title, "timing")
            calls = {str(i): timing.Timed(run.solve) for i, run in enumerate(block.runs)}
            stopwatch = timing.by_clock(timing.clock(effort.threads))
            seconds = timing.interleaved(calls, stopwatch, block.seconds, block.least, block.most)
            yield [
                row(problem, block, run, effort.threads, answers[i], seconds[str(i)], origin)
                for i, run in enumerate(block.runs)
            ]
            if bar is not None:
                bar.update()


def row(
    problem: str, block: Block, run: Run, threads: int, answer: Answer, seconds: list[float], origin: Origin
) -> Row:
    low, median, high = (1e3 * float(q) for q in np.quantile(seconds, (0.1, 0.5, 0.9)))
    typical = p99 = worst = None
    if block.errors is not None:
        found = block.errors(tensor(answer.states)).numpy()
        typical, p99, worst = (float(q) for q in np.quantile(found, (0.5, 0.99, 1)))
    return Row(
        problem, run.provider, run.setting, threads, median, low, high, len(seconds), float(answer.evaluations),
        answer.calls, typical, p99, worst, versions(), origin.machine, origin.pfgm_fast, origin.commit, origin.date,
    )  # fmt: skip


def pin(threads: int) -> None:
    """This process, and what it starts, to the first of the processors that it may use."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.solvers.measure", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--scratch")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(None if arguments is None else list(arguments))
    origin = machine.origin()  # it counts the processors
    pin(options.threads)
    effort = Effort(options.threads, options.quick, options.scratch)
    try:
        with tqdm(unit="block", file=sys.stderr) as bar:
            for name in options.only:
                for found in rows(name, effort, origin, bar):
                    results.update(options.out, found, Row)
    except KeyboardInterrupt:
        return 130
    return 0


def _show(bar: tqdm[Any] | None, *what: str) -> None:
    if bar is not None:
        bar.set_description_str(", ".join(filter(None, what)))


if __name__ == "__main__":
    sys.exit(main())
