"""Rows of measurements and their CSV files, one for each device; a row replaces the one of the same key."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

OK, WRONG, PART, SKIPPED = "ok", "wrong", "part", "skipped"

# Of a row's tests. A user's own run has none; there, each result's error against float64 in that run is the test.
PASSED, NOT_RUN, OWN_CHECK = "passed", "not run", "own check"


class Key(NamedTuple):
    """What is measured: the first columns of a row."""

    operation: str
    case: str
    variant: str
    provider: str
    setting: str = ""
    threads: int = 1


class RefusedError(ValueError):
    """A speed-up of a provider whose result is outside the accuracy contract, or whose tests did not pass.

    `word` says it in a cell.
    """

    def __init__(self, word: str, why: str) -> None:
        super().__init__(why)
        self.word = word


@dataclass(frozen=True)
class Row:
    """One provider on one case. The columns are explained in docs/benchmarks.md."""

    operation: str
    case: str
    variant: str
    provider: str
    setting: str
    threads: int
    status: str  # ok, wrong, part or skipped
    median_ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    repeats: int = 0
    memory_mb: float | None = None
    error_bounds: float | None = None
    error_median: float | None = None
    error_p99: float | None = None
    error_max: float | None = None
    evaluations: float | None = None
    calls: int | None = None
    gpairs_per_s: float | None = None
    gflop_per_s: float | None = None
    bound: str = ""
    bound_share: float | None = None
    copy_gb_per_s: float | None = None
    matrix_gflop_per_s: float | None = None
    half_gflop_per_s: float | None = None
    int8_gop_per_s: float | None = None
    log_exp_g_per_s: float | None = None
    remark: str = ""
    tests: str = ""  # passed, not run or own check
    machine: str = ""
    device: str = ""
    versions: str = ""
    pfgm_fast: str = ""
    commit: str = ""
    date: str = ""

    @property
    def key(self) -> Key:
        return Key(self.operation, self.case, self.variant, self.provider, self.setting, self.threads)

    @property
    def label(self) -> str:
        return f"{self.provider}, {self.setting}" if self.setting else self.provider


class Table:
    """The rows of one device."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.rows = {row.key: row for row in rows}

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows.values())

    def __bool__(self) -> bool:
        return bool(self.rows)

    def get(self, *key: Any, **names: Any) -> Row | None:
        """The measured row of a `Key` by its fields."""
        row = self.rows.get(Key(*key, **names))
        return None if row is None or row.status == SKIPPED else row

    def where(self, **columns: object) -> Table:
        """The rows with these values."""
        return Table(row for row in self if all(getattr(row, name) == value for name, value in columns.items()))

    def values(self, column: str) -> list[Any]:
        """The different values of a column in the order of the rows."""
        return list(dict.fromkeys(getattr(row, column) for row in self))


def speed_up(ours: Row | None, baseline: Row | None) -> float | None:
    """How many times faster `ours` is; None where one was not measured.

    Raises:
        RefusedError: ours is wrong or not tested, and its speed means nothing.
    """
    if ours is None or baseline is None or ours.median_ms is None or baseline.median_ms is None:
        return None
    _right(ours)
    return baseline.median_ms / ours.median_ms


def memory_saved(ours: Row | None, baseline: Row | None) -> float | None:
    """How many times less memory `ours` needs, if both were measured; less than 1 MB counts as 1."""
    if ours is None or baseline is None or ours.memory_mb is None or baseline.memory_mb is None:
        return None
    _right(ours)
    return baseline.memory_mb / max(ours.memory_mb, 1.0)


def _right(row: Row) -> None:
    if row.status == WRONG:
        raise RefusedError("wrong", f"{row.label} on {row.case} is {row.error_bounds} times its error bound")
    if row.tests != PASSED and not (row.tests == OWN_CHECK and row.error_bounds is not None):
        raise RefusedError("untested", f"{row.label} on {row.case} was measured without its tests")


_READ: dict[str, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "float | None": lambda text: float(text) if text else None,
    "int | None": lambda text: int(text) if text else None,
}


def read(path: Path) -> Table:
    """The rows of a file, none where it does not exist. Raises ValueError for a file of something else."""
    if not path.exists():
        return Table()
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        lacking = [field.name for field in fields(Row) if field.name not in (reader.fieldnames or ())]
        if lacking:
            raise ValueError(f"{path} must be a CSV file of measurements, but has no column {lacking[0]!r}")
        lines = list(reader)
    return Table(
        Row(**{field.name: _READ[str(field.type)](line[field.name]) for field in fields(Row)}) for line in lines
    )


def update(path: Path, rows: Iterable[Row]) -> None:
    """Puts rows into a file, replacing those of the same key. An interruption leaves the old file."""
    merged = Table([*read(path), *rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    with draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _text(value) for name, value in asdict(row).items()} for row in merged)
    os.replace(draft, path)


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
