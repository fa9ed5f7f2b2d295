"""The C++ backend for each instruction set that this machine can run, and what only native code can get wrong."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import ModuleType

import cases
import oracle
import pytest
import torch

import pfgm_fast as pf
from pfgm_fast import native

pytestmark = pytest.mark.skipif(
    native.unavailable() is not None and os.environ.get("PFGM_EXT") != "on", reason=str(native.unavailable())
)
CASES = ["mixture-N2-D1", "mixture-N16-D128", "near_duplicates-N64-Dinf", "clusters-N64-D128", "pixels-N784-D128"]


@pytest.fixture
def extension() -> Iterator[ModuleType]:
    from pfgm_fast import _C

    before = _C.instruction_set()
    yield _C
    _C.select_instruction_set(before)


@pytest.mark.parametrize("isa", ["base", "avx2", "avx512"])
@pytest.mark.parametrize("name", CASES)
def test_every_instruction_set_keeps_the_promise(extension: ModuleType, name: str, isa: str) -> None:
    if not extension.select_instruction_set(isa):
        pytest.skip(f"this machine or build has no {isa}")
    case, truth = cases.make(name), cases.truth(name)
    field = pf.EmpiricalField(case.data, case.D, backend="native")
    oracle.check_mean(field(case.x, case.sigma), truth, case.eps)
    oracle.check_log_density(field.log_density(case.x, case.sigma), truth, case.eps)


@pytest.mark.parametrize("isa", ["base", "avx2", "avx512"])
@pytest.mark.parametrize("D", [1.0, 2048.0, math.inf])
@pytest.mark.parametrize("N", [4, 40])
def test_a_row_alone_on_every_instruction_set(extension: ModuleType, N: int, D: float, isa: str) -> None:
    if not extension.select_instruction_set(isa):
        pytest.skip(f"this machine or build has no {isa}")
    g = torch.Generator().manual_seed(0)
    data = torch.randn(700, N, generator=g)
    data[350:] = data[:350] + 1e-3 * torch.randn(350, N, generator=g)
    x, sigma = data[:70] + 0.02 * torch.randn(70, N, generator=g), torch.logspace(-2.5, 1.5, 70)
    field = pf.EmpiricalField(data, D, backend="native")
    together = field(x, sigma)
    for i in range(0, 70, 3):
        assert torch.equal(field(x[i : i + 1], sigma[i : i + 1])[0], together[i]), f"row {i}"


def test_unknown_instruction_set(extension: ModuleType) -> None:
    before = extension.instruction_set()
    assert not extension.select_instruction_set("avx1024")
    assert extension.instruction_set() == before


def test_two_python_threads_at_once() -> None:
    g = torch.Generator().manual_seed(1)
    field = pf.EmpiricalField(torch.randn(3000, 20, generator=g), 3.0, backend="native")
    x = torch.randn(64, 20, generator=g)
    truth = field(x, 0.5)
    results: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: results.extend(field(x, 0.5) for _ in range(5))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 10
    assert all(torch.equal(result, truth) for result in results)


def test_a_long_call_can_be_interrupted() -> None:
    field = pf.EmpiricalField(torch.randn(200_000, 64), 2.0, backend="native")
    x = torch.randn(100_000, 64)
    timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    start = time.monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        field(x, 1.0)
    assert time.monotonic() - start < 30
