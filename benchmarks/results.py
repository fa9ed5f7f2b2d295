"""Rows of measurements and their CSV files, one for each machine; a row replaces the one of the same key."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Hashable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

FOLDER = Path(__file__).parent / "results"

Key = tuple[str, str, str, str, int]


class Keyed(Protocol):
    """A dataclass whose fields are the columns of a file."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def key(self) -> Hashable: ...


Kind = TypeVar("Kind", bound=Keyed)


@dataclass(frozen=True)
class Row:
    """One provider on one case. The columns are explained in docs/benchmarks.md."""

    operation: str
    case: str
    variant: str
    provider: str
    threads: int
    status: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    repeats: int
    memory_mb: float | None
    error_bounds: float | None
    error_relative: float | None
    gpairs_per_s: float
    gflop_per_s: float
    matrix_share: float
    bound: str
    bound_share: float
    matrix_gflop_per_s: float
    copy_gb_per_s: float
    log_exp_g_per_s: float
    remark: str
    machine: str
    torch: str
    pfgm_fast: str
    commit: str
    date: str

    @property
    def key(self) -> Key:
        return self.operation, self.case, self.variant, self.provider, self.threads


_READ: dict[str, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "float": float,
    "float | None": lambda text: float(text) if text else None,
}


def read(path: Path, kind: type[Kind]) -> list[Kind]:
    """The rows of a file, none where it does not exist."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return [kind(**{field.name: _READ[str(field.type)](line[field.name]) for field in fields(kind)}) for line in lines]


def update(path: Path, rows: Iterable[Kind], kind: type[Kind]) -> None:
    """Puts rows into a file, replacing those of the same key. An interruption leaves the old file."""
    merged = {row.key: row for row in [*read(path, kind), *rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    with draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(kind)], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _text(value) for name, value in asdict(row).items()} for row in merged.values())
    os.replace(draft, path)


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
