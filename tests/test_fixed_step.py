"""Euler and Heun against the original sampler's trajectories and against a known solution."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from problems import gaussian, path
from torch import Tensor

from pfgm_fast import sampling
from pfgm_fast.sampling import sample
from pfgm_fast.solution import Status

GOLDEN = Path(__file__).parent / "data" / "pfgmpp_heun.npz"
Golden = dict[str, NDArray[Any]]
Denoiser = Callable[[Tensor, Tensor], Tensor]
NAMES = ["1", "128", "2048", "131072", "inf"]


@pytest.fixture(scope="module")
def golden() -> Golden:
    with np.load(GOLDEN) as archive:
        return dict(archive)


def exact_denoiser(data: NDArray[Any], D: float, dtype: torch.dtype = torch.float64) -> Denoiser:
    """The posterior mean by direct differences in float64, seen through a network of the given dtype."""
    y = torch.from_numpy(data)
    N = y.shape[1]

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        flat = x.to(dtype).double().flatten(1)
        s = sigma.to(dtype).double()[:, None]
        d2 = (flat[:, None, :] - y).square().sum(2)
        nearest = d2.min(1, keepdim=True).values
        if math.isinf(D):
            logits = -(d2 - nearest) / (2 * s**2)
        else:
            logits = -(N + D) / 2 * torch.log1p((d2 - nearest) / (nearest + s**2 * D))
        mean: Tensor = logits.softmax(1) @ y
        return mean.reshape(x.shape).to(dtype)

    return denoiser


def problem(golden: Golden, space: str, name: str, dtype: torch.dtype = torch.float64) -> tuple[Denoiser, Tensor]:
    """The exact denoiser and the latents, in data units, of one recorded run."""
    data = golden[f"{space}_data"]
    data = data / 8 - 1.0 if data.dtype == np.uint8 else data.astype(np.float64)
    latents = torch.from_numpy(golden[f"{space}_D{name}_latents"]).double()
    return exact_denoiser(data, float(name), dtype), latents * 80 if name == "inf" else latents


def difference(samples: Tensor, recorded: NDArray[Any]) -> float:
    return float((samples - torch.from_numpy(recorded)).abs().max())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("space", ["n2", "n64"])
class TestHeunAgainstTheOriginal:
    def test_trajectory(self, golden: Golden, space: str, name: str) -> None:
        denoiser, latents = problem(golden, space, name)
        solution = sample(denoiser, latents=latents, trajectory=True).raise_for_status()
        assert difference(path(solution)[0].flatten(2), golden[f"{space}_D{name}_traj64"]) < 1e-9
        assert difference(solution.samples, golden[f"{space}_D{name}_x64"]) < 1e-9
        assert solution.nfe.tolist() == [35] * len(latents)
        assert solution.accepted.tolist() == [18] * len(latents)

    @pytest.mark.parametrize("steps", [8, 35])
    def test_other_numbers_of_steps(self, golden: Golden, space: str, name: str, steps: int) -> None:
        denoiser, latents = problem(golden, space, name)
        solution = sample(denoiser, latents=latents, steps=steps, trajectory=True)
        assert difference(path(solution)[0][3], golden[f"{space}_D{name}_s{steps}_traj3"]) < 1e-9
        assert difference(solution.samples, golden[f"{space}_D{name}_s{steps}_x64"]) < 1e-9

    def test_float32_network(self, golden: Golden, space: str, name: str) -> None:
        denoiser, latents = problem(golden, space, name, torch.float32)
        solution = sample(denoiser, latents=latents)
        assert solution.samples.dtype == torch.float64
        assert difference(solution.samples, golden[f"{space}_D{name}_x32"]) < 1e-5


def test_heun_asks_at_the_recorded_levels(golden: Golden) -> None:
    denoiser, latents = problem(golden, "n2", "128")
    asked = []

    def recording(x: Tensor, sigma: Tensor) -> Tensor:
        asked.append(sigma.unique().item())
        return denoiser(x, sigma)

    sample(recording, latents=latents)
    assert asked == pytest.approx(golden["sigmas"].tolist(), rel=1e-12)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_order_of_convergence(solver: str, order: int) -> None:
    latents = torch.linspace(-80, 80, 7, dtype=torch.float64)[:, None]
    exact = latents * math.sqrt((1 + 0.05**2) / (1 + 80**2))

    def error(steps: int) -> float:
        # levels even in log sigma, a fixed mesh refined
        sigmas = torch.logspace(math.log10(80), math.log10(0.05), steps + 1, dtype=torch.float64)
        return float((sample(gaussian, latents=latents, solver=solver, sigmas=sigmas).samples - exact).abs().max())

    slope = math.log2(error(200) / error(400))
    assert slope == pytest.approx(order, abs=0.1)


def test_solvers_without_a_trailing_zero_stop_at_the_last_level() -> None:
    asked = []

    def recording(x: Tensor, sigma: Tensor) -> Tensor:
        asked.append(sigma[0].item())
        return torch.zeros_like(x)

    latents = torch.ones(2, 3, dtype=torch.float64)
    # towards 0 the solution is the straight line x = sigma, which both solvers follow exactly
    assert torch.allclose(sample(recording, latents=4 * latents, sigmas=[4.0, 2, 1], solver="euler").samples, latents)
    assert asked == [4, 2]
    asked.clear()
    assert torch.allclose(sample(recording, latents=4 * latents, sigmas=[4.0, 2, 1], solver="heun").samples, latents)
    assert asked == [4, 2, 2, 1]


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_one_step_is_the_denoiser_at_sigma_max(solver: str) -> None:
    latents = torch.randn(4, 3, dtype=torch.float64) * 80
    solution = sample(gaussian, latents=latents, steps=1, solver=solver).raise_for_status()
    assert torch.allclose(solution.samples, gaussian(latents, torch.full((4,), 80.0)), atol=1e-12)
    assert solution.nfe.tolist() == [1] * 4


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_bad_row_ends_alone_with_its_last_good_state(solver: str) -> None:
    latents = torch.randn(5, 3, dtype=torch.float64) * 80

    def poisoned(x: Tensor, sigma: Tensor) -> Tensor:
        out = gaussian(x, sigma)
        out[2] = torch.where(sigma[2] < 1, math.nan, out[2])
        assert x.isfinite().all()
        return out

    clean = sample(gaussian, latents=latents, solver=solver, trajectory=True)
    solution = sample(poisoned, latents=latents, solver=solver, trajectory=True)
    others = [0, 1, 3, 4]
    assert torch.equal(solution.samples[others], clean.samples[others])
    assert solution.status.tolist() == [0, 0, Status.NONFINITE, 0, 0]
    states, levels = path(solution)
    clean_states, clean_levels = path(clean)
    reached = int(solution.accepted[2])
    assert 0 < reached < 18
    assert torch.equal(solution.samples[2], clean_states[reached - 1, 2])
    assert states[reached:, 2].isnan().all()
    assert levels[reached:, 2].isnan().all()
    assert torch.equal(levels[:reached, 2], clean_levels[:reached, 2])


def test_every_solver_of_the_table_is_known_to_sample() -> None:
    assert set(sampling.SOLVERS) == {"euler", "heun", "rk45"}
