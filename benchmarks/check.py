"""This tree beside another revision of the library: `python -m benchmarks.run --check BASE`.

The other revision is built once, into build/check/<commit>. A process of each measures with this tree's benchmarks, in
turns, call by call.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from benchmarks.checkout import ROOT
from benchmarks.worker import blocks
from pfgm_fast.bench.cells import Line, aligned, number
from pfgm_fast.bench.measure import Block

BUILDS = ROOT / "build" / "check"
SECONDS, QUICK_SECONDS, LEAST, MOST = 2.0, 0.3, 5, 51  # for the repeats of a provider in each revision
HEADER = ("case", "ms before", "ms now", "times faster", "middle half", "pairs of calls")


class RevisionError(ValueError):
    """A revision that cannot be had."""


class DiedError(RuntimeError):
    """A process that measures ended: that revision lacks something that the benchmarks use, most likely."""


class Compared(NamedTuple):
    """Seconds of calls that took turns."""

    before: list[float]
    now: list[float]

    def line(self, what: str) -> Line:
        ratios = sorted(a / b for a, b in zip(self.before, self.now, strict=True))
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        times = number(median(self.before) / median(self.now))
        milliseconds = (number(1e3 * median(taken)) for taken in self)
        return (what, *milliseconds, times, f"{number(low)}–{number(high)}", str(len(ratios)))


class Revision:
    """A process that measures with one build of the library, and answers in lines of JSON."""

    def __init__(self, library: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.check_worker", str(library)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def ask(self, **what: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise DiedError(f"the process that measures ended with {self._process.wait()}")
        return json.loads(answer)

    def __enter__(self) -> Revision:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()


def main(base: str, operations: Sequence[str], cases: list[str] | None, quick: bool) -> int:
    """Prints how many times faster this tree is, for every provider of ours, on one thread of the CPU."""
    try:
        before = built(base, commit_of(base))
    except RevisionError as error:
        print(error, file=sys.stderr)
        return 2
    chosen = blocks(list(operations), cases, torch.device("cpu"), threads=1)
    lines: list[Line] = []
    with ExitStack() as stack:
        revisions = [stack.enter_context(Revision(library)) for library in (before, ROOT)]
        try:
            for block in tqdm(chosen, unit="block", file=sys.stderr):
                lines += compare(block, revisions, QUICK_SECONDS if quick else SECONDS)
        except (KeyboardInterrupt, DiedError) as stop:
            print(f"stopped: {str(stop) or 'interrupted'}; what was measured until then:", file=sys.stderr)
    print(f"{base} ({before.name}) beside this tree\n\n{aligned(HEADER, lines)}")
    return 0


def compare(block: Block, revisions: Sequence[Revision], seconds: float) -> list[Line]:
    """The lines of one block: of the providers that both revisions have."""
    place = {"operation": block.operation.name, "case": block.case, "variant": block.variant}
    first, second = (revision.ask(prepare=place) for revision in revisions)
    lines = []
    for label in first:
        if label not in second:
            continue
        what = f"{block.operation.name} {block.case}, {block.variant}: {label}"
        if not (first[label] and second[label]):
            lines.append((what, *("wrong" * (not right[label]) for right in (first, second)), "", "", ""))
            continue
        taken: tuple[list[float], list[float]] = ([], [])
        while len(taken[0]) < MOST and (len(taken[0]) < LEAST or sum(map(sum, taken)) < 2 * seconds):
            turns = list(zip(revisions, taken, strict=True))
            for revision, times in turns if len(taken[0]) % 2 == 0 else reversed(turns):
                times.append(revision.ask(call=label))
        lines.append(Compared(*taken).line(what))
    return lines


def commit_of(revision: str) -> str:
    """Its full name.

    Raises:
        RevisionError: git knows no such revision.
    """
    found = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if found.returncode:
        raise RevisionError(f"--check must name a revision, got {revision!r}, which git does not know")
    return found.stdout.strip()


def built(revision: str, commit: str) -> Path:
    """The folder that has the library of a revision, built if it was not yet.

    Raises:
        RevisionError: it does not build.
    """
    folder = BUILDS / commit[:12]
    if folder.exists():
        return folder
    print(f"building {revision} ...", file=sys.stderr)
    with tempfile.TemporaryDirectory() as scratch:
        tree, draft = Path(scratch) / "tree", folder.with_suffix(".part")
        subprocess.run(["git", "clone", "--quiet", "--shared", str(ROOT), str(tree)], check=True)
        subprocess.run(["git", "checkout", "--quiet", commit], cwd=tree, check=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--no-index",
                   "--upgrade", "--target", str(draft), str(tree)]  # fmt: skip
        environment = os.environ | {"PFGM_EXT": "on", "PFGM_CUDA": "off"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RevisionError(f"--check {revision}: it does not build:\n{done.stdout}{done.stderr}")
        draft.rename(folder)
    return folder
