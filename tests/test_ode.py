"""The adaptive loop against SciPy, row by row, and what it promises for each row of a batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from problems import path
from scipy.integrate import solve_ivp
from torch import Tensor

from pfgm_fast.ode import cohorts
from pfgm_fast.ode.controller import IntegralController
from pfgm_fast.ode.solve import solve
from pfgm_fast.ode.tableau import DORMAND_PRINCE, ButcherTableau
from pfgm_fast.solution import Record, Solution, Status


def integrate(
    func: Callable[[Tensor, Tensor], Tensor],
    y0: Tensor,
    t0: float,
    t1: float | Tensor,
    *,
    rtol: float = 1e-6,
    atol: float = 1e-8,
    max_steps: int = 10000,
    trajectory: bool = False,
    **options: Any,
) -> Solution:
    """dy/dt = func(t (b,), y (b, ...)) from t0 to t1, as a Solution whose trajectory_sigma holds times."""
    record = Record.start(y0, t0, trajectory=trajectory)
    end = torch.as_tensor(t1, dtype=torch.float64).expand(len(y0))
    solve(lambda t, y, rows: func(t, y), record, end, rtol=rtol, atol=atol, max_steps=max_steps, **options)
    return record.solution()


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -y * torch.linspace(0.5, 3, y.shape[1], dtype=y.dtype)


def rotation(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[:, 1], -4 * y[:, 0]], 1) + torch.sin(t)[:, None]


def van_der_pol(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[:, 1], 3 * (1 - y[:, 0] ** 2) * y[:, 1] - y[:, 0]], 1)


def growth(t: Tensor, y: Tensor) -> Tensor:
    return y * torch.cos(t)[:, None]


PROBLEMS = {
    "decay": (decay, [1.0, -2.0, 0.5, 3.0]),
    "rotation": (rotation, [1.0, 0.0]),
    "van der pol": (van_der_pol, [2.0, 0.0]),
    "growth": (growth, [1.0, 1e-3, 0.0]),
}


class TestAgainstSciPy:
    @pytest.mark.parametrize(("t0", "t1"), [(0.0, 5.0), (5.0, 0.0), (-1.0, 2.5), (0.3, 0.3 + 1e-9)])
    # the tighter the tolerance, the more of the error estimate, and so of the step length, is rounding
    @pytest.mark.parametrize(("rtol", "atol", "close"), [(1e-3, 1e-6, 1e-11), (1e-6, 1e-8, 1e-9)])
    @pytest.mark.parametrize("name", PROBLEMS)
    def test_one_row_takes_the_same_steps(
        self, name: str, rtol: float, atol: float, close: float, t0: float, t1: float
    ) -> None:
        func, y0 = PROBLEMS[name]
        if name == "van der pol" and t1 < t0:
            t1 = t0 - 0.5  # backwards in time it leaves every bound

        def host(t: float, y: NDArray[Any]) -> NDArray[Any]:
            slope: NDArray[Any] = func(torch.tensor([t], dtype=torch.float64), torch.from_numpy(y)[None])[0].numpy()
            return slope

        theirs = solve_ivp(host, (t0, t1), np.array(y0), method="RK45", rtol=rtol, atol=atol)
        y = torch.tensor([y0], dtype=torch.float64)
        ours = integrate(func, y, t0, t1, rtol=rtol, atol=atol, trajectory=True).raise_for_status()
        assert int(ours.nfe) == theirs.nfev
        assert int(ours.accepted) == len(theirs.t) - 1
        assert theirs.nfev == 2 + 6 * int(ours.accepted + ours.rejected)
        states, times = path(ours)
        np.testing.assert_allclose(times[:, 0].numpy(), theirs.t[1:], rtol=close, atol=close)
        np.testing.assert_allclose(states[:, 0].numpy().T, theirs.y[:, 1:], rtol=10 * close, atol=10 * close)
        assert times[-1, 0] == t1

    def test_rejections_occur_in_these_problems(self) -> None:
        solution = integrate(van_der_pol, torch.tensor([[2.0, 0.0]], dtype=torch.float64), 0.0, 5.0, rtol=1e-3)
        assert int(solution.rejected) > 0

    def test_rows_with_their_own_ends_and_directions(self) -> None:
        y = torch.ones(3, 1, dtype=torch.float64)
        solution = integrate(lambda t, y: -y, y, 0.0, torch.tensor([2.0, -2.0, 0.0]), rtol=1e-10, atol=1e-12)
        assert solution.ok
        assert torch.allclose(solution.samples[:, 0], torch.tensor([-2.0, 2.0, 0.0], dtype=torch.float64).exp())
        assert solution.nfe[2] == 0
        assert torch.equal(solution.samples[2], y[2])


class TestRows:
    def stiffness(self, B: int) -> Tensor:
        """Rows from easy to hard, elementwise, so that a row's right-hand side does not depend on its batch."""
        speed = torch.logspace(0, 1.5, B, dtype=torch.float64)
        y0 = torch.stack([speed, torch.ones(B, dtype=torch.float64), torch.zeros(B, dtype=torch.float64)], 1)
        return y0[torch.randperm(B, generator=torch.Generator().manual_seed(1))]

    @staticmethod
    def oscillator(t: Tensor, y: Tensor) -> Tensor:
        speed = y[:, 0]
        return torch.stack([torch.zeros_like(speed), speed * y[:, 2], -speed * y[:, 1]], 1)

    def test_alone_and_inside_a_batch(self) -> None:
        y0 = self.stiffness(1024)
        batch = integrate(self.oscillator, y0, 0.0, 2.0, rtol=1e-5, atol=1e-7)
        alone = integrate(self.oscillator, y0[:64], 0.0, 2.0, rtol=1e-5, atol=1e-7)
        assert batch.ok
        assert (batch.samples[:64] - alone.samples).abs().max() < 1e-12
        assert torch.equal(batch.nfe[:64], alone.nfe)
        single = integrate(self.oscillator, y0[7:8], 0.0, 2.0, rtol=1e-5, atol=1e-7)
        assert (batch.samples[7] - single.samples[0]).abs().max() < 1e-12

    def test_finished_rows_are_not_evaluated(self) -> None:
        evaluated = 0

        def counting(t: Tensor, y: Tensor) -> Tensor:
            nonlocal evaluated
            evaluated += len(y)
            return self.oscillator(t, y)

        solution = integrate(counting, self.stiffness(64), 0.0, 2.0)
        assert evaluated == int(solution.nfe.sum())
        assert solution.nfe.max() > 1.5 * solution.nfe.min()

    @pytest.mark.parametrize("when", [-1.0, 0.5])
    def test_a_bad_row_is_retired_alone_with_its_last_good_state(self, when: float) -> None:
        y0 = self.stiffness(64)

        def poisoned(t: Tensor, y: Tensor) -> Tensor:
            bad = (y[:, 0] == y0[3, 0]) & (t > when)
            return self.oscillator(t, y).masked_fill(bad[:, None], math.nan)

        clean = integrate(self.oscillator, y0, 0.0, 2.0)
        solution = integrate(poisoned, y0, 0.0, 2.0, trajectory=True)
        others = torch.arange(64) != 3
        assert (solution.status[others] == Status.SUCCESS).all()
        assert (solution.samples[others] - clean.samples[others]).abs().max() < 1e-12
        assert solution.status[3] == Status.NONFINITE
        assert solution.samples[3].isfinite().all()
        if when < 0:
            assert torch.equal(solution.samples[3], y0[3])
            assert solution.nfe[3] == 1
        else:
            reached = path(solution)[1][solution.accepted[3] - 1, 3]
            assert 0.4 < reached <= 0.5
            angle = y0[3, 0] * reached
            expected = torch.stack([torch.cos(angle), -torch.sin(angle)])
            assert torch.allclose(solution.samples[3, 1:], expected, atol=1e-4)
            before = clean.accepted[3] + clean.rejected[3]
            assert solution.accepted[3] + solution.rejected[3] <= before + 36

    def test_a_slow_row_that_meets_nan_is_retired_within_50_steps(self) -> None:
        solution = integrate(
            lambda t, y: torch.where((t > 0.5)[:, None], math.nan, -y), torch.ones(1, 2, dtype=torch.float64), 0.0, 2.0
        )
        assert solution.status.tolist() == [Status.NONFINITE]
        assert int(solution.accepted + solution.rejected) <= 50
        assert solution.samples[0, 0] == pytest.approx(math.exp(-0.5), rel=1e-2)

    def test_a_row_recovers_from_steps_that_were_too_long(self) -> None:
        """At this tolerance the steps grow until a stage makes y negative, where the slope is NaN, again and again."""
        missed = 0

        def barrier(t: Tensor, y: Tensor) -> Tensor:
            nonlocal missed
            missed += int((y < 0).sum())
            return torch.where(y < 0, math.nan, -100 * y)

        solution = integrate(barrier, torch.ones(1, 1, dtype=torch.float64), 0.0, 20.0, rtol=1e-2, atol=1e-2)
        assert missed > cohorts.NONFINITE_LIMIT
        assert solution.ok
        assert 0 <= float(solution.samples) < 1e-2

    def test_max_steps_keeps_the_last_state(self) -> None:
        y0 = self.stiffness(8)
        solution = integrate(self.oscillator, y0, 0.0, 2.0, max_steps=10, trajectory=True)
        late = solution.status == Status.MAX_STEPS
        assert late.any()
        assert (solution.accepted + solution.rejected)[late].tolist() == [10] * int(late.sum())
        last = path(solution)[0][solution.accepted - 1, torch.arange(8)]
        assert torch.equal(solution.samples, last)

    def test_step_underflow(self) -> None:
        """At t = 1 the slope jumps by a random amount, whatever the step: no step is short enough."""
        noise = torch.Generator().manual_seed(0)

        def rough(t: Tensor, y: Tensor) -> Tensor:
            wild = 1e12 * torch.rand(y.shape, generator=noise, dtype=y.dtype)
            return torch.where((t > 1)[:, None], wild, -y)

        y0 = torch.ones(2, 3, dtype=torch.float64)
        solution = integrate(rough, y0, 0.0, torch.tensor([2.0, 0.9]), rtol=1e-10, atol=1e-12)
        assert solution.status.tolist() == [Status.STEP_UNDERFLOW, Status.SUCCESS]
        assert solution.samples.isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_times_stay_in_the_interval_and_touch_both_ends(self, dtype: torch.dtype) -> None:
        t0, t1 = math.log(80.0), math.log(0.002)
        seen = []

        def recording(t: Tensor, y: Tensor) -> Tensor:
            assert t.dtype == torch.float64
            assert y.dtype == dtype
            seen.append(t)
            return y * torch.sin(9 * t)[:, None].to(dtype)

        assert integrate(recording, torch.randn(32, 5, dtype=dtype), t0, t1, rtol=1e-4, atol=1e-4).ok
        times = torch.cat(seen)
        assert times.max() == t0
        assert times.min() == t1

    def test_a_zero_component_needs_no_absolute_tolerance(self) -> None:
        y0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        assert integrate(lambda t, y: -y, y0, 0.0, 1.0, rtol=1e-6, atol=0.0).ok

    def test_states_of_any_shape(self) -> None:
        y0 = torch.randn(3, 2, 4, 4, dtype=torch.float64)
        flat = integrate(lambda t, y: -y, y0.flatten(1), 0.0, 1.0)
        shaped = integrate(lambda t, y: -y, y0, 0.0, 1.0)
        assert torch.equal(shaped.samples, flat.samples.reshape(y0.shape))
        assert integrate(lambda t, y: -y, y0[:, 0, 0, 0], 0.0, 1.0).ok

    def test_the_start_is_not_written_to(self) -> None:
        y0 = torch.ones(3, 2, dtype=torch.float64)
        integrate(lambda t, y: -y, y0, 0.0, 1.0)
        assert torch.equal(y0, torch.ones(3, 2, dtype=torch.float64))


