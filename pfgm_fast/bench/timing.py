"""Times of calls that take turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple, TypeVar

import torch

from pfgm_fast.bench.core import Effort

Clock = Callable[[], float]
Stopwatch = Callable[[Callable[[], object]], float]  # seconds that a call takes
Name = TypeVar("Name")


class Timed(NamedTuple):
    """A call, and the context that it needs and whose own time does not count."""

    call: Callable[[], object]
    within: Callable[[], AbstractContextManager[None]] = nullcontext


def stopwatch(device: torch.device, threads: int = 1) -> Stopwatch:
    """One thread is timed by the CPU time of the whole process: neighbours on the machine do not lengthen it, a hidden
    second thread would. More threads are timed by the wall clock, a GPU by its own events.
    """
    if device.type == "cuda":
        return by_events
    return by_clock(time.process_time if threads == 1 else time.perf_counter)


def by_clock(now: Clock) -> Stopwatch:
    def seconds(call: Callable[[], object]) -> float:
        start = now()
        call()
        return now() - start

    return seconds


def by_events(call: Callable[[], object]) -> float:
    """Seconds between two events on the current CUDA stream, before and after what the call puts there.

    The stream is empty before: of a call that is shorter than its launches, these show.
    """
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def interleaved(calls: Mapping[Name, Timed], stopwatch: Stopwatch, effort: Effort) -> dict[Name, list[float]]:
    """Seconds of each repeat of each call, round by round over all of them.

    A call is repeated `most` times, a slow one as often as its first repeat fits into the budget but at least `least`
    times (once if that takes 10 budgets), spread evenly over the rounds. Warm-up is the caller's.
    """
    budget, least, most = effort
    taken: dict[Name, list[float]] = {name: [] for name in calls}
    repeats = dict.fromkeys(calls, most)
    for turn in range(most):
        for name, (call, within) in calls.items():
            if turn and turn * repeats[name] // most == (turn - 1) * repeats[name] // most:
                continue
            with within():
                taken[name].append(stopwatch(call))
            if turn == 0:
                first = max(taken[name][0], 1e-9)
                repeats[name] = max(least if first < 10 * budget else 1, min(most, int(budget / first)))
    return taken


def best(call: Callable[[], object], stopwatch: Stopwatch, repeats: int) -> float:
    """The shortest of some repeats in seconds, after a warm-up: for ceilings."""
    call()
    return min(stopwatch(call) for _ in range(repeats))
