"""Peak memory by a process for each call: what is counted, what is not, and what a death looks like."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from pfgm_fast.bench import memory

pytestmark = pytest.mark.skipif(memory.unavailable() is not None, reason=str(memory.unavailable()))

KEPT, AT_ONCE, PASSING = 20, 40, 60  # MB


def zeros(megabytes: int) -> torch.Tensor:
    return torch.ones(megabytes * 250_000)


def task(kept: int, at_once: int, passing: int = 0, first: int = 1) -> memory.Task:
    """A preparation that keeps some MB and needs others for a while, and a call that needs others at once."""

    def prepare() -> Callable[[], object]:
        zeros(passing)
        held = zeros(kept)
        return lambda: (zeros(at_once), held.sum())

    return memory.Task(prepare, lambda: zeros(first).sum())


def exiting() -> memory.Task:
    os._exit(7)


def killed() -> memory.Task:
    os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does where memory runs out
    raise AssertionError("SIGKILL cannot be caught")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (partial(task, KEPT, 0), KEPT),
        (partial(task, 0, AT_ONCE), AT_ONCE),
        (partial(task, KEPT, AT_ONCE), KEPT + AT_ONCE),
        (partial(task, KEPT, 0, passing=PASSING), KEPT),
        (partial(task, 0, AT_ONCE, first=PASSING), AT_ONCE),
    ],
    ids=["kept", "peak of the call", "both", "not what a preparation gives back", "not what a first call needs"],
)
def test_what_counts(make: partial[memory.Task], expected: float) -> None:
    assert memory.peak(make) == pytest.approx(expected, abs=2)


def test_inputs_do_not_count() -> None:
    assert memory.peak(with_inputs) == pytest.approx(AT_ONCE, abs=2)


def with_inputs() -> memory.Task:
    inputs = zeros(PASSING)
    return memory.Task(lambda: lambda: (zeros(AT_ONCE), inputs.sum()), lambda: (zeros(1), inputs.sum()))


def test_two_tensors_at_once() -> None:
    assert memory.peak(side_by_side) == pytest.approx(KEPT + AT_ONCE, abs=2)
    assert memory.peak(one_after_the_other) == pytest.approx(AT_ONCE, abs=2)


def side_by_side() -> memory.Task:
    return memory.Task(lambda: lambda: (zeros(KEPT), zeros(AT_ONCE)), lambda: zeros(1))


def one_after_the_other() -> memory.Task:
    def call() -> None:
        zeros(KEPT)
        zeros(AT_ONCE)

    return memory.Task(lambda: call, lambda: zeros(1))


@pytest.mark.parametrize(("make", "status"), [(exiting, "7"), (killed, "-9")])
def test_a_process_that_dies(make: Callable[[], memory.Task], status: str) -> None:
    with pytest.raises(memory.CrashedError, match=f"ended with {status}$"):
        memory.peak(make)


def test_this_process_is_left_alone() -> None:
    before = torch.get_num_threads()
    memory.peak(partial(task, 0, 0))
    assert torch.get_num_threads() == before


def test_a_system_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    assert "/proc" in str(memory.unavailable())