HEUN_EULER = ButcherTableau(
    a=((), (1.0,)), b=(0.5, 0.5), c=(0.0, 1.0), error=(-0.5, 0.5), error_order=1
)  # does not reuse its last stage


class TestTableau:
    def test_dormand_prince_reuses_its_last_stage(self) -> None:
        assert DORMAND_PRINCE.closed is DORMAND_PRINCE
        assert HEUN_EULER.closed.closed is HEUN_EULER.closed

    def test_another_table_runs_in_the_same_loop(self) -> None:
        y0 = torch.ones(1, 1, dtype=torch.float64)
        solution = integrate(lambda t, y: -y, y0, 0.0, 1.0, rtol=1e-5, atol=1e-5, tableau=HEUN_EULER)
        assert float(solution.samples) == pytest.approx(math.exp(-1), abs=1e-4)
        assert int(solution.nfe) == 2 + 2 * int(solution.accepted + solution.rejected)

    def test_dormand_prince_satisfies_the_order_conditions(self) -> None:
        """Quadrature conditions of order 5 for b and of order 4 for the embedded weights."""
        c = np.array(DORMAND_PRINCE.c)
        b = np.array(DORMAND_PRINCE.b)
        embedded = b - np.array(DORMAND_PRINCE.error)
        for k in range(1, 5):
            assert b @ c**k == pytest.approx(1 / (k + 1), abs=1e-14)
        for k in range(1, 4):
            assert embedded @ c**k == pytest.approx(1 / (k + 1), abs=1e-14)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"a": ((), (0.9,))}, r"row 1 of a must sum to c\[1\]"),
            ({"a": ((), (0.5, 0.5))}, "strictly lower triangular"),
            ({"b": (0.5, 0.6)}, "b must sum to 1"),
            ({"error": (0.5, 0.5)}, "error must sum to 0"),
            ({"error": (0.0, 0.0)}, "not vanish"),
            ({"c": (0.0,)}, "one entry for each stage"),
            ({"a": ((), (1.5,)), "c": (0.0, 1.5)}, r"within \[0, 1\]"),
        ],
    )
    def test_an_inconsistent_table_is_refused(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(HEUN_EULER, **change)


def test_controller() -> None:
    error = torch.tensor([0.0, 0.5, 0.99, 1.0, 100.0, math.inf, math.nan, 0.0], dtype=torch.float64)
    retried = torch.tensor([False] * 7 + [True])
    accept, factor = IntegralController()(error, 4, retried)
    assert accept.tolist() == [True, True, True, False, False, False, False, True]
    expected = [10, 0.9 * 0.5**-0.2, 0.9 * 0.99**-0.2, 0.9, 0.9 * 100**-0.2, 0.2, 0.2, 1]
    assert factor.tolist() == pytest.approx(expected, rel=1e-14)
