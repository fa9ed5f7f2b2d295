"""What a solver returns: the states, how each row ended and what it cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import IntEnum

import torch
from torch import Tensor


class Status(IntEnum):
    """How one row ended; `sentence` says it in words."""

    sentence: str

    def __new__(cls, value: int, sentence: str = "") -> Status:
        member = int.__new__(cls, value)
        member._value_ = value
        member.sentence = sentence
        return member

    SUCCESS = 0, "The end of the interval was reached."
    MAX_STEPS = 1, "max_steps was reached before the end; raise max_steps or loosen rtol and atol."
    STEP_UNDERFLOW = (
        2,
        "The step size fell below the resolution of time; loosen rtol and atol.",
    )
    NONFINITE = 3, "The denoiser or the state became NaN or infinite; the last good state was kept."
    STOPPED = 4, "The solve was stopped by the callback or interrupted before the end."


class SolverError(RuntimeError):
    """Some rows did not reach the end; `solution` holds what was computed."""

    def __init__(self, solution: Solution) -> None:
        self.solution = solution
        super().__init__(_describe(solution.status.tolist()))

    def __reduce__(self) -> tuple[type[SolverError], tuple[Solution]]:
        return type(self), (self.solution,)  # an exception is otherwise made again from its message


@dataclass(frozen=True, eq=False)
class Solution:
    """States at the end of a solve, one row per sample, all on the device of the state.

    Attributes:
        samples: (B, *data), the state each row reached.
        status: (B,) int8 holding `Status`; SUCCESS only where the end was reached.
        nfe: (B,) int64, evaluations of the denoiser made for the row; a fixed-step solver goes on evaluating bad rows.
        accepted, rejected: (B,) int64, steps taken and steps refused by the error control.
        trajectory: (S, B, *data) or None, the state after each accepted step, padded with NaN.
        trajectory_sigma: (S, B) float64 or None, the noise level of each of those states, padded with NaN.
    """

    samples: Tensor
    status: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    trajectory: Tensor | None = None
    trajectory_sigma: Tensor | None = None

    @property
    def ok(self) -> bool:
        """Whether every row reached the end."""
        return bool((self.status == Status.SUCCESS).all())

    def raise_for_status(self) -> Solution:
        """Returns self if every row reached the end, else raises `SolverError`."""
        if not self.ok:
            raise SolverError(self)
        return self


@dataclass
class Record:
    """Where every row stands during a solve: whatever happens, the Solution so far can be made from it.

    A row is STOPPED until its solver says otherwise, so that an interruption needs no bookkeeping.
    """

    x: Tensor  # (B, *data), the last good state
    t: Tensor  # (B,) float64, the solver's time of that state
    status: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    steps: list[tuple[Tensor, Tensor, Tensor, Tensor]] | None  # slot, row, state and time after each step
    dtype: torch.dtype  # of the Solution; x itself is float32 or float64
    first: int = 0  # the row of the whole batch that is row 0 here
    level: Callable[[Tensor], Tensor] = field(default=lambda t: t)  # from the solver's time to sigma

    @classmethod
    def start(
        cls,
        x: Tensor,
        t: float,
        *,
        trajectory: bool = False,
        level: Callable[[Tensor], Tensor] | None = None,
    ) -> Record:
        """The record of rows x (B, *data) that all stand at time t and have taken no step."""
        work = torch.float64 if x.dtype == torch.float64 else torch.float32
        B, device = x.shape[0], x.device
        return cls(
            x=torch.empty(x.shape, dtype=work, device=device).copy_(x.detach()),
            t=torch.full((B,), t, dtype=torch.float64, device=device),
            status=torch.full((B,), Status.STOPPED, dtype=torch.int8, device=device),
            nfe=torch.zeros(B, dtype=torch.int64, device=device),
            accepted=torch.zeros(B, dtype=torch.int64, device=device),
            rejected=torch.zeros(B, dtype=torch.int64, device=device),
            steps=[] if trajectory else None,
            dtype=x.dtype,
            level=level or (lambda t: t),
        )

    def remember(self, rows: Tensor, x: Tensor, t: Tensor) -> None:
        """Keeps the states x (b, *data) at times t (b,) for the trajectory, if there is one.

        The slot is the number of steps the row has taken: after a rejected step it is written again with what it held.
        """
        if self.steps is not None:
            self.steps.append((self.accepted[rows], rows + self.first, x, t))

    def part(self, rows: slice) -> Record:
        """The record of some rows, in the same memory."""
        shared = {name: getattr(self, name)[rows] for name in ("x", "t", "status", "nfe", "accepted", "rejected")}
        return replace(self, **shared, first=self.first + (rows.start or 0))

    def done(self) -> str:
        """How many rows have ended, in words; read from the device."""
        return f"{int((self.status != Status.STOPPED).sum())}/{len(self.x)} rows"

    def solution(self) -> Solution:
        """The Solution so far; rows still running are STOPPED."""
        trajectory, times = self._trajectory()
        return Solution(
            samples=self.x.to(self.dtype),
            status=self.status,
            nfe=self.nfe,
            accepted=self.accepted,
            rejected=self.rejected,
            trajectory=trajectory,
            trajectory_sigma=times,
        )

    def _trajectory(self) -> tuple[Tensor | None, Tensor | None]:
        if self.steps is None:
            return None, None
        slots = int(self.accepted.max()) + 1 if self.accepted.numel() else 1
        states = torch.full((slots, *self.x.shape), math.nan, dtype=self.dtype, device=self.x.device)
        times = torch.full((slots, len(self.t)), math.nan, dtype=torch.float64, device=self.x.device)
        for slot, rows, x, t in self.steps:
            states[slot, rows] = x.to(self.dtype)
            times[slot, rows] = t
        return states[1:], self.level(times[1:])


def finite_rows(x: Tensor) -> Tensor:
    """(B,) bool: whether all values of each row of x (B, ...) are finite."""
    if all_finite(x):
        return torch.ones(len(x), dtype=torch.bool, device=x.device)
    return torch.isfinite(x).reshape(len(x), math.prod(x.shape[1:])).all(1)


def all_finite(x: Tensor) -> bool:
    """Whether it is known, by little work and without waiting for a device, that all values of x (B, ...) are finite.

    A sum is finite only if its terms are; the other way about it may overflow.
    """
    if x.numel() == 0:
        return True
    return x.device.type == "cpu" and bool(x.reshape(len(x), -1).sum(1).isfinite().all())


def shown(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (B, ...) with zeros in the rows that are not finite, and which rows (B,) are.

    What is asked about NaN may raise, or let one row's NaN reach another's.
    """
    good = finite_rows(x)
    return (x if all_finite(x) else x.where(per_row(good, x), 0)), good


def per_row(values: Tensor, x: Tensor) -> Tensor:
    """values (B,) as (B, 1, ..., 1), to be combined with x (B, ...)."""
    return values.reshape(-1, *(1,) * (x.ndim - 1))


def _describe(status: list[int]) -> str:
    """Counts the rows of each failure and names the first ones."""
    lines = [f"{sum(s != Status.SUCCESS for s in status)} of {len(status)} rows did not reach the end"]
    for failure in Status:
        rows = [i for i, s in enumerate(status) if s == failure]
        if failure != Status.SUCCESS and rows:
            named = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
            lines.append(f"{failure.name}: {len(rows)} (rows {named}). {failure.sentence}")
    return "\n  ".join(lines)
