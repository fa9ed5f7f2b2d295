"""Solvers of dx/dsigma = (x - denoised)/sigma on a given list of noise levels.

The equation holds for every D (PFGM++, Xu et al. 2023, section 4; D = inf: Karras et al. 2022, equation 3), so do the
solvers. A step is one pure function; the loop stands once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from types import MappingProxyType

import torch
from torch import Tensor

from pfgm_fast.solution import Record, Status, finite_rows, per_row

Denoise = Callable[[Tensor, float], Tensor]
"""denoise(x (B, ...), sigma) -> like x; the level is the same for all rows."""

Step = Callable[[Denoise, Tensor, Tensor, float, float], Tensor]
"""step(denoise, x, denoised, sigma, sigma_next) -> the state at sigma_next, given denoised = denoise(x, sigma)."""

Watch = Callable[[int, float, Tensor, Tensor], bool]
"""watch(i, sigma, x, denoised), called in every step before x changes; True ends the solve."""


def euler(denoise: Denoise, x: Tensor, denoised: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """One Euler step, order 1."""
    d = (x - denoised) / sigma
    return x + (sigma_next - sigma) * d


def heun(denoise: Denoise, x: Tensor, denoised: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """One step of the trapezoidal rule, order 2; Euler to sigma 0 (Karras et al. 2022, algorithm 1)."""
    d = (x - denoised) / sigma
    x_next = x + (sigma_next - sigma) * d
    if sigma_next == 0:
        return x_next
    d_next = (x_next - denoise(x_next, sigma_next)) / sigma_next
    return x + (sigma_next - sigma) * (d + d_next) / 2


STEPS = MappingProxyType({"euler": euler, "heun": heun})


def solve(step: Step, denoise: Denoise, record: Record, levels: Sequence[float], watch: Watch) -> bool:
    """Takes record.x from the first of the decreasing levels to the last; False if `watch` ended it before.

    A row that becomes NaN or infinite keeps its last good state and NONFINITE; the others are not touched. Nothing is
    read from the device, so such a row is still evaluated.
    """
    rows = torch.arange(len(record.x), device=record.x.device)

    def counted(x: Tensor, sigma: float) -> Tensor:
        record.nfe += 1
        return denoise(x, sigma)

    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        denoised = counted(record.x, sigma)
        if watch(i, sigma, record.x, denoised):
            return False
        _advance(record, step(counted, record.x, denoised, sigma, sigma_next), sigma_next)
        record.remember(rows, record.x, record.t)
    record.status = record.status.masked_fill(record.status == Status.STOPPED, Status.SUCCESS)
    return True


def _advance(record: Record, x: Tensor, sigma: float) -> None:
    """Moves the rows that are still good to x at sigma."""
    good = (record.status == Status.STOPPED) & finite_rows(x)
    record.x, record.t, record.accepted, record.status = (
        torch.where(per_row(good, x), x, record.x),
        record.t.masked_fill(good, sigma),
        record.accepted + good,
        record.status.masked_fill(~good, Status.NONFINITE),
    )
