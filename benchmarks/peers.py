"""The posterior mean as others write it: PyTorch expressions and PyKeOps. All compute in the dtype of x.

x is (B, N), sigma (B,), data (M, N); D is finite.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

ORIGINAL_BYTES = 3e9  # the original formula's tensor is made in chunks of rows beyond this


def original(x: Tensor, sigma: Tensor, data: Tensor, D: float) -> Tensor:
    """The formula of the published PFGM and PFGM++ code, on tensors of B x M x (N + 1), with its epsilons.

    d_j = |p - (y_j, 0)| with p = (x, r), q_j = (min d / (d_j + 1e-7))^(N + D), c_j = q_j / (sum q + 1e-7),
    E = sum_j c_j ((y_j, 0) - p); x + E_x is the posterior mean. PFGM++ does this in float64; float32 is faster.
    """
    r = sigma * D**0.5
    charges = torch.cat([data, data.new_zeros(len(data), 1)], 1)
    points = torch.cat([x, r[:, None]], 1)
    parts = []
    for p in points.split(original_rows(x, data)):
        distance = (p[:, None] - charges[None]).pow(2).sum(-1).sqrt()
        ratio = distance.amin(1, keepdim=True) / (distance + 1e-7)
        weights = ratio ** (data.shape[1] + D)
        weights = weights / (weights.sum(1, keepdim=True) + 1e-7)
        field = (weights[..., None] * (charges[None] - p[:, None])).sum(1)
        parts.append((p + field)[:, :-1])
    return torch.cat(parts)


def original_rows(x: Tensor, data: Tensor) -> int:
    """How many rows the original formula gets at a time."""
    row = len(data) * (data.shape[1] + 1) * x.element_size()
    return min(len(x), max(1, int(ORIGINAL_BYTES // row)))


class Centred(NamedTuple):
    """A data set less its mean, with its squared norms."""

    center: Tensor
    data: Tensor
    norms: Tensor

    @classmethod
    def of(cls, data: Tensor) -> Centred:
        center = data.mean(0)
        moved = data - center
        return cls(center, moved, (moved * moved).sum(1))


def two_products(x: Tensor, sigma: Tensor, centred: Centred, D: float) -> Tensor:
    """addmm + softmax + mm: the fastest of the equivalent expressions, without log1p, which would cost a pass more."""
    a = x - centred.center
    row = (a * a).sum(1) + D * sigma**2
    logits = torch.addmm(centred.norms, a, centred.data.T, alpha=-2).add_(row[:, None])
    logits.clamp_(min=1e-30).log_().mul_(-(a.shape[1] + D) / 2)
    return torch.softmax(logits, 1) @ centred.data + centred.center


def bare_products(x: Tensor, data: Tensor) -> Tensor:
    """The two matrix products alone: what `two_products` cannot go below."""
    return (x @ data.T) @ data


def cdist(x: Tensor, sigma: Tensor, data: Tensor, D: float) -> Tensor:
    """torch.cdist + softmax + mm."""
    rho = torch.cdist(x, data).square_()
    logits = rho.div_((D * sigma**2)[:, None]).log1p_().mul_(-(data.shape[1] + D) / 2)
    return torch.softmax(logits, 1) @ data


def keops_unavailable() -> str | None:
    return None if importlib.util.find_spec("pykeops") else "pykeops is not installed (pip install pykeops)"


def keops(x: Tensor, sigma: Tensor, centred: Centred, D: float) -> Callable[[], Tensor]:
    """PyKeOps' symbolic reduction. Its first call compiles the formula, about 20 s."""
    import pykeops
    from pykeops.torch import Vi, Vj

    pykeops.set_verbose(False)
    a, width, y = x - centred.center, (D * sigma**2)[:, None], Vj(centred.data)

    def call() -> Tensor:
        logits = (Vi(a).sqdist(y) + Vi(width)).log() * (-(a.shape[1] + D) / 2)
        mean: Tensor = logits.sumsoftmaxweight(y, axis=1)
        return mean + centred.center

    return call
