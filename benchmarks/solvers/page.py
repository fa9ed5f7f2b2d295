"""The tables of the solvers for docs/benchmarks.md, from the CSV files."""

from __future__ import annotations

from benchmarks.cells import markdown, number, scientific
from benchmarks.solvers import bars, linear, nfe, overhead, peers, poisson
from benchmarks.solvers.rows import Row, Table

FIGURES = {
    "solvers-time-error": "Time against the p99 error on the Poisson field, one thread",
    "solvers-nfe": "Median error against evaluations, D = 128",
}


def full(table: Table) -> str:
    """Origin, goals, and a table for each problem."""
    figures = (f"![{words}](figures/{name}.png)" for name, words in FIGURES.items())
    time_error, by_nfe = figures
    parts = [_origin(table), "#### Goals", goals(table)]
    for threads in _threads(table, poisson.NAME):
        parts += [f"#### Poisson field, {_count(threads)}", _poisson(table, threads)]
    parts.append(time_error)
    for threads in _threads(table, linear.NAME):
        parts += [f"#### Linear problems of mixed stiffness, {_count(threads)}", _linear(table, threads)]
    for threads in _threads(table, overhead.NAME):
        parts += [f"#### Host time of an evaluation, {_count(threads)}", _overhead(table, threads)]
    if table.of(nfe.NAME):
        parts += ["#### Error against evaluations", _nfe(table), by_nfe]
    return "\n\n".join(parts)


def goals(table: Table) -> str:
    lines = [
        (v.what, f"{'≥' if v.at_least else '≤'} {number(v.bar)}", number(v.got) or "–", v.text, v.remark)
        for v in bars.verdicts(table)
    ]
    return markdown(("what", "goal", "measured", "verdict", "remark"), lines)


def _poisson(table: Table, threads: int) -> str:
    header = ("provider", "rtol = atol", "ms", "p10–p90", "repeats", "evaluations of a row", "calls",
              "median error", "p99 error", "max error", "pfgm_fast is faster at no worse p99")  # fmt: skip
    lines = []
    for row in _sorted(table.of(poisson.NAME, threads=threads), (poisson.OURS, *peers.NAMES, poisson.PUBLISHED)):
        mine = None if row.provider == poisson.OURS else bars.match(table, row)
        lines.append((
            row.provider, row.setting, *_times(row), number(row.evaluations), str(row.calls), *_errors(row),
            "" if mine is None else _ratio(row, mine),
        ))  # fmt: skip
    check = table.get(poisson.NAME, poisson.REFERENCE, "16 rows", threads)
    text = markdown(header, lines)
    if check is None:
        return text
    distance = scientific(check.error_max)
    return f"{text}\n\nThe reference differs from SciPy's DOP853 at 1e-10 by {distance} at most on 16 rows."


def _linear(table: Table, threads: int) -> str:
    header = ("provider", "ms", "p10–p90", "repeats", "evaluations of a row", "calls", "median error",
              "p99 error", "max error", "pfgm_fast is faster")  # fmt: skip
    mine = bars.best_linear(table, threads)
    lines = [
        (row.provider, *_times(row), number(row.evaluations), str(row.calls), *_errors(row, plain=True),
         "" if mine is None or row.provider in (linear.OURS, linear.OURS_SMALL) else _ratio(row, mine))
        for row in table.of(linear.NAME, threads=threads)
    ]  # fmt: skip
    return markdown(header, lines)


def _overhead(table: Table, threads: int) -> str:
    lines = [
        (row.provider, number(bars.per_call(row)), number(row.median_ms), str(row.calls))
        for row in table.of(overhead.NAME, threads=threads)
    ]
    return markdown(("provider", "ms an evaluation", "ms of the solve", "evaluations"), lines)


def _nfe(table: Table) -> str:
    counts = [str(n) for n in nfe.EVALUATIONS]
    lines = []
    for solver in nfe.FIXED:
        rows = [table.get(nfe.NAME, solver, count) for count in counts]
        lines.append((solver, *("" if row is None else scientific(row.error_median) for row in rows)))
    adaptive = ", ".join(
        f"{scientific(row.error_median)} with {number(row.evaluations)}" for row in table.of(nfe.NAME, nfe.ADAPTIVE)
    )
    return f"{markdown(('solver', *counts), lines)}\n\n{nfe.ADAPTIVE}, by tolerance: {adaptive}."


def _times(row: Row) -> tuple[str, str, str]:
    return number(row.median_ms), f"{number(row.p10_ms)}–{number(row.p90_ms)}", str(row.repeats)


def _errors(row: Row, plain: bool = False) -> tuple[str, ...]:
    write = number if plain else scientific
    return tuple(write(error) for error in (row.error_median, row.error_p99, row.error_max))


def _ratio(peer: Row, mine: Row) -> str:
    times = peer.median_ms / mine.median_ms
    return f"{number(times)}×" if times >= 1 else f"{number(times)}×, this one is faster"


def _sorted(rows: list[Row], providers: tuple[str, ...]) -> list[Row]:
    known = [row for row in rows if row.provider in providers]
    return sorted(known, key=lambda row: (providers.index(row.provider), -float(row.setting)))


def _threads(table: Table, problem: str) -> list[int]:
    return sorted({row.threads for row in table.rows.values() if row.problem == problem})


def _count(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def _origin(table: Table) -> str:
    """What the rows came from; more than one commit or date means that they were not measured in one run."""
    columns = ("machine", "versions", "commit", "date")
    values = {name: sorted({str(getattr(row, name)) for row in table.rows.values()}) for name in columns}
    machine, versions, commit, date = (" / ".join(values[name]) for name in columns)
    return f"{machine}; {versions}; commit {commit}; {date}."
