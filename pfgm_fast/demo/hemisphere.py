"""The uniform hemisphere: field lines followed upwards from the charges leave evenly in all directions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

import pfgm_fast as pf
from pfgm_fast.demo import style

START = 0.01
LEVELS = (0.5, 2.0, 50.0)


def rise(field: pf.EmpiricalField, x: Tensor, steps: int) -> list[Tensor]:
    """The states at the LEVELS of points x at level START: dx/dt = x - x_hat, t = log sigma, by Runge-Kutta 4."""
    reached, sigma = [], START
    with tqdm(total=steps * len(LEVELS), desc="rising", bar_format="{l_bar}{bar}| {elapsed}<{remaining}") as bar:
        for level in LEVELS:
            h = math.log(level / sigma) / steps
            for _ in range(steps):
                middle, end = sigma * math.exp(h / 2), sigma * math.exp(h)
                k1 = x - field(x, sigma)
                k2 = (y := x + h / 2 * k1) - field(y, middle)
                k3 = (y := x + h / 2 * k2) - field(y, middle)
                k4 = (y := x + h * k3) - field(y, end)
                x, sigma = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), end
                bar.update()
            reached.append(x)
    return reached


def start(data: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Points (count, 2) drawn from the smoothed density at level START."""
    chosen = torch.randint(len(data), (count,), generator=generator)
    return pf.perturb(data[chosen], START, D=1, generator=generator)


def directions(x: Tensor, center: Tensor, level: float) -> Tensor:
    """Unit vectors (B, 3) from the middle of the charges to the points (x, level)."""
    towards = torch.cat([x - center, torch.full((len(x), 1), level)], 1)
    return torch.nn.functional.normalize(towards)


def distance_to_uniform(cosines: Tensor) -> float:
    """Kolmogorov's distance of cos(theta) from the uniform law on (0, 1), which it has on a uniform hemisphere."""
    ordered = cosines.double().sort().values
    rank = torch.arange(len(ordered) + 1, dtype=torch.float64) / len(ordered)
    return float(torch.maximum((rank[1:] - ordered).max(), (ordered - rank[:-1]).max()))


def draw(units: list[Tensor], path: Path) -> None:
    """For each of LEVELS the directions on a disc that keeps areas, above the histogram of their cos(theta)."""
    with style.figure(path, 9.5, 5.8, "constrained") as page:
        grid = page.add_gridspec(2, len(LEVELS), height_ratios=(2.2, 1))
        page.suptitle("Directions of field lines, seen from the middle of the heart", x=0.015, ha="left", weight="bold")
        for column, (unit, level) in enumerate(zip(units, LEVELS, strict=True)):
            disc = page.add_subplot(grid[0, column], aspect="equal")
            # Lambert's projection: equal areas of the hemisphere are equal areas of the disc.
            flat = unit[:, :2] / (1 + unit[:, 2:]).sqrt()
            x, y = flat.numpy().T
            disc.scatter(x, y, s=2, color=style.FAR, linewidths=0)
            disc.plot(*_circle(), color=style.FAINT, linewidth=1)
            disc.set(xlim=(-1.03, 1.03), ylim=(-1.03, 1.03))
            disc.set_axis_off()
            disc.set_title(f"at height z = {level:g}", loc="center")
            bars = page.add_subplot(grid[1, column])
            bars.hist(unit[:, 2].numpy(), bins=20, range=(0, 1), density=True, color=style.PALE, rwidth=0.9)
            bars.axhline(1, color=style.FAR, linewidth=1.4, linestyle="--")
            bars.set(xlim=(0, 1), ylim=(0, 2), xlabel="cos θ", xticks=[0, 0.5, 1], yticks=[0, 1, 2])
            if column == 0:
                bars.set_ylabel("density")
                bars.text(1, 1.85, "dashed: uniform hemisphere", color=style.FAR, fontsize=9, ha="right", va="center")


def _circle() -> NDArray[np.float64]:
    angle = np.linspace(0, 2 * np.pi, 200)
    return cast(NDArray[np.float64], np.stack([np.cos(angle), np.sin(angle)]))
