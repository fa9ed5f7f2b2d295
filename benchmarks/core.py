"""The words of the registry: an operation has cases, variants of their inputs, providers, and bars to clear."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

Inputs = TypeVar("Inputs")


class Work(NamedTuple):
    """What any exact computation must do, for the shares of the machine's ceilings."""

    pairs: float  # log weights
    flop: float  # of the matrix products
    bytes: float  # read and written once


class Error(NamedTuple):
    """The worst row's distance from the float64 truth: in units of the accuracy contract's bound, and relative."""

    bounds: float
    relative: float


@dataclass(frozen=True)
class Provider(Generic[Inputs]):
    """One way to compute an operation.

    Attributes:
        prepare: from the inputs the call that is timed; what it does itself is not.
        ours: it is a backend of this library: its speed-ups are reported, unless it is wrong.
        complete: False for a bare part of the work, whose result is not checked.
        unavailable: why it cannot run here, or None.
        within: a context around every call.
        share: of the work, what it does where all of it does not fit: its time and memory are divided by that, and its
            result is not checked.
        remark: what a reader must know about the figure.
    """

    name: str
    prepare: Callable[[Inputs], Callable[[], Tensor]]
    ours: bool = False
    complete: bool = True
    unavailable: Callable[[], str | None] = lambda: None
    within: Callable[[], AbstractContextManager[None]] = nullcontext
    share: Callable[[Inputs], float] = lambda inputs: 1.0
    remark: Callable[[Inputs], str] = lambda inputs: ""


@dataclass(frozen=True)
class Bar:
    """On one thread `provider` is to be `times` faster than `baseline`, or to need that many times less memory."""

    case: str
    provider: str
    baseline: str
    times: float
    quantity: str = "time"


@dataclass(frozen=True)
class Operation(Generic[Inputs]):
    """What is measured.

    Attributes:
        cases: by name, the maker of the inputs in one of the `variants`.
        variants: by name, the factor on the bars of time that holds for them; memory is measured in the first.
        small: the inputs cut down to a few rows, for a first call that is not measured.
        truth: the result in float64.
    """

    name: str
    cases: Mapping[str, Callable[[str], Inputs]]
    variants: Mapping[str, float]
    providers: tuple[Provider[Inputs], ...]
    bars: tuple[Bar, ...]
    small: Callable[[Inputs], Inputs]
    truth: Callable[[Inputs], Tensor]
    error: Callable[[Inputs, Tensor, Tensor], Error]
    work: Callable[[Inputs], Work]

    def provider(self, name: str) -> Provider[Inputs]:
        return next(provider for provider in self.providers if provider.name == name)
