"""Rows against each other: speed-ups, and the bars they are to clear."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from benchmarks.core import Bar, Operation
from benchmarks.results import Key, Row

Rows = Mapping[Key, Row]


class RefusedError(ValueError):
    """A speed-up of a provider whose result is outside the accuracy contract."""


class Verdict(NamedTuple):
    """How a bar was met; `text` is PASS, short, wrong or not measured."""

    bar: Bar
    variant: str
    got: float | None
    text: str


def by_key(rows: Iterable[Row]) -> dict[Key, Row]:
    return {row.key: row for row in rows}


def speed_up(ours: Row, baseline: Row) -> float:
    """How many times faster `ours` is.

    Raises:
        RefusedError: ours is wrong, and its speed means nothing.
    """
    _right(ours)
    return baseline.median_ms / ours.median_ms


def memory_saved(ours: Row, baseline: Row) -> float | None:
    """How many times less memory `ours` needs, if both were measured; less than 1 MB counts as 1."""
    _right(ours)
    if ours.memory_mb is None or baseline.memory_mb is None:
        return None
    return baseline.memory_mb / max(ours.memory_mb, 1.0)


def verdicts(operation: Operation[Any], rows: Rows, cases: Iterable[str]) -> Iterator[Verdict]:
    """Every bar of the cases in every variant it holds for, on one thread."""
    chosen = set(cases)
    for bar in operation.bars:
        if bar.case not in chosen:
            continue
        for variant, factor in operation.variants.items():
            if bar.quantity == "time":
                lowered = replace(bar, times=bar.times * factor)
                yield _verdict(operation.name, rows, lowered, variant)
            elif variant == next(iter(operation.variants)):
                yield _verdict(operation.name, rows, bar, variant)


def _verdict(operation: str, rows: Rows, bar: Bar, variant: str) -> Verdict:
    ours, baseline = (rows.get((operation, bar.case, variant, name, 1)) for name in (bar.provider, bar.baseline))
    if ours is None or baseline is None:
        return Verdict(bar, variant, None, "not measured")
    try:
        got = speed_up(ours, baseline) if bar.quantity == "time" else memory_saved(ours, baseline)
    except RefusedError:
        return Verdict(bar, variant, None, "wrong")
    if got is None:
        return Verdict(bar, variant, None, "not measured")
    return Verdict(bar, variant, got, "PASS" if got >= bar.times else "short")


def _right(row: Row) -> None:
    if row.status != "ok":
        raise RefusedError(f"{row.provider} on {row.case} is {row.error_bounds} times its error bound")
