"""How a block is measured: turns, clocks, first calls, what is skipped and why; rows and their files."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pfgm_fast.bench import ceilings, machine, measure, memory, queries, rows, timing
from pfgm_fast.bench import posterior_mean as pm
from pfgm_fast.bench.ceilings import Ceilings
from pfgm_fast.bench.core import Answer, Case, Effort, Error, Operation, Provider, Work, first_of
from pfgm_fast.bench.machine import Origin
from pfgm_fast.bench.measure import NO_TIME, Block, Measured, Setup
from pfgm_fast.bench.queries import ALL_80, Shape
from pfgm_fast.bench.rows import Row, Table

CPU = torch.device("cpu")
CEILINGS = Ceilings(10.0, 100.0, log_exp=1.0)
ORIGIN = Origin("machine", "device", "torch 2", "0.1.0", "abc", "2030-01-01")
SETUP = Setup(CPU, 1, ORIGIN, "passed", Effort(1.0, 1, 2), memory=False)
MEGABYTES = {"ours": 20, "other": 40}


@pytest.fixture(autouse=True)
def fixed_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take a second, each time."""
    monkeypatch.setattr(ceilings, "measure", lambda device, stopwatch: CEILINGS)


@dataclass(frozen=True)
class Numbers:
    """Inputs that write down what is done with them."""

    values: Tensor
    log: list[str] = field(default_factory=list)


def made(variant: str, device: torch.device) -> Numbers:
    return Numbers(torch.tensor([[1.0], [2.0]], device=device))


def error(inputs: Numbers, result: Tensor, exact: Tensor) -> Error:
    off = (result.double() - exact).norm(dim=1)
    return queries.of_rows(off / 0.1, off)


def squares(inputs: Numbers, name: str = "", off: float = 0.0) -> Callable[[], Tensor]:
    def call() -> Tensor:
        inputs.log.append(name)
        return inputs.values**2 + off

    return call


def allocating(inputs: Numbers, name: str = "") -> Callable[[], Tensor]:
    return lambda: torch.ones(MEGABYTES[name] * 250_000)[:2, None] * inputs.values**2


def toy(*providers: Provider[Numbers], make: Callable[[str, torch.device], Numbers] = made) -> Operation[Numbers]:
    return Operation(
        "toy",
        {"a case": Case(make)},
        ("one", "two"),
        providers,
        truth=lambda inputs: inputs.values.double() ** 2,
        error=error,
        work=lambda inputs, answer: Work(pairs=1e9, flop=2e9, bytes=answer.evaluations * 1e10),
        small=lambda inputs: inputs,
        turn=lambda inputs: inputs.log.append("turn"),
    )


def provider(name: str, off: float = 0.0, **others: Any) -> Provider[Numbers]:
    return Provider(name, partial(squares, name=name, off=off), **others)


def measured(*providers: Provider[Numbers], setup: Setup = SETUP, **others: Any) -> list[Row]:
    return measure.measure(Block(partial(toy, *providers), "a case", "one"), setup, **others)


def with_memory() -> Operation[Numbers]:
    return toy(*(Provider(name, partial(allocating, name=name)) for name in MEGABYTES))


# ---- a block


def test_every_provider_has_a_row_in_its_place() -> None:
    def fail(inputs: Numbers) -> Callable[[], Tensor]:
        raise RuntimeError("no such thing\nat all")

    def full(inputs: Numbers) -> Callable[[], Tensor]:
        raise torch.cuda.OutOfMemoryError("no room\nanywhere")

    def silent(inputs: Numbers) -> Callable[[], Tensor]:
        raise KeyError

    found = measured(
        Provider("broken", fail),
        provider("ours"),
        provider("other", setting="slow", refuses=lambda inputs: "not installed"),
        Provider("large", full),
        provider("other", setting="fast", remark=lambda inputs: "by hand"),
        provider("elsewhere", devices=("cuda",)),
        Provider("silent", silent),
    )
    assert [(row.label, row.status, row.remark) for row in found] == [
        ("broken", "skipped", "failed: RuntimeError: no such thing"),
        ("ours", "ok", ""),
        ("other, slow", "skipped", "not installed"),
        ("large", "skipped", "out of memory: no room"),
        ("other, fast", "ok", "by hand"),
        ("silent", "skipped", "failed: KeyError: "),
    ]
    for row in found:
        assert (row.operation, row.case, row.variant, row.threads) == ("toy", "a case", "one", 1)
        assert (row.tests, row.machine, row.commit, row.date) == ("passed", "machine", "abc", "2030-01-01")
        assert (row.median_ms is None) == (row.error_bounds is None) == (row.status == "skipped")


