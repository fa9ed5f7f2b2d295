"""What the solvers are to show, and whether they do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.solvers import linear, nfe, overhead, peers, poisson
from benchmarks.solvers.rows import Row, Table

TIMES, UNITS, MILLISECONDS = 10.0, 10.0, 1.0
UNIPC = {"20": 5e-3, "40": 5e-4}


class Verdict(NamedTuple):
    """A goal: `got` is to be at least, or at most, `bar`; text is PASS, short or not measured."""

    what: str
    bar: float
    got: float | None
    at_least: bool
    remark: str = ""

    @property
    def text(self) -> str:
        if self.got is None:
            return "not measured"
        return "PASS" if (self.got >= self.bar if self.at_least else self.got <= self.bar) else "short"


def verdicts(table: Table) -> Iterator[Verdict]:
    """All bars, on one thread."""
    for name in peers.NAMES:
        peer = table.get(poisson.NAME, name, poisson.setting(poisson.BAR))
        mine = None if peer is None else match(table, peer)
        got = None if peer is None or mine is None else peer.median_ms / mine.median_ms
        remark = "" if mine is None else f"at {mine.setting}"
        yield Verdict(f"poisson: × faster than {name} at equal p99 error", TIMES, got, True, remark)
    mine, peer = best_linear(table), table.get(linear.NAME, peers.DIFFRAX, linear.SETTING)
    got = None if mine is None or peer is None else peer.median_ms / mine.median_ms
    yield Verdict(f"linear: × faster than {peers.DIFFRAX}", 1.0, got, True, "" if mine is None else mine.provider)
    worst = None if mine is None else mine.error_max
    yield Verdict("linear: worst error in units of the tolerance", UNITS, worst, False)
    for provider in overhead.OURS:
        row = table.get(overhead.NAME, provider, "")
        got = None if row is None else per_call(row)
        yield Verdict(f"overhead: ms an evaluation, {provider}", MILLISECONDS, got, False)
    for evaluations, bar in UNIPC.items():
        row = table.get(nfe.NAME, "unipc", evaluations)
        got = None if row is None else row.error_median
        yield Verdict(f"nfe: median error of unipc at {evaluations}", bar, got, False)


def match(table: Table, peer: Row) -> Row | None:
    """The fastest row of ours on the Poisson field whose p99 error is no worse than the peer's."""
    mine = table.of(poisson.NAME, poisson.OURS, peer.threads)
    good = [row for row in mine if row.error_p99 is not None and row.error_p99 <= (peer.error_p99 or 0)]
    return min(good, key=lambda row: row.median_ms, default=None)


def best_linear(table: Table, threads: int = 1) -> Row | None:
    rows = [table.get(linear.NAME, name, linear.SETTING, threads) for name in (linear.OURS, linear.OURS_SMALL)]
    return min((row for row in rows if row is not None), key=lambda row: row.median_ms, default=None)


def per_call(row: Row) -> float:
    return row.median_ms / row.calls
