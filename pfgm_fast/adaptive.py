"""What the adaptive solves share: how accurate, how many rows at a time, and how they are left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pfgm_fast import _checks
from pfgm_fast.solution import Record, Status

STEP_CONTROLS = ("sample", "batch")


@dataclass(frozen=True)
class Accuracy:
    """When an adaptive solver is content, and when it gives up."""

    rtol: float
    atol: float
    max_steps: int
    together: bool
    slots: int | None

    @classmethod
    def checked(
        cls,
        rtol: float,
        atol: float,
        max_steps: int,
        step_control: str,
        batch_size: int | None,
        adaptive: bool = True,
    ) -> Accuracy:
        """The arguments of the public functions, checked; step_control means nothing to solvers that do not adapt."""
        rtol = _checks.number("rtol", rtol, at_least=0)
        atol = _checks.number("atol", atol, at_least=0)
        if rtol == atol == 0:
            raise ValueError("rtol and atol must not both be 0, got rtol=0 and atol=0")
        max_steps = _checks.integer("max_steps", max_steps, at_least=1)
        together = _checks.choice("step_control", step_control, STEP_CONTROLS) == "batch"
        slots = None if batch_size is None else _checks.integer("batch_size", batch_size, at_least=1)
        if together and adaptive and slots is not None:
            raise ValueError(f'batch_size must be None for step_control="batch", which is one solve, got {batch_size}')
        return cls(rtol, atol, max_steps, together, slots)

    @property
    def options(self) -> dict[str, Any]:
        """As `pfgm_fast.ode.solve` takes them."""
        return dict(vars(self))


def covered(record: Record, start: Tensor | float, end: Tensor) -> float:
    """The share of its way from start to end that a row has gone, the mean over the rows, in percent."""
    share = ((record.t - start) / (end - start)).where((record.status == Status.STOPPED) & (start != end), 1.0)
    return 100 * float(share.mean()) if len(share) else 100.0


@contextmanager
def interruptible(record: Record) -> Iterator[None]:
    """Ctrl-C in the block passes through with the Solution so far."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        interrupt.solution = record.solution()  # type: ignore[attr-defined]  # an attribute of ours
        raise
