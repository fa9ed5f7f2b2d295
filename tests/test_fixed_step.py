"""The fixed-step solvers against the original samplers' trajectories, and what the loop owes its callers."""

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
from solving import exact, pixels, run
from torch import Tensor

from pfgm_fast import fixed_step, sampling, schedule
from pfgm_fast.multistep import METHODS
from pfgm_fast.sampling import sample
from pfgm_fast.solution import Record, Status

DATA = Path(__file__).parent / "data"
Golden = dict[str, NDArray[Any]]
Denoiser = Callable[[Tensor, Tensor], Tensor]
NAMES = ["1", "128", "2048", "131072", "inf"]


@pytest.fixture(scope="module")
def golden() -> Golden:
    return read("pfgmpp_heun")


def read(name: str) -> Golden:
    with np.load(DATA / f"{name}.npz") as archive:
        return dict(archive)


def seen_through(data: NDArray[Any], D: float, dtype: torch.dtype = torch.float64) -> Denoiser:
    """The exact denoiser in float64, seen through a network of the given dtype."""
    mean = exact(pixels(data), D)

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        return mean(x.to(dtype).double(), float(sigma.to(dtype)[0])).to(dtype)

    return denoiser


def problem(golden: Golden, space: str, name: str, dtype: torch.dtype = torch.float64) -> tuple[Denoiser, Tensor]:
    """The exact denoiser and the latents, in data units, of one recorded run."""
    latents = torch.from_numpy(golden[f"{space}_D{name}_latents"]).double()
    data = golden[f"{space}_data"]
    return seen_through(data, float(name), dtype), latents * 80 if name == "inf" else latents


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


@pytest.mark.parametrize("file", ["ablation_sampler", "edm_sampler_loss"])
@pytest.mark.parametrize("spacing", ["edm", "iddpm"])
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_ablation_samplers_of_the_originals(file: str, spacing: str, solver: str) -> None:
    """Those that step in sigma itself: the other schedules scale the state, or step in another variable."""
    archive = read(file)
    levels = [*archive[f"euler_{spacing}_linear_none_sigmas"].tolist(), 0.0]
    x = torch.from_numpy(archive["latents"]).double() * levels[0]
    record = run(METHODS[solver], exact(pixels(archive["data"]), math.inf), x, levels)
    assert difference(record.x, archive[f"{solver}_{spacing}_linear_none_x"]) < 1e-9
    assert record.nfe.unique().tolist() == [len(archive[f"{solver}_{spacing}_linear_none_sigmas"])]


@pytest.mark.parametrize("variant", ["align", "steps12"])
def test_other_levels_of_the_originals(variant: str) -> None:
    """Levels scaled by sqrt(1 + N/D), and 12 of them."""
    archive = read("pfgmpp_stochastic")
    scale = math.sqrt(1 + 64 / 128) if variant == "align" else 1.0
    levels = schedule.rho_levels(18 if variant == "align" else 12, 0.002 * scale, 80.0 * scale, 7.0)
    asked: list[float] = []
    mean = exact(pixels(archive["data"]), 128.0)

    def recording(x: Tensor, sigma: float) -> Tensor:
        asked.append(sigma)
        return mean(x, sigma)

    record = run(METHODS["heun"], recording, torch.from_numpy(archive["latents"]), levels)
    assert asked == pytest.approx(archive[f"{variant}_sigmas"].tolist(), rel=1e-12)
    assert difference(record.x, archive[f"{variant}_x"]) < 1e-9


PFGM = [(10, "", 5.0, 1e-3), (50, "", 5.0, 1e-3), (100, "", 5.0, 1e-3), (20, "_zexp0", 0.0, 1e-3)]


@pytest.mark.parametrize("space", ["n2", "n64"])
@pytest.mark.parametrize(("steps", "suffix", "z_exp", "z_min"), [*PFGM, (20, "_zmin0.3", 5.0, 0.3)])
class TestPFGM:
    """The samplers of the first PFGM in z, whose drift is a denoiser's: levels even in log z."""

    def start(self, space: str, steps: int, z_exp: float, z_min: float) -> tuple[Golden, Any, Tensor, list[float]]:
        archive = read(f"pfgm_samplers_{space}")
        data = archive["data"]
        y = torch.from_numpy(data).double()
        denoise = pfgm_drift(y / 8 - 1 if data.dtype == np.uint8 else y, z_exp)
        levels = np.exp(np.linspace(math.log(archive["cfg"][1]), math.log(z_min), steps + 1)).tolist()
        return archive, denoise, torch.from_numpy(archive["x0"]).double(), levels

    def test_forward_euler(self, space: str, steps: int, suffix: str, z_exp: float, z_min: float) -> None:
        archive, denoise, x, levels = self.start(space, steps, z_exp, z_min)
        record = run(METHODS["euler"], denoise, x, levels)
        assert difference(record.x, archive[f"fe{steps}{suffix}_f64_x"]) < 1e-9
        assert difference(record.x, archive[f"fe{steps}{suffix}_x"]) < 1e-4
        assert record.nfe[0] == archive[f"fe{steps}{suffix}_f64_nfe"]

    def test_improved_euler(self, space: str, steps: int, suffix: str, z_exp: float, z_min: float) -> None:
        """Heun's steps, but for the last, which the original leaves to Euler."""
        archive, denoise, x, levels = self.start(space, steps, z_exp, z_min)
        record = run(METHODS["heun"], denoise, x, levels[:-1])
        last = run(METHODS["euler"], denoise, record.x, levels[-2:])
        assert difference(last.x, archive[f"ie{steps}{suffix}_f64_x"]) < 1e-9
        assert difference(last.x, archive[f"ie{steps}{suffix}_x"]) < 1e-4
        assert record.nfe[0] + 1 == archive[f"ie{steps}{suffix}_f64_nfe"]


