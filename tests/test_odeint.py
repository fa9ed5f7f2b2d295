"""pf.odeint on problems with known solutions, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from problems import path
from scipy.integrate import solve_ivp
from torch import Tensor

import pfgm_fast as pf

A = torch.randn(10, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ROTATION = (A - A.T) / 3


def constant(t: Tensor, y: Tensor) -> Tensor:
    return torch.full_like(y, 0.2) + (y - (0.2 * t + 3)[:, None]) ** 5


def sine(t: Tensor, y: Tensor) -> Tensor:
    s = t[:, None]
    return 2 * y / s + s**4 * torch.sin(2 * s) - s**2 + 4 * s**3


def rotation(t: Tensor, y: Tensor) -> Tensor:
    return y @ ROTATION.to(y.dtype).T


def exponential(t: Tensor, y: Tensor) -> Tensor:
    return -0.1 * y


def solution_of(name: str, t: Tensor) -> Tensor:
    s = t[:, None]
    if name == "constant":
        return 0.2 * s + 3
    if name == "sine":
        wave = -0.5 * s**4 * torch.cos(2 * s) + 0.5 * s**3 * torch.sin(2 * s) + 0.25 * s**2 * torch.cos(2 * s)
        return wave - s**3 + 2 * s**4 + (math.pi - 0.25) * s**2
    if name == "rotation":
        return torch.matrix_exp(ROTATION * t[:, None, None]) @ torch.ones(10, dtype=torch.float64)
    return torch.exp(-0.1 * s)


PROBLEMS = {"constant": constant, "sine": sine, "rotation": rotation, "exponential": exponential}


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_known_solutions(name: str, backwards: bool, dtype: torch.dtype, tolerance: float) -> None:
    """The problems of torchdiffeq's own tests, each row on its own interval."""
    starts, ends = torch.tensor([1.0, 1.5, 2.0]).double(), torch.tensor([8.0, 4.0, 3.0]).double()
    t0, t1 = (ends, starts) if backwards else (starts, ends)
    y0 = solution_of(name, t0).to(dtype)
    solution = pf.odeint(PROBLEMS[name], y0, t0, t1, rtol=tolerance, atol=tolerance).raise_for_status()
    assert solution.samples.dtype == dtype
    expected = solution_of(name, t1)
    worst = ((solution.samples - expected).abs() / (1 + expected.abs())).max()
    assert worst < 300 * tolerance


def test_parameters_travel_with_their_rows() -> None:
    rates = torch.logspace(-1, 2, 50, dtype=torch.float64)
    seen = []

    def decay(t: Tensor, y: Tensor, rate: Tensor, sign: float) -> Tensor:
        assert len(t) == len(y) == len(rate)
        seen.append(len(y))
        return sign * rate[:, None, None] * y

    y0 = torch.ones(50, 2, 3, dtype=torch.float64)
    all_at_once = pf.odeint(decay, y0, 0.0, 1.0, args=(rates, -1.0), rtol=1e-8, atol=1e-10)
    expected = torch.exp(-rates)[:, None, None].expand(50, 2, 3)
    assert (all_at_once.samples - expected).abs().max() < 1e-7
    seen.clear()
    few = pf.odeint(decay, y0, 0.0, 1.0, args=(rates, -1.0), rtol=1e-8, atol=1e-10, batch_size=7)
    assert max(seen) == 7
    assert sum(seen) == int(few.nfe.sum())
    assert (few.samples - all_at_once.samples).abs().max() < 1e-12
    assert torch.equal(few.nfe, all_at_once.nfe)


def test_slots_stay_full() -> None:
    """200 samples, a tenth of them stiff, on 8 slots: little more than an eighth of the samples' evaluations."""
    rates = torch.where(torch.arange(200) % 10 == 3, 60.0, 1.0).double()
    calls = 0

    def decay(t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return -rate[:, None] * y

    solution = pf.odeint(decay, torch.ones(200, 4).double(), 0.0, 5.0, args=(rates,), batch_size=8)
    assert solution.ok
    assert int(solution.nfe.sum()) / 8 <= calls < int(solution.nfe.sum()) / 8 + int(solution.nfe.max())


@pytest.mark.parametrize(("t0", "t1"), [(0.0, 3.0), (3.0, 0.0)])
def test_batch_control_is_scipy_on_the_flattened_state(t0: float, t1: float) -> None:
    y0 = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def pendulum(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[:, 1], -torch.sin(y[:, 0]) * (1 + t)], 1)

    def flat(t: float, y: NDArray[Any]) -> NDArray[Any]:
        slope: NDArray[Any] = (
            pendulum(torch.tensor([t] * 5, dtype=y0.dtype), torch.from_numpy(y).reshape(5, 2)).numpy().ravel()
        )
        return slope

    theirs = solve_ivp(flat, (t0, t1), y0.numpy().ravel(), method="RK45", rtol=1e-5, atol=1e-7)
    ours = pf.odeint(pendulum, y0, t0, t1, rtol=1e-5, atol=1e-7, step_control="batch", trajectory=True)
    assert ours.nfe.tolist() == [theirs.nfev] * 5
    assert ours.ok
    np.testing.assert_allclose(ours.samples.numpy().ravel(), theirs.y[:, -1], rtol=1e-9, atol=1e-9)
    states, times = path(ours)
    np.testing.assert_allclose(times[:, 2].numpy(), theirs.t[1:], rtol=1e-9)
    np.testing.assert_allclose(states.flatten(1).numpy(), theirs.y[:, 1:].T, rtol=1e-8, atol=1e-8)


