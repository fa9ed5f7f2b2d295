"""Draws the figures of docs/benchmarks.md from the CSV files: `python -m benchmarks.plot`."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from benchmarks import accuracy, scaling
from benchmarks.checkout import RESULTS, ROOT
from benchmarks.solvers import nfe, peers, poisson
from pfgm_fast.bench import posterior_mean as pm
from pfgm_fast.bench import rows
from pfgm_fast.bench.rows import Row, Table

FOLDER = ROOT / "docs" / "figures"

Lines = Mapping[str, list[tuple[float, float]]]

# Ours are thick and red. Dark to light, each with a dash and a marker of its own: they are told apart without colour.
OURS = ("#b3123f", "#d9587a", "#8c0d31", "#e0708a", "#c93a5f")
OTHERS = ("#14304f", "#3f6f9f", "#6a6f76", "#8a9a5b", "#a08040", "#a9a9a9")
COLOURS = 64  # of a PNG: the lines and their edges
MARKERS = "os^Dvx*P<"
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (8, 2)), (0, (2, 3)))


class Panel(NamedTuple):
    """One pair of logarithmic axes; `level` is a horizontal line with words."""

    title: str
    x: str
    y: str
    lines: Lines
    level: tuple[float, str] | None = None


class Picture(NamedTuple):
    """A figure: its name, what its words say, its panels side by side."""

    name: str
    words: str
    panels: tuple[Panel, ...]

    @property
    def digest(self) -> str:
        """Stands in the SVG, so that a test sees a figure of other numbers."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


def pictures(table: Table) -> list[Picture]:
    """Those for which the table has two points or more."""
    made = [*(_scaling(name, table) for name in scaling.SCALING), _accuracy(table), _times(table), _counts(table)]
    return [
        picture for picture in made if any(len(line) > 1 for panel in picture.panels for line in panel.lines.values())
    ]


def _scaling(name: str, table: Table) -> Picture:
    found = scaling.curves(name, table)
    letter, base = scaling.SCALING[name].letter, scaling.SCALING[name].base
    fixed = ", ".join(f"{key} = {getattr(base, key)}" for key in "BMND" if key != letter)
    words = {"M": "data", "B": "queries", "N": "dimensions"}[letter]
    times, memory = ({curve.provider: curve.line(column) for curve in found} for column in ("median_ms", "memory_mb"))
    at_least_one = {who: [(x, max(y, 1.0)) for x, y in line] for who, line in memory.items()}
    axis = f"{letter}, number of {words}"
    return Picture(
        name.replace("_", "-"),
        f"Time and peak memory against the number of {words}",
        (Panel(fixed, axis, "ms", times), Panel("peak memory; below 1 MB as 1", axis, "MB", at_least_one)),
    )


def _accuracy(table: Table) -> Picture:
    panels = []
    for shape in accuracy.SHAPES:
        found = table.where(operation=accuracy.NAME, case=shape.name)
        lines = _by_provider(found, lambda row: (float(row.variant.removeprefix("sigma ")), row.error_bounds))
        panels.append(Panel(shape.name, "sigma", "largest error / bound", lines, (1, "accuracy contract")))
    return Picture("error-by-sigma", "Error in units of the accuracy contract against the noise level", tuple(panels))


def _times(table: Table) -> Picture:
    found = table.where(operation=poisson.NAME, threads=1)
    lines = _by_provider(found, lambda row: (row.error_p99, (row.median_ms or 0) / 1e3))
    names = (poisson.OURS, *peers.NAMES, poisson.PUBLISHED)
    panel = Panel(
        "Poisson field of 2,000 points, rtol = atol from 1e-3 to 1e-6",
        "p99 error of a row at z = 1e-3",
        "seconds for 1,024 samples, one thread",
        {name: lines[name] for name in names if name in lines},
    )
    return Picture("solvers-time-error", "Seconds for 1,024 samples against their error", (panel,))


def _counts(table: Table) -> Picture:
    found = table.where(operation=nfe.NAME, threads=1)
    lines = _by_provider(found, lambda row: (row.evaluations, row.error_median))
    panel = Panel(f"PFGM++, {nfe.VARIANT}", "evaluations of the denoiser", f"median error at sigma = {nfe.LOW}", lines)
    return Picture("solvers-nfe", "Median error against evaluations", (panel,))


def _by_provider(table: Table, point: Callable[[Row], tuple[float | None, float | None]]) -> dict[str, list[Any]]:
    lines: dict[str, list[Any]] = {}
    for row in table:
        x, y = point(row)
        if row.median_ms is not None and x and y:
            lines.setdefault(row.provider, []).append((x, y))
    return {name: sorted(line) for name, line in lines.items()}


def draw(picture: Picture, folder: Path, stem: str) -> list[Path]:
    """As PNG and SVG."""
    settings: dict[Any, Any] = {"font.size": 10, "svg.hashsalt": picture.name, "axes.titlelocation": "left",
                                "axes.titlesize": 10}  # fmt: skip
    names = list(dict.fromkeys(name for panel in picture.panels for name in panel.lines))
    styles = dict(zip(names, _styles(names), strict=True))
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(4.6 * len(picture.panels) + 2.6, 4.4), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        handles: dict[str, Any] = {}
        for axes, panel in zip(figure.subplots(1, len(picture.panels), squeeze=False)[0], picture.panels, strict=True):
            handles |= _panel(axes, panel, styles)
        figure.legend(handles.values(), handles, frameon=False, fontsize=9, loc="outside right center")
        png, svg = (folder / f"{stem}-{picture.name}{kind}" for kind in (".png", ".svg"))
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(png)
        Image.open(png).convert("RGB").quantize(COLOURS).save(png, optimize=True)
        figure.savefig(svg, metadata={"Description": picture.digest, "Date": None})
    return [png, svg]


def _panel(axes: Axes, panel: Panel, styles: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    handles = {}
    for name, line in panel.lines.items():
        if line:
            (handles[name],) = axes.plot(*zip(*line, strict=True), markersize=5, **styles[name])
    if panel.level is not None:
        handles[panel.level[1]] = axes.axhline(panel.level[0], color="black", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel=panel.x, ylabel=panel.y, title=panel.title)
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return handles


def _styles(names: Iterable[str]) -> Iterable[dict[str, Any]]:
    """Ours first, then the others, in the order of the lines."""
    ours, others = iter(OURS), iter(OTHERS)
    solvers = set(nfe.SOLVERS)
    for place, name in enumerate(names):
        mine = name.startswith("pfgm_fast") or name in (*solvers, pm.NATIVE)
        color = next(ours, None) if mine else None
        yield {
            "color": color or next(others, "#a9a9a9"),
            "marker": MARKERS[place % len(MARKERS)],
            "linestyle": DASHES[place % len(DASHES)],
            "linewidth": 2.2 if color else 1.3,
        }


def tables(folder: Path = RESULTS) -> dict[str, Table]:
    """By stem of its file, the rows of every device; gpu.sh writes others beside them."""
    paths = (path for path in sorted(folder.glob("*.csv")) if not path.name.startswith(("questions-", "profile")))
    return {path.stem: rows.read(path) for path in paths}


def stale() -> list[str]:
    """Figures that are missing or of other numbers than the files'."""
    wanted = {f"{stem}-{p.name}": p.digest for stem, table in tables().items() for p in pictures(table)}
    found = {name: FOLDER / f"{name}.svg" for name in wanted}
    return [name for name, path in found.items() if not path.exists() or wanted[name] not in path.read_text()]


def main() -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__).parse_args()
    for stem, table in tables().items():
        for picture in pictures(table):
            for path in draw(picture, FOLDER, stem):
                print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
