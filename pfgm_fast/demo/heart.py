"""The heart of PFGM's figure 1: charges spread over a heart in the plane z = 0, and their field for D = 1."""

from __future__ import annotations

import math
from pathlib import Path
from typing import cast

import numpy as np
import torch
from matplotlib.axes import Axes
from mpl_toolkits.mplot3d import Axes3D  # type: ignore[import-untyped]  # publishes no types
from mpl_toolkits.mplot3d.art3d import Line3DCollection, Poly3DCollection  # type: ignore[import-untyped]  # (as above)
from numpy.typing import NDArray
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast.demo import style

Array = NDArray[np.float64]

FAR = 1000.0  # a level hundreds of hearts away, where every field line is straight
NEAR = 5e-4  # a level far below the distance between neighbouring charges
RADIUS = 2.3  # of the hemisphere in the picture
HEIGHTS = (1.2, 0.4, 0.15)  # of the cuts through the density


def charges(count: int, generator: torch.Generator) -> Tensor:
    """Points (count, 2) uniform inside the heart x = sin(t)^3, y = (13 cos t - 5 cos 2t - 2 cos 3t - cos 4t)/16."""
    found = torch.empty(0, 2)
    while len(found) < count:
        x, y = torch.rand(2, 2 * count, generator=generator).mul(2.4).sub(1.2)
        t = torch.asin(x.abs().clamp_max(1).pow(1 / 3))  # the curve passes over x at t, and again at pi - t
        inside = (x.abs() < 1) & (y < _height(t)) & (y > _height(math.pi - t))
        found = torch.cat([found, torch.stack([x, y], 1)[inside]])
    return found[:count]


def _height(t: Tensor) -> Tensor:
    return (13 * t.cos() - 5 * (2 * t).cos() - 2 * (3 * t).cos() - (4 * t).cos()) / 16


def outline() -> Array:
    """The curve itself, (2, 400)."""
    t = torch.linspace(0, 2 * math.pi, 400, dtype=torch.float64)
    return cast(Array, torch.stack([t.sin() ** 3, _height(t)]).numpy())


def even_directions(count: int) -> Tensor:
    """Unit vectors (count, 3) spread evenly over the upper hemisphere, on Fibonacci's spiral."""
    k = torch.arange(count) + 0.5
    height, angle = 1 - k / count, k * math.pi * (3 - math.sqrt(5))
    flat = (1 - height**2).sqrt()
    return torch.stack([flat * angle.cos(), flat * angle.sin(), height], 1)


def field_lines(field: pf.EmpiricalField, count: int) -> Array:
    """Field lines (S, count, 3) from the far hemisphere down to the heart, padded with NaN.

    The line that comes from direction u passes FAR * u / u_z.
    """
    u = even_directions(count)
    solution = pf.sample(
        field,
        latents=FAR * u[:, :2] / u[:, 2:],
        solver="rk45",
        sigma_max=FAR,
        sigma_min=NEAR,
        rtol=1e-5,
        atol=1e-5,
        progress=True,
        trajectory=True,
    ).raise_for_status()
    x, z = cast(tuple[Tensor, Tensor], (solution.trajectory, solution.trajectory_sigma))
    return cast(Array, torch.cat([x.double(), z[:, :, None]], 2).numpy())


def draw_field_lines(lines: Array, data: Tensor, path: Path) -> None:
    """Lines (S, B, 3) rising from the charges in the plane to the hemisphere, in perspective."""
    with style.figure(path, 9, 6) as page:
        axes = cast(Axes3D, page.add_axes((-0.1, -0.11, 1.2, 1.2), projection="3d", computed_zorder=False))
        axes.set_axis_off()
        axes.view_init(elev=16, azim=-74)
        axes.set_box_aspect((1, 1, 0.5), zoom=1.38)
        axes.set(xlim=(-RADIUS, RADIUS), ylim=(-RADIUS, RADIUS), zlim=(0, RADIUS))
        _draw_hemisphere(axes)
        heart = np.pad(outline(), ((0, 1), (0, 0))).T
        axes.add_collection3d(Poly3DCollection([heart], color=style.CHARGE, alpha=0.22, linewidths=0, zorder=2))
        axes.scatter(*data.numpy().T, 0, s=1.0, color=style.CHARGE, alpha=0.6, linewidths=0, zorder=2)
        axes.plot(*outline(), 0, color=style.CHARGE, linewidth=1.6, zorder=2)
        segments, ends = clipped(lines)
        order = np.argsort(-segments[:, :, 1].mean(1))  # from back to front
        colours = style.RISING(np.linalg.norm(segments[order].mean(1), axis=1) / RADIUS)
        axes.add_collection3d(Line3DCollection(segments[order], colors=colours, linewidths=1.0, alpha=0.85, zorder=3))
        axes.scatter(*ends.T, s=11, color=style.FAR, depthshade=True, linewidths=0, zorder=4)
        page.text(0.03, 0.935, "Field lines of a heart of charges", fontsize=15, weight="bold")
        page.text(0.03, 0.895, "rise from the plane z = 0 and meet the far hemisphere evenly", fontsize=11)


