"""What the benchmarks of whole solves share: from a solve to an answer, from states to errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast.bench.core import Answer, Error, Work
from pfgm_fast.bench.queries import of_rows

Array = np.ndarray[Any, Any]
Solve = Callable[[], Answer]

TESTS = ("tests/test_ode_native.py", "tests/test_odeint.py", "tests/test_sampling.py", "tests/test_fixed_step.py")


class Counted:
    """A function that counts its calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.calls = 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self.function(*args)


def answer(solution: pf.Solution, calls: int | None = None) -> Answer:
    """Of a solve that reached its end; a fused one has as many calls as its slowest row has evaluations."""
    solution.raise_for_status()
    nfe = solution.nfe.double()
    return Answer(solution.samples, float(nfe.mean()), int(nfe.max()) if calls is None else calls)


def setting(tolerance: float) -> str:
    return f"{tolerance:.1e}".replace(".0e", "e")


class Planar(Protocol):
    """States x (B, 2) in the field of data (M, 2)."""

    @property
    def x(self) -> Tensor: ...

    @property
    def data(self) -> Tensor: ...


def plane_work(inputs: Planar, answer: Answer) -> Work:
    """Of a solve whose field has the data at hand: they are read once, states read and written."""
    pairs = answer.evaluations * len(inputs.x) * len(inputs.data)
    return Work(pairs, 8 * pairs, inputs.data.nbytes + 2 * inputs.x.nbytes)


def distances(inputs: object, states: Tensor, truth: Tensor) -> Error:
    """|x - x*| of each row."""
    off = (states.double() - truth).flatten(1).norm(dim=1).nan_to_num(math.inf)
    return of_rows(None, off)


def tensor(states: Tensor | Array) -> Tensor:
    """float64"""
    return torch.as_tensor(np.array(states) if not isinstance(states, Tensor) else states).double()
