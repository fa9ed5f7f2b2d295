"""One look for all figures: crimson charges, navy far away; matplotlib's own settings are left alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

CHARGE = "#b3123f"
PALE = "#e8a3a9"  # crimson where something is read on top of it
FAR = "#14304f"
INK = "#22262b"
FAINT = "#c9ced6"
DPI = 150

# From a charge to far away. The lightness falls all the way, so that the pictures survive a black-and-white printer.
RISING = LinearSegmentedColormap.from_list("rising", ["#f0a04b", "#d9485f", "#8a2f73", FAR])
DENSITY = LinearSegmentedColormap.from_list("density", ["#ffffff", "#fdeadb", "#f8c48f", "#ee8a66", "#d4506a"])
INKED = LinearSegmentedColormap.from_list("inked", ["#ffffff", "#aab8c8", FAR])
CHARGED = LinearSegmentedColormap.from_list("charged", ["#ffffff", PALE, CHARGE])

_SETTINGS: dict[Any, Any] = {
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.facecolor": "white",
    "font.size": 10,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextmanager
def figure(path: Path, width: float, height: float, layout: Literal["constrained"] | None = None) -> Iterator[Figure]:
    """A figure of that many inches, written to `path` when the block ends; matplotlib's backend is left alone."""
    with matplotlib.rc_context(_SETTINGS):
        page = Figure(figsize=(width, height), layout=layout)
        FigureCanvasAgg(page)
        yield page
        page.savefig(path, dpi=DPI)
