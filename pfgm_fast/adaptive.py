"""What the adaptive solves share: how accurate, how many rows at a time, and how they are left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pfgm_fast import _checks
from pfgm_fast.solution import Record

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
    def checked(cls, rtol: float, atol: float, max_steps: int, step_control: str, batch_size: int | None) -> Accuracy:
        """The arguments of the public functions, checked."""
        rtol = _checks.number("rtol", rtol, at_least=0)
        atol = _checks.number("atol", atol, at_least=0)
        if rtol == atol == 0:
            raise ValueError("rtol and atol must not both be 0, got rtol=0 and atol=0")
        max_steps = _checks.integer("max_steps", max_steps, at_least=1)
        together = _checks.choice("step_control", step_control, STEP_CONTROLS) == "batch"
        slots = None if batch_size is None else _checks.integer("batch_size", batch_size, at_least=1)
        if together and slots is not None:
            raise ValueError(f'batch_size must be None for step_control="batch", which is one solve, got {batch_size}')
        return cls(rtol, atol, max_steps, together, slots)

    @property
    def options(self) -> dict[str, Any]:
        """As `pfgm_fast.ode.solve` takes them."""
        return dict(vars(self))


@contextmanager
def interruptible(record: Record) -> Iterator[None]:
    """Ctrl-C in the block passes through with the Solution so far."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        interrupt.solution = record.solution()  # type: ignore[attr-defined]  # an attribute of ours
        raise
