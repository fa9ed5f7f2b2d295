"""Writes the generated parts of README.md and docs from the CSV files: `python -m benchmarks.table`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

from benchmarks import accuracy, bars, plot, scaling, shapes
from benchmarks import training_target as target
from benchmarks.bars import on_gpu
from benchmarks.checkout import ROOT
from benchmarks.gpu import predict
from benchmarks.registry import OPERATIONS
from benchmarks.solvers import peers, poisson
from benchmarks.solvers.solve import setting
from pfgm_fast.bench import posterior_mean as pm
from pfgm_fast.bench import report
from pfgm_fast.bench.cells import Line, markdown, number, pick, without_empty
from pfgm_fast.bench.queries import SPREAD, Shape
from pfgm_fast.bench.rows import OK, PART, SKIPPED, WRONG, RefusedError, Row, Table, memory_saved, speed_up

NOTHING = "Nothing was measured yet."
REFERENCES = (pm.ORIGINAL, pm.PRODUCTS)
MARK = "\\*"
FRONT = ("scaling-data", "solvers-time-error")  # figures of the README
FEW = 2  # blocks of an operation whose rows stand on the page
PAGES = (
    "Much of the original formula's time goes to the system, which zeroes memory for each of its tensors; the training "
    "targets below are compared with its arithmetic alone too."
)
EQUAL = 0.99  # less than one per cent is no difference
LEFT_OUT = ("p10–p90", "repeats", "calls", "GFLOP/s")
TARGETS = (target.BATCH, target.ORIGINAL, target.KEPT)


# ---- the README's part


def summary(table: Table) -> str:
    """One line for each size: ours, beside the two expressions that users write and the fastest of all others."""
    header = (
        "field of", "size", "ms, 1 thread", "2 threads", *(f"× faster than {name}" for name in REFERENCES),
        "fastest other", "× faster", f"× less memory than {pm.ORIGINAL}", "error / bound",
    )  # fmt: skip
    lines = [line for shape, words in shapes.WORDS.items() if (line := _summary_line(table, shape, words))]
    note = (
        f"{MARK}: its result is outside the accuracy contract." if any(MARK in cell for cell in sum(lines, ())) else ""
    )
    pages = "" if on_gpu(table) else PAGES
    parts = (origin(table), markdown(*without_empty(header, lines)), f"{note} {pages}".strip(), _whole(table))
    return "\n\n".join(filter(None, parts))


def _summary_line(table: Table, shape: Shape, words: str) -> Line | None:
    block = table.where(operation="posterior_mean", case=shape.name, variant=SPREAD, threads=1)
    operation = OPERATIONS["posterior_mean"]
    ours = next((mine for row in block if (mine := operation.rival(block, row))), None)
    if ours is None:
        return None
    two = table.get(*ours.key._replace(threads=2))
    fastest = min(_alternatives(block), key=lambda row: row.median_ms or 0, default=None)
    original = block.get(*ours.key._replace(provider=pm.ORIGINAL))
    return (
        words, shape.name, number(ours.median_ms), "" if two is None else number(two.median_ms),
        *(_times(ours, block.get(*ours.key._replace(provider=name))) for name in REFERENCES),
        "" if fastest is None else f"{fastest.provider}{MARK * (fastest.status == WRONG)}", _times(ours, fastest),
        _times(ours, original, memory_saved), number(ours.error_bounds),
    )  # fmt: skip


def _whole(table: Table) -> str:
    """Training targets and solves in sentences."""
    said = []
    for case in (target.PFGM, target.PFGMPP):
        ours, *others = (table.get("training_target", case, target.NOISE, name) for name in TARGETS)
        whole, kept = (_ratio(ours, row) for row in others)
        part = any(row is not None and row.status == PART for row in others)
        if ours is not None and whole and kept:
            said.append(
                f"A training target of {case}: {number(ours.median_ms)} ms. The original formula takes "
                f"{number(whole)} times as long, in chunks that keep their memory {number(kept)} times."
                + " The former is extrapolated from a part of the data, as all of them do not fit."
                * part
            )
    found = []
    for peer in peers.NAMES:
        row = table.get(poisson.NAME, poisson.CASE, poisson.VARIANT, peer, setting(poisson.BAR))
        ours = None if row is None else poisson.match(table.where(operation=poisson.NAME, threads=1), row)
        found += [f"{_times(ours, row)} {peer}"] if ours is not None else []
    if found:
        said.append(f"Whole solves of 1,024 samples, faster at no worse an error: {', '.join(found)}.")
    return "\n".join(f"- {sentence}" for sentence in said)


# ---- the page of benchmarks


def full(stem: str, table: Table) -> str:
    """Of one device: origin, goals, where an alternative wins, how it grows, one table for each operation, figures."""
    parts = [f"### {table.values('device')[0]}", origin(table), "#### Goals", markdown(bars.HEADER, bars.lines(table))]
    parts += [ceilings(table), "#### Where an alternative is faster", losses(table)]
    parts += ["#### How it grows", growth(table)]
    for name in OPERATIONS:
        if name in table.values("operation") and name not in scaling.SCALING:
            parts += [f"#### `{name}`", brief(table, name)]
    parts += [f"![{picture.words}](figures/{stem}-{picture.name}.png)" for picture in plot.pictures(table)]
    return "\n\n".join(parts)


def brief(table: Table, name: str) -> str:
    """Of an operation of few blocks their rows on one thread, of others a cell for each provider and block."""
    mine = table.where(operation=name, threads=1)
    blocks = list(dict.fromkeys((row.case, row.variant) for row in mine))
    if name == accuracy.NAME:
        return f"Largest error in units of the accuracy contract.\n\n{matrix(mine, 'error_bounds')}"
    if len(blocks) > FEW:
        return f"ms; {MARK}: outside the accuracy contract, or a part of the work.\n\n{matrix(mine, 'median_ms')}"
    parts = []
    for case, variant in blocks:
        header, lines = report.block(OPERATIONS[name], mine.where(case=case, variant=variant))
        kept = [i for i, column in enumerate(header) if column not in LEFT_OUT]
        parts.append(f"{case}, {variant}:\n\n{markdown(pick(header, kept), [pick(line, kept) for line in lines])}")
    return "\n\n".join(parts)


def matrix(rows: Table, column: str) -> str:
    """A line for each case and variant, a column for each provider."""
    measured = [row for row in rows if row.status != SKIPPED]
    providers = list(dict.fromkeys(row.label for row in measured))
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in measured:
        mark = "" if row.status == OK or column != "median_ms" else MARK
        lines.setdefault((row.case, row.variant), {})[row.label] = f"{number(getattr(row, column))}{mark}"
    cells = [(*block, *(found.get(name, "") for name in providers)) for block, found in lines.items()]
    return markdown(("case", "variant", *providers), cells)


def losses(table: Table) -> str:
    """Every row of a finished result that is faster than ours, in plain words."""
    said = []
    for name, case, variant, threads in dict.fromkeys((r.operation, r.case, r.variant, r.threads) for r in table):
        block = table.where(operation=name, case=case, variant=variant, threads=threads)
        for row in _alternatives(block):
            ours = OPERATIONS[name].rival(block, row)
            times = _ratio(ours, row)
            what = f"- {name}, {case}, {variant}, {_threads(threads)}: {row.label}"
            if ours is None and name == poisson.NAME:
                said.append(f"{what} has a smaller p99 error than any of ours.")
            if ours is None or times is None or times > EQUAL:
                continue
            errors = [number(one.error_bounds) for one in (row, ours) if one.error_bounds is not None]
            error = f"; errors in bounds: {errors[0]}, ours {errors[1]}" if len(errors) == 2 else ""
            said.append(f"{what} is {number(1 / times)}× as fast{error}.")
    return "\n".join(said) or "Nowhere among the rows measured."


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def growth(table: Table) -> str:
    """The fitted exponents of the curves, and what a second thread brings."""
    lines = []
    for name, sizes in scaling.SCALING.items():
        for curve in scaling.curves(name, table):
            last = max(curve.points)
            two = {c.provider: c for c in scaling.curves(name, table, threads=2)}.get(curve.provider)
            second = "" if two is None else number(_wall(curve.points[last], two.points.get(last)))
            lines.append((
                sizes.letter, curve.provider, f"{min(curve.points):,} to {last:,}",
                *(number(curve.points[size].median_ms) for size in (min(curve.points), last)),
                number(curve.exponent()), number(curve.exponent("memory_mb")), second,
            ))  # fmt: skip
    header = (
        "against", "provider", "sizes", "ms at the first", "at the last", "exponent of the time", "of the memory",
        "CPU time of 1 thread over wall time of 2, at the last",
    )  # fmt: skip
    note = "Exponents of a power law through the last two decades of sizes, by least squares in logarithms."
    return f"{note}\n\n{markdown(*without_empty(header, lines))}" if lines else NOTHING


def _wall(one: Row, two: Row | None) -> float | None:
    return None if two is None or not one.median_ms or not two.median_ms else one.median_ms / two.median_ms


# ---- the page of all rows


def every_row(stem: str, table: Table) -> str:
    parts = [f"## {table.values('device')[0]}", f"{origin(table)} As CSV: benchmarks/results/{stem}.csv."]
    for name, operation in OPERATIONS.items():
        mine = table.where(operation=name)
        if mine:
            parts.append(f"### `{name}`" + (f"\n\nErrors: {operation.error_unit}." if operation.error_unit else ""))
        for case, variant, threads in dict.fromkeys((row.case, row.variant, row.threads) for row in mine):
            block = mine.where(case=case, variant=variant, threads=threads)
            parts += [f"#### {case}, {variant}, {_threads(threads)}", markdown(*report.block(operation, block))]
    return "\n\n".join(parts)


CEILINGS = {
    "copy_gb_per_s": "GB/s copied",
    "matrix_gflop_per_s": "GFLOP/s of float32 products",
    "half_gflop_per_s": "GFLOP/s of bf16 products",
    "int8_gop_per_s": "GOP/s of int8 products",
    "log_exp_g_per_s": "1e9/s log with exp",
}


def ceilings(table: Table) -> str:
    """The range of each over the blocks on one thread."""
    found = {words: [v for v in table.where(threads=1).values(name) if v] for name, words in CEILINGS.items()}
    ranges = [f"{number(min(v))} to {number(max(v))} {words}" for words, v in found.items() if v]
    return f"Ceilings measured beside the rows, one thread: {', '.join(ranges)}."


def origin(table: Table) -> str:
    """What its rows came from; more than one commit or date means that they were not measured in one run."""
    columns = ("machine", "device", "versions", "commit", "date")
    machine, device, versions, commit, date = (" / ".join(sorted(set(table.values(name)))) for name in columns)
    where = machine if machine == device else f"{device} ({machine})"
    return f"{where}; {versions}; commit {commit}; {date}."


def _alternatives(block: Table) -> list[Row]:
    """Rows of others with a whole result."""
    providers = {(p.name, p.setting): p for row in block for p in OPERATIONS[row.operation].providers}
    return [
        row for row in block
        if row.median_ms is not None and row.status != PART
        and (known := providers.get((row.provider, row.setting))) and not known.ours
    ]  # fmt: skip


def _ratio(ours: Row | None, other: Row | None) -> float | None:
    try:
        return speed_up(ours, other)
    except RefusedError:
        return None


def _times(
    ours: Row | None, other: Row | None, ratio: Callable[[Row | None, Row | None], float | None] = speed_up
) -> str:
    try:
        times = ratio(ours, other)
    except RefusedError as refused:
        return refused.word
    return "" if times is None else report.bare_times(times)


# ---- pages


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


def of_devices(part: Callable[[str, Table], str]) -> str:
    return "\n\n".join(part(stem, table) for stem, table in plot.tables().items() if table) or NOTHING


def on_front(stem: str, table: Table) -> str:
    """What the README has of a device: the summary and two figures."""
    figures = [picture for picture in plot.pictures(table) if picture.name in FRONT]
    return "\n\n".join([summary(table), *(f"![{p.words}](docs/figures/{stem}-{p.name}.png)" for p in figures)])


SECTIONS: tuple[tuple[str, str, Callable[[], str]], ...] = (
    ("README.md", "benchmarks", partial(of_devices, on_front)),
    ("docs/benchmarks.md", "benchmarks", partial(of_devices, full)),
    ("docs/benchmarks.md", "predicted", predict.text),
    ("docs/benchmark-rows.md", "rows", partial(of_devices, every_row)),
)


def stale() -> dict[str, str]:
    """The pages that no longer say what the CSV files say, as they should be."""
    pages = {name: (ROOT / name).read_text(encoding="utf-8") for name, _, _ in SECTIONS}
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