def pfgm_drift(y: Tensor, z_exp: float, gamma: float = 5.0) -> Callable[[Tensor, float], Tensor]:
    """x - z dx/dz of the original drift on the exact normalised field, its 1e-5 and its closed form of v_z included."""
    N = y.shape[1]

    def denoise(x: Tensor, z: float) -> Tensor:
        flat = x.flatten(1)
        squares = (flat[:, None] - y).square().sum(2) + z**2
        pull = (-(N + 1) / 2 * squares.log()).softmax(1) @ y - flat
        scale = math.sqrt(N) / ((pull.square().sum(1) + z**2).sqrt() + gamma)
        v_x, v_z = pull * scale[:, None], -z * scale
        if z < z_exp:
            q = v_x.square().sum(1).sqrt() / math.sqrt(N)
            n = gamma * q / (1 - q)
            v_z = -math.sqrt(N) * z / ((n**2 + z**2).sqrt() + gamma)
        return x - z * (v_x / (v_z + 1e-5)[:, None]).view_as(x)

    return denoise


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


@pytest.mark.parametrize("solver", METHODS)
def test_one_step_is_the_denoiser_at_sigma_max(solver: str) -> None:
    latents = torch.randn(4, 3, dtype=torch.float64) * 80
    solution = sample(gaussian, latents=latents, steps=1, solver=solver).raise_for_status()
    assert torch.allclose(solution.samples, gaussian(latents, torch.full((4,), 80.0)), atol=1e-12)
    assert solution.nfe.tolist() == [1] * 4


@pytest.mark.parametrize("solver", METHODS)
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
    assert set(sampling.SOLVERS) == {*METHODS, "rk45"}


def zero(x: Tensor, sigma: float) -> Tensor:
    return torch.zeros_like(x)


def bounded(x: Tensor, sigma: float) -> Tensor:
    return torch.tanh(x / (1 + sigma))


LEVELS = [8.0, 5.0, 3.0, 1.5, 1.0, 0.4, 0.0]