def test_only_chosen_providers_have_rows() -> None:
    found = measured(provider("one"), provider("two"), chosen=lambda name: name == "two")
    assert [row.provider for row in found] == ["two"]


def test_an_interruption_is_not_a_failure() -> None:
    def interrupted(inputs: Numbers) -> Callable[[], Tensor]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(Provider("one", interrupted))


def test_first_calls_are_checked_and_then_calls_take_turns() -> None:
    inputs = made("one", CPU)
    measure.measure(Block(lambda: toy(provider("a"), provider("b"), make=lambda *_: inputs), "a case", "one"), SETUP)
    assert inputs.log == ["a", "b", *["turn", "a", "turn", "b"] * 2]


def test_the_first_call_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def compiling(inputs: Numbers) -> Callable[[], Tensor]:
        now[0] += 1000
        pending = iter([500.0])

        def call() -> Tensor:
            now[0] += next(pending, 0.25)
            return inputs.values**2

        return call

    @contextmanager
    def slowly() -> Iterator[None]:
        now[0] += 7
        yield
        now[0] += 7

    monkeypatch.setattr(timing, "stopwatch", lambda device, threads: timing.by_clock(lambda: now[0]))
    (row,) = measured(Provider("slow to begin", compiling, within=slowly))
    assert (row.p10_ms, row.median_ms, row.p90_ms, row.repeats) == (250, 250, 250, 2)
    assert row.gpairs_per_s == pytest.approx(1 / 0.25)
    assert row.gflop_per_s == pytest.approx(2 / 0.25)
    assert row.bound == "copy bandwidth"
    assert row.bound_share == pytest.approx(1 / 0.25)
    assert (row.copy_gb_per_s, row.matrix_gflop_per_s, row.log_exp_g_per_s) == (10, 100, 1)


def test_every_call_is_made_within_its_context() -> None:
    entered: list[bool] = []

    @contextmanager
    def within() -> Iterator[None]:
        entered.append(True)
        yield
        entered.pop()

    def prepare(inputs: Numbers) -> Callable[[], Tensor]:
        assert entered

        def call() -> Tensor:
            assert entered == [True]
            assert not torch.is_grad_enabled()
            return inputs.values**2

        return call

    def outside(inputs: Numbers) -> Callable[[], Tensor]:
        def call() -> Tensor:
            assert not entered
            return inputs.values**2

        return call

    found = measured(Provider("inside", prepare, within=within), Provider("outside", outside))
    assert [row.status for row in found] == ["ok", "ok"]
    assert not entered


def test_threads_are_those_of_the_setup_and_given_back() -> None:
    def threads(inputs: Numbers) -> Callable[[], Answer]:
        return lambda: Answer(inputs.values**2, torch.get_num_threads(), 9)

    before = torch.get_num_threads()
    (row,) = measured(Provider("counting", threads), setup=replace(SETUP, threads=2))
    assert (row.threads, row.evaluations, row.calls) == (2, 2, 9)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("off", "others", "status"),
    [
        (0.0, {}, "ok"),
        (0.099, {}, "ok"),
        (0.101, {}, "wrong"),
        (math.inf, {}, "wrong"),
        (math.nan, {}, "wrong"),
        (9.0, {"contract": False}, "ok"),
        (9.0, {"complete": False}, "part"),
        (9.0, {"share": lambda inputs: 0.25}, "part"),
    ],
)
def test_a_result_outside_the_contract_is_wrong(off: float, others: dict[str, Any], status: str) -> None:
    (row,) = measured(provider("one", off, **others))
    assert row.status == status
    assert (row.error_bounds is None) == (row.error_max is None) == (status == "part")
    if status == "wrong" and math.isfinite(off):
        assert row.error_bounds == pytest.approx(10 * off, rel=1e-4)


