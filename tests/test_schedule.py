"""Noise levels."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from pfgm_fast import schedule


def test_rho_levels_follow_equation_5_and_end_at_zero() -> None:
    levels = schedule.rho_levels(18, 0.002, 80.0, 7.0)
    expected = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    assert levels == pytest.approx([*expected, 0.0], rel=1e-12)
    assert (levels[0], levels[-2], levels[-1]) == (80.0, 0.002, 0.0)


def test_one_step_goes_from_sigma_max_to_zero() -> None:
    assert schedule.rho_levels(1, 0.002, 80.0, 7.0) == [80.0, 0.0]


@pytest.mark.parametrize("rho", [1e-3, 0.1, 1.0, 7.0, 1e3, 1e18])
@pytest.mark.parametrize("steps", [2, 3, 1000])
def test_levels_decrease_strictly_for_every_rho(steps: int, rho: float) -> None:
    levels = schedule.rho_levels(steps, 0.002, 80.0, rho)
    assert len(levels) == steps + 1
    assert all(s > s_next for s, s_next in pairwise(levels))


@pytest.mark.parametrize("sigmas", [[3.0, 1, 0.5], (3.0, 1.0, 0.5), torch.tensor([3.0, 1.0, 0.5])])
def test_given_levels_are_used_as_given(sigmas: Any) -> None:
    assert schedule.given_levels(sigmas) == [3.0, 1.0, 0.5]


def test_a_trailing_zero_is_kept() -> None:
    assert schedule.given_levels([3.0, 0]) == [3.0, 0.0]


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([1.0], "at least 2"),
        ([], "at least 2"),
        ([1.0, 1.0], "decrease"),
        ([1.0, 2.0], "decrease"),
        ([2.0, 0.0, 0.0], "decrease"),
        ([1.0, -1.0], ">= 0"),
        ([math.inf, 1.0], "finite"),
        (torch.tensor([math.nan, 1.0]), "finite"),
        (torch.tensor([2.0, -1.0]), "finite and >= 0"),
        (torch.tensor([[2.0, 1.0]]), r"1-D.*\(1, 2\)"),
        (torch.tensor(2.0), "1-D"),
    ],
)
def test_bad_levels_are_refused(sigmas: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule.given_levels(sigmas)


@pytest.mark.parametrize("sigmas", [5.0, "80", torch.tensor([2, 1]), [True, False], torch.tensor([2.0, 1.0]).numpy()])
def test_levels_of_another_type_are_refused(sigmas: Any) -> None:
    with pytest.raises(TypeError, match="sigmas"):
        schedule.given_levels(sigmas)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be an integer >= 1"),
        ({"rho": 0.0}, "rho"),
        ({"rho": math.nan}, "rho"),
        ({"sigma_min": 0.0}, "sigma_min"),
        ({"sigma_min": 80.0}, "sigma_min must be < sigma_max"),
        ({"sigma_max": math.inf}, "sigma_max"),
    ],
)
def test_bad_schedules_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule.rho_levels(**{"steps": 18, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, **change})


@pytest.mark.parametrize(("first", "last"), [(80.0, 0.002), (0.002, 80.0), (1.3, 0.7), (3.0, 1 / 3)])
def test_log_level_is_exact_at_both_ends_and_stays_between_them(first: float, last: float) -> None:
    t_first, t_last = math.log(first), math.log(last)
    t = torch.tensor([t_first, t_last, (t_first + t_last) / 2, t_first + 1, t_last - 1, math.nan], dtype=torch.float64)
    sigma = schedule.log_level(first, last)(t)
    assert sigma[0] == first
    assert sigma[1] == last
    assert float(sigma[2]) == pytest.approx(math.sqrt(first * last))
    assert (sigma[:5] >= min(first, last)).all()
    assert (sigma[:5] <= max(first, last)).all()
    assert sigma[5].isnan()
