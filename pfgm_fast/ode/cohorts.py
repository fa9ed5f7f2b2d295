"""The slots in PyTorch: any device, any tableau, any controller.

Slots whose rows began an attempt together stay together: they are a cohort, at one stage, and do their arithmetic as
one batch. csrc/ode/step.hpp states the same for one row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce

import torch
from torch import Tensor

from pfgm_fast.ode.controller import Controller
from pfgm_fast.ode.tableau import DORMAND_PRINCE, ButcherTableau
from pfgm_fast.solution import Record, Status, finite_rows, per_row, shown

NONFINITE_LIMIT = 6  # a step that stays non-finite after shrinking by 0.2^6 has met NaN or a pole, not a step too long
START, PROBE = -2, -1  # before the stages 1, 2, ... of an attempt: the slope at the start, and one for the first length


@dataclass(frozen=True)
class _Cohort:
    """Rows at the same stage: b of them."""

    stage: int
    rows: Tensor  # (b,) their places in the record
    t: Tensor  # (b,) float64
    end: Tensor  # (b,) float64
    h: Tensor  # (b,) float64, length of the attempt, or of the probe, >= 0
    retried: Tensor  # (b,) bool, whether the last attempt was rejected
    failures: Tensor  # (b,) int64, non-finite steps since the row last got past the frontier
    frontier: Tensor  # (b,) float64, the nearest end of those steps
    y: Tensor  # (b, ...)
    k: tuple[Tensor, ...]  # the slopes so far, (b, ...) each

    @property
    def t_new(self) -> Tensor:
        return _moved(self.t, self.h, self.end)

    def select(self, mask: Tensor) -> _Cohort:
        chosen = {f.name: getattr(self, f.name)[mask] for f in fields(self) if f.name not in ("stage", "k")}
        return _Cohort(stage=self.stage, k=tuple(k[mask] for k in self.k), **chosen)

    def join(self, other: _Cohort) -> _Cohort:
        names = [f.name for f in fields(self) if f.name not in ("stage", "k")]
        both = {name: torch.cat([getattr(self, name), getattr(other, name)]) for name in names}
        return _Cohort(stage=self.stage, k=tuple(map(torch.cat, zip(self.k, other.k, strict=True))), **both)


class TorchSlots:
    """The machine of `pfgm_fast.ode.solve`; one flag is read from the device for each attempt of a cohort."""

    def __init__(
        self,
        record: Record,
        end: Tensor,
        *,
        slots: int,
        rtol: float,
        atol: float,
        max_steps: int,
        controller: Controller,
        tableau: ButcherTableau = DORMAND_PRINCE,
    ) -> None:
        self.record = record
        self.end = end
        self.slots = slots
        self.rtol, self.atol, self.max_steps = rtol, atol, max_steps
        self.tableau = tableau.closed
        self.controller = controller
        record.status.masked_fill_(record.t == end, Status.SUCCESS)
        self._queue = torch.nonzero(record.t != end).squeeze(1)
        self._cohorts: list[_Cohort] = []
        self._rows: Tensor | None = None
        self._good = self._queue
        self._attempted: list[Tensor] = []
        self._refill()

    def starting(self) -> tuple[Tensor, Tensor] | None:
        starting = [c for c in self._cohorts if c.stage == 1]
        if not starting:
            return None
        return _cat([c.rows for c in starting]), _cat([c.k[0] for c in starting])

    def restart(self, slope: Tensor) -> None:
        parts = iter(slope.split([len(c.rows) for c in self._cohorts if c.stage == 1]))
        self._cohorts = [replace(c, k=(next(parts),)) if c.stage == 1 else c for c in self._cohorts]

    def attempted(self) -> Tensor | None:
        return _cat(self._attempted) if self._attempted else None

    def stage_in(self) -> tuple[Tensor, Tensor, Tensor] | None:
        if not self._cohorts:
            return None
        if self._rows is None:
            self._rows = _cat([c.rows for c in self._cohorts])
        # a callback may have changed the states of the rows that start
        self._cohorts = [replace(c, y=self.record.x[c.rows]) if c.stage == 1 else c for c in self._cohorts]
        times, states = zip(*map(self._ask, self._cohorts), strict=True)
        state, self._good = shown(_cat(states))
        self.record.nfe[self._rows] += 1
        return _cat(times), state, self._rows

    def stage_out(self, slope: Tensor) -> None:
        slope = slope.where(per_row(self._good, slope), math.nan)
        slopes = slope.split([len(c.rows) for c in self._cohorts])
        cohorts, self._cohorts, self._attempted = self._cohorts, [], []
        for cohort, part in zip(cohorts, slopes, strict=True):
            self._add(self._answer(cohort, part))
        self._refill()

    def _add(self, cohort: _Cohort) -> None:
        if not len(cohort.rows):
            return
        for i, other in enumerate(self._cohorts):
            if other.stage == cohort.stage:
                self._cohorts[i] = other.join(cohort)
                self._rows = None
                return
        self._cohorts.append(cohort)

    def _refill(self) -> None:
        free = self.slots - sum(len(c.rows) for c in self._cohorts)
        if not free or not len(self._queue):
            return
        rows, self._queue = self._queue[:free], self._queue[free:]
        self._rows = None
        t, end, y = self.record.t[rows], self.end[rows], self.record.x[rows]
        never = torch.zeros_like(rows)
        self._add(_Cohort(START, rows, t, end, torch.zeros_like(t), never.bool(), never, t, y, ()))

    def _ask(self, c: _Cohort) -> tuple[Tensor, Tensor]:
        """Where a cohort wants to know the slope: times and states."""
        if c.stage == START:
            return c.t, c.y
        h = per_row((c.t_new - c.t).to(c.y.dtype), c.y)
        if c.stage == PROBE:
            return c.t_new, c.y + h * c.k[0]
        node = self.tableau.c[c.stage]
        # 1 * step may miss t_new by rounding; c < 1 cannot reach it
        return (
            c.t_new if node == 1 else c.t + node * (c.t_new - c.t),
            c.y + h * _combine(self.tableau.a[c.stage], c.k),
        )

    def _answer(self, c: _Cohort, slope: Tensor) -> _Cohort:
        """What a cohort does with the slope it asked for."""
        if c.stage == START:
            return self._started(c, slope)
        if c.stage == PROBE:
            return self._probed(c, slope)
        if c.stage < len(self.tableau.c) - 1:
            return replace(c, stage=c.stage + 1, k=(*c.k, slope))
        return self._judged(c, slope)

    def _started(self, c: _Cohort, slope: Tensor) -> _Cohort:
        """The rows with a finite slope, about to probe (Hairer, Norsett, Wanner, section II.4)."""
        good = finite_rows(slope)
        if not bool(good.all()):
            self.record.status[c.rows[~good]] = int(Status.NONFINITE)
            self._rows = None
            c, slope = c.select(good), slope[good]
        magnitude = c.y.abs()
        d0, d1 = self._rms(c.y, magnitude), self._rms(slope, magnitude)
        h = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1).minimum((c.end - c.t).abs())
        return replace(c, stage=PROBE, h=h, k=(slope,))

    def _probed(self, c: _Cohort, slope: Tensor) -> _Cohort:
        """The rows with the length of their first attempt, at most the interval."""
        magnitude = c.y.abs()
        d1, d2 = self._rms(c.k[0], magnitude), self._rms(slope - c.k[0], magnitude) / c.h
        steepest = torch.maximum(d1, d2)
        small = (c.h * 1e-3).clamp(min=1e-6)
        h = torch.where(steepest <= 1e-15, small, (0.01 / steepest) ** (1 / (self.tableau.error_order + 1)))
        h = torch.where(finite_rows(slope), h.minimum(100 * c.h), c.h).minimum((c.end - c.t).abs())
        return replace(c, stage=1, h=torch.maximum(h, _smallest_step(c.t, c.end)))

    def _judged(self, c: _Cohort, slope: Tensor) -> _Cohort:
        """Writes the outcome of the attempts to the record and returns the rows that go on."""
        record, t_new, k = self.record, c.t_new, (*c.k, slope)
        h = per_row((t_new - c.t).to(c.y.dtype), c.y)
        y_new = c.y + h * _combine(self.tableau.a[-1], c.k)
        error = h * _combine(self.tableau.error, k)
        finite = finite_rows(y_new) & finite_rows(slope) & finite_rows(error)
        norm = self._rms(error, torch.maximum(c.y.abs(), y_new.abs())).masked_fill(~finite, math.nan)
        accept, factor = self.controller(norm, self.tableau.error_order, c.retried)

        beyond = (t_new - c.frontier) * (c.end - c.t) >= 0
        failures = torch.where(finite, c.failures.masked_fill(accept & beyond, 0), c.failures + 1)
        frontier = torch.where(finite | (beyond & (c.failures > 0)), c.frontier, t_new)
        t = torch.where(accept, t_new, c.t)
        y = torch.where(per_row(accept, y_new), y_new, c.y)
        first = torch.where(per_row(accept, slope), slope, c.k[0])
        length = (t_new - c.t).abs() * factor
        smallest = _smallest_step(t, c.end)

        record.x[c.rows], record.t[c.rows] = y, t
        record.accepted[c.rows] += accept
        record.rejected[c.rows] += ~accept
        attempts = record.accepted[c.rows] + record.rejected[c.rows]
        status = torch.full_like(c.rows, Status.STOPPED, dtype=torch.int8)
        status.masked_fill_(attempts >= self.max_steps, Status.MAX_STEPS)
        status.masked_fill_(~accept & (length < smallest), Status.STEP_UNDERFLOW)
        status.masked_fill_(~finite & ((failures >= NONFINITE_LIMIT) | (length < smallest)), Status.NONFINITE)
        status.masked_fill_(accept & (t_new == c.end), Status.SUCCESS)
        record.status[c.rows] = status
        self._attempted.append(c.rows)

        h = torch.maximum(length, smallest)
        left = _Cohort(1, c.rows, t, c.end, h, ~accept, failures, frontier, y, (first,))
        runs = status == Status.STOPPED
        if bool(runs.all()):
            return left
        self._rows = None
        return left.select(runs)

    def _rms(self, error: Tensor, magnitude: Tensor) -> Tensor:
        """(b,) float64: root mean square over each row of error/(atol + rtol*magnitude)."""
        size = math.prod(error.shape[1:])
        ratio = error / (self.atol + self.rtol * magnitude).clamp(min=torch.finfo(error.dtype).tiny)
        norm: Tensor = torch.linalg.vector_norm(ratio.reshape(len(error), size), dim=1, dtype=torch.float64)
        return norm / math.sqrt(max(size, 1))


def _combine(weights: tuple[float, ...], k: tuple[Tensor, ...]) -> Tensor:
    """Sum of the weighted stages; no fused multiply-add, so that an element's result does not depend on its place."""
    return reduce(torch.add, [w * stage for w, stage in zip(weights, k, strict=True) if w != 0])


def _moved(t: Tensor, h: Tensor, end: Tensor) -> Tensor:
    """t moved by h towards `end`, and no further."""
    return torch.where(h >= (end - t).abs(), end, t + h * torch.sign(end - t))


def _smallest_step(t: Tensor, end: Tensor) -> Tensor:
    """10 units in the last place of t."""
    return 10 * (torch.nextafter(t, end) - t).abs()


def _cat(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
