"""Solvers of dx/dsigma = (x - denoised)/sigma on a given list of noise levels: one loop for all of them.

The equation holds for every D (PFGM++, Xu et al. 2023, section 4; D = inf: Karras et al. 2022, equation 3), so do the
solvers. What a step computes stands in pfgm_fast.multistep; here it is done to the rows of a Record.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from pfgm_fast import update
from pfgm_fast.churn import Churn
from pfgm_fast.multistep import Method, Rule
from pfgm_fast.native_update import Terms
from pfgm_fast.solution import Record, Status, per_row

Denoise = Callable[[Tensor, float], Tensor]
"""denoise(x (B, ...), sigma) -> like x; the level is the same for all rows, and x is always finite."""

Watch = Callable[[int, float, Tensor, Tensor], bool]
"""watch(i, sigma, x, denoised), called in every step before x changes; True ends the solve.

x is the state itself and may be edited in place; denoised is what the denoiser returned.
"""

Known = list[tuple[float, Tensor]]
"""Levels and the denoised states there, the newest first."""


def solve(
    method: Method,
    denoise: Denoise,
    record: Record,
    levels: Sequence[float],
    watch: Watch,
    churn: Churn | None = None,
) -> bool:
    """Takes record.x from the first level to the last in place; False if `watch` ended it before.

    The levels decrease, the last may be 0, or increase. A row that becomes NaN or infinite keeps its last good state
    and NONFINITE; the others are not touched. Nothing is read from a GPU, so such a row is still evaluated: where it
    is not finite, zeros are shown. Answers are copied where a later evaluation could overwrite them.

    With `churn`, for methods that are single_step, a step begins with noise: sigma and x of `watch` are those after it.
    """
    if churn is not None and not method.single_step:
        raise ValueError("churn needs a method whose steps depend on the state alone")
    loop = _Loop(method, denoise, record, levels)
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        start = sigma if churn is None else loop.churned(churn, i, sigma, levels[0])
        if not loop.step(i, start, sigma_next, watch):
            return False
    record.status.masked_fill_(record.status == Status.STOPPED, Status.SUCCESS)
    return True


class _Answer(NamedTuple):
    """What a denoiser returned, and the same where no later answer overwrites it."""

    given: Tensor
    kept: Tensor


class _Loop:
    """What a solve carries from one step to the next."""

    def __init__(self, method: Method, denoise: Denoise, record: Record, levels: Sequence[float]) -> None:
        self.method, self.denoise, self.record, self.steps = method, denoise, record, len(levels) - 1
        self.history = method.history(sum(level > 0 for level in levels))
        self.seen = torch.empty_like(record.x)  # what the denoiser is shown
        self.work = record.x.new_empty((2, *record.x.shape))
        kept = self.history + 1 if self.history > 1 or method.correct is not None else 0
        self.kept = deque(record.x.new_empty((kept, *record.x.shape)))  # where answers are copied to, the oldest first
        self.known: Known = []
        self.ahead: _Answer | None = None  # at the next level, where the corrector has left it
        self.rows = torch.arange(len(record.x), device=record.x.device)
        self.on = update.implementation(record.x)
        self.before: tuple[Tensor, Tensor] | None = None  # states and levels before the noise of this step

    def step(self, i: int, sigma: float, sigma_next: float, watch: Watch) -> bool:
        """From record.x at sigma to sigma_next; False, with nothing changed, if `watch` says so."""
        method, record = self.method, self.record
        now = self._evaluate(1.0, (), sigma, keep=True) if self.ahead is None else self.ahead
        if watch(i, sigma, record.x, now.given):
            return False
        self.known = known = [(sigma, now.kept), *self.known][: self.history]
        a, terms = _combination(method.predict, known, sigma, sigma_next)
        self.ahead = None
        if method.correct is not None and sigma_next > 0:
            ahead = self._evaluate(a, terms, sigma_next, keep=method.reuse)
            a, terms = _combination(method.correct, [(sigma_next, ahead.kept), *known], sigma, sigma_next)
            self.ahead = ahead if method.reuse else None
        self._advance(a, terms, sigma_next, 1)
        if self.before is not None:
            self._take_back(*self.before)
        if record.steps is not None:
            record.remember(self.rows, record.x.clone(), record.t.clone())
        return True

    def churned(self, churn: Churn, i: int, sigma: float, first: float) -> float:
        """Raises record.x from sigma to the level that is returned; nothing is drawn where that is the same."""
        raised = churn.level(sigma, first, self.steps)
        self.before = None
        if raised > sigma:
            self.before = self.record.x.clone(), self.record.t.clone()
            terms: list[tuple[float, Tensor]] = []
            if churn.noise > 0:
                denoised = self._evaluate(1.0, (), sigma, keep=False).given if churn.needs_denoised else None
                noise = churn.draw(i, self.record.x, denoised, sigma)
                terms.append((churn.noise * math.sqrt(raised**2 - sigma**2), noise))
            self._advance(1.0, terms, raised, 0)
        return raised

    def _take_back(self, x: Tensor, t: Tensor) -> None:
        """Rows that have ended since the noise was added keep what they were before it."""
        record, runs = self.record, self.record.status == Status.STOPPED
        torch.where(per_row(runs, x), record.x, x, out=record.x)
        torch.where(runs, record.t, t, out=record.t)

    def _evaluate(self, a: float, terms: Terms, sigma: float, keep: bool) -> _Answer:
        """The denoiser's answer for a x + the terms at sigma, copied if it must outlast the next one."""
        record = self.record
        self.on.attempt(self.seen, record.x, record.status, a, terms, self.work)
        record.nfe += 1
        given = self.denoise(self.seen, sigma)
        if not (keep and self.kept):
            return _Answer(given, given)
        self.kept.rotate(-1)
        return _Answer(given, self.kept[-1].copy_(given))

    def _advance(self, a: float, terms: Terms, sigma: float, count: int) -> None:
        record = self.record
        self.on.advance(record.x, record.t, record.accepted, record.status, a, terms, sigma, count, self.work)


def _combination(rule: Rule, known: Known, sigma: float, sigma_next: float) -> tuple[float, Terms]:
    """The factor of the state, and the others with what they multiply."""
    weights = rule([level for level, _ in known], sigma, sigma_next)
    return weights.state, [(b, denoised) for b, (_, denoised) in zip(weights.denoised, known, strict=False)]
