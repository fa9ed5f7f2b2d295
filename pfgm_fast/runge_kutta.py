"""Embedded Runge-Kutta methods with one step size per row: a method is a table, the loop stands once.

Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, sections II.4 and II.5.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property, reduce
from typing import Protocol

import torch
from torch import Tensor

from pfgm_fast.solution import Record, Status, finite_rows, per_row

Func = Callable[[Tensor, Tensor, Tensor], Tensor]
"""func(t (b,) float64, y (b, ...), rows (b,) int64) -> dy/dt, like y, for the rows of the batch that still run."""

Watch = Callable[[int, Tensor, Tensor, Tensor, Tensor], bool]
"""watch(i, rows (b,), t (b,), y (b, ...), dy/dt (b, ...)), called before every step; True ends the solve."""

NONFINITE_LIMIT = 6  # a step that stays non-finite after shrinking by 0.2^6 has met NaN or a pole, not a step too long


@dataclass(frozen=True)
class ButcherTableau:
    """An explicit embedded Runge-Kutta method of s stages.

    Attributes:
        a: s rows; row i weighs the i stages before it.
        b: (s,) weights of the solution.
        c: (s,) times of the stages in units of the step, within [0, 1].
        error: (s,) weights of the error estimate: b minus the weights of the embedded method.
        error_order: order of the embedded method; the estimate shrinks as step^(error_order + 1).

    Raises:
        ValueError: if the table is not explicit or not consistent.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    error: tuple[float, ...]
    error_order: int

    def __post_init__(self) -> None:
        def same(total: float, wanted: float) -> bool:
            return math.isclose(total, wanted, rel_tol=0, abs_tol=1e-13)

        if not len(self.a) == len(self.b) == len(self.c) == len(self.error):
            raise ValueError("a, b, c and error must have one entry for each stage")
        for i, (row, c) in enumerate(zip(self.a, self.c, strict=True)):
            if len(row) != i:
                raise ValueError(f"a must be strictly lower triangular: row {i} must have {i} entries, got {len(row)}")
            if not same(math.fsum(row), c) or not 0 <= c <= 1:
                raise ValueError(f"row {i} of a must sum to c[{i}] within [0, 1], got {math.fsum(row)} and {c}")
        if not same(math.fsum(self.b), 1):
            raise ValueError(f"b must sum to 1, got {math.fsum(self.b)}")
        if not same(math.fsum(self.error), 0) or not any(self.error):
            raise ValueError(f"error must sum to 0 and not vanish, got {self.error}")

    @cached_property
    def fsal(self) -> bool:
        """Whether the last stage is the first one of the next step."""
        return self.c[-1] == 1 and self.b == (*self.a[-1], 0.0)


