"""The counts on file, and what is said of those counted now."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.instructions.program import Tools

FILE = Path(__file__).parent / "counts.csv"
ALLOWED = 0.03  # relative, in both directions
WRITE = "python -m benchmarks.instructions --write"

Case = tuple[str, str]
"""A name and an instruction set."""


class Count(NamedTuple):
    """One case. The tools are repeated in every row, so that a difference of two files shows them."""

    case: str
    isa: str
    instructions: int
    compiler: str
    libc: str
    valgrind: str

    @property
    def key(self) -> Case:
        return self.case, self.isa


@dataclass(frozen=True)
class Verdict:
    """What was counted beside what is on file; None where a case is missing."""

    case: str
    isa: str
    counted: int | None
    on_file: int | None

    @property
    def ratio(self) -> float | None:
        return None if self.counted is None or self.on_file is None else self.counted / self.on_file

    @property
    def fault(self) -> str:
        """What is wrong, or nothing."""
        if self.on_file is None:
            return f"not on file: {WRITE}"
        if self.counted is None:
            return f"on file, but no longer a case: {WRITE}"
        if self.counted > self.on_file * (1 + ALLOWED):
            return "more instructions"
        if self.counted < self.on_file * (1 - ALLOWED):
            return f"better: {WRITE}"
        return ""

    def __str__(self) -> str:
        numbers = [f"{n:>12,}" if n is not None else f"{'-':>12}" for n in (self.counted, self.on_file)]
        ratio = f"{self.ratio:.4f}" if self.ratio is not None else f"{'-':>6}"
        return f"{self.case:<36} {self.isa:<5} {' '.join(numbers)} {ratio}"


HEADER = f"{'case':<36} {'set':<5} {'counted':>12} {'on file':>12} ratio"


def read(path: Path) -> list[Count]:
    """None where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [Count(case, isa, int(number), *tools) for case, isa, number, *tools in list(csv.reader(file))[1:]]


def write(counted: Mapping[Case, int], tools: Tools, path: Path) -> None:
    """Replaces the whole file; an interruption leaves the old one."""
    draft = path.with_suffix(".part")
    with draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Count._fields)
        writer.writerows(Count(*case, instructions, *tools) for case, instructions in counted.items())
    draft.replace(path)


def verdicts(counted: Mapping[Case, int], on_file: list[Count]) -> list[Verdict]:
    """Of all cases, on file or not."""
    known = {row.key: row.instructions for row in on_file}
    return [Verdict(*case, counted.get(case), known.get(case)) for case in dict.fromkeys([*counted, *known])]


def incomparable(on_file: list[Count], tools: Tools) -> str:
    """Why counts made with these tools say nothing about those on file; empty if they do."""
    others = {Tools(row.compiler, row.libc, row.valgrind) for row in on_file} - {tools}
    if not others:
        return ""
    return f"the counts on file cannot be compared: they are of {_listed(others)}; here is {_listed([tools])}"


def _listed(many: set[Tools] | list[Tools]) -> str:
    return " and of ".join(", ".join(each) for each in sorted(many))
