"""Rows of every kind for the adaptive loops, and whether two loops did the same with them."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from pfgm_fast.ode.controller import IntegralController
from pfgm_fast.solution import Record

FIELDS = ("x", "t", "status", "nfe", "accepted", "rejected")
OPTIONS: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5, "max_steps": 300, "controller": IntegralController()}


class Problem:
    """Rows of every kind, some of which fail, with slopes made of sums and products alone: the same bits anywhere."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, B: int = 40) -> None:
        generator = torch.Generator().manual_seed(B)
        self.y0 = torch.randn(B, *shape, generator=generator, dtype=torch.float64).to(dtype)
        self.t0 = torch.rand(B, generator=generator, dtype=torch.float64)
        self.end = self.t0 + 3 * torch.randn(B, generator=generator, dtype=torch.float64)
        self.rate = 10 ** torch.linspace(-1, 1.3, B, dtype=torch.float64).to(dtype)
        self.wall = torch.full((B,), math.inf, dtype=torch.float64)  # beyond it the slope is NaN
        self.square = torch.zeros(B, dtype=dtype)
        self.end[[0, 7, 8, 9, B - 1]] = self.t0[[0, 7, 8, 9, B - 1]]  # nowhere to go
        self.y0[1] = math.nan
        self.y0[2, ..., 0] = math.inf
        self.rate[3] = math.nan  # fails at the start
        self.wall[4] = self.t0[4]  # fails at the probe
        self.end[4] = self.t0[4] + 1
        self.wall[5], self.end[5] = self.t0[5] + 0.5, self.t0[5] + 2
        self.y0[6], self.square[6], self.end[6] = 4, 1, self.t0[6] + 2  # y' = y^2 has a pole
        self.rate[10:12] = 0
        self.y0[10] = 0

    def record(self) -> tuple[Record, Tensor]:
        record = Record.start(self.y0, 0.0)
        record.t.copy_(self.t0)
        return record, self.end.clone()

    def to(self, device: torch.device) -> Problem:
        moved = copy.copy(self)
        for name, value in vars(self).items():
            setattr(moved, name, value.to(device))
        return moved

    def __call__(self, t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        if not y.is_cuda:  # there a look would make the host wait
            assert torch.isfinite(y).all()
        one = [-1] + [1] * (y.ndim - 1)
        rate, square, late = self.rate[rows].view(one), self.square[rows].view(one), (t > self.wall[rows]).view(one)
        slope = square * y * y + (1 - square) * (t.to(y.dtype).view(one) - rate * y)
        return slope.masked_fill(late, math.nan)


def same(one: Record, other: Record) -> bool:
    """Bit for bit, but that one NaN is like another."""
    return all(torch.equal(getattr(one, f).nan_to_num(9e9), getattr(other, f).nan_to_num(9e9)) for f in FIELDS)


def run(machine: Any, problem: Problem, slots: int, **options: Any) -> tuple[Record, Any]:
    """What the machine makes of the problem, and the machine itself."""
    record, end = problem.record()
    at = machine(record, end, slots=slots, **{**OPTIONS, **options})
    while (stage := at.stage_in()) is not None:
        at.stage_out(problem(*stage))
    return record, at


def start(latents: Tensor, first: float, last: float) -> tuple[Record, Tensor]:
    """Rows that go from one noise level to another, and the end of their time."""
    record = Record.start(latents, math.log(first))
    return record, torch.full_like(record.t, math.log(last))
