"""The posterior mean as others write it: PyTorch expressions, PyKeOps, FlashSinkhorn. All compute in the dtype of x.

x is (B, N), sigma (B,), data (M, N) of the same dtype; D is finite or inf.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

ORIGINAL_BYTES = 3e9  # the original formula's tensor is made in chunks of rows beyond this


def original(x: Tensor, sigma: Tensor, data: Tensor, D: float, room: float | None = None) -> Tensor:
    """The formula of the published PFGM and PFGM++ code, on tensors of B x M x (N + 1), with its epsilons.

    d_j = |p - (y_j, 0)| with p = (x, r), q_j = (min d / (d_j + 1e-7))^(N + D), c_j = q_j / (sum q + 1e-7),
    E = sum_j c_j ((y_j, 0) - p); x + E_x is the posterior mean. PFGM++ does this in float64; float32 is faster.
    For D = inf: the softmax of -d_j^2 / (2 sigma^2) with d_j = |x - y_j|.
    """
    rows = original_rows(x, data, room)
    if math.isinf(D):
        return torch.cat([_diffusion(p, s, data) for p, s in zip(x.split(rows), sigma.split(rows), strict=True)])
    r = sigma * D**0.5
    charges = torch.cat([data, data.new_zeros(len(data), 1)], 1)
    points = torch.cat([x, r[:, None]], 1)
    return torch.cat([(p + original_field(p, charges, D))[:, :-1] for p in points.split(rows)])


def original_field(points: Tensor, charges: Tensor, D: float) -> Tensor:
    """E (B, N + 1) of the formula above, at points (B, N + 1) from charges (M, N + 1), on all rows at once."""
    distance = (points[:, None] - charges[None]).pow(2).sum(-1).sqrt()
    weights = original_weights(distance, charges.shape[1] - 1 + D)
    return (weights[..., None] * (charges[None] - points[:, None])).sum(1)


def original_weights(distance: Tensor, power: float) -> Tensor:
    """The weights c (B, M) of the formula above."""
    ratio = distance.amin(1, keepdim=True) / (distance + 1e-7)
    weights = ratio**power
    return weights / (weights.sum(1, keepdim=True) + 1e-7)


def _diffusion(x: Tensor, sigma: Tensor, data: Tensor) -> Tensor:
    squares = (x[:, None] - data[None]).pow(2).sum(-1)
    weights = torch.softmax(-squares / (2 * sigma[:, None] ** 2), 1)
    return (weights[..., None] * data[None]).sum(1)


def original_rows(x: Tensor, data: Tensor, room: float | None = None) -> int:
    """How many rows the original formula gets at a time, if one of its tensors may take `room` bytes."""
    row = len(data) * (data.shape[1] + 1) * x.element_size()
    return min(len(x), max(1, int((room or ORIGINAL_BYTES) // row)))


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
    logits = torch.addmm(centred.norms, a, centred.data.T, alpha=-2)
    if math.isinf(D):
        logits.div_(-2 * sigma[:, None] ** 2)
    else:
        logits.add_(((a * a).sum(1) + D * sigma**2)[:, None])
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
    """PyKeOps' symbolic reduction. Its first call compiles the formula, about 20 s. x is read again at each call."""
    import pykeops
    from pykeops.torch import Vi, Vj

    pykeops.set_verbose(False)
    y = Vj(centred.data)

    def call() -> Tensor:
        a = x - centred.center
        if math.isinf(D):
            logits = -Vi(a).sqdist(y) / Vi(2 * sigma[:, None] ** 2)
        else:
            logits = (Vi(a).sqdist(y) + Vi(D * sigma[:, None] ** 2)).log() * (-(a.shape[1] + D) / 2)
        mean: Tensor = logits.sumsoftmaxweight(y, axis=1)
        return mean + centred.center

    return call


def sinkhorn_unavailable() -> str | None:
    if importlib.util.find_spec("flash_sinkhorn") is None:
        return "flash-sinkhorn is not installed (pip install flash-sinkhorn)"
    return None


def sinkhorn(x: Tensor, sigma: float, centred: Centred) -> Callable[[], Tensor]:
    """FlashSinkhorn's transport plan times a matrix: the posterior mean for D = inf, one sigma for all rows.

    The plan is exp(-|x_i - y_j|^2 / eps) with eps = 2 sigma^2 and not normalised, so a column of ones, beside which x
    and y get a zero, brings its row sums.
    """
    kernels = importlib.import_module("flash_sinkhorn.kernels.apply_flash")

    pad, M = torch.nn.functional.pad, len(centred.data)
    y, values = pad(centred.data, (0, 1)), pad(centred.data, (0, 1), value=1.0)
    even, none = -centred.norms, centred.norms.new_zeros(M)

    def call() -> Tensor:
        a = x - centred.center
        plan: Tensor = kernels.apply_plan_mat_flashstyle(
            pad(a, (0, 1)), y, -(a * a).sum(1), even, a.new_zeros(len(a)), none, values, eps=2 * sigma**2, axis=1
        )
        return plan[:, :-1] / plan[:, -1:] + centred.center

    return call
