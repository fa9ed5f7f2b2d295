"""The log density of the family's noise: the multivariate Student-t kernel, at D = inf the normal one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_STIRLING = 16.0  # from here on four terms of the series give all digits of float64


def log_density(squared_norm: Tensor, sigma: float, N: int, D: float) -> Tensor:
    """Log density in nats of noise of scale sigma at points of that squared norm (B,), float64: (B,)."""
    if math.isinf(D):
        tail = -squared_norm / (2 * sigma**2)
    else:
        tail = -(N + D) / 2 * torch.log1p(squared_norm / (D * sigma**2))
    return tail - N * (math.log(sigma) + math.log(2 * math.pi) / 2) + log_gamma_excess(D / 2, N / 2)


def log_normaliser(scale: Tensor, N: int, D: float) -> Tensor:
    """Its value at 0, where scale (B,) is that of the kernel: D sigma^2, or 2 sigma^2 for D = inf.

    lnGamma((N + D)/2) - lnGamma(D/2) - N/2 ln(D pi sigma^2), put so that nothing grows with D.
    """
    variance = scale / (2 if math.isinf(D) else D)
    return -N / 2 * torch.log(2 * math.pi * variance) + log_gamma_excess(D / 2, N / 2)


def log_gamma_excess(a: float, h: float) -> float:
    """lnGamma(a + h) - lnGamma(a) - h ln a, which is about h (h - 1)/(2 a) for large a and 0 at infinity."""
    if math.isinf(a):
        return 0.0
    if a < _STIRLING:
        return math.lgamma(a + h) - math.lgamma(a) - h * math.log(a)
    return (a + h - 0.5) * math.log1p(h / a) - h + _remainder(a + h) - _remainder(a)


def _remainder(z: float) -> float:
    """lnGamma(z) less the leading terms (z - 1/2) ln z - z + ln(2 pi)/2 of Stirling's series."""
    u = (1 / z) ** 2
    return (1 / 12 - u * (1 / 360 - u * (1 / 1260 - u * (1 / 1680 - u / 1188)))) / z
