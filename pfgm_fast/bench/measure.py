"""Measures a block: the providers of one operation on one case in one variant, which take turns."""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from pfgm_fast.bench import ceilings, memory, timing
from pfgm_fast.bench.ceilings import Ceilings
from pfgm_fast.bench.core import Answer, Effort, Error, Operation, Provider, Work
from pfgm_fast.bench.machine import Origin
from pfgm_fast.bench.rows import OK, PART, SKIPPED, WRONG, Row

NO_TIME = "no time was left"

Show = Callable[[str], object]


@dataclass(frozen=True)
class Setup:
    """What is the same for all blocks.

    Attributes:
        tests: PASSED or NOT_RUN: of the tests of the operations; OWN_CHECK where the check of each result is enough.
        effort: in place of the operations' own.
        memory: it is measured; on a CPU on one thread alone, in processes of their own.
        show: takes what is being done.
    """

    device: torch.device
    threads: int
    origin: Origin
    tests: str
    effort: Effort | None = None
    memory: bool = True
    show: Show = lambda text: None


class Block(NamedTuple):
    """One case of an operation in one variant. `find` makes the operation in another process, and can be pickled."""

    find: Callable[[], Operation[Any]]
    case: str
    variant: str

    @property
    def operation(self) -> Operation[Any]:
        return self.find()


class Measured(NamedTuple):
    """What the first call of a provider told."""

    call: Callable[[], object]
    answer: Answer
    error: Error | None
    memory_mb: float | None


def measure(
    block: Block, setup: Setup, chosen: Callable[[str], bool] = lambda name: True, until: float = math.inf
) -> list[Row]:
    """The rows of the chosen providers. What cannot run, or for which no time is left, is skipped: the row says why.

    The first call of each provider is checked against the truth and not timed. `until` is in seconds of time.monotonic.
    """
    operation = block.operation
    providers = [p for p in operation.providers if setup.device.type in p.devices and chosen(p.name)]
    if time.monotonic() > until:
        return [_skipped(block, provider, setup, NO_TIME) for provider in providers]
    try:
        return _measure(block, setup, providers, until)
    except torch.cuda.OutOfMemoryError as failure:
        why = f"out of memory: {str(failure).splitlines()[0]}"
    _release(setup.device)
    return [_skipped(block, provider, setup, why) for provider in providers]


def _measure(block: Block, setup: Setup, providers: list[Provider[Any]], until: float) -> list[Row]:
    operation = block.operation
    inputs = operation.cases[block.case].make(block.variant, setup.device)
    rows: dict[str, Row] = {}
    measured: dict[str, Measured] = {}
    with timing.torch_threads(setup.threads), torch.no_grad():
        truth = operation.truth(inputs)
        for provider in providers:
            setup.show(provider.label)
            why = provider.refuses(inputs) or (NO_TIME if time.monotonic() > until else None)
            found = why or _first(block, provider, inputs, truth, setup)
            if isinstance(found, str):
                rows[provider.label] = _skipped(block, provider, setup, found)
            else:
                measured[provider.label] = found
        setup.show("timing")
        stopwatch = timing.stopwatch(setup.device, setup.threads)
        ceiling = ceilings.measure(setup.device, stopwatch)
        timed = {p.label: timing.Timed(measured[p.label].call, partial(_turned, operation, inputs, p))
                 for p in providers if p.label in measured}  # fmt: skip
        taken = timing.interleaved(timed, stopwatch, setup.effort or operation.effort)
    for provider in providers:
        if provider.label in measured:
            one, seconds = measured[provider.label], taken[provider.label]
            work = operation.work(inputs, one.answer)
            share, remark = provider.share(inputs), provider.remark(inputs)
            rows[provider.label] = row(block, provider, setup, one, seconds, ceiling, work, share, remark)
    measured.clear()
    timed.clear()
    del inputs
    _release(setup.device)
    return [rows[provider.label] for provider in providers]


@contextmanager
def _turned(operation: Operation[Any], inputs: Any, provider: Provider[Any]) -> Iterator[None]:
    operation.turn(inputs)
    with provider.within():
        yield


def _first(
    block: Block, provider: Provider[Any], inputs: Any, truth: torch.Tensor | None, setup: Setup
) -> Measured | str:
    """The first call, which compiles and is not timed; or why it failed: one provider must not take the run with it."""
    cuda = setup.device.type == "cuda"
    peak: float | None
    try:
        with provider.within():
            call = provider.prepare(inputs)
            result = call()
            if cuda and setup.memory:
                result, peak = _again_on_gpu(call)
            else:
                peak = _peak_on_cpu(block, provider, setup)
    except torch.cuda.OutOfMemoryError as failure:
        _release(setup.device)
        return f"out of memory: {str(failure).splitlines()[0]}"
    except Exception as failure:  # noqa: BLE001 (whatever a peer, or a kernel of ours on its first GPU, raises)
        _release(setup.device)
        return f"failed: {type(failure).__name__}: {(str(failure).splitlines() or [''])[0]}"
    answer, share = as_answer(result), provider.share(inputs)
    error = error_of(block.operation, provider, inputs, result, truth)
    return Measured(call, answer._replace(values=answer.values[:0]), error, None if peak is None else peak / share)


