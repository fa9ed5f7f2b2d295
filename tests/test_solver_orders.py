"""The fixed-step methods: their coefficients, their order of convergence for every D, their error for a given cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from decimal import Decimal, localcontext
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from solving import exact, run
from torch import Tensor

from pfgm_fast import multistep, prior, schedule
from pfgm_fast.multistep import METHODS, unipc

LAST = 0.05
DIMENSIONS = (1.0, 8.0, 128.0, 2048.0, math.inf)


def precise_moment(h: float, k: int) -> Decimal:
    """integral from 0 to 1 of e^-h(1 - v) v^k dv to 60 digits, by its series."""
    with localcontext() as context:
        context.prec = 120
        total = Decimal(0)
        term = 1 / Decimal(k + 1)
        for n in range(1, 600):
            total += term
            term *= -Decimal(h) / (k + n + 1)
        return total


SIZES = [0.0, 1e-300, 1e-17, 1e-9, 1e-3, 0.3, 1.0, 1.99999, 2.0, 2.5, 7.0, 30.0]


@pytest.mark.parametrize("h", [*SIZES, *(-h for h in SIZES[1:])])
def test_moments_are_exact_for_small_and_large_steps(h: float) -> None:
    expected = [float(precise_moment(h, k)) for k in range(5)]
    assert multistep.moments(h, 5) == pytest.approx(expected, rel=1e-14, abs=0)


LEVELS = {
    "even": [3.0, 2.0, 1.4, 1.0],
    "upwards": [0.1, 0.2, 0.7, 0.9],
    "a short step after long ones": [80.0, 9.0, 1.0, 1 - 1e-9],
    "a long step after short ones": [80.0, 79.9, 79.8, 0.002],
    "tiny steps": [1.0, 1 - 1e-7, 1 - 3e-7, 1 - 4e-7],
}


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("corrects", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_adams_is_exact_for_polynomials_in_log_sigma(name: str, corrects: bool, order: int) -> None:
    *known, sigma, sigma_next = LEVELS[name]
    knots = [sigma, *reversed(known)][:order]
    if corrects:
        knots = [sigma_next, *knots][: order + 1]
    weights = multistep.adams(knots, sigma, sigma_next)
    assert weights.state == sigma_next / sigma
    with localcontext() as context:
        context.prec = 80
        h = (Decimal(sigma) / Decimal(sigma_next)).ln()
        places = [(Decimal(sigma) / Decimal(knot)).ln() / h for knot in knots]
        powers = [Decimal(1)] * len(knots)
        for k in range(len(knots)):
            terms = [Decimal(b) * power for b, power in zip(weights.denoised, powers, strict=True)]
            ours, size = sum(terms), sum(map(abs, terms))
            powers = [power * place for power, place in zip(powers, places, strict=True)]
            # levels that are close are known to each other no better than their quotient in float64
            noise = max(Decimal("1e-13"), Decimal("1e-15") / abs(h))
            assert abs(ours - h * precise_moment(float(h), k)) < noise * (size + abs(h))


def test_to_zero_every_method_ends_on_the_newest_denoised_state() -> None:
    for method in METHODS.values():
        weights = method.predict([0.1, 0.4, 1.0], 0.1, 0.0)
        assert weights.state == 0
        assert weights.denoised[0] == 1
        assert not any(weights.denoised[1:])


def test_euler_and_heun_are_those_in_sigma() -> None:
    x, x_hat, next_hat = 1.7, 0.3, -0.4
    for sigma, sigma_next in [(3.0, 2.0), (0.5, 0.75), (80.0, 0.002)]:
        d = (x - x_hat) / sigma
        predicted = x + (sigma_next - sigma) * d
        a, (b,) = multistep.euler([sigma], sigma, sigma_next)
        assert a * x + b * x_hat == pytest.approx(predicted, rel=1e-13)
        d_next = (predicted - next_hat) / sigma_next
        a, (b_next, b) = multistep.trapezoid([sigma_next, sigma], sigma, sigma_next)
        expected = x + (sigma_next - sigma) * (d + d_next) / 2
        assert a * x + b * x_hat + b_next * next_hat == pytest.approx(expected, rel=1e-11)


def test_dpmpp_2m_is_the_published_update() -> None:
    """Lu et al. 2022, algorithm 2, with alpha = 1."""
    before, sigma, sigma_next = 4.0, 1.5, 0.9
    h, h_last = math.log(sigma / sigma_next), math.log(before / sigma)
    r = h_last / h
    x, x_hat, last = 1.3, 0.2, -0.8
    data = (1 + 1 / (2 * r)) * x_hat - 1 / (2 * r) * last
    expected = sigma_next / sigma * x - math.expm1(-h) * data
    a, (b, b_last) = multistep.dpmpp_2m([sigma, before], sigma, sigma_next)
    assert a * x + b * x_hat + b_last * last == pytest.approx(expected, rel=1e-14)


def test_the_order_of_unipc_follows_the_number_of_evaluations() -> None:
    assert [METHODS["unipc"].history(steps) for steps in (1, 20, 21, 100)] == [2, 2, 3, 3]


def levels(steps: int) -> list[float]:
    """The levels of EDM from 80 to LAST, without a 0."""
    return schedule.rho_levels(steps + 1, LAST, 80.0, 7.0)[:-1]


def points(M: int) -> Tensor:
    """Eight clusters on a circle of radius 2."""
    g = torch.Generator().manual_seed(0)
    angle = torch.randint(8, (M,), generator=g).double() * (math.pi / 4)
    centers = torch.stack([angle.cos(), angle.sin()], 1) * 2
    return centers + 0.1 * torch.randn(M, 2, generator=g, dtype=torch.float64)


@cache
def problem(D: float, M: int, B: int) -> tuple[Callable[[Tensor, float], Tensor], Tensor, Tensor]:
    """Denoiser, latents and the solution at LAST by another integrator."""
    denoise = exact(points(M), D)
    x = prior((B, 2), 80.0, D, seeds=range(B), dtype=torch.float64)

    def slope(t: float, flat: NDArray[np.float64]) -> NDArray[Any]:
        state = torch.from_numpy(flat).view(B, 2)
        slopes: NDArray[Any] = (state - denoise(state, math.exp(t))).flatten().numpy()
        return slopes

    ends = math.log(80.0), math.log(LAST)
    solved = solve_ivp(slope, ends, x.flatten().numpy(), method="DOP853", rtol=1e-10, atol=1e-10)
    assert solved.success
    return denoise, x, torch.from_numpy(solved.y[:, -1]).view(B, 2)


ORDERS = {
    # order of the predictor, and one more where a corrector follows that uses one more value
    "euler": (METHODS["euler"], 1, (320, 640, 1280)),
    "heun": (METHODS["heun"], 2, (160, 320, 640)),
    "dpmpp_2m": (METHODS["dpmpp_2m"], 2, (160, 320, 640)),
    "unipc(2)": (unipc(2), 3, (160, 320, 640)),
    "unipc(3)": (unipc(3), 4, (160, 320, 640)),
}


@pytest.mark.parametrize("D", DIMENSIONS)
@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(name: str, D: float) -> None:
    method, order, numbers = ORDERS[name]
    denoise, x, solution = problem(D, 100, 32)
    errors = [float((run(method, denoise, x, levels(n)).x - solution).norm(dim=1).mean()) for n in numbers]
    slope = -np.polyfit(np.log(numbers), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.25), errors


def median_errors(name: str, evaluations: Sequence[int]) -> list[float]:
    denoise, x, solution = problem(128.0, 2000, 256)
    result = []
    for n in evaluations:
        steps = {"heun": n // 2, "unipc": n - 1}.get(name, n)  # unipc evaluates at the last level too
        record = run(METHODS[name], denoise, x, levels(steps))
        assert record.nfe.eq(n).all()
        result.append(float((record.x - solution).norm(dim=1).median()))
    return result


def test_errors_for_a_given_cost() -> None:
    """2,000 points, D = 128, from 80 to 0.05."""
    table = {name: median_errors(name, (20, 40)) for name in METHODS}
    assert table["unipc"][0] <= 5e-3
    assert table["unipc"][1] <= 5e-4
    for cheaper, dearer in itertools.pairwise(("unipc", "dpmpp_2m", "heun")):
        assert table[cheaper][0] < table[dearer][0] / 2
        assert table[cheaper][1] < table[dearer][1] / 2
