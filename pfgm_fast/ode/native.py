"""The slots in C++ on the CPU (csrc/ode), and whole solves with the empirical field that never return to Python.

The bits of a row depend on that row alone: neither on the slots, nor on the batch, nor on the threads.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pfgm_fast.ode.controller import IntegralController
from pfgm_fast.solution import Record


class NativeSlots:
    """The machine of `pfgm_fast.ode.solve` for Dormand and Prince's method and states in float32 or float64."""

    def __init__(
        self,
        record: Record,
        end: Tensor,
        *,
        slots: int,
        rtol: float,
        atol: float,
        max_steps: int,
        controller: IntegralController,
    ) -> None:
        end = end.contiguous()
        B, n = len(record.x), math.prod(record.x.shape[1:])
        x = _address(record.x, record.x.shape, _STATES)
        kinds = {"t": _DOUBLE, "status": (torch.int8,), "nfe": _LONG, "accepted": _LONG, "rejected": _LONG}
        columns = [_address(getattr(record, name), (B,), dtypes) for name, dtypes in kinds.items()]
        self.kept = record.x, *(getattr(record, name) for name in kinds), end  # as long as C++ knows their addresses
        extension: Any = importlib.import_module("pfgm_fast._C")
        make = extension.SlotsDouble if record.x.dtype == torch.float64 else extension.SlotsFloat
        c = controller
        step = c.safety, c.min_factor, c.max_factor
        threads = torch.get_num_threads()
        ends = _address(end, (B,), _DOUBLE)
        self.slots = make(B, n, x, *columns, ends, slots, rtol, atol, *step, max_steps, threads)
        self._look()

    def _look(self) -> None:
        """At the rows that are in the slots now."""
        count = self.slots.busy()
        state = self.kept[0]
        self._rows = torch.empty(count, dtype=torch.int64)
        self.slots.rows(self._rows.data_ptr())
        self._t = torch.empty(count, dtype=torch.float64)
        self._y = torch.empty((count, *state.shape[1:]), dtype=state.dtype)

    def run_field(self, *arguments: Any) -> bool:
        """So many evaluations of the field; whether rows are left."""
        try:
            return bool(self.slots.solve_field(*arguments))
        finally:
            self._look()

    def stage_in(self) -> tuple[Tensor, Tensor, Tensor] | None:
        if not len(self._rows):
            return None
        t, y = torch.empty_like(self._t), torch.empty_like(self._y)  # new ones: who is asked may keep them
        self.slots.stage_in(y.data_ptr(), t.data_ptr())
        return t, y, self._rows

    def stage_out(self, slope: Tensor) -> None:
        slope = slope.contiguous()  # named, so that it lives while it is read
        if self.slots.stage_out(_address(slope, self._y.shape, (self._y.dtype,))):
            self._look()

    def starting(self) -> tuple[Tensor, Tensor] | None:
        rows, slope = torch.empty_like(self._rows), torch.empty_like(self._y)
        count = self.slots.starting(rows.data_ptr(), slope.data_ptr())
        return (rows[:count], slope[:count]) if count else None

    def restart(self, slope: Tensor) -> None:
        before = self.starting()
        if before is not None:
            self.slots.restart(_address(slope, before[1].shape, (self._y.dtype,)))

    def attempted(self) -> Tensor | None:
        count = self.slots.attempted()
        if not count:
            return None
        rows = torch.empty(count, dtype=torch.int64)
        self.slots.copy_attempted(rows.data_ptr())
        return rows


def solve_field(
    slots: NativeSlots,
    data: Tensor,
    center: Tensor,
    log_weights: Tensor | None,
    segments: Tensor | None,
    D: float,
    first: float,
    last: float,
    *,
    evaluations: int,
) -> Iterator[None]:
    """Solves dx/dt = x - x_hat(x, sigma), t = log(sigma), in the slots, with the empirical field of the data.

    Gives control back after every so many evaluations; the record is right then, and after a KeyboardInterrupt. A row
    gets the bits it would get from the same slots with the field as slope, but for the last bit of exp in float64.

    Args:
        slots: over a record whose rows lie between log(first) and log(last).
        data, center, log_weights: of `pfgm_fast.operator.posterior` on the native backend.
        segments: (B, 2) int64, the half-open range of data that each row of the record sees, or None for all.
        D: augmented dimension.
        first, last: the noise levels at the ends, which the field is never asked beyond.
    """
    state = slots.kept[0]
    M, N = len(data), math.prod(state.shape[1:])
    arguments = (
        M,
        _address(data, (M, N), (*_STATES, torch.uint8)),
        str(data.dtype).removeprefix("torch."),
        _address(center, (N,), _DOUBLE),
        0 if log_weights is None else _address(log_weights, (M,), _DOUBLE),
        0 if segments is None else _address(segments, (len(state), 2), _LONG),
        *(D, first, last, evaluations),
    )
    while slots.run_field(*arguments):
        yield


_STATES = (torch.float32, torch.float64)
_DOUBLE = (torch.float64,)
_LONG = (torch.int64,)


def _address(t: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> int:
    """Where the values of t lie: C++ believes what it is told."""
    if t.shape != shape or t.dtype not in dtypes or not t.is_contiguous() or t.device.type != "cpu":
        kind = "a contiguous" if t.is_contiguous() else "not a contiguous"
        raise ValueError(
            f"expected a contiguous tensor of shape {tuple(shape)} and dtype {' or '.join(map(str, dtypes))} on the "
            f"cpu, got {kind} one of shape {tuple(t.shape)} and dtype {t.dtype} on {t.device}"
        )
    return t.data_ptr()