def as_answer(result: torch.Tensor | Answer) -> Answer:
    return result if isinstance(result, Answer) else Answer(result)


def error_of(
    operation: Operation[Any],
    provider: Provider[Any],
    inputs: Any,
    result: torch.Tensor | Answer,
    truth: torch.Tensor | None,
) -> Error | None:
    """None where it was not all of the work, or there is nothing to compare."""
    if truth is None or not provider.complete or provider.share(inputs) < 1:
        return None
    return operation.error(inputs, as_answer(result).values, truth)


def status_of(provider: Provider[Any], error: Error | None, share: float = 1.0) -> str:
    """Wrong is what breaks the accuracy contract, and of what is not held to it what is no number."""
    if not provider.complete or share < 1:
        return PART
    bounds = None if error is None else error.bounds
    most = 1.0 if provider.contract else sys.float_info.max
    return WRONG if bounds is not None and not bounds <= most else OK


def _again_on_gpu(call: Callable[[], Any]) -> tuple[Any, float]:
    """The result and the allocator's peak in MB during a call above what was allocated before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    return result, (torch.cuda.max_memory_allocated() - before) / 1e6


def _peak_on_cpu(block: Block, provider: Provider[Any], setup: Setup) -> float | None:
    first = block.variant == block.operation.variants[0]
    if not (setup.memory and setup.threads == 1 and first and memory.unavailable() is None):
        return None
    try:
        return memory.peak(partial(_task, block, provider.name, provider.setting))
    except memory.CrashedError:
        return None


def _task(block: Block, name: str, setting: str) -> memory.Task:
    """In the process in which its memory is measured."""
    torch.set_num_threads(1)
    operation = block.operation
    provider = operation.provider(name, setting)
    inputs = operation.cases[block.case].make(block.variant, torch.device("cpu"))

    def call_of(inputs: Any) -> Callable[[], object]:
        with provider.within():
            call = provider.prepare(inputs)

        def within() -> object:
            with provider.within():
                return call()

        return within

    return memory.Task(lambda: call_of(inputs), lambda: call_of(operation.small(inputs))())


def row(
    block: Block,
    provider: Provider[Any],
    setup: Setup,
    measured: Measured,
    seconds: list[float],
    ceiling: Ceilings,
    work: Work | None,
    share: float = 1.0,
    remark: str = "",
) -> Row:
    """What was found, as columns; times of a part of the work are scaled to all of it."""
    low, median, high = (float(q) / share for q in np.quantile(seconds, (0.1, 0.5, 0.9)))
    error, answer = measured.error, measured.answer
    bounds = None if error is None else error.bounds
    name, least = ("", math.nan) if work is None else ceiling.bound(work)
    return Row(
        **_key(block, provider, setup),
        status=status_of(provider, error, share),
        median_ms=1e3 * median,
        p10_ms=1e3 * low,
        p90_ms=1e3 * high,
        repeats=len(seconds),
        memory_mb=measured.memory_mb,
        error_bounds=bounds,
        error_median=None if error is None else error.median,
        error_p99=None if error is None else error.p99,
        error_max=None if error is None else error.largest,
        evaluations=answer.evaluations,
        calls=answer.calls,
        gpairs_per_s=None if work is None else work.pairs / median / 1e9,
        gflop_per_s=None if work is None else work.flop / median / 1e9,
        bound=name,
        bound_share=None if work is None else least / median,
        copy_gb_per_s=ceiling.copy,
        matrix_gflop_per_s=ceiling.matrix,
        half_gflop_per_s=ceiling.half,
        int8_gop_per_s=ceiling.int8,
        log_exp_g_per_s=ceiling.log_exp,
        remark=remark,
        tests=setup.tests,
        **setup.origin._asdict(),
    )


def _skipped(block: Block, provider: Provider[Any], setup: Setup, why: str) -> Row:
    return Row(**_key(block, provider, setup), status=SKIPPED, remark=why, tests=setup.tests, **setup.origin._asdict())


def _key(block: Block, provider: Provider[Any], setup: Setup) -> dict[str, Any]:
    return {
        "operation": block.operation.name,
        "case": block.case,
        "variant": block.variant,
        "provider": provider.name,
        "setting": provider.setting,
        "threads": setup.threads,
    }


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
