"""The posterior mean as it is written in PyTorch, in the dtype of x.

x is (B, N), sigma (B,), data (M, N) of the same dtype; D is finite or inf.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]

ORIGINAL_BYTES = 3e9  # the original formula's tensor is made in chunks of rows beyond this
CHUNK = 1024  # data at a time in `chunked_cdist`


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
        """Floating data, or images of 8 bits as float32; made without a second tensor of that size."""
        rows = max(1, (1 << 24) // data.shape[1])
        moved = torch.empty_like(data, dtype=torch.float32 if data.dtype == torch.uint8 else data.dtype)
        for part, raw in zip(moved.split(rows), data.split(rows), strict=True):
            part.copy_(in_data_units(raw, moved.dtype))
        center = moved.mean(0)
        norms = torch.empty_like(moved[:, 0])
        for part, norm in zip(moved.split(rows), norms.split(rows), strict=True):
            part -= center
            norm.copy_((part * part).sum(1))
        return cls(center, moved, norms)


def in_data_units(data: Tensor, dtype: torch.dtype) -> Tensor:
    """Pixel u stands for (2u - 255)/255."""
    return (2 * data.to(dtype) - 255) / 255 if data.dtype == torch.uint8 else data.to(dtype)


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
    return torch.softmax(_log_weights(torch.cdist(x, data), sigma, data.shape[1], D), 1) @ data


def chunked_cdist(x: Tensor, sigma: Tensor, data: Tensor, D: float) -> Tensor:
    """The same on chunks of the data: for when B x M does not fit."""
    return in_chunks(x, sigma, data.split(CHUNK), D, torch.cdist)


def in_chunks(x: Tensor, sigma: Tensor, parts: Iterable[Tensor], D: float, distance: Distance) -> Tensor:
    """The posterior mean over parts of the data, with a running maximum; distance(x, part) is (B, m)."""
    top = x.new_full((len(x), 1), -math.inf)
    total, mean = torch.zeros_like(top), torch.zeros_like(x)
    for part in parts:
        logits = _log_weights(distance(x, part), sigma, x.shape[1], D)
        higher = torch.maximum(top, logits.amax(1, keepdim=True))
        kept, weights = torch.exp(top - higher), torch.exp(logits - higher)
        mean = mean * kept + weights @ part
        total = total * kept + weights.sum(1, keepdim=True)
        top = higher
    return mean / total


def _log_weights(distance: Tensor, sigma: Tensor, N: int, D: float) -> Tensor:
    """In place of the distances (B, M)."""
    if math.isinf(D):
        return distance.square_().div_(-2 * sigma[:, None] ** 2)
    return distance.square_().div_((D * sigma**2)[:, None]).log1p_().mul_(-(N + D) / 2)
