"""The fixed-step methods as data: every step is x' = a x + sum_j b_j x_hat_j with numbers from the levels alone.

With lambda = -log sigma the equation dx/dsigma = (x - x_hat)/sigma is dx/dlambda = x_hat - x, for every D. A step of
length h = log(sigma/sigma_next) is therefore exactly

    x' = e^-h x + integral from 0 to h of e^-(h - u) x_hat(lambda + u) du,

and a method is what it puts for x_hat: a constant (Euler), a polynomial through the last ones (Adams-Bashforth), or one
through that at the predicted state as well (Adams-Moulton). Nothing Gaussian is used. Data prediction as in Lu et al.
2022 (DPM-Solver++); predictor and corrector as in Zhao et al. 2023 (UniPC), here with the exact integrals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple


class Weights(NamedTuple):
    """One linear combination: of the state, and of denoised states in the order of their levels."""

    state: float
    denoised: tuple[float, ...]


Rule = Callable[[Sequence[float], float, float], Weights]
"""rule(knots, sigma, sigma_next): from the state at sigma to sigma_next, with x_hat known at the levels `knots`.

A predictor's knots are (sigma, the level before, ...); a corrector's (sigma_next, sigma, the level before, ...).
"""


def euler(knots: Sequence[float], sigma: float, sigma_next: float) -> Weights:
    """x + (sigma_next - sigma) d with d = (x - x_hat)/sigma: order 1, in sigma and in lambda alike."""
    return Weights(sigma_next / sigma, ((sigma - sigma_next) / sigma,))


def trapezoid(knots: Sequence[float], sigma: float, sigma_next: float) -> Weights:
    """x + (sigma_next - sigma) (d + d')/2, d' = (x' - x_hat')/sigma_next at Euler's x' (Karras et al. 2022, alg. 1)."""
    ahead = (sigma - sigma_next) / (2 * sigma_next)
    return Weights(sigma_next / sigma, (ahead, (sigma - sigma_next) / sigma - ahead))


def dpmpp_2m(knots: Sequence[float], sigma: float, sigma_next: float) -> Weights:
    """DPM-Solver++(2M): a constant x_hat, extrapolated from the last two to the middle of the step (Lu et al. 2022)."""
    if len(knots) == 1 or sigma_next == 0:
        return euler(knots, sigma, sigma_next)
    share = (sigma - sigma_next) / sigma
    slope = math.log(sigma / sigma_next) / (2 * math.log(knots[1] / sigma))
    return Weights(sigma_next / sigma, (share * (1 + slope), -share * slope))


def adams(knots: Sequence[float], sigma: float, sigma_next: float) -> Weights:
    """The exact integral of the polynomial through x_hat at the knots: order len(knots).

    To sigma_next = 0, where h is infinite, it is the newest x_hat.
    """
    if sigma_next == 0:
        return Weights(0.0, (1.0,))
    h = math.log(sigma / sigma_next)
    places = [math.log(sigma / knot) / h for knot in knots]
    integrals = moments(h, len(knots))
    return Weights(sigma_next / sigma, tuple(h * _dot(_lagrange(places, j), integrals) for j in range(len(knots))))


def moments(h: float, n: int) -> list[float]:
    """integral from 0 to 1 of e^-h(1 - v) v^k dv for k < n: k! phi_(k+1)(-h), h of either sign."""
    if abs(h) < 2:
        return [_series(h, k) for k in range(n)]
    result = [-math.expm1(-h) / h]
    for k in range(1, n):
        result.append((1 - k * result[-1]) / h)  # by parts; no cancellation, as h is not small
    return result


def _series(h: float, k: int) -> float:
    """sum_n (-h)^n k!/(k + n + 1)!, the expansion of the k-th moment."""
    term = total = 1 / (k + 1)
    for n in range(1, 40):
        term *= -h / (k + n + 1)
        total += term
    return total


def _lagrange(places: Sequence[float], j: int) -> list[float]:
    """Coefficients, constant first, of the polynomial that is 1 at places[j] and 0 at the others."""
    coefficients = [1.0]
    for i, place in enumerate(places):
        if i != j:
            lower = [-place * c for c in coefficients] + [0.0]
            coefficients = [(a + b) / (places[j] - place) for a, b in zip(lower, [0.0, *coefficients], strict=True)]
    return coefficients


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


@dataclass(frozen=True)
class Method:
    """A fixed-step method.

    Attributes:
        predict: the rule of a step, or of its first half.
        correct: the rule of its second half, with x_hat at the predicted state; None for a method without one.
        history: how many x_hat a step may use beside the corrector's, given the number of levels > 0 of the solve, at
            each of which a method that reuses evaluates once. The first steps use those there are.
        reuse: the x_hat at the predicted state is taken for that at the corrected one, so that a step costs one
            evaluation; otherwise it is evaluated again.
    """

    predict: Rule
    correct: Rule | None = None
    history: Callable[[int], int] = lambda levels: 1
    reuse: bool = False

    @property
    def single_step(self) -> bool:
        """Whether a step depends on the state alone, so that the state may be changed between steps, as churn does."""
        return not self.reuse and self.history(1) == 1


def unipc(order: int | None = None) -> Method:
    """Adams-Bashforth of the order with Adams-Moulton corrector: order + 1; None is 2 up to 20 evaluations, else 3."""
    return Method(adams, adams, lambda levels: order or (2 if levels <= 20 else 3), reuse=True)


METHODS = MappingProxyType(
    {
        "euler": Method(euler),
        "heun": Method(euler, trapezoid),
        "dpmpp_2m": Method(dpmpp_2m, history=lambda levels: 2),
        "unipc": unipc(),
    }
)
