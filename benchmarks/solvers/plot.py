"""Draws the figures of docs/benchmarks.md from the CSV files: `python -m benchmarks.solvers.plot`."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.machine import ROOT
from benchmarks.solvers import nfe, peers, poisson, rows
from benchmarks.solvers.rows import Row, Table

FOLDER = ROOT / "docs" / "figures"

Line = list[tuple[float, float]]

# Dark to light, each with a dash and a marker of its own: the lines are told apart without colour.
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#b3123f", "marker": "o", "linewidth": 2.4},
    {"color": "#14304f", "marker": "s", "linestyle": "--"},
    {"color": "#3f6f9f", "marker": "^", "linestyle": "-."},
    {"color": "#6a6f76", "marker": "D", "linestyle": ":"},
    {"color": "#8a9a5b", "marker": "v", "linestyle": (0, (5, 1))},
    {"color": "#a9a9a9", "marker": "x", "linestyle": (0, (1, 1))},
)


def time_error(table: Table) -> dict[str, Line]:
    """By provider, (p99 error, seconds) on the Poisson field, on one thread."""
    names = (poisson.OURS, *peers.NAMES, poisson.PUBLISHED)
    return _lines({name: table.of(poisson.NAME, name) for name in names}, lambda r: (r.error_p99, r.median_ms / 1e3))


def by_evaluations(table: Table) -> dict[str, Line]:
    """By solver, (evaluations of a row, median error)."""
    names = ("unipc", *(name for name in nfe.SOLVERS if name != "unipc"))
    return _lines({name: table.of(nfe.NAME, name) for name in names}, lambda r: (r.evaluations, r.error_median))


def _lines(found: dict[str, list[Row]], point: Any) -> dict[str, Line]:
    return {name: sorted(map(point, rows)) for name, rows in found.items() if rows}


def draw(table: Table, folder: Path = FOLDER) -> list[Path]:
    """Both figures, as PNG and SVG."""
    slow = "p99 error of a row at z = 1e-3", "seconds for 1,024 samples, one thread"
    costs = "evaluations of the denoiser", "median error at sigma = 0.05"
    title = "Poisson field of 2,000 points, rtol = atol from 1e-3 to 1e-6"
    return [
        *_figure(folder / "solvers-time-error", time_error(table), *slow, title),
        *_figure(folder / "solvers-nfe", by_evaluations(table), *costs, "PFGM++, D = 128, 2,000 points"),
    ]


def _figure(path: Path, lines: dict[str, Line], x: str, y: str, title: str) -> list[Path]:
    settings: dict[Any, Any] = {"font.size": 10, "svg.hashsalt": path.name, "axes.titlelocation": "left"}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(7, 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes: Axes = figure.add_subplot()
        for (name, line), style in zip(lines.items(), STYLES, strict=False):
            axes.plot(*zip(*line, strict=True), label=name, markersize=5, **style)
        axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y, title=title)
        axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
        png, svg = path.with_suffix(".png"), path.with_suffix(".svg")
        figure.savefig(png, dpi=150)
        figure.savefig(svg, metadata={"Description": digest(lines), "Date": None})
    return [png, svg]


def digest(lines: dict[str, Line]) -> str:
    """Stands in the SVG, so that a test sees a figure of other numbers."""
    return hashlib.sha256(repr(lines).encode()).hexdigest()


def newest() -> Table | None:
    """The table of which the figures are: that of the machine measured last."""
    found = [table for table in rows.tables().values() if table.of(poisson.NAME) and table.of(nfe.NAME)]
    return max(found, key=lambda table: max(row.date for row in table.rows.values()), default=None)


def main() -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.solvers.plot", description=__doc__).parse_args()
    table = newest()
    if table is None:
        print("nothing was measured yet")
        return
    for path in draw(table):
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