def test_the_states_are_left_alone_and_no_gradient_is_kept() -> None:
    y0 = torch.ones(2, 3, requires_grad=True)
    solution = pf.odeint(exponential, y0, 0.0, 1.0)
    assert not solution.samples.requires_grad
    assert torch.equal(y0, torch.ones(2, 3))


def test_float16_states_are_computed_in_float32() -> None:
    solution = pf.odeint(exponential, torch.ones(2, 3, dtype=torch.float16), 0.0, 1.0)
    assert solution.samples.dtype == torch.float16
    assert solution.samples[0, 0] == pytest.approx(math.exp(-0.1), rel=1e-3)


def test_func_sees_the_dtype_of_its_states() -> None:
    half = torch.nn.Linear(3, 3, dtype=torch.bfloat16)
    assert pf.odeint(lambda t, y: half(y) * t[:, None], torch.ones(2, 3, dtype=torch.bfloat16), 0.0, 1.0).ok


def test_a_bar_over_nothing() -> None:
    assert pf.odeint(exponential, torch.ones(0, 3), 0.0, 1.0, progress=True).ok


def test_callback_progress_and_stop(capsys: pytest.CaptureFixture[str]) -> None:
    seen = []

    def stop(info: dict[str, Any]) -> bool:
        assert set(info) == {"t", "y", "slope", "i", "rows"}
        assert torch.allclose(info["slope"], -0.1 * info["y"])
        seen.append(info["i"])
        return len(seen) == 3

    solution = pf.odeint(exponential, torch.ones(2, 3), 0.0, 100.0, callback=stop, progress=True)
    assert seen == [0, 1, 2]
    assert solution.status.tolist() == [pf.Status.STOPPED] * 2
    assert pf.odeint(exponential, torch.ones(2, 3), 0.0, 100.0, progress=True).ok
    assert "2/2 rows" in capsys.readouterr().err


def test_nothing_to_integrate() -> None:
    empty = pf.odeint(exponential, torch.ones(0, 3), 0.0, 1.0)
    assert empty.samples.shape == (0, 3)
    assert empty.ok
    still = pf.odeint(exponential, torch.ones(2, 3), 1.0, 1.0)
    assert still.ok
    assert still.nfe.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"func": 3}, TypeError, "func must be callable.*got int"),
        ({"y0": [1.0]}, TypeError, "y0 must be a torch.Tensor, got list"),
        ({"y0": np.ones((2, 3))}, TypeError, r"y0.*torch\.from_numpy"),
        ({"y0": torch.ones(2, 3).long()}, TypeError, "y0 must have dtype"),
        ({"y0": torch.tensor(1.0)}, ValueError, r"y0 must be \(B, ...\)"),
        ({"y0": torch.full((2, 3), math.nan)}, ValueError, "y0 must be finite"),
        ({"t0": "now"}, TypeError, "t0 must be a number"),
        ({"t1": math.inf}, ValueError, "t1 must be finite"),
        ({"t1": torch.ones(3)}, ValueError, r"t1 must be a number or \(2,\)"),
        ({"t1": torch.ones(2), "step_control": "batch"}, ValueError, "t0 and t1 must be numbers"),
        ({"args": torch.ones(2)}, TypeError, "args must be a tuple"),
        ({"args": (torch.ones(3),)}, ValueError, r"args\[0\] must have a row for each of the 2 samples"),
        ({"rtol": 0, "atol": 0}, ValueError, "rtol and atol"),
        ({"max_steps": 0}, ValueError, "max_steps"),
        ({"step_control": "row"}, ValueError, "unknown step_control 'row'; known: 'sample', 'batch'"),
        ({"batch_size": 0}, ValueError, "batch_size must be an integer >= 1"),
        ({"batch_size": 2, "step_control": "batch"}, ValueError, "batch_size must be None"),
        ({"callback": 3}, TypeError, "callback"),
        ({"func": lambda t, y: y[:, :1]}, ValueError, r"func must return a tensor like x, of shape \(2, 3\)"),
        ({"func": lambda t, y: None}, TypeError, "func's result must be a torch.Tensor"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    options: dict[str, Any] = {"func": exponential, "y0": torch.ones(2, 3), "t0": 0.0, "t1": 1.0, **change}
    with pytest.raises(error, match=message):
        pf.odeint(**options)
