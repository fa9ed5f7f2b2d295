"""PFGM's own perturbation of the data, and the numbers it goes by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pfgm_fast import _checks, noise, philox

SMALL_Z = 0.005  # below this |z| the exponent is kept to RESTRICTED of its range (2209.11178, appendix B.1.1)
RESTRICTED = 0.7


class Hyperparameters(NamedTuple):
    """PFGM's settings for a data set; see `hyperparameters`."""

    M: int
    z_max: float
    upper_norm: float


def hyperparameters(data_norm: float, N: int, sigma: float = 0.01, tau: float = 0.03) -> Hyperparameters:
    """PFGM's settings for data of an average norm (2209.11178, appendices B.1.1 and B.2).

    Args:
        data_norm: mean |y| of the data, > 0.
        N: dimension of a datum.
        sigma: scale of the smallest perturbation, `sigma_end` of `pfgm_perturb`.
        tau: growth of the scale for each unit of the exponent.
    Returns:
        M: the largest exponent, 3/4 of that at which sigma^2 (1 + tau)^m reaches data_norm^2/(2 sqrt(N)), rounded up;
        z_max = sqrt(2/pi) sigma (1 + tau)^M, where sampling begins; upper_norm = sqrt(N) sigma (1 + tau)^M, the bound
        of the prior's norm in the original code.
    Raises:
        ValueError: an argument out of range, or data too small for these: M would be < 1.
    """
    norm = _checks.number("data_norm", data_norm, above=0)
    N = _checks.integer("N", N, at_least=1)
    sigma = _checks.number("sigma", sigma, above=0)
    tau = _checks.number("tau", tau, above=0)
    span = 0.75 * math.log(norm**2 / (2 * math.sqrt(N) * sigma**2)) / math.log1p(tau)
    if span < 0:
        raise ValueError(f"data_norm must be >= {math.sqrt(2 * math.sqrt(N)) * sigma:g} for this sigma, got {norm:g}")
    M = int(span) + 1
    largest = sigma * (1 + tau) ** M
    return Hyperparameters(M, math.sqrt(2 / math.pi) * largest, math.sqrt(N) * largest)


def pfgm_perturb(
    y: Tensor,
    *,
    sigma_end: float = 0.01,
    tau: float = 0.03,
    M: float = 291,
    restrict_M: bool = True,
    seeds: Sequence[int] | Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """PFGM's perturbed training data (2209.11178, algorithm 2): x = y + s g and z = s |e| with s = sigma_end (1+tau)^m,

    m uniform on [0, M), g and e standard normal. The law is that of the original code, which draws a second normal
    vector for the direction. Gradients flow to y.

    Args:
        y: (B, *data) floating, in data units.
        sigma_end: scale of the smallest perturbation, > 0.
        tau: growth of the scale for each unit of the exponent, > 0.
        M: the exponent's limit, > 0.
        restrict_M: in rows with sigma_end |e| < 0.005, draw m from [0, floor(0.7 M)) (appendix B.1.1).
        seeds, generator: as for `pfgm_fast.perturb`; a row depends on its own seed alone.
    Returns:
        x like y, and z (B,) > 0 in the dtype of y.
    Raises:
        TypeError, ValueError: naming the argument, as `pfgm_fast.perturb`.
    """
    sigma_end = _checks.number("sigma_end", sigma_end, above=0)
    tau = _checks.number("tau", tau, above=0)
    M = _checks.number("M", M, above=0)
    noise.check_data(y)
    keys = philox.row_seeds(len(y), seeds, generator, y.device)
    share, other, normal = philox.uniforms_and_normal(keys, stream=philox.PFGM)
    e = sigma_end * normal.abs()
    exponent = M * share
    if restrict_M:
        exponent = torch.where(e < SMALL_Z, int(RESTRICTED * M) * other, exponent)
    growth = torch.exp(math.log1p(tau) * exponent)
    x = noise.perturb(y, sigma_end * growth, math.inf, seeds=keys)
    return x, (e * growth).to(y.dtype)