def test_errors_that_have_no_bound_are_not_wrong() -> None:
    block = Block(toy, "a case", "one")
    call = Measured(lambda: None, Answer(torch.empty(0)), Error(None, 1.0, 2.0, 3.0), None)
    row = measure.row(block, provider("one"), SETUP, call, [1.0], CEILINGS, None)
    assert (row.status, row.error_bounds, row.error_median, row.error_p99, row.error_max) == ("ok", None, 1, 2, 3)
    assert (row.gpairs_per_s, row.bound, row.bound_share) == (None, "", None)


def test_time_and_memory_of_a_part_are_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "interleaved", lambda calls, *rest: {name: [1.0, 3.0] for name in calls})
    monkeypatch.setattr(memory, "peak", lambda make: 5.0)
    monkeypatch.setattr(memory, "unavailable", lambda: None)
    setup = replace(SETUP, memory=True)
    part, whole = measured(provider("part", share=lambda inputs: 0.25), provider("whole"), setup=setup)
    assert (part.median_ms, part.memory_mb, part.status, part.error_bounds) == (8000, 20, "part", None)
    assert (whole.median_ms, whole.memory_mb, whole.status, whole.error_bounds) == (2000, 5, "ok", 0)


def test_where_no_time_is_left_nothing_is_begun() -> None:
    def never(variant: str, device: torch.device) -> Numbers:
        raise AssertionError("inputs were made")

    block = Block(lambda: toy(provider("one"), provider("two"), make=never), "a case", "one")
    found = measure.measure(block, SETUP, until=time.monotonic() - 1)
    assert [(row.provider, row.status, row.remark) for row in found] == [
        ("one", "skipped", NO_TIME), ("two", "skipped", NO_TIME)
    ]  # fmt: skip


def test_a_provider_is_not_begun_when_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 3.0, 4.0])  # of the block's begin, then of each provider that does not refuse
    monkeypatch.setattr(measure, "time", SimpleNamespace(monotonic=lambda: next(times)))
    found = measured(provider("one"), provider("two", refuses=lambda inputs: "too large"), provider("three"), until=2.0)
    assert [(row.status, row.remark) for row in found] == [("ok", ""), ("skipped", "too large"), ("skipped", NO_TIME)]


@pytest.mark.skipif(memory.unavailable() is not None, reason="peak memory cannot be read here")
def test_memory_is_measured_in_the_first_variant_on_one_thread() -> None:
    setup = replace(SETUP, memory=True)
    first = measure.measure(Block(with_memory, "a case", "one"), setup)
    assert {row.provider: row.memory_mb for row in first} == {
        name: pytest.approx(size, abs=2) for name, size in MEGABYTES.items()
    }
    for variant, other in (("two", setup), ("one", replace(setup, threads=2)), ("one", SETUP)):
        assert measure.measure(Block(with_memory, "a case", variant), other)[0].memory_mb is None


def test_memory_of_a_process_that_dies_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(make: object) -> float:
        raise memory.CrashedError

    monkeypatch.setattr(memory, "peak", crash)
    (row,) = measured(provider("one"), setup=replace(SETUP, memory=True))
    assert (row.status, row.memory_mb) == ("ok", None)


