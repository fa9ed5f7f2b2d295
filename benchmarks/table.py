"""Writes the generated tables between the markers of README.md and docs/benchmarks.md: `python -m benchmarks.table`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import compare, results
from benchmarks.cells import markdown, number, percent, scientific
from benchmarks.compare import RefusedError, Rows
from benchmarks.core import Operation
from benchmarks.gpu import page, predict, rows
from benchmarks.machine import ROOT
from benchmarks.registry import OPERATIONS
from benchmarks.results import Row
from benchmarks.solvers import page as solvers_page
from benchmarks.solvers import rows as solvers_rows

NOTHING = "Nothing was measured yet."


def summary(rows: Rows) -> str:
    """One line for each case and variant: the provider that the bars are about, beside their baselines."""
    return "\n\n".join(_origin(operation, rows) + "\n\n" + _summary(operation, rows) for operation in _present(rows))


def full(rows: Rows) -> str:
    """The summary, the goals, and every row."""
    parts = []
    for operation in _present(rows):
        parts += [f"### {operation.name}", _origin(operation, rows), _summary(operation, rows)]
        parts += ["#### Goals", goals(operation, rows)]
        blocks = dict.fromkeys((row.case, row.variant, row.threads) for row in _of(operation, rows))
        for case, variant, threads in sorted(blocks, key=lambda block: _place(operation, *block)):
            count = "1 thread" if threads == 1 else f"{threads} threads"
            parts += [f"#### {case}, {variant}, {count}", block_table(operation, rows, case, variant, threads)]
    return "\n\n".join(parts)


def goals(operation: Operation[Any], rows: Rows) -> str:
    """The bars of the cases that were measured, and whether they are cleared, on one thread."""
    lines = []
    for bar, variant, got, text in compare.verdicts(operation, rows, {row.case for row in _of(operation, rows)}):
        what = "faster" if bar.quantity == "time" else "less memory"
        reached = "–" if got is None else f"{number(got)}×"
        lines.append((bar.case, variant, f"{what} than {bar.baseline}", f"{number(bar.times)}×", reached, text))
    return markdown(("case", "noise levels", f"{operation.bars[0].provider} is", "goal", "measured", "verdict"), lines)


def block_table(operation: Operation[Any], rows: Rows, case: str, variant: str, threads: int) -> str:
    """The rows of one case and variant with so many threads, in the order of the registry."""
    ours = operation.bars[0].provider
    header = (
        "provider", "ms", "p10–p90", "repeats", f"{ours} is faster", "memory MB", "error / bound", "relative error",
        "Gpairs/s", "GFLOP/s", "of matrix ceiling", "bound by", "of that bound", "remark",
    )  # fmt: skip
    lines = []
    reference = rows.get((operation.name, case, variant, ours, threads))
    for provider in operation.providers:
        row = rows.get((operation.name, case, variant, provider.name, threads))
        if row is None:
            continue
        remark = "; ".join(filter(None, (row.remark, "outside the accuracy contract" if row.status == "wrong" else "")))
        lines.append((
            row.provider, number(row.median_ms), f"{number(row.p10_ms)}–{number(row.p90_ms)}", str(row.repeats),
            "" if row is reference else _times(reference, row), number(row.memory_mb), number(row.error_bounds),
            scientific(row.error_relative), number(row.gpairs_per_s), number(row.gflop_per_s),
            percent(row.matrix_share), row.bound, percent(row.bound_share), remark,
        ))  # fmt: skip
    return markdown(header, lines)


def _summary(operation: Operation[Any], rows: Rows) -> str:
    ours = operation.bars[0].provider
    baselines = list(dict.fromkeys(bar.baseline for bar in operation.bars))
    first = next(iter(operation.variants))
    counts = sorted({row.threads for row in _of(operation, rows)})
    header = ["case", "noise levels", *(f"{ours}, {n} thread{'s' * (n > 1)}, ms" for n in counts)]
    header += [f"× faster than {name}" for name in baselines]
    header += [f"× less memory than {name}" for name in baselines] + ["error / bound"]
    lines = []
    for case in operation.cases:
        for variant in operation.variants:
            mine = [rows.get((operation.name, case, variant, ours, n)) for n in counts]
            peers = [rows.get((operation.name, case, variant, name, counts[0])) for name in baselines]
            if mine[0] is None:
                continue
            cells = [case, variant, *("" if row is None else number(row.median_ms) for row in mine)]
            cells += [_times(mine[0], peer) for peer in peers]
            cells += [_less(mine[0], peer) if variant == first else "" for peer in peers]
            lines.append((*cells, number(mine[0].error_bounds)))
    return markdown(tuple(header), lines)


def _times(ours: Row | None, baseline: Row | None) -> str:
    """The speed-up, in plain words where the other is the faster one; none of a wrong result."""
    if ours is None or baseline is None:
        return ""
    try:
        times = compare.speed_up(ours, baseline)
    except RefusedError:
        return "wrong"
    return f"{number(times)}×" if times >= 1 else f"{number(times)}×, this one is faster"


def _less(ours: Row, baseline: Row | None) -> str:
    try:
        times = None if baseline is None else compare.memory_saved(ours, baseline)
    except RefusedError:
        return "wrong"
    return "" if times is None else f"{number(times)}×"


def _origin(operation: Operation[Any], rows: Rows) -> str:
    """What its rows came from; more than one commit or date means that they were not measured in one run."""
    values = {n: sorted({str(getattr(row, n)) for row in _of(operation, rows)}) for n in Row.__dataclass_fields__}
    machine, torch, commit, date = (", ".join(values[name]) for name in ("machine", "torch", "commit", "date"))
    return f"{machine}; PyTorch {torch}; commit {commit}; {date}."


def _present(rows: Rows) -> Iterator[Operation[Any]]:
    names = {row.operation for row in rows.values()}
    return (operation for name, operation in OPERATIONS.items() if name in names)


def _of(operation: Operation[Any], rows: Rows) -> list[Row]:
    return [row for row in rows.values() if row.operation == operation.name and row.case in operation.cases]


def _place(operation: Operation[Any], case: str, variant: str, threads: int) -> tuple[int, int, int]:
    variants = list(operation.variants)
    return list(operation.cases).index(case), variants.index(variant) if variant in variants else len(variants), threads


def render(text: str, marker: str, body: str) -> str:
    """The text of a page with what stands between the markers made anew.

    Raises:
        ValueError: it does not have each marker once, in order.
    """
    before, after = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
    head, begin, rest = text.partition(before)
    _, end, tail = rest.partition(after)
    if not (begin and end) or before in rest or after in tail:
        raise ValueError(f"the page must hold {before} and after it {after}, once each")
    return f"{head}{before}\n{body}\n{after}{tail}"


def measured(folder: Path = results.FOLDER) -> dict[str, Rows]:
    """The rows of every machine's CPU, by file name."""
    others = rows.PREFIX, solvers_rows.PREFIX
    paths = (path for path in sorted(folder.glob("*.csv")) if not path.name.startswith(others))
    return {path.name: compare.by_key(results.read(path, Row)) for path in paths}


