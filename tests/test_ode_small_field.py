"""The field of few dimensions that CUDA solves in one launch, run by the host."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import cases
import oracle
import pytest
import torch
from cases import Case
from ode_rows import OPTIONS, start
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast import schedule
from pfgm_fast.ode import cuda, solve
from pfgm_fast.solution import Status

pytest_plugins = ["host_slots"]


def small(case: Case) -> bool:
    return case.data[0].numel() <= cuda.FIELD_DIMENSIONS and case.data.dtype == case.x.dtype == torch.float32


SMALL = [name for name in cases.NAMES if small(cases.make(name))]


class Field:
    """An empirical field as the whole solve is given it."""

    def __init__(self, field: pf.EmpiricalField, labels: Tensor | None, B: int) -> None:
        self.data, self.log_weights = field._data[0], field._log_weights
        segments = field._segments(labels, B)
        self.segments = None if segments is None else segments.contiguous()
        self.D = field.D

    def mean(self, shim: ctypes.CDLL, x: Tensor, sigma: Tensor) -> Tensor:
        mean, sigma, (M, N) = torch.full_like(x, math.nan), sigma.double(), self.data.shape
        tensors = [self.data, self.log_weights, self.segments]
        places = [ctypes.c_void_p(None if t is None else t.data_ptr()) for t in tensors]
        numbers = [ctypes.c_double((N + self.D) / 2), ctypes.c_double(2.0 if math.isinf(self.D) else self.D)]
        ends = [ctypes.c_void_p(t.data_ptr()) for t in (x, sigma, mean)]
        shim.launch_mean(*map(ctypes.c_int64, (len(x), N, M)), *places, *numbers, *ends)
        return mean


@pytest.mark.parametrize("name", SMALL)
def test_the_small_field_keeps_the_promised_bounds(shim: ctypes.CDLL, name: str) -> None:
    case = cases.make(name)
    field = pf.EmpiricalField(case.data, case.D, labels=case.labels, log_weights=case.log_weights, backend="torch")
    mean = Field(field, case.row_labels, len(case.x)).mean(shim, case.x.reshape(len(case.x), -1), case.sigma)
    oracle.check_mean(mean.reshape(case.x.shape), cases.truth(name), case.eps)


@pytest.mark.parametrize(
    ("N", "D", "kind"),
    [
        (1, 128.0, "plain"),
        (2, 1.0, "classes"),
        (2, math.inf, "weighted"),
        (5, 2.7, "weighted"),
        (8, math.inf, "classes"),
        (16, 2048.0, "plain"),
    ],
)
def test_a_whole_solve_of_a_small_field(on_host: Any, N: int, D: float, kind: str) -> None:
    """Against the loop with the field in PyTorch. Their means differ in the last digits; so do the states, wherever a
    difference is not amplified, as it is for the rare row that lies between two data."""
    B, M, first, last = 24, 150, 20.0, 0.01
    generator = torch.Generator().manual_seed(N)
    data = torch.randn(M, N, generator=generator)
    classes = torch.arange(M) % 3 if kind == "classes" else None
    labels = torch.arange(B) % 4 - 1 if kind == "classes" else None
    masses = torch.randn(M, generator=generator) if kind == "weighted" else None
    field = pf.EmpiricalField(data, D, labels=classes, log_weights=masses, backend="torch")
    latents = pf.prior((B, N), first, D, seeds=list(range(B)))
    given = Field(field, labels, B)

    record, end = start(latents, first, last)
    cuda.solve_field(record, end, given.data, given.log_weights, given.segments, D, (first, last), **OPTIONS)
    assert (record.status == Status.SUCCESS).all()
    assert torch.equal(record.t, end)

    expected, end = start(latents, first, last)
    level = schedule.log_level(first, last)

    def slope(t: Tensor, x: Tensor, rows: Tensor) -> Tensor:
        return x - field.unchecked(x, level(t).float(), None if labels is None else labels[rows])

    solve.solve(slope, expected, end, **OPTIONS)
    assert (record.nfe == expected.nfe).float().mean() >= 0.9
    away = (record.x - expected.x).abs().amax(1)
    assert away.median() <= 1e-5
    assert (away <= 1e-3).float().mean() >= 0.95


def test_a_row_without_data_leaves_alone(on_host: Any) -> None:
    data = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    segments = torch.tensor([[0, 20], [5, 5], [0, 20]])
    record, end = start(torch.ones(3, 2), 10.0, 0.1)
    cuda.solve_field(record, end, data, None, segments, 1.0, (10.0, 0.1), **OPTIONS)
    assert record.status.tolist() == [Status.SUCCESS, Status.NONFINITE, Status.SUCCESS]
    assert torch.equal(record.x[0], record.x[2])
    assert torch.equal(record.x[1], torch.ones(2))
