"""When a step stands, and how long the next one is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Controller(Protocol):
    """Decides, row by row, whether a step stands and how long the next one is.

    `error` (b,) float64 >= 0 is the error of the step in units of the tolerance, NaN if the step is not finite;
    `error_order` is that of the table; `retried` (b,) bool says that the step before this one was rejected. Returns
    `accept` (b,) bool and `factor` (b,) float64, by which |h| is multiplied: finite, > 0, and < 1 for every rejected
    row, or the solve would not move. A row's answer depends on that row's values alone, and a NaN is never accepted.
    """

    def __call__(self, error: Tensor, error_order: int, retried: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class IntegralController:
    """The elementary controller: factor = safety * error^(-1/(order + 1)), and no growth right after a rejection."""

    safety: float = 0.9
    min_factor: float = 0.2
    max_factor: float = 10.0

    def __call__(self, error: Tensor, error_order: int, retried: Tensor) -> tuple[Tensor, Tensor]:
        accept = error < 1
        factor = (self.safety * error ** (-1 / (error_order + 1))).clamp(self.min_factor, self.max_factor)
        factor = torch.where(retried, factor.clamp(max=1), factor)
        return accept, factor.masked_fill(error.isnan(), self.min_factor)