def on_cpus(part: Callable[[Rows], str]) -> str:
    return "\n\n".join(map(part, measured().values())) or NOTHING


def on_gpus(folder: Path = results.FOLDER) -> str:
    paths = sorted(folder.glob(f"{rows.PREFIX}*.csv"))
    return "\n\n".join(page.full(results.read(path, rows.Row)) for path in paths) or NOTHING


def of_solvers(folder: Path = results.FOLDER) -> str:
    return "\n\n".join(map(solvers_page.full, solvers_rows.tables(folder).values())) or NOTHING


SECTIONS: tuple[tuple[str, str, Callable[[], str]], ...] = (
    ("README.md", "benchmarks", partial(on_cpus, summary)),
    ("docs/benchmarks.md", "benchmarks", partial(on_cpus, full)),
    ("docs/benchmarks.md", "gpu", on_gpus),
    ("docs/benchmarks.md", "predicted", predict.text),
    ("docs/benchmarks.md", "solvers", of_solvers),
)


def stale(root: Path = ROOT) -> dict[str, str]:
    """The pages that no longer say what the CSV files say, as they should be."""
    pages = {name: (root / name).read_text(encoding="utf-8") for name, _, _ in SECTIONS}
    fresh = dict(pages)
    for name, marker, body in SECTIONS:
        fresh[name] = render(fresh[name], marker, body())
    return {name: text for name, text in fresh.items() if text != pages[name]}


def main() -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__).parse_args()
    for name, text in stale().items():
        (ROOT / name).write_text(text, encoding="utf-8")
        print(f"wrote {name}")


if __name__ == "__main__":
    main()
