"""The papers' claims as tests of distributions on exact fields: uniform hemispheres, transport between levels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from scipy import stats
from torch import Tensor

import pfgm_fast as pf

ACCEPTED, REJECTED = 0.01, 1e-5  # p-values, at fixed seeds


@dataclass(frozen=True)
class Crossing:
    """Where field lines cross a hemisphere about the charges: unit vectors (B, 3), the last coordinate upwards."""

    direction: Tensor

    @property
    def p_height(self) -> float:
        """Uniform on a sphere of three dimensions: heights are uniform on [0, 1]."""
        return float(stats.kstest(self.direction[:, 2].numpy(), "uniform").pvalue)

    @property
    def p_azimuth(self) -> float:
        angle = torch.atan2(self.direction[:, 1], self.direction[:, 0]) / (2 * math.pi) + 0.5
        return float(stats.kstest(angle.numpy(), "uniform").pvalue)


@pytest.fixture(scope="module")
def crossings() -> dict[float, Crossing]:
    """4000 field lines of 16 unequally placed charges (N = 2, D = 1), followed outwards through three radii.

    PFGM, theorem 1: whatever the charges, they reach a far hemisphere uniformly.
    """
    generator = torch.Generator().manual_seed(1)
    charges = torch.randn(16, 2, generator=generator, dtype=torch.float64)
    charges = (charges - charges.mean(0)) / charges.norm(dim=1).max()
    field = pf.EmpiricalField(charges, 1.0)

    def along(p: Tensor) -> Tensor:
        """The unit vector of the field at points (B, 3), away from the charges."""
        return -field.poisson_field(p[:, :2], p[:, 2]) / math.sqrt(2)

    # near a charge its own field is all there is, so that lines leave it uniformly over a small hemisphere
    count = 4000
    height = torch.rand(count, generator=generator, dtype=torch.float64)
    angle = 2 * math.pi * torch.rand(count, generator=generator, dtype=torch.float64)
    start = torch.stack([angle.cos(), angle.sin()], 1) * (1 - height**2).sqrt()[:, None]
    p = torch.cat([charges[torch.arange(count) % 16], torch.zeros(count, 1, dtype=torch.float64)], 1)
    p = p + 1e-4 * torch.cat([start, height[:, None]], 1)

    result = {}
    for radius in (1.2, 20.0, 100.0):
        while bool((p.norm(dim=1) < radius).any()):
            inside = p.norm(dim=1) < radius
            q = p[inside]
            nearest = torch.cdist(q, torch.nn.functional.pad(charges, (0, 1))).amin(1, keepdim=True)
            h = 0.2 * nearest
            middle = q + h / 2 * along(q)  # the midpoint rule
            p[inside] = q + h * along(middle)
        result[radius] = Crossing(p / p.norm(dim=1, keepdim=True))
    return result


@pytest.mark.parametrize("radius", [20.0, 100.0])
def test_field_lines_reach_a_far_hemisphere_uniformly(crossings: dict[float, Crossing], radius: float) -> None:
    assert crossings[radius].p_height > ACCEPTED
    assert crossings[radius].p_azimuth > ACCEPTED


def test_field_lines_do_not_cross_a_near_one_uniformly(crossings: dict[float, Crossing]) -> None:
    assert crossings[1.2].p_height < REJECTED


COUNT = 3000
LEVELS = torch.logspace(math.log10(80), -1, 64, dtype=torch.float64)


@pytest.fixture(scope="module")
def data() -> Tensor:
    """Forty points about the corners of a lopsided triangle in four dimensions."""
    generator = torch.Generator().manual_seed(2)
    corners = torch.tensor([[1.0, 0, 0, 0.5], [-1, 0.5, 0, 0], [0, -1, 1, -0.5]], dtype=torch.float64)
    chosen = corners[torch.tensor([0, 0, 0, 1, 1, 2])[torch.arange(40) % 6]]
    return chosen + 0.1 * torch.randn(40, 4, generator=generator, dtype=torch.float64)


def smoothed(data: Tensor, sigma: float, D: float, first_seed: int) -> Tensor:
    """COUNT draws of the data at noise level sigma."""
    chosen = data[torch.randint(0, len(data), (COUNT,), generator=torch.Generator().manual_seed(first_seed))]
    return pf.perturb(chosen, sigma, D, seeds=torch.arange(first_seed, first_seed + COUNT))


def smallest_p(a: Tensor, b: Tensor, data: Tensor) -> float:
    """The smallest two-sample Kolmogorov-Smirnov p-value over coordinates, a projection, the distance from the data."""

    def views(x: Tensor) -> list[Tensor]:
        return [*x.unbind(1), x @ torch.tensor([1.0, 1, -1, 1], dtype=x.dtype), torch.cdist(x, data).amin(1)]

    return min(float(stats.ks_2samp(u.numpy(), v.numpy()).pvalue) for u, v in zip(views(a), views(b), strict=True))


def carried(data: Tensor, D: float, solver: str) -> Tensor:
    solution = pf.sample(
        pf.EmpiricalField(data, D), latents=smoothed(data, 80.0, D, 10_000), sigmas=LEVELS, solver=solver
    )
    return solution.raise_for_status().samples


@pytest.mark.parametrize("solver", ["heun", "rk45"])
@pytest.mark.parametrize("D", [1, 8, 128, math.inf])
def test_transport_between_noise_levels(D: float, solver: str, data: Tensor) -> None:
    """PFGM++: for every D the ODE carries the data smoothed at one level to the data smoothed at another."""
    assert smallest_p(carried(data, D, solver), smoothed(data, 0.1, D, 50_000), data) > ACCEPTED


def test_transport_with_another_field_is_noticed(data: Tensor) -> None:
    """Power of the test above: the field of D = inf does not carry the noise of D = 1, nor do two steps suffice."""
    fresh = smoothed(data, 0.1, 1.0, 50_000)
    latents = smoothed(data, 80.0, 1.0, 10_000)
    other = pf.sample(pf.EmpiricalField(data, math.inf), latents=latents, sigmas=LEVELS).samples
    coarse = pf.sample(pf.EmpiricalField(data, 1.0), latents=latents, sigmas=[80.0, 3.0, 0.1], solver="euler").samples
    assert smallest_p(other, fresh, data) < REJECTED
    assert smallest_p(coarse, fresh, data) < REJECTED


@pytest.mark.parametrize("D", [1, 8, math.inf])
def test_the_prior_is_the_smoothed_data_seen_from_afar(D: float, data: Tensor) -> None:
    prior = pf.prior((COUNT, 4), 80.0, D, seeds=torch.arange(COUNT), dtype=torch.float64)
    assert smallest_p(prior, smoothed(data, 80.0, D, 10_000), data) > ACCEPTED