DORMAND_PRINCE = ButcherTableau(
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    error=(71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    error_order=4,
)
"""Dormand and Prince 1980, 5(4), with the error row of that paper, which SciPy uses too."""


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


@dataclass(frozen=True)
class _Running:
    """The rows that still run, packed: b of them."""

    rows: Tensor  # (b,) their places in the record
    t: Tensor  # (b,) float64
    end: Tensor  # (b,) float64
    y: Tensor  # (b, ...)
    f: Tensor  # (b, ...), dy/dt at (t, y)
    h: Tensor  # (b,) float64, length of the next step, >= 0
    retried: Tensor  # (b,) bool, whether the last step was rejected
    failures: Tensor  # (b,) int64, non-finite steps since the row last got past the frontier
    frontier: Tensor  # (b,) float64, the nearest end of those steps

    def select(self, mask: Tensor) -> _Running:
        return _Running(**{f.name: getattr(self, f.name)[mask] for f in fields(self)})


def solve(
    func: Func,
    record: Record,
    end: Tensor,
    *,
    rtol: float,
    atol: float,
    max_steps: int,
    tableau: ButcherTableau = DORMAND_PRINCE,
    controller: Controller | None = None,
    watch: Watch | None = None,
) -> None:
    """Integrates dy/dt = func(t, y, rows) for each row from record.t to `end` (B,), forwards or backwards.

    The error of a step is the RMS over its row of error/(atol + rtol*max(|y|, |y_new|)). func is called on the rows
    that still run, never outside their intervals, and at the end of each exactly. A row leaves with SUCCESS at its end,
    else with its last good state and MAX_STEPS, STEP_UNDERFLOW (step < 10 ulp of t) or NONFINITE; the other rows do not
    notice. One flag a step is read from the device: whether rows have left.
    """

    def counted(t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        record.nfe[rows] += 1
        return func(t, y, rows)

    controller = controller or IntegralController()
    running = _start(counted, record, end, tableau.error_order, rtol, atol)
    for i in range(max_steps):
        if len(running.rows) == 0:
            return
        if watch is not None and watch(i, running.rows, running.t, running.y, running.f):
            return
        running = _attempt(counted, record, running, tableau, controller, rtol, atol)
    record.status[running.rows] = int(Status.MAX_STEPS)


def _start(func: Func, record: Record, end: Tensor, error_order: int, rtol: float, atol: float) -> _Running:
    """The rows that have a way to go and a finite slope, with their first step lengths."""
    record.status.masked_fill_(record.t == end, Status.SUCCESS)
    rows = torch.nonzero(record.t != end).squeeze(1)
    t, end, y = record.t[rows], end[rows], record.x[rows]
    f = func(t, y, rows) if len(rows) else y
    good = finite_rows(f) & finite_rows(y)
    record.status[rows[~good]] = int(Status.NONFINITE)
    rows, t, end, y, f = rows[good], t[good], end[good], y[good], f[good]
    h = initial_step(func, rows, t, end, y, f, error_order, rtol, atol) if len(rows) else t
    never = torch.zeros_like(rows)
    return _Running(rows, t, end, y, f, torch.maximum(h, _smallest_step(t, end)), never.bool(), never, t)


def _attempt(
    func: Func,
    record: Record,
    at: _Running,
    tableau: ButcherTableau,
    controller: Controller,
    rtol: float,
    atol: float,
) -> _Running:
    """Tries one step in every running row, writes the outcome to the record and returns the rows left."""
    t_new = _advance(at.t, at.h, at.end)
    y_new, f_new, error = _step(func, at, t_new, tableau)
    finite = finite_rows(y_new) & finite_rows(f_new) & finite_rows(error)
    norm = rms(error, torch.maximum(at.y.abs(), y_new.abs()), rtol, atol).masked_fill(~finite, math.nan)
    accept, factor = controller(norm, tableau.error_order, at.retried)

    beyond = (t_new - at.frontier) * (at.end - at.t) >= 0
    failures = torch.where(finite, at.failures.masked_fill(accept & beyond, 0), at.failures + 1)
    frontier = torch.where(finite | (beyond & (at.failures > 0)), at.frontier, t_new)
    t = torch.where(accept, t_new, at.t)
    y = torch.where(per_row(accept, y_new), y_new, at.y)
    f = torch.where(per_row(accept, f_new), f_new, at.f)
    h = (t_new - at.t).abs() * factor
    smallest = _smallest_step(t, at.end)

    status = torch.full_like(at.rows, Status.STOPPED, dtype=torch.int8)
    status.masked_fill_(~accept & (h < smallest), Status.STEP_UNDERFLOW)
    status.masked_fill_(~finite & ((failures >= NONFINITE_LIMIT) | (h < smallest)), Status.NONFINITE)
    status.masked_fill_(accept & (t_new == at.end), Status.SUCCESS)

    record.x[at.rows], record.t[at.rows], record.status[at.rows] = y, t, status
    record.accepted[at.rows] += accept
    record.rejected[at.rows] += ~accept
    record.remember(at.rows, y, t)
    left = _Running(at.rows, t, at.end, y, f, torch.maximum(h, smallest), ~accept, failures, frontier)
    runs = status == Status.STOPPED
    return left if bool(runs.all()) else left.select(runs)


def _step(func: Func, at: _Running, t_new: Tensor, tableau: ButcherTableau) -> tuple[Tensor, Tensor, Tensor]:
    """One step from at.t to t_new: the new state, its slope and the estimated error."""
    step = t_new - at.t
    h = per_row(step.to(at.y.dtype), at.y)
    k = [at.f]
    y_stage = at.y
    for row, c in zip(tableau.a[1:], tableau.c[1:], strict=True):
        y_stage = at.y + h * _combine(row, k)
        # 1 * step may miss t_new by rounding; c < 1 cannot reach it
        k.append(func(t_new if c == 1 else at.t + c * step, y_stage, at.rows))
    error = h * _combine(tableau.error, k)
    if tableau.fsal:
        return y_stage, k[-1], error
    y_new = at.y + h * _combine(tableau.b, k)
    return y_new, func(t_new, y_new, at.rows), error


def _combine(weights: tuple[float, ...], k: list[Tensor]) -> Tensor:
    """Sum of the weighted stages; no fused multiply-add, so that an element's result does not depend on its place."""
    return reduce(torch.add, [w * stage for w, stage in zip(weights, k, strict=True) if w != 0])


def rms(error: Tensor, magnitude: Tensor, rtol: float, atol: float) -> Tensor:
    """(b,) float64: root mean square over each row of error/(atol + rtol*magnitude)."""
    size = math.prod(error.shape[1:])
    ratio = error / (atol + rtol * magnitude).clamp(min=torch.finfo(error.dtype).tiny)
    norm: Tensor = torch.linalg.vector_norm(ratio.reshape(len(error), size), dim=1, dtype=torch.float64)
    return norm / math.sqrt(max(size, 1))


def initial_step(
    func: Func, rows: Tensor, t: Tensor, end: Tensor, y: Tensor, f: Tensor, error_order: int, rtol: float, atol: float
) -> Tensor:
    """(b,) first step lengths, at most the interval (Hairer, Norsett, Wanner, section II.4); one evaluation."""
    length = (end - t).abs()
    magnitude = y.abs()
    d0, d1 = rms(y, magnitude, rtol, atol), rms(f, magnitude, rtol, atol)
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1).minimum(length)
    h_y = per_row((h0 * torch.sign(end - t)).to(y.dtype), y)
    f1 = func(_advance(t, h0, end), y + h_y * f, rows)
    d2 = rms(f1 - f, magnitude, rtol, atol) / h0
    steepest = torch.maximum(d1, d2)
    h1 = torch.where(steepest <= 1e-15, (h0 * 1e-3).clamp(min=1e-6), (0.01 / steepest) ** (1 / (error_order + 1)))
    return torch.where(finite_rows(f1), h1.minimum(100 * h0), h0).minimum(length)


def _advance(t: Tensor, h: Tensor, end: Tensor) -> Tensor:
    """t moved by h towards `end`, and no further."""
    return torch.where(h >= (end - t).abs(), end, t + h * torch.sign(end - t))


def _smallest_step(t: Tensor, end: Tensor) -> Tensor:
    """10 units in the last place of t."""
    return 10 * (torch.nextafter(t, end) - t).abs()
