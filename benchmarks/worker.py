"""The process that measures, with one number of threads: `python -m benchmarks.run` starts it.

It may run on as many processors as there are threads: that binds JAX too, whose threads have no other switch.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.registry import OPERATIONS, find
from pfgm_fast.bench import machine, rows
from pfgm_fast.bench.core import Effort
from pfgm_fast.bench.measure import NO_TIME, Block, Setup, measure
from pfgm_fast.bench.rows import Table

QUICK = Effort(0.1, 1, 3)
SHARE = 2.5  # a block may take so many times its equal share of the time that is left


def main(arguments: Iterable[str] | None = None) -> int:
    options = _options(arguments)
    device = torch.device(options.device)
    origin = machine.origin(device, options.commit)  # it counts the processors
    if device.type == "cpu":
        pin(options.threads)
    tests = "passed" if options.tests == "passed" else "not run"
    effort = QUICK if options.quick else None
    chosen = blocks(options.operation, options.case, device, options.threads)
    if options.resume:
        done = rows.read(options.out).where(commit=options.commit, threads=options.threads, tests=tests)
        clean = not options.commit.endswith("-dirty")  # of which there are many
        chosen = [block for block in chosen if not (clean and _measured(block, done, device, options.provider))]
    deadline = time.monotonic() + options.seconds
    try:
        with tqdm(chosen, unit="block", file=sys.stderr) as bar:
            for place, block in enumerate(bar):
                name = f"{block.operation.name} {block.case}, {block.variant}"
                bar.set_description_str(name)
                setup = Setup(device, options.threads, origin, tests, effort, not options.quick, bar.set_postfix_str)
                now = time.monotonic()
                until = now + (deadline - now) * min(1.0, SHARE / (len(chosen) - place))
                found = measure(block, setup, partial(_holds, options.provider), until)
                before = rows.read(options.out)
                rows.update(options.out, [row for row in found if row.remark != NO_TIME or not before.get(*row.key)])
    except KeyboardInterrupt:
        return 130
    return 0


def blocks(names: list[str], cases: list[str] | None, device: torch.device, threads: int) -> list[Block]:
    """All of the operations' cases and variants that belong on the device with so many threads."""
    return [
        Block(partial(find, name), case, variant)
        for name in names
        for case, what in OPERATIONS[name].cases.items()
        if device.type in what.devices and (device.type != "cpu" or threads in what.threads) and _holds(cases, case)
        for variant in OPERATIONS[name].variants
    ]


def pin(threads: int) -> None:
    """This process, and what it starts, to the first of the processors that it may use."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def _holds(parts: list[str] | None, name: str) -> bool:
    return not parts or any(part in name for part in parts)


def _measured(block: Block, done: Table, device: torch.device, parts: list[str] | None) -> bool:
    """Whether all of its chosen providers were, and no time was lacking."""
    found = done.where(operation=block.operation.name, case=block.case, variant=block.variant)
    wanted = {p.label for p in block.operation.providers if device.type in p.devices and _holds(parts, p.name)}
    return wanted <= {row.label for row in found if row.remark != NO_TIME}


def _options(arguments: Iterable[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker", description=__doc__)
    parser.add_argument("--operation", nargs="+", required=True, choices=list(OPERATIONS))
    parser.add_argument("--case", nargs="+")
    parser.add_argument("--provider", nargs="+")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--tests", default="skip")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args(None if arguments is None else list(arguments))


if __name__ == "__main__":
    sys.exit(main())
