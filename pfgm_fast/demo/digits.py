"""Handwritten digits drawn from their exact field for D = 128, and what they look like on the way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from matplotlib.colors import Colormap
from numpy.typing import NDArray
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast.demo import style

D = 128.0
STEPS = 18
ROWS = 4  # of the picture
SHOWN = (0, 5, 7, 8, 9, 10, 11, 12, 13, 17)  # of the levels
CELL = 10  # pixels: 8 of the digit and a margin


def load() -> tuple[Tensor, Tensor]:
    """Scikit-learn's digits (1797, 8, 8), their 17 grey levels scaled to [-1, 1], and their classes (1797,)."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.from_numpy(found.images).float() / 8 - 1, torch.from_numpy(found.target).long()


@dataclass(frozen=True)
class Journey:
    """Samples (B, 8, 8), the nearest datum of each (B,), and on the way, for the first ROWS: (sigma, x, x_hat)."""

    samples: Tensor
    nearest: Tensor
    steps: list[tuple[float, Tensor, Tensor]]


def travel(field: pf.EmpiricalField, count: int, generator: torch.Generator) -> Journey:
    """Draws `count` digits with Heun's method on STEPS levels."""
    steps: list[tuple[float, Tensor, Tensor]] = []

    def watch(info: dict[str, Any]) -> None:
        steps.append((float(info["sigma"]), info["x"][:ROWS].clone(), info["denoised"][:ROWS].clone()))

    solution = pf.sample(
        field, (count, 8, 8), steps=STEPS, generator=generator, callback=watch, progress=True
    ).raise_for_status()
    _, nearest = field.top_weights(solution.samples, 0.002, 1)
    return Journey(solution.samples, nearest[:, 0], steps)


def draw(journey: Journey, data: Tensor, path: Path) -> None:
    """Two rows for each sample, the state x and the posterior mean; a column for each level, then the nearest datum."""
    shown = [journey.steps[i] for i in SHOWN]
    width, pair = CELL * (len(shown) + 1) + 3, 2 * CELL + 3
    canvas = np.ones((pair * ROWS, width, 3))
    for row in range(ROWS):
        top = pair * row
        for column, (sigma, x, denoised) in enumerate(shown):
            visible = x[row] / (1 + 4 * sigma**2) ** 0.5  # x itself at the end, unit contrast far away
            _place(canvas, top, CELL * column, visible, style.INKED)
            _place(canvas, top + CELL, CELL * column, denoised[row], style.CHARGED)
        _place(canvas, top + CELL // 2, width - CELL, data[journey.nearest[row]], style.INKED)
    with style.figure(path, 9, 7.9) as page:
        axes = page.add_axes((0.06, 0.01, 0.93, 0.86))
        axes.imshow(canvas, interpolation="nearest", aspect="equal", extent=(0, width, len(canvas), 0))
        axes.set_axis_off()
        for column, (sigma, _, _) in enumerate(shown):
            axes.text(CELL * column + CELL / 2, -1.5, f"{sigma:.2g}", ha="center", va="bottom")
        axes.text(-1.2, -1.5, "σ", ha="right", va="bottom", weight="bold")
        axes.text(width - CELL / 2, -1.5, "nearest\ndatum", ha="center", va="bottom")
        for row in range(ROWS):
            axes.text(-1.2, pair * row + CELL / 2, "x", ha="right", va="center", color=style.FAR)
            axes.text(-1.2, pair * row + 1.5 * CELL, "x̂", ha="right", va="center", color=style.CHARGE)
        page.text(0.02, 0.955, "Digits on their way down the field lines, D = 128", fontsize=15, weight="bold")
        page.text(
            0.02, 0.923, "blue: the state x, scaled to unit contrast; red: the posterior mean x̂, the ideal denoiser"
        )


def _place(canvas: NDArray[np.float64], top: int, left: int, digit: Tensor, colours: Colormap) -> None:
    margin = (CELL - 8) // 2
    shade = colours((digit.clamp(-1, 1).double().numpy() + 1) / 2)[:, :, :3]
    canvas[top + margin : top + margin + 8, left + margin : left + margin + 8] = cast(NDArray[np.float64], shade)
