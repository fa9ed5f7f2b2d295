"""Interpolation, temperature and completion of handwritten digits in one picture: python examples/editing.py [PATH]."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast.demo import style
from pfgm_fast.demo.digits import load

D = 128.0
LEVEL = 0.8  # where the exact field still blends digits; further down it goes to the nearest datum
FACTORS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0)
SHADE = -1.5  # the grey level of what is unknown


def decode(field: pf.EmpiricalField, latents: Tensor) -> Tensor:
    """What the latents (B, 8, 8) become at LEVEL, denoised."""
    states = pf.sample(field, latents=latents, solver="rk45", sigma_min=LEVEL).raise_for_status().samples
    return field(states, LEVEL).clamp(-1, 1)


def interpolated(field: pf.EmpiricalField, images: Tensor, n: int) -> Tensor:
    """Rows of n digits between neighbours of images (k, 8, 8)."""
    latents = pf.encode(field, images, sigma_min=LEVEL).raise_for_status().samples
    between = [pf.interpolate(a, b, n) for a, b in zip(latents[::2], latents[1::2], strict=True)]
    return decode(field, torch.cat(between)).reshape(len(between), n, 8, 8)


def rescaled(field: pf.EmpiricalField, images: Tensor) -> Tensor:
    """Rows of the images' latents multiplied by FACTORS, decoded."""
    latents = pf.encode(field, images, sigma_min=LEVEL).raise_for_status().samples
    factors = torch.tensor(FACTORS).repeat(len(images))
    warmer = pf.rescale(latents.repeat_interleave(len(FACTORS), 0), factor=factors)
    return decode(field, warmer).reshape(len(images), len(FACTORS), 8, 8)


def completed(field: pf.EmpiricalField, images: Tensor, mask: Tensor, n: int) -> Tensor:
    """Rows of: an image, what is shown of it, and n completions."""
    x = images.repeat_interleave(n, 0)
    masks = mask.repeat_interleave(n, 0)
    seeds = list(range(len(x)))
    done = pf.inpaint(field, x, masks, sigma_data=0.3, steps=40, seeds=seeds).raise_for_status().samples
    shown = images.where(mask, SHADE)
    return torch.cat([images[:, None], shown[:, None], done.reshape(len(images), n, 8, 8).clamp(-1, 1)], 1)


def page(rows: Tensor) -> NDArray[np.float64]:
    """Rows of digits (k, n, 8, 8), one under the other, with a margin of one pixel."""
    framed = torch.nn.functional.pad(rows, (1, 1, 1, 1), value=-1)
    count, n = framed.shape[:2]
    flat: NDArray[np.float64] = framed.transpose(1, 2).reshape(count * 10, n * 10).double().numpy()
    return flat


def main(path: Path) -> None:
    data, _ = load()
    field = pf.EmpiricalField(data, D)
    pairs = data[[0, 4, 12, 33, 6, 25]]
    mask = torch.zeros(3, 8, 8, dtype=torch.bool)
    mask[0, :4], mask[1, :, :4], mask[2, ::2] = True, True, True
    parts = {
        "interpolated latents, from digit to digit": interpolated(field, pairs, len(FACTORS)),
        "temperature: latents times " + ", ".join(f"{f:g}" for f in FACTORS): rescaled(field, data[[3, 17]]),
        "completion: a digit, what is known of it, seven draws": completed(field, data[[9, 28, 46]], mask, 7),
    }
    paper = style.INKED.with_extremes(under=style.PALE)
    with style.figure(path, 7.2, 7.6) as figure:
        grid = figure.add_gridspec(
            len(parts),
            1,
            height_ratios=[len(p) for p in parts.values()],
            hspace=0.16,
            left=0.02,
            right=0.98,
            top=0.95,
            bottom=0.01,
        )
        for place, (title, rows) in enumerate(parts.items()):
            axes = figure.add_subplot(grid[place, 0])
            axes.imshow(page(rows), cmap=paper, vmin=-1, vmax=1, interpolation="nearest")
            axes.set_title(title)
            axes.set_axis_off()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/figures/editing.png"))
