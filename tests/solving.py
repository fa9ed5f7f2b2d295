"""Fixed-step solves without the user's interface, and exact denoisers for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from pfgm_fast import fixed_step
from pfgm_fast.churn import Churn
from pfgm_fast.multistep import Method
from pfgm_fast.solution import Record

Denoise = Callable[[Tensor, float], Tensor]


def run(
    method: Method,
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[float],
    watch: fixed_step.Watch = lambda i, sigma, x, denoised: False,
    churn: Churn | None = None,
    trajectory: bool = False,
) -> Record:
    """The record at the end of a solve that began with x."""
    record = Record.start(x, levels[0], trajectory=trajectory)
    fixed_step.solve(method, denoise, record, levels, watch, churn)
    return record


def exact(data: Tensor, D: float) -> Denoise:
    """The posterior mean of data (M, N) by direct differences, at one level for all rows."""
    N = data.shape[1]

    def denoise(x: Tensor, sigma: float) -> Tensor:
        flat = x.flatten(1)
        if N == 2:
            d2 = (flat[:, :1] - data[:, 0]).square_() + (flat[:, 1:] - data[:, 1]).square_()
        else:
            d2 = (flat[:, None] - data).square().sum(2)
        nearest = d2.min(1, keepdim=True).values
        far = d2.sub_(nearest)
        if math.isinf(D):
            logits = far.mul_(-1 / (2 * sigma**2))
        else:
            logits = far.div_(nearest + D * sigma**2).log1p_().mul_(-(N + D) / 2)
        return (logits.softmax(1) @ data).view_as(x)

    return denoise


def pixels(data: NDArray[Any]) -> Tensor:
    """Recorded data (M, N) as the original systems saw them, in float64."""
    return torch.from_numpy(data / 8 - 1.0 if data.dtype == "uint8" else data.astype("float64"))