@pytest.mark.parametrize("solver", METHODS)
class TestTheLoop:
    """Each row of a record, through every method."""

    def state(self, B: int = 5) -> Tensor:
        return torch.randn(B, 3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 8

    def test_evaluations(self, solver: str) -> None:
        for levels, heun in ((LEVELS, 11), (LEVELS[:-1], 10)):
            asked: list[float] = []

            def recording(x: Tensor, sigma: float, asked: list[float] = asked) -> Tensor:
                asked.append(sigma)
                return bounded(x, sigma)

            record = run(METHODS[solver], recording, self.state(), levels)
            one_each = sum(level > 0 for level in levels) if solver == "unipc" else len(levels) - 1
            expected = heun if solver == "heun" else one_each
            assert record.nfe.tolist() == [expected] * 5
            assert len(asked) == expected
            assert sorted(asked, reverse=True) == asked
            assert set(asked) <= set(levels)
            assert 0 not in asked
            assert record.accepted.tolist() == [len(levels) - 1] * 5
            assert record.t.tolist() == [levels[-1]] * 5

    def test_the_record_is_updated_in_place(self, solver: str) -> None:
        record = Record.start(self.state(), LEVELS[0])
        held = {name: getattr(record, name) for name in ("x", "t", "status", "nfe", "accepted")}
        before = record.x.clone()
        fixed_step_solve(solver, bounded, record)
        assert all(getattr(record, name) is tensor for name, tensor in held.items())
        assert not torch.equal(record.x, before)

    def test_an_edit_of_the_callback_is_where_the_step_begins(self, solver: str) -> None:
        """Without data x is proportional to sigma, and so is what is added."""

        def add(i: int, sigma: float, x: Tensor, denoised: Tensor) -> bool:
            if i == 2:
                x += 1
            return False

        clean = run(METHODS[solver], zero, self.state(), LEVELS[:-1])
        edited = run(METHODS[solver], zero, self.state(), LEVELS[:-1], add)
        torch.testing.assert_close(edited.x - clean.x, torch.full_like(clean.x, LEVELS[-2] / LEVELS[2]))

    def test_the_callback_is_asked_before_the_state_changes(self, solver: str) -> None:
        """And what the trajectory holds is what it saw."""
        seen: list[Tensor] = []
        levels = []

        def watch(i: int, sigma: float, x: Tensor, denoised: Tensor) -> bool:
            assert i == len(seen)
            assert denoised.shape == x.shape
            seen.append(x.clone())
            levels.append(sigma)
            return False

        record = run(METHODS[solver], bounded, self.state(), LEVELS, watch, trajectory=True)
        states, sigmas = path(record.solution())
        assert torch.equal(seen[0], self.state())
        assert torch.equal(states, torch.stack([*seen[1:], record.x]))
        assert levels == LEVELS[:-1]
        assert sigmas[:, 0].tolist() == LEVELS[1:]

    def test_stopping_leaves_the_state(self, solver: str) -> None:
        states = path(run(METHODS[solver], bounded, self.state(), LEVELS, trajectory=True).solution())[0]
        stopped = run(METHODS[solver], bounded, self.state(), LEVELS, lambda i, *_: i == 3)
        assert torch.equal(stopped.x, states[2])
        assert stopped.t.tolist() == [LEVELS[3]] * 5
        assert stopped.status.tolist() == [Status.STOPPED] * 5
        assert stopped.accepted.tolist() == [3] * 5

    def test_the_denoiser_sees_only_finite_rows(self, solver: str) -> None:
        """One row never begins, one answers NaN once, one overflows on the way."""
        x = self.state()
        x[0, 1, 2] = -math.inf
        x[4] = 1e308

        def denoise(x: Tensor, sigma: float) -> Tensor:
            assert x.isfinite().all()
            out = bounded(x, sigma)
            out[1, 0, 0] = math.nan if 1 < sigma < 5 else out[1, 0, 0]
            out[4] = torch.where(x[4].abs() > 1e300, -1.7e308 if sigma < 2 else 1e308, out[4])
            return out

        record = run(METHODS[solver], denoise, x, LEVELS, trajectory=True)
        clean = run(METHODS[solver], bounded, self.state(), LEVELS)
        assert record.status.tolist()[:4] == [Status.NONFINITE, Status.NONFINITE, 0, 0]
        assert torch.equal(record.x[2:4], clean.x[2:4])
        assert torch.equal(record.x[0], x[0])
        assert record.accepted[0] == 0
        assert record.x[1].isfinite().all()
        assert record.x[4].isfinite().all()

    def test_a_row_does_not_depend_on_its_batch(self, solver: str) -> None:
        together = run(METHODS[solver], bounded, self.state(), LEVELS)
        for i in range(5):
            assert torch.equal(run(METHODS[solver], bounded, self.state()[i : i + 1], LEVELS).x[0], together.x[i])

    def test_answers_may_lie_in_memory_that_is_used_again(self, solver: str) -> None:
        """As those of a captured CUDA graph do; or in the argument itself."""
        expected = run(METHODS[solver], bounded, self.state(), LEVELS).x
        buffer = torch.empty_like(self.state())
        replayed = run(METHODS[solver], lambda x, sigma: buffer.copy_(bounded(x, sigma)), self.state(), LEVELS)
        assert torch.equal(replayed.x, expected)
        in_place = run(METHODS[solver], lambda x, sigma: x.copy_(bounded(x, sigma)), self.state(), LEVELS)
        assert torch.equal(in_place.x, expected)

    def test_upwards_and_back(self, solver: str) -> None:
        levels = schedule.rho_levels(401, 0.1, 8.0, 7.0)[:-1]
        x = torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None]
        up = run(METHODS[solver], gaussian_at, x, levels[::-1])
        exact_up = x * math.sqrt((1 + 8.0**2) / (1 + 0.1**2))
        tolerance = 2e-2 if solver == "euler" else 1e-4
        torch.testing.assert_close(up.x, exact_up, rtol=tolerance, atol=0)
        torch.testing.assert_close(run(METHODS[solver], gaussian_at, up.x, levels).x, x, rtol=2 * tolerance, atol=0)

    def test_float32_follows_float64(self, solver: str) -> None:
        x = self.state()
        double = run(METHODS[solver], bounded, x, LEVELS).x
        single = run(METHODS[solver], bounded, x.float(), LEVELS).x
        assert single.dtype == torch.float32
        assert (single - double).abs().max() < 1e-5


def fixed_step_solve(solver: str, denoise: Callable[[Tensor, float], Tensor], record: Record) -> None:
    assert fixed_step.solve(METHODS[solver], denoise, record, LEVELS, lambda *_: False)


def gaussian_at(x: Tensor, sigma: float) -> Tensor:
    return gaussian(x, torch.full((len(x),), sigma, dtype=torch.float64))
