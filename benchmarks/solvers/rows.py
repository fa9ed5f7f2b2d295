"""The rows of the solvers' benchmarks: one provider with one setting on one problem, with so many threads."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import results
from benchmarks.results import FOLDER

PREFIX = "solvers-"
PACKAGES = ("torch", "numpy", "scipy", "torchdiffeq", "torchode", "jax", "diffrax")

Key = tuple[str, str, str, int]


@dataclass(frozen=True)
class Row:
    """The columns are explained in docs/benchmarks.md."""

    problem: str
    provider: str
    setting: str
    threads: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    repeats: int
    evaluations: float
    calls: int
    error_median: float | None
    error_p99: float | None
    error_max: float | None
    versions: str
    machine: str
    pfgm_fast: str
    commit: str
    date: str

    @property
    def key(self) -> Key:
        return self.problem, self.provider, self.setting, self.threads


class Table:
    """The rows of one machine."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = {row.key: row for row in rows}

    def get(self, problem: str, provider: str, setting: str, threads: int = 1) -> Row | None:
        return self.rows.get((problem, provider, setting, threads))

    def of(self, problem: str, provider: str | None = None, threads: int = 1) -> list[Row]:
        """In the order in which they were first measured."""
        return [
            row
            for row in self.rows.values()
            if row.problem == problem and row.threads == threads and provider in (None, row.provider)
        ]


def tables(folder: Path = FOLDER) -> dict[str, Table]:
    """By file name, the rows of every machine."""
    return {path.name: Table(results.read(path, Row)) for path in sorted(folder.glob(f"{PREFIX}*.csv"))}


def versions() -> str:
    """Of all the packages that are compared, as far as they are installed."""
    return ", ".join(f"{name} {found}" for name in PACKAGES if (found := version(name)))


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
