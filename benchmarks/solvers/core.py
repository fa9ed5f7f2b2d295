"""The words of the solvers' benchmarks: a problem has blocks of runs that take turns, each with an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]


class Answer(NamedTuple):
    """What a solve returned: states (B, ...), evaluations of a row on average, calls of the right-hand side."""

    states: Tensor | Array
    evaluations: float
    calls: int


@dataclass(frozen=True)
class Run:
    """One provider with one setting: `solve` is timed, its first call is not."""

    provider: str
    setting: str
    solve: Callable[[], Answer]


@dataclass(frozen=True)
class Block:
    """Runs that take turns.

    Attributes:
        errors: of states (B, ...), one for each row (B,); None where there is nothing to compare.
        seconds, least, most: the effort, as of `benchmarks.timing.interleaved`.
    """

    title: str
    runs: list[Run]
    errors: Callable[[Tensor], Tensor] | None
    seconds: float = 1.0
    least: int = 3
    most: int = 9


@dataclass(frozen=True)
class Problem:
    """`blocks(effort)` makes the inputs and the references when they are asked for."""

    name: str
    blocks: Callable[[Effort], Iterator[Block]]


class Effort(NamedTuple):
    """What to measure with so many threads; `scratch` keeps references for the next number of threads."""

    threads: int
    quick: bool
    scratch: str | None


class Counted:
    """A function that counts its calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.calls = 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self.function(*args)


def tensor(states: Tensor | Array) -> Tensor:
    """float64"""
    return torch.as_tensor(np.array(states) if not isinstance(states, Tensor) else states).double()
