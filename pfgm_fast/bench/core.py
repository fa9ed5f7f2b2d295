"""The words of the benchmarks: an operation has cases, variants of their inputs, and providers that compute it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from pfgm_fast.bench.rows import Row, Table

Inputs = TypeVar("Inputs")


class Answer(NamedTuple):
    """What a call returned: a result with the rows of a batch first, and for solves what they cost.

    Attributes:
        evaluations: of the right-hand side, for a row on average.
        calls: of the right-hand side, with however many rows.
    """

    values: Tensor
    evaluations: float = 1.0
    calls: int = 1


class Work(NamedTuple):
    """What any exact computation of a result must do, for the shares of the machine's ceilings."""

    pairs: float  # log weights
    flop: float  # of the matrix products
    bytes: float  # read and written once


class Error(NamedTuple):
    """The distances of rows from the float64 truth: the worst in units of the accuracy contract, and quantiles.

    `bounds` is None where the contract says nothing; the unit of the others is the operation's.
    """

    bounds: float | None
    median: float
    p99: float
    largest: float


class Effort(NamedTuple):
    """How long to measure: seconds for the repeats of a slow provider, and how often at least and at most."""

    budget: float = 0.6
    least: int = 2
    most: int = 25


EFFORT = Effort()


@dataclass(frozen=True)
class Provider(Generic[Inputs]):
    """One way to compute an operation.

    Attributes:
        prepare: from the inputs the call that is timed; what it does itself is not.
        setting: what sets it apart from others of its name: a tolerance, a number of steps.
        ours: it is of this library: its speed-ups are reported, unless it is wrong.
        complete: False for a bare part of the work, whose result is not checked.
        contract: its result is held to the accuracy contract, as precision "high" is not.
        devices: the types of device that it is for; elsewhere it has no row.
        refuses: why it cannot serve these inputs here, or None.
        within: a context around every call.
        share: of the work, what it does where all of it does not fit: its time and memory are divided by that, and its
            result is not checked.
        remark: what a reader must know about the figure.
    """

    name: str
    prepare: Callable[[Inputs], Callable[[], Tensor | Answer]]
    setting: str = ""
    ours: bool = False
    complete: bool = True
    contract: bool = True
    devices: tuple[str, ...] = ("cpu", "cuda")
    refuses: Callable[[Inputs], str | None] = lambda inputs: None
    within: Callable[[], AbstractContextManager[None]] = nullcontext
    share: Callable[[Inputs], float] = lambda inputs: 1.0
    remark: Callable[[Inputs], str] = lambda inputs: ""

    @property
    def label(self) -> str:
        return f"{self.name}, {self.setting}" if self.setting else self.name


@dataclass(frozen=True)
class Case(Generic[Inputs]):
    """Inputs of one size, `make(variant, device)`; on devices of these types, on a CPU by these numbers of threads."""

    make: Callable[[str, torch.device], Inputs]
    devices: tuple[str, ...] = ("cpu", "cuda")
    threads: tuple[int, ...] = (1, 2)


Rival = Callable[[Table, Row], Row | None]


def first_of(*providers: str) -> Rival:
    """The first of these that was measured."""

    def rival(block: Table, row: Row) -> Row | None:
        found = {mine.provider: mine for mine in block if mine.median_ms is not None}
        return next((found[name] for name in providers if name in found), None)

    return rival


@dataclass(frozen=True)
class Operation(Generic[Inputs]):
    """What is measured.

    Attributes:
        cases, variants: by name; memory is measured in the first variant.
        truth: the result in float64, of which `error` knows the rows; None where there is nothing to compare.
        small: the inputs cut down to a few rows, for a first call that is not measured.
        turn: puts the next set of inputs in place, before each timed call.
        tests: what pytest is to run before a speed-up of it is reported.
        rival: among the rows of a block, the one of ours that a row is compared with, or None.
        error_unit: of the quantiles of its errors.
        alone: it gets a process of its own, since it changes how that behaves.
        interpreted: on a CPU it runs with Triton's interpreter, whose times mean nothing.
    """

    name: str
    cases: Mapping[str, Case[Inputs]]
    variants: tuple[str, ...]
    providers: tuple[Provider[Inputs], ...]
    truth: Callable[[Inputs], Tensor | None]
    error: Callable[[Inputs, Tensor, Tensor], Error]
    work: Callable[[Inputs, Answer], Work | None]
    small: Callable[[Inputs], Inputs]
    turn: Callable[[Inputs], None] = lambda inputs: None
    tests: tuple[str, ...] = ()
    rival: Rival = lambda block, row: None
    error_unit: str = ""
    effort: Effort = EFFORT
    alone: bool = False
    interpreted: bool = False

    def provider(self, name: str, setting: str = "") -> Provider[Inputs]:
        return next(p for p in self.providers if (p.name, p.setting) == (name, setting))