def clipped(lines: Array) -> tuple[Array, Array]:
    """The segments (n, 2, 3) of lines (S, B, 3) within the hemisphere of RADIUS, and the points (m, 3) on it."""
    pairs = np.stack([lines[1:], lines[:-1]], 2).reshape(-1, 2, 3)
    pairs = pairs[np.isfinite(pairs).all((1, 2))]
    inner, outer = np.linalg.norm(pairs, axis=2).T
    pairs, inner, outer = (part[inner < RADIUS] for part in (pairs, inner, outer))
    crossing = outer > RADIUS
    share = ((RADIUS - inner) / (outer - inner))[crossing, None]
    pairs[crossing, 1] = pairs[crossing, 0] + share * (pairs[crossing, 1] - pairs[crossing, 0])
    return pairs, pairs[crossing, 1]


def _draw_hemisphere(axes: Axes3D) -> None:
    around = np.linspace(0, 2 * np.pi, 181)
    up = np.linspace(0, np.pi / 2, 46)
    for latitude in np.deg2rad([0, 30, 60]):
        flat = RADIUS * np.cos(latitude)
        height = np.full_like(around, RADIUS * np.sin(latitude))
        axes.plot(flat * np.cos(around), flat * np.sin(around), height, color=style.FAINT, linewidth=0.8, zorder=1)
    for longitude in np.deg2rad(np.arange(0, 360, 45)):
        flat = RADIUS * np.cos(up)
        x, y = flat * np.cos(longitude), flat * np.sin(longitude)
        axes.plot(x, y, RADIUS * np.sin(up), color=style.FAINT, linewidth=0.6, zorder=1)


def draw_cuts(field: pf.EmpiricalField, data: Tensor, samples: Tensor, path: Path) -> None:
    """The field in the upright plane through the heart's axis, the density at several heights, and samples drawn."""
    with style.figure(path, 10.5, 6.9, "constrained") as page:
        grid = page.add_gridspec(2, 4, height_ratios=(1.55, 1))
        _draw_upright(page.add_subplot(grid[0, :]), field)
        for column, height in enumerate(HEIGHTS):
            _draw_level(page.add_subplot(grid[1, column]), field, height)
        last = page.add_subplot(grid[1, 3])
        x, y = samples.numpy().T
        last.scatter(x, y, s=1, color=style.CHARGE, linewidths=0)
        _finish_level(last, f"{len(samples)} samples drawn")


def _draw_upright(axes: Axes, field: pf.EmpiricalField) -> None:
    """Field lines in the plane x = 0, where a symmetric heart's field has no sideways part, over log p."""
    across, up = np.linspace(-3.4, 3.4, 171), np.linspace(0.01, 2.6, 130)
    y, z = (torch.from_numpy(part).float() for part in np.meshgrid(across, up))
    points = torch.stack([torch.zeros_like(y), y], 2).reshape(-1, 2)
    direction = -field.poisson_field(points, z.flatten()).reshape(*y.shape, 3)
    density = field.log_density(points, z.flatten()).reshape(y.shape)
    extent = (across[0], across[-1], up[0], up[-1])
    axes.imshow(
        density.clamp(-6, 0).numpy(), extent=extent, origin="lower", interpolation="bicubic", cmap=style.DENSITY
    )
    angle = np.deg2rad(np.linspace(5, 175, 29))
    starts = np.stack([2.4 * np.cos(angle) - 0.3, 2.4 * np.sin(angle)], 1)
    axes.streamplot(
        across,
        up,
        direction[:, :, 1].numpy(),
        direction[:, :, 2].numpy(),
        start_points=starts,
        broken_streamlines=False,
        color=style.FAR,
        linewidth=0.9,
        arrowsize=0.8,
        minlength=0.3,
        maxlength=10,
    )
    axes.plot([-1.06, 0.31], [0, 0], color=style.CHARGE, linewidth=5, solid_capstyle="butt", clip_on=False)
    axes.set(xlabel="along the heart's axis", ylabel="height z", xlim=(-3.4, 3.4), ylim=(0, 2.6), aspect="equal")
    axes.set_title("Upright cut: field lines over the log density of the smoothed charges")


def _draw_level(axes: Axes, field: pf.EmpiricalField, height: float) -> None:
    side = np.linspace(-1.7, 1.7, 121)
    x, y = (torch.from_numpy(part).float() for part in np.meshgrid(side, side))
    points = torch.stack([x, y], 2).reshape(-1, 2)
    density = field.log_density(points, height).exp().reshape(x.shape)
    inward = (field(points, height) - points).reshape(*x.shape, 2).numpy()
    axes.contourf(side, side, density.numpy(), levels=16, cmap=style.DENSITY)
    axes.streamplot(
        side, side, inward[:, :, 0], inward[:, :, 1], color=style.INK, linewidth=0.5, arrowsize=0.5, density=0.7
    )
    _finish_level(axes, f"density at z = {height:g}")


def _finish_level(axes: Axes, title: str) -> None:
    axes.plot(*outline(), color=style.FAR, linewidth=1.2)
    axes.spines[:].set_visible(False)
    axes.set(xlim=(-1.7, 1.7), ylim=(-1.7, 1.7), xticks=[], yticks=[], aspect="equal")
    axes.set_title(title)
