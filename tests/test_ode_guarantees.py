"""What the adaptive solver promises for each row of a batch, at full size, through the public functions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import pfgm_fast as pf


def oscillator(t: Tensor, y: Tensor, speed: Tensor) -> Tensor:
    return torch.stack([speed * y[:, 1], -speed * y[:, 0]], 1)


def solve(speed: Tensor, dtype: torch.dtype = torch.float64) -> pf.Solution:
    y0 = torch.tensor([[1.0, 0.0]], dtype=dtype).repeat(len(speed), 1)
    return pf.odeint(oscillator, y0, 0.0, 10.0, args=(speed.to(dtype),), rtol=1e-5, atol=1e-5)


def error(solution: pf.Solution, speed: Tensor) -> Tensor:
    exact = torch.stack([torch.cos(10 * speed), -torch.sin(10 * speed)], 1)
    return (solution.samples - exact).abs().amax(1)


def test_a_hard_row_among_65536_easy_ones() -> None:
    """Solvers with one step for the batch lose three digits here."""
    speed = torch.full((65536,), 0.1, dtype=torch.float64)
    speed[777] = 20.0
    many, one = solve(speed), solve(speed[777:778])
    assert many.ok
    assert torch.equal(many.samples[777], one.samples[0])
    assert many.nfe[777] == one.nfe[0] > 20 * many.nfe[0]
    assert float(error(many, speed)[777]) < 1e-2
    assert float(error(many, speed)[0]) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_64_rows_alone_and_inside_1024(dtype: torch.dtype) -> None:
    """The right-hand side is elementwise, so every bit agrees; SciPy and torchdiffeq differ by 1e-2."""
    speed = torch.logspace(-1, 1.3, 1024, dtype=torch.float64)[torch.randperm(1024)]
    many, few = solve(speed, dtype), solve(speed[:64], dtype)
    assert torch.equal(many.samples[:64], few.samples)
    assert torch.equal(many.nfe[:64], few.nfe)


@pytest.mark.parametrize("D", [1.0, 128.0, math.inf])
def test_64_samples_of_a_field_alone_and_inside_1024(D: float) -> None:
    data = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    field = pf.EmpiricalField(data, D)
    many = pf.sample(field, (1024, 2), seeds=range(1024), solver="rk45")
    few = pf.sample(field, (64, 2), seeds=range(64), solver="rk45")
    slots = pf.sample(field, (64, 2), seeds=range(64), solver="rk45", batch_size=5)
    watched = pf.sample(field, (64, 2), seeds=range(64), solver="rk45", callback=lambda info: None)
    assert torch.equal(many.samples[:64], few.samples)
    assert torch.equal(slots.samples, few.samples)
    assert torch.equal(watched.samples, few.samples)
    assert torch.equal(many.nfe[:64], few.nfe)


def test_one_nan_row_among_64() -> None:
    def poisoned(t: Tensor, y: Tensor, bad: Tensor) -> Tensor:
        return torch.where((bad & (t > 0.5))[:, None], math.nan, -y)

    y0 = torch.ones(64, 2, dtype=torch.float64)
    bad = torch.arange(64) == 3
    solution = pf.odeint(poisoned, y0, 0.0, 2.0, args=(bad,), rtol=1e-6, atol=1e-8)
    assert solution.status[3] == pf.Status.NONFINITE
    assert int(solution.accepted[3] + solution.rejected[3]) <= 50
    assert float(solution.samples[3, 0]) == pytest.approx(math.exp(-0.5), rel=1e-2)
    assert (solution.status[~bad] == pf.Status.SUCCESS).all()
    assert (solution.samples[~bad] - math.exp(-2)).abs().max() < 1e-5
    with pytest.raises(pf.SolverError, match="1 of 64 rows"):
        solution.raise_for_status()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_denoiser_is_never_called_outside_of_the_levels(dtype: torch.dtype) -> None:
    field = pf.EmpiricalField(torch.randn(100, 3, generator=torch.Generator().manual_seed(0), dtype=dtype), 8.0)
    seen = []

    def recording(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(sigma)
        return field(x, sigma)

    latents = pf.prior((50, 3), 37.0, 8.0, seeds=range(50), dtype=dtype)
    assert pf.sample(recording, latents=latents, solver="rk45", sigma_min=0.003, sigma_max=37.0).ok
    levels = torch.cat(seen)
    assert levels.dtype == dtype
    assert levels.max() == torch.tensor(37.0, dtype=dtype)
    assert levels.min() == torch.tensor(0.003, dtype=dtype)


def test_max_steps_keeps_the_states() -> None:
    speed = torch.logspace(-1, 1.3, 32, dtype=torch.float64)
    y0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64).repeat(32, 1)
    solution = pf.odeint(oscillator, y0, 0.0, 10.0, args=(speed,), max_steps=20, trajectory=True)
    late = solution.status == pf.Status.MAX_STEPS
    assert late.any()
    assert not late.all()
    assert solution.trajectory is not None
    assert torch.equal(solution.trajectory[solution.accepted - 1, torch.arange(32)], solution.samples)
    reached = solution.trajectory_sigma
    assert reached is not None
    times = reached[solution.accepted - 1, torch.arange(32)]
    exact = torch.stack([torch.cos(times * speed), -torch.sin(times * speed)], 1)
    assert (solution.samples - exact).abs().max() < 1e-2
