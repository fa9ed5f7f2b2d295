"""Noise levels: decreasing lists of float64 numbers kept on the host."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from pfgm_fast import _checks


def interval(sigma_min: float, sigma_max: float) -> tuple[float, float]:
    """sigma_max and sigma_min, the first and last level, checked."""
    last = _checks.number("sigma_min", sigma_min, above=0)
    first = _checks.number("sigma_max", sigma_max, above=0)
    if last >= first:
        raise ValueError(f"sigma_min must be < sigma_max, got sigma_min={sigma_min} and sigma_max={sigma_max}")
    return first, last


def rho_levels(steps: int, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
    """`steps` levels from sigma_max to sigma_min, even in sigma^(1/rho), then 0 (Karras et al. 2022, equation 5).

    One step goes from sigma_max to 0. The form without powers keeps every rho > 0 from overflow and cancellation.
    """
    steps = _checks.integer("steps", steps, at_least=1)
    rho = _checks.number("rho", rho, above=0)
    first, last = interval(sigma_min, sigma_max)
    if steps == 1:
        return [first, 0.0]
    depth = math.expm1(math.log(last / first) / rho)
    inner = [first * math.exp(rho * math.log1p(depth * i / (steps - 1))) for i in range(1, steps - 1)]
    return [first, *inner, last, 0.0]


def given_levels(sigmas: Sequence[float] | Tensor) -> list[float]:
    """A user's levels: at least two, finite, decreasing, positive but for a last 0."""
    if isinstance(sigmas, (list, tuple)):
        levels = [_checks.number("sigmas", s, at_least=0) for s in sigmas]
    else:
        given = _checks.tensor("sigmas", sigmas)
        if given.ndim != 1:
            raise ValueError(f"sigmas must be a list or a 1-D tensor, got shape {tuple(given.shape)}")
        levels = given.tolist()
    if len(levels) < 2:
        raise ValueError(f"sigmas must hold at least 2 levels, got {len(levels)}")
    if not all(math.isfinite(s) and s >= 0 for s in levels):
        raise ValueError(f"sigmas must be finite and >= 0, got {levels}")
    for i, (s, s_next) in enumerate(pairwise(levels)):
        if s <= s_next:
            raise ValueError(f"sigmas must decrease, got {s:g} then {s_next:g} at positions {i} and {i + 1}")
    return levels


def log_level(first: float, last: float) -> Callable[[Tensor], Tensor]:
    """The map t -> sigma = exp(t), exact at t = log(first) and t = log(last) and never outside of the two."""
    t_first, t_last = math.log(first), math.log(last)
    lowest, highest = min(first, last), max(first, last)

    def level(t: Tensor) -> Tensor:
        sigma = torch.exp(t).clamp(lowest, highest)
        return sigma.masked_fill(t == t_first, first).masked_fill(t == t_last, last)

    return level
