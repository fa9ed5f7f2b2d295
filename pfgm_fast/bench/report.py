"""Rows as tables."""

from __future__ import annotations

from typing import Any

from pfgm_fast.bench.cells import Line, number, percent, scientific, without_empty
from pfgm_fast.bench.core import Operation
from pfgm_fast.bench.rows import SKIPPED, WRONG, RefusedError, Row, Table, speed_up

COLUMNS = (
    "provider", "ms", "p10–p90", "repeats", "pfgm_fast is", "memory MB", "error / bound", "median error", "p99 error",
    "max error", "evaluations", "calls", "Gpairs/s", "GFLOP/s", "bound by", "of that bound", "remark",
)  # fmt: skip


def block(operation: Operation[Any], rows: Table) -> tuple[Line, list[Line]]:
    """Header and lines of the rows of one case in one variant with so many threads; empty columns are left out."""
    return without_empty(COLUMNS, [_line(operation, rows, row) for row in rows])


def _line(operation: Operation[Any], rows: Table, row: Row) -> Line:
    if row.status == SKIPPED:
        return (row.label, "skipped", *[""] * (len(COLUMNS) - 3), row.remark)
    solved = row.calls is not None and row.calls > 1
    wrong = "outside the accuracy contract" if row.status == WRONG else ""
    return (
        row.label, number(row.median_ms), f"{number(row.p10_ms)}–{number(row.p90_ms)}", str(row.repeats),
        compared(operation.rival(rows, row), row), number(row.memory_mb), number(row.error_bounds),
        scientific(row.error_median), scientific(row.error_p99), scientific(row.error_max),
        number(row.evaluations) if solved else "", str(row.calls) if solved else "", number(row.gpairs_per_s),
        number(row.gflop_per_s), row.bound, percent(row.bound_share), "; ".join(filter(None, (row.remark, wrong))),
    )  # fmt: skip


def compared(ours: Row | None, row: Row) -> str:
    """The speed-up of ours in plain words; none of a wrong result."""
    if ours is None or ours.key == row.key:
        return ""
    try:
        times = speed_up(ours, row)
    except RefusedError as refused:
        return refused.word
    return "" if times is None else faster(times)


def faster(times: float) -> str:
    return f"{number(times)}× faster" if times >= 1 else f"{number(1 / times)}× slower"


def bare_times(times: float | None) -> str:
    if times is None:
        return ""
    return f"{number(times)}×" if times >= 1 else f"{number(times)}×, this one is faster"
