"""The loop of the adaptive solves: rows wait for slots, and one evaluation of the slope serves all slots."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from pfgm_fast import _extension
from pfgm_fast.ode.cohorts import TorchSlots
from pfgm_fast.ode.controller import Controller, IntegralController
from pfgm_fast.ode.cuda import CudaSlots
from pfgm_fast.ode.cuda import unavailable as cuda_unavailable
from pfgm_fast.ode.native import NativeSlots
from pfgm_fast.ode.tableau import DORMAND_PRINCE, ButcherTableau
from pfgm_fast.solution import Record, per_row, shown

DEFAULT_CONTROLLER = IntegralController()

Func = Callable[[Tensor, Tensor, Tensor], Tensor]
"""func(t (b,) float64, y (b, ...), rows (b,) int64) -> dy/dt, like y, for some rows of the batch, at finite y."""

Watch = Callable[[int, Tensor, Tensor, Tensor, Tensor], bool]
"""watch(i, rows (b,), t (b,), y (b, ...), dy/dt (b, ...)), called before rows attempt a step; it may change y in place;
True ends the solve."""


class Slots(Protocol):
    """A number of slots, each at work on one row of a record, each with its own stage and step size.

    A row waits until a slot is free, rows in order. In its slot it asks for a slope at a time and a state, again and
    again: where it starts, once more to find the length of its first step, then at the stages of each attempted step.
    What it reaches is written to the record at once, so that the record is right whenever the solve is left. A row
    leaves with SUCCESS at its end, else with its last good state and MAX_STEPS, STEP_UNDERFLOW (step < 10 ulp of t) or
    NONFINITE; the other rows do not notice.
    """

    def stage_in(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """What the slots ask for: t (b,) float64, y (b, ...) finite, and their rows (b,); None if all have left.

        The rows are the same tensor as before if nothing in them has changed.
        """

    def stage_out(self, slope: Tensor) -> None:
        """Takes the slopes (b, ...) asked for."""

    def starting(self) -> tuple[Tensor, Tensor] | None:
        """The rows (m,) about to attempt a step, and their slopes (m, ...) there."""

    def restart(self, slope: Tensor) -> None:
        """Takes other slopes (m, ...) for the rows of `starting`, whose states in the record were changed."""

    def attempted(self) -> Tensor | None:
        """The rows (m,) whose attempts ended in the last `stage_out`."""


Machine = Callable[..., Slots]
"""machine(record, end, *, slots, rtol, atol, max_steps, controller) -> Slots"""


COMPILED: dict[str, tuple[Machine, Callable[[], str | None]]] = {
    "cpu": (NativeSlots, _extension.why_missing),
    "cuda": (CudaSlots, cuda_unavailable),
}
"""By type of device, and why they cannot be had, or None."""


def choose(
    device: torch.device, tableau: ButcherTableau = DORMAND_PRINCE, controller: Controller = DEFAULT_CONTROLLER
) -> Machine:
    """The compiled slots where they know device, table and controller, else those in PyTorch."""
    if tableau is DORMAND_PRINCE and isinstance(controller, IntegralController) and device.type in COMPILED:
        machine, why_not = COMPILED[device.type]
        if why_not() is None:
            return machine
    return partial(TorchSlots, tableau=tableau)


def solve(
    func: Func,
    record: Record,
    end: Tensor,
    *,
    rtol: float,
    atol: float,
    max_steps: int,
    slots: int | None = None,
    together: bool = False,
    tableau: ButcherTableau = DORMAND_PRINCE,
    controller: Controller = DEFAULT_CONTROLLER,
    machine: Machine | None = None,
    watch: Watch | None = None,
) -> None:
    """Integrates dy/dt = func(t, y, rows) for each row from record.t to `end` (B,), forwards or backwards.

    The error of a step is the RMS over its row of error/(atol + rtol*max(|y|, |y_new|)). func is called on as many rows
    as there are slots (None: all), never outside their intervals, and at the end of each exactly. `together` takes the
    batch for one row: one step and one error for all, as SciPy does on a flattened state; t and end must be the same
    in all rows then. `machine` overrides the choice of `choose`.
    """
    if len(record.x) == 0:
        return
    machine = machine or choose(record.x.device, tableau, controller)
    build = partial(machine, rtol=rtol, atol=atol, max_steps=max_steps, controller=controller)
    at: Slots = Together(record, end, build) if together else build(record, end, slots=slots or len(record.x))
    i = 0
    while True:
        if watch is not None and (starting := at.starting()) is not None:
            if _watched(watch, i, func, record, at, *starting):
                return
            i += 1
        stage = at.stage_in()
        if stage is None:
            return
        at.stage_out(func(*stage))
        if record.steps is not None and (attempted := at.attempted()) is not None:
            record.remember(attempted, record.x[attempted], record.t[attempted])


def _watched(watch: Watch, i: int, func: Func, record: Record, slots: Slots, rows: Tensor, slope: Tensor) -> bool:
    """Calls `watch`; rows whose states it has changed start from their new slopes. Whether the solve ends."""
    t, before = record.t[rows], record.x[rows]
    y = before.clone()
    stops = watch(i, rows, t, y, slope)
    changed = (y != before).reshape(len(y), -1).any(1)
    if bool(changed.any()):
        record.x[rows] = y
        if not stops:
            seen, good = shown(y[changed])
            record.nfe[rows[changed]] += 1
            new = func(t[changed], seen, rows[changed])
            slope[changed] = new.where(per_row(good, new), math.nan)
            slots.restart(slope.contiguous())
    return stops


class Together:
    """A batch as the one row of another machine."""

    def __init__(self, record: Record, end: Tensor, build: Machine) -> None:
        one = slice(0, 1)
        self.record = record
        self.joint = replace(
            record,
            x=record.x.view(1, -1),  # the same memory
            t=record.t[one].clone(),
            status=record.status[one].clone(),
            nfe=record.nfe[one].clone(),
            accepted=record.accepted[one].clone(),
            rejected=record.rejected[one].clone(),
        )
        self.slots = build(self.joint, end[one].clone(), slots=1)
        self.rows = torch.arange(len(record.x), device=record.x.device)

    def stage_in(self) -> tuple[Tensor, Tensor, Tensor] | None:
        stage = self.slots.stage_in()
        self._tell()
        if stage is None:
            return None
        t, y, _ = stage
        return t.expand(len(self.rows)), y.reshape(self.record.x.shape), self.rows

    def stage_out(self, slope: Tensor) -> None:
        self.slots.stage_out(slope.reshape(1, -1))
        self._tell()

    def starting(self) -> tuple[Tensor, Tensor] | None:
        starting = self.slots.starting()
        return None if starting is None else (self.rows, starting[1].reshape(self.record.x.shape))

    def restart(self, slope: Tensor) -> None:
        self.slots.restart(slope.reshape(1, -1))

    def attempted(self) -> Tensor | None:
        return None if self.slots.attempted() is None else self.rows

    def _tell(self) -> None:
        """Every row of the record stands where the one row stands."""
        for name in ("t", "status", "nfe", "accepted", "rejected"):
            getattr(self.record, name).copy_(getattr(self.joint, name).expand(len(self.rows)))
