"""What sample() promises its users, whatever the solver."""

from __future__ import annotations

import math
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from problems import broken, gaussian, path
from torch import Tensor

from pfgm_fast import noise, sampling
from pfgm_fast.field import EmpiricalField
from pfgm_fast.sampling import SOLVERS, sample
from pfgm_fast.solution import SolverError, Status

every_solver = pytest.mark.parametrize("solver", list(SOLVERS))


def latents_of(B: int = 6, *data: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return 80 * torch.randn(B, *(data or (3,)), generator=torch.Generator().manual_seed(0), dtype=dtype)


class TestNoiseLevels:
    @every_solver
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_the_denoiser_is_called_within_the_levels_only(self, solver: str, dtype: torch.dtype) -> None:
        seen = []

        def recording(x: Tensor, sigma: Tensor) -> Tensor:
            assert sigma.shape == (len(x),)
            assert sigma.dtype == x.dtype == dtype
            seen.append(sigma.clone())
            return gaussian(x, sigma)

        sample(recording, latents=latents_of(dtype=dtype), solver=solver).raise_for_status()
        sigma = torch.cat(seen)
        assert sigma.min() == torch.tensor(0.002, dtype=dtype)
        assert sigma.max() == 80

    @every_solver
    def test_given_levels(self, solver: str) -> None:
        latents = latents_of()
        # the ignored arguments could not be used
        solution = sample(
            gaussian,
            latents=latents,
            solver=solver,
            sigmas=[80, 20, 5, 1],
            steps=0,
            sigma_min=-1,
            rho=0,
            trajectory=True,
        )
        assert solution.ok
        _, levels = path(solution)
        assert levels[solution.accepted - 1, torch.arange(6)].tolist() == [1.0] * 6
        assert solver == "rk45" or levels[:, 0].tolist() == [20.0, 5.0, 1.0]

    def test_rk45_is_accurate(self) -> None:
        latents = latents_of()
        solution = sample(gaussian, latents=latents, solver="rk45", rtol=1e-9, atol=1e-9).raise_for_status()
        exact = latents * math.sqrt((1 + 0.002**2) / (1 + 80**2))
        assert (solution.samples - exact).abs().max() < 1e-7

    def test_rk45_needs_positive_levels(self) -> None:
        with pytest.raises(ValueError, match="sigmas must end above 0 for 'rk45'"):
            sample(broken, latents=latents_of(), solver="rk45", sigmas=[80.0, 1.0, 0.0])

    def test_latents_are_not_scaled(self) -> None:
        latents = latents_of()
        solution = sample(lambda x, sigma: torch.zeros_like(x), latents=latents, sigmas=[80.0, 40.0], solver="euler")
        assert torch.allclose(solution.samples, latents / 2)


class TestPrior:
    def test_shape_draws_the_prior_at_the_first_level(self) -> None:
        options: dict[str, Any] = {"D": 128.0, "seeds": [1, 2, 3], "dtype": torch.float64}
        drawn = sample(gaussian, (3, 2, 2), sigmas=[7.0, 1.0], **options)
        latents = noise.prior((3, 2, 2), 7.0, 128.0, seeds=[1, 2, 3], dtype=torch.float64)
        assert torch.equal(drawn.samples, sample(gaussian, latents=latents, sigmas=[7.0, 1.0]).samples)

    def test_D_comes_from_the_denoiser(self) -> None:
        class Net:
            D = 8.0
            __call__ = staticmethod(gaussian)

        one = sample(Net(), (3, 2), seeds=[1, 2, 3])
        assert torch.equal(one.samples, sample(Net(), (3, 2), seeds=[1, 2, 3], D=8).samples)
        with pytest.raises(ValueError, match=r"D=9 conflicts with denoiser\.D=8"):
            sample(Net(), (3, 2), D=9)
        with pytest.raises(ValueError, match="conflicts"):
            sample(Net(), latents=latents_of(), D=9)

    def test_an_attribute_D_that_is_no_number_is_ignored(self) -> None:
        class Net(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.D = torch.nn.Linear(1, 1)

            def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
                return gaussian(x, sigma)

        assert sample(Net(), latents=latents_of()).ok
        assert sample(Net(), (3, 2), D=8).ok
        with pytest.raises(ValueError, match="D must be given"):
            sample(Net(), (3, 2))

    def test_D_is_needed_for_the_prior_alone(self) -> None:
        with pytest.raises(ValueError, match="D must be given"):
            sample(broken, (3, 2))
        assert sample(gaussian, latents=latents_of()).ok

    def test_torch_manual_seed_governs(self) -> None:
        torch.manual_seed(5)
        one = sample(gaussian, (3, 2), D=math.inf).samples
        torch.manual_seed(5)
        assert torch.equal(one, sample(gaussian, (3, 2), D=math.inf).samples)
        assert not torch.equal(one, sample(gaussian, (3, 2), D=math.inf).samples)

    @pytest.mark.parametrize("attribute", ["device", "parameter"])
    def test_device_is_asked_for_else_the_generators_else_the_denoisers(self, attribute: str) -> None:
        meta = torch.device("meta")
        denoiser = torch.nn.Linear(1, 1, device=meta) if attribute == "parameter" else SimpleNamespace(device=meta)
        assert sampling._home(torch.Generator("cpu"), denoiser) == torch.device("cpu")
        assert sampling._home(None, denoiser) == meta
        assert sampling._home(None, gaussian) == "cpu"


class TestState:
    @every_solver
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_dtype_and_shape_follow_the_latents(self, solver: str, dtype: torch.dtype) -> None:
        seen = set()

        def recording(x: Tensor, sigma: Tensor) -> Tensor:
            seen.add((x.dtype, sigma.dtype))
            return gaussian(x, sigma.to(x.dtype))

        latents = latents_of(2, 1, 4, 4).to(dtype)
        solution = sample(recording, latents=latents, solver=solver, rtol=1e-2, atol=1e-2, trajectory=True)
        assert solution.samples.shape == latents.shape
        assert solution.samples.dtype == path(solution)[0].dtype == dtype
        assert seen == {(dtype, torch.float64 if dtype == torch.float64 else torch.float32)}

    def test_dtype_argument_and_default(self) -> None:
        assert sample(gaussian, latents=latents_of(), dtype=torch.float32).samples.dtype == torch.float32
        assert sample(gaussian, (2, 3), D=math.inf).samples.dtype == torch.get_default_dtype()

    @every_solver
    def test_latents_are_left_alone(self, solver: str) -> None:
        latents = latents_of()
        before = latents.clone()
        solution = sample(gaussian, latents=latents, solver=solver, callback=lambda info: True)
        assert torch.equal(latents, before)
        solution.samples.zero_()
        assert torch.equal(latents, before)

    @every_solver
    def test_awkward_latents(self, solver: str) -> None:
        latents = latents_of(3, 4)
        wanted = sample(gaussian, latents=latents, solver=solver).samples
        for same in (latents.T.contiguous().T, latents.clone().requires_grad_()):
            assert torch.equal(sample(gaussian, latents=same, solver=solver).samples, wanted)
        row = latents[:1].expand(3, 4)
        assert torch.equal(sample(gaussian, latents=row, solver=solver).samples, wanted[:1].expand(3, 4))

    @every_solver
    def test_no_rows(self, solver: str) -> None:
        solution = sample(broken, (0, 2, 5), D=1.0, solver=solver, trajectory=True, progress=True)
        assert solution.ok
        assert solution.samples.shape == (0, 2, 5)
        assert path(solution)[0].shape == (0, 0, 2, 5)
        assert solution.status.dtype == torch.int8
        assert solution.nfe.dtype == solution.accepted.dtype == solution.rejected.dtype == torch.int64

    @every_solver
    def test_no_gradients_unless_the_denoiser_wants_them(self, solver: str) -> None:
        weight = torch.ones((), requires_grad=True)

        def guided(x: Tensor, sigma: Tensor) -> Tensor:
            assert not torch.is_grad_enabled()
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                (slope,) = torch.autograd.grad(x.square().sum(), x)
            return gaussian(slope / 2, sigma) * weight

        solution = sample(guided, latents=latents_of(), solver=solver)
        assert torch.is_grad_enabled()
        assert not solution.samples.requires_grad
        assert torch.allclose(solution.samples, sample(gaussian, latents=latents_of(), solver=solver).samples)

    @every_solver
    def test_trajectory(self, solver: str) -> None:
        latents = latents_of()
        solution = sample(gaussian, latents=latents, solver=solver, trajectory=True)
        states, sigma = path(solution)
        assert states.shape == (int(solution.accepted.max()), *latents.shape)
        assert torch.equal(states[solution.accepted - 1, torch.arange(6)], solution.samples)
        taken = torch.arange(len(states))[:, None] < solution.accepted
        assert torch.equal(sigma.isnan(), ~taken)
        assert torch.equal(states.isnan().all(2), ~taken)
        assert (sigma[1:] < sigma[:-1])[taken[1:]].all()
        exact = latents * ((1 + sigma**2) / (1 + 80**2)).sqrt()[..., None]
        tolerance = {"euler": 0.2, "heun": 0.05, "dpmpp_2m": 0.05, "unipc": 0.05, "rk45": 0.01}[solver]
        difference = (states - exact).abs() / (exact.abs() + 0.1)
        assert (difference[taken] < tolerance).all()


class TestRows:
    @every_solver
    def test_extra_arguments_travel_with_their_rows(self, solver: str) -> None:
        centre = torch.linspace(0, 5, 6, dtype=torch.float64)
        width = torch.logspace(-2, 1, 6, dtype=torch.float64)[:, None]

        def conditional(x: Tensor, sigma: Tensor, *, centre: Tensor, width: Tensor, scale: Tensor, name: str) -> Tensor:
            assert scale == 2
            assert name == "a"
            assert len(centre) == len(width) == len(x)
            gain = width**2 / (width**2 + sigma[:, None] ** 2)
            return centre[:, None] + gain * (x - centre[:, None])

        args: dict[str, Any] = {"scale": torch.tensor(2.0), "name": "a"}
        whole = sample(
            conditional, latents=latents_of(), solver=solver, extra_args={"centre": centre, "width": width, **args}
        ).raise_for_status()
        for i in range(6):
            rows = slice(i, i + 1)
            one = sample(
                conditional,
                latents=latents_of()[rows],
                solver=solver,
                extra_args={"centre": centre[rows], "width": width[rows], **args},
            )
            assert torch.allclose(one.samples, whole.samples[rows], rtol=0, atol=1e-12)
            assert one.nfe == whole.nfe[i]
        if solver == "rk45":
            assert len(set(whole.nfe.tolist())) > 1  # so that rows did leave before others

    @every_solver
    def test_a_nan_row_ends_alone(self, solver: str) -> None:
        label = torch.arange(6)

        def poisoned(x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
            assert x.isfinite().all()
            bad = (label == 2) & (sigma < 1)
            return gaussian(x, sigma).masked_fill(bad[:, None], math.nan)

        latents = latents_of()
        clean = sample(gaussian, latents=latents, solver=solver)
        solution = sample(poisoned, latents=latents, solver=solver, extra_args={"label": label})
        assert solution.status.tolist() == [0, 0, Status.NONFINITE, 0, 0, 0]
        assert torch.allclose(solution.samples[label != 2], clean.samples[label != 2], rtol=0, atol=1e-12)
        assert solution.samples[2].isfinite().all()
        assert solution.accepted[2] + solution.rejected[2] <= 50
        assert not solution.ok
        with pytest.raises(SolverError, match=r"(?s)1 of 6 rows.*NONFINITE: 1 \(rows 2\)\. .*kept") as error:
            solution.raise_for_status()
        assert error.value.solution is solution

    @every_solver
    def test_the_unchecked_denoiser_is_called_where_there_is_one(self, solver: str) -> None:
        class Checked:
            D = 8.0
            __call__ = staticmethod(broken)
            unchecked = staticmethod(gaussian)

        one = sample(Checked(), (3, 2), seeds=[1, 2, 3], solver=solver)
        assert torch.equal(one.samples, sample(gaussian, (3, 2), D=8, seeds=[1, 2, 3], solver=solver).samples)

    @every_solver
    def test_a_call_of_its_own_goes_before_the_fields_short_cuts(self, solver: str) -> None:
        class Nothing(EmpiricalField):
            def __call__(self, x: Tensor, sigma: float | Tensor, labels: Tensor | None = None) -> Tensor:
                return torch.zeros_like(x)

        field = Nothing(torch.eye(3) + 5, 8.0)
        zeros = sample(lambda x, sigma: torch.zeros_like(x), (2, 3), D=8, seeds=[1, 2], solver=solver)
        assert torch.equal(sample(field, (2, 3), seeds=[1, 2], solver=solver).samples, zeros.samples)

    def test_a_denoiser_that_changes_the_state_is_refused(self) -> None:
        with pytest.raises(ValueError, match="must not change x in place"):
            sample(lambda x, sigma: x.mul_(0.5), latents=latents_of(), solver="rk45")

    @every_solver
    def test_a_row_of_an_unknown_class_ends_alone(self, solver: str) -> None:
        field = EmpiricalField(torch.eye(4), 8.0, labels=torch.tensor([0, 0, 1, 1]))
        labels = torch.tensor([0, 99])
        solution = sample(field, (2, 4), seeds=[1, 2], solver=solver, extra_args={"labels": labels})
        assert solution.status.tolist() == [Status.SUCCESS, Status.NONFINITE]
        alone = sample(field, (1, 4), seeds=[1], solver=solver, extra_args={"labels": labels[:1]})
        assert torch.allclose(solution.samples[:1], alone.samples, atol=1e-5)

    def test_an_error_survives_pickling(self) -> None:
        solution = sample(gaussian, latents=latents_of(), solver="rk45", max_steps=1)
        with pytest.raises(SolverError) as error:
            solution.raise_for_status()
        again = pickle.loads(pickle.dumps(error.value))
        assert type(again) is SolverError
        assert str(again) == str(error.value)
        assert torch.equal(again.solution.samples, solution.samples)
        assert torch.equal(again.solution.status, solution.status)

    def test_max_steps(self) -> None:
        solution = sample(gaussian, latents=latents_of(7), solver="rk45", rtol=1e-10, max_steps=5, trajectory=True)
        assert solution.status.tolist() == [Status.MAX_STEPS] * 7
        assert (solution.accepted + solution.rejected).tolist() == [5] * 7
        assert torch.equal(path(solution)[0][solution.accepted - 1, torch.arange(7)], solution.samples)
        with pytest.raises(SolverError, match=r"7 of 7.*\n.*MAX_STEPS: 7 \(rows 0, 1, 2, 3, 4, \.\.\.\)"):
            solution.raise_for_status()

    def test_every_status_has_a_sentence(self) -> None:
        assert [s.value for s in Status] == [0, 1, 2, 3, 4]
        assert [s.name for s in Status] == ["SUCCESS", "MAX_STEPS", "STEP_UNDERFLOW", "NONFINITE", "STOPPED"]
        assert all(s.sentence.endswith(".") for s in Status)
        assert Status(3) is Status.NONFINITE