def test_the_field_is_measured(tmp_path: Path) -> None:
    shape = Shape(5, 60, 3, 1)
    operation = pm.operation({shape.name: pm.case(shape)})
    named = (pm.NATIVE, pm.TORCH, pm.PRODUCTS, pm.PRODUCTS_FLUSHED, pm.BARE, pm.CDIST, pm.CHUNKED, pm.ORIGINAL)
    found = measure.measure(Block(lambda: operation, shape.name, ALL_80), SETUP, lambda name: name in named)
    assert {row.provider for row in found} == set(named)
    for row in found:
        if row.status != "skipped":
            assert row.p10_ms is not None
            assert row.median_ms is not None
            assert row.p90_ms is not None
            assert 0 < row.p10_ms <= row.median_ms <= row.p90_ms
            assert row.gflop_per_s == pytest.approx(4 * 5 * 60 * 3 / row.median_ms / 1e6)
            assert (row.status == "part") == (row.error_bounds is None) == (row.provider == pm.BARE)
    rows.update(tmp_path / "rows.csv", found)
    read = list(rows.read(tmp_path / "rows.csv"))
    assert [row.key for row in read] == [row.key for row in found]
    assert read[0].median_ms == pytest.approx(found[0].median_ms, rel=1e-3)


# ---- clocks and ceilings


def test_slow_calls_are_repeated_less_and_take_turns() -> None:
    now, order = [0.0], []

    def call(name: str, seconds: float) -> timing.Timed:
        def work() -> None:
            now[0] += seconds
            order.append(name)

        return timing.Timed(work)

    seconds = {"fast": 0.01, "slow": 0.3, "slower": 9.0, "slowest": 11.0}
    calls = {name: call(name, value) for name, value in seconds.items()}
    taken = timing.interleaved(calls, timing.by_clock(lambda: now[0]), Effort(budget=1.0, least=2, most=10))
    assert {name: len(times) for name, times in taken.items()} == {"fast": 10, "slow": 3, "slower": 2, "slowest": 1}
    assert taken["slow"] == pytest.approx([0.3] * 3)
    assert order[:4] == list(calls)
    assert "slow" in order[10:]


def test_one_thread_is_timed_by_the_time_of_its_process() -> None:
    assert timing.stopwatch(CPU, 1)(lambda: time.sleep(0.2)) < 0.1
    assert timing.stopwatch(CPU, 2)(lambda: time.sleep(0.2)) >= 0.2


def test_the_nearest_ceiling_bounds() -> None:
    assert CEILINGS.bound(Work(pairs=1e9, flop=4e9, bytes=1e9)) == ("log and exp", 1.0)
    assert CEILINGS.bound(Work(pairs=1e9, flop=3e11, bytes=1e9)) == ("matrix products", 3.0)
    assert CEILINGS.bound(Work(pairs=1e9, flop=4e9, bytes=2e10)) == ("copy bandwidth", 2.0)
    halves = CEILINGS._replace(half=1000.0, log_exp=None)
    assert halves.bound(Work(pairs=1e9, flop=3e12, bytes=1e9)) == ("bf16 products", 3.0)


def test_machines_have_files_of_their_own() -> None:
    names = {
        "Intel(R) Xeon(R) Processor, 2 logical cores": "intel-xeon-2-cores.csv",
        "AMD EPYC 9654 96-Core Processor, 8 logical cores": "amd-epyc-9654-96-core-8-cores.csv",
        "NVIDIA H200": "nvidia-h200.csv",
    }
    assert {device: machine.file_name(device) for device in names} == names


def test_an_origin_names_what_is_compared() -> None:
    found = machine.origin(CPU, "abc")
    assert found.commit == "abc"
    assert f"torch {torch.__version__}" in found.versions.split(", ")
    assert found.machine == found.device
    assert "threads" not in found.device


def test_the_first_of_several_that_was_measured_is_compared() -> None:
    row = Row("o", "c", "v", "b", "", 1, "ok", 1.0)
    table = Table([row, replace(row, provider="a", status="skipped", median_ms=None), replace(row, provider="c")])
    assert first_of("a", "b", "c")(table, row) == row
    assert first_of("a", "d")(table, row) is None
