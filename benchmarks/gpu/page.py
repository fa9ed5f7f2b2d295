"""Tables of rows measured on GPUs."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.cells import markdown, number, percent, scientific
from benchmarks.gpu import posterior_mean as pm
from benchmarks.gpu.posterior_mean import Goal
from benchmarks.gpu.rows import Row


def full(rows: Sequence[Row]) -> str:
    """Where the rows come from, the goals, and the rows of each block."""
    parts = [_origin(rows), "#### Goals on a GPU", goals(rows)]
    for shape in pm.SHAPES:
        for variant in pm.VARIANTS:
            chosen = [row for row in rows if (row.case, row.variant) == (shape.name, variant)]
            if chosen:
                parts += [f"#### {shape.name}, {variant}", block(chosen)]
    return "\n\n".join(parts)


def block(rows: Sequence[Row]) -> str:
    """The rows of one case and variant."""
    header = (
        "provider", "ms", "p10–p90", "repeats", f"{pm.GRAPH} is faster", "memory MB", "error / bound", "relative error",
        "Gpairs/s", "TFLOP/s", "bound by", "of that bound", "predicted ms", "remark",
    )  # fmt: skip
    ours = next((row for row in rows if row.provider == pm.GRAPH and row.status == "ok"), None)
    lines = []
    for row in rows:
        if row.median_ms is None:
            lines.append((row.provider, "skipped", *[""] * (len(header) - 3), row.remark))
            continue
        remark = "; ".join(filter(None, (row.remark, "outside the accuracy contract" if row.status == "wrong" else "")))
        lines.append((
            row.provider, number(row.median_ms), f"{number(row.p10_ms)}–{number(row.p90_ms)}", str(row.repeats),
            "" if row is ours else _times(ours, row), number(row.memory_mb), number(row.error_bounds),
            scientific(row.error_relative), number(row.gpairs_per_s), number(row.tflop_per_s), row.bound,
            "" if row.bound_share is None else percent(row.bound_share), number(row.predicted_ms), remark,
        ))  # fmt: skip
    return markdown(header, lines)


def goals(rows: Sequence[Row]) -> str:
    """Each goal in each variant, of an eager call and of a replayed graph: the verdict is of the eager one."""
    found = {row.key: row for row in rows}
    lines = []
    for goal in pm.GOALS:
        for variant in pm.VARIANTS:
            ours, graph, baseline = (
                found.get(("posterior_mean", goal.shape.name, variant, name))
                for name in (pm.TRITON, pm.GRAPH, goal.baseline)
            )
            got = reached(goal, ours, baseline)
            cells = (number(value) if value is not None else "–" for value in (got, reached(goal, graph, baseline)))
            lines.append((goal.shape.name, variant, *_words(goal), *cells, verdict(goal, ours, got)))
    header = ("case", "noise levels", "quantity", "goal", "measured", "as a CUDA graph", "verdict")
    return markdown(header, lines)


def reached(goal: Goal, ours: Row | None, baseline: Row | None) -> float | None:
    """What was measured in the goal's quantity; None where something is missing or ours is wrong."""
    if ours is None or ours.median_ms is None or ours.status != "ok":
        return None
    if goal.quantity == "ms":
        return ours.median_ms
    if goal.quantity == "Gpairs/s":
        return ours.gpairs_per_s
    if baseline is None or baseline.median_ms is None:
        return None
    return baseline.median_ms / ours.median_ms


def verdict(goal: Goal, ours: Row | None, got: float | None) -> str:
    if got is None:
        return "wrong" if ours is not None and ours.status == "wrong" else "not measured"
    cleared = got <= goal.value if goal.quantity == "ms" else got >= goal.value
    return "PASS" if cleared else "short"


def _words(goal: Goal) -> tuple[str, str]:
    if goal.quantity == "times":
        return f"times faster than {goal.baseline}", f"≥ {number(goal.value)}"
    return goal.quantity, f"{'≤' if goal.quantity == 'ms' else '≥'} {number(goal.value)}"


def _times(ours: Row | None, row: Row) -> str:
    if ours is None or ours.median_ms is None or row.median_ms is None:
        return ""
    times = row.median_ms / ours.median_ms
    return f"{number(times)}×" if times >= 1 else f"{number(times)}×, this one is faster"


def _origin(rows: Sequence[Row]) -> str:
    """What the rows came from; more than one commit or date means that they were not measured in one run."""
    names = ("device", "driver", "torch", "triton", "cuda", "commit", "date")
    values = (", ".join(sorted({str(getattr(row, name)) for row in rows})) for name in names)
    device, driver, torch, triton, cuda, commit, date = values
    return f"{device}; driver {driver}; PyTorch {torch}; Triton {triton}; CUDA {cuda}; commit {commit}; {date}."
