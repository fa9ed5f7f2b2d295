"""The noise levels of EDM's ablations: how sigma and the scale of the state go with time (2206.00364, table 1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

Curve = Callable[[float], float]


@dataclass(frozen=True)
class Schedule:
    """sigma(t), its derivative and its inverse."""

    sigma: Curve
    derivative: Curve
    inverse: Curve


@dataclass(frozen=True)
class Scaling:
    """s(t), by which the state is multiplied, and its derivative."""

    scale: Curve
    derivative: Curve


LINEAR = Schedule(lambda t: t, lambda t: 1.0, lambda sigma: sigma)
VE = Schedule(math.sqrt, lambda t: 0.5 / math.sqrt(t), lambda sigma: sigma**2)
UNSCALED = Scaling(lambda t: 1.0, lambda t: 0.0)


def vp(beta_d: float, beta_min: float) -> Schedule:
    """sigma^2 + 1 = exp(beta_d t^2/2 + beta_min t): the variance-preserving process."""

    def sigma(t: float) -> float:
        return math.sqrt(math.expm1(beta_d * t**2 / 2 + beta_min * t))

    def derivative(t: float) -> float:
        level = sigma(t)
        return (beta_min + beta_d * t) * (level + 1 / level) / 2

    def inverse(level: float) -> float:
        return (math.sqrt(beta_min**2 + 2 * beta_d * math.log1p(level**2)) - beta_min) / beta_d

    return Schedule(sigma, derivative, inverse)


def vp_between(sigma_min: float, sigma_max: float, epsilon_s: float) -> Schedule:
    """The `vp` schedule with sigma_min at t = epsilon_s and sigma_max at t = 1."""
    low, high = math.log1p(sigma_min**2), math.log1p(sigma_max**2)
    beta_d = 2 * (low / epsilon_s - high) / (epsilon_s - 1)
    return vp(beta_d, high - beta_d / 2)


def preserving(schedule: Schedule) -> Scaling:
    """s = 1/sqrt(1 + sigma^2), which keeps the variance."""

    def scale(t: float) -> float:
        return 1 / math.sqrt(1 + schedule.sigma(t) ** 2)

    return Scaling(scale, lambda t: -schedule.sigma(t) * schedule.derivative(t) * scale(t) ** 3)


def rho_levels(num_steps: int, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
    """num_steps levels from sigma_max to sigma_min, even in sigma^(1/rho); a single one is NaN, as it was."""
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return [(first + share * (last - first)) ** rho for share in shares(num_steps)]


def vp_levels(num_steps: int, schedule: Schedule, epsilon_s: float) -> list[float]:
    """Even in t from 1 to epsilon_s."""
    return [schedule.sigma(1 + share * (epsilon_s - 1)) for share in shares(num_steps)]


def ve_levels(num_steps: int, sigma_min: float, sigma_max: float) -> list[float]:
    """Geometric."""
    return [sigma_max * (sigma_min / sigma_max) ** share for share in shares(num_steps)]


def iddpm_grid(M: int, C_1: float, C_2: float) -> list[float]:
    """The levels u_0 > ... > u_M = 0 of improved DDPM (2206.00364, table 1), from a float32 alpha_bar as there.

    In float64 the smallest of them would differ by 5e-4.
    """
    alpha_bar = (math.pi / 2 * torch.arange(M + 1) / M / (C_2 + 1)).float().sin().square()
    u = [0.0]
    for ratio in reversed((alpha_bar[:-1] / alpha_bar[1:]).clamp(min=C_1).tolist()):
        u.append(math.sqrt((u[-1] ** 2 + 1) / ratio - 1))
    return u[::-1]


def iddpm_levels(num_steps: int, sigma_min: float, sigma_max: float, M: int, C_1: float, C_2: float) -> list[float]:
    """Every so many of the `iddpm_grid` within the range."""
    inside = [level for level in iddpm_grid(M, C_1, C_2) if sigma_min <= level <= sigma_max]
    return [inside[round((len(inside) - 1) * share)] for share in shares(num_steps)]


def shares(num_steps: int) -> list[float]:
    return [i / (num_steps - 1) for i in range(num_steps)] if num_steps != 1 else [math.nan]
