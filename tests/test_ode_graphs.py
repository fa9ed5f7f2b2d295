"""What is captured of an adaptive solve, and what is done about what cannot be: against stubs of CUDA's graphs, over
the kernels run by the host."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from ode_rows import OPTIONS, Problem, run, same
from torch import Tensor

from pfgm_fast.ode import capture, cuda
from pfgm_fast.solution import Record

pytest_plugins = ["host_slots"]


class StubGraph:
    """What torch.cuda.CUDAGraph is to `capture`: it holds the work of the evaluations captured and does it again."""

    current: StubGraph | None = None
    broken = False
    replays = 0
    work: Callable[[], Any]  # set by the fixture

    def __init__(self, keep_graph: bool = False) -> None:
        assert keep_graph
        self.ended = False

    def capture_begin(self, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"
        StubGraph.current = self

    def capture_end(self) -> None:
        assert StubGraph.current is self
        StubGraph.current, self.ended = None, True
        if self.broken:
            raise RuntimeError("a broken capture cannot end")

    def raw_cuda_graph(self) -> int:
        assert self.ended
        return 1234

    def replay(self) -> None:
        assert self.ended
        StubGraph.replays += 1
        self.work()


@pytest.fixture
def stubbed(on_host: Any, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Streams, graphs and PyTorch's opinion of them, without CUDA; `notes` steers and tells."""
    notes = SimpleNamespace(waits=[], position=0, inside=False, extension=on_host)

    @contextmanager
    def aside(device: torch.device) -> Iterator[None]:
        notes.inside = True
        yield
        notes.inside = False

    @contextmanager
    def noticing_waits() -> Iterator[list[str]]:
        yield notes.waits

    def captured(work: Callable[[], Any]) -> tuple[Any, Any]:
        assert notes.inside
        graph: Any
        graph, result = real(work)
        graph.work = work
        return graph, result

    real = capture.capture
    monkeypatch.setattr(torch.cuda, "CUDAGraph", StubGraph)
    monkeypatch.setattr(StubGraph, "broken", False)
    monkeypatch.setattr(StubGraph, "replays", 0)
    monkeypatch.setattr(capture, "aside", aside)
    monkeypatch.setattr(capture, "noticing_waits", noticing_waits)
    monkeypatch.setattr(capture, "random_position", lambda device: notes.position)
    monkeypatch.setattr(capture, "capture", captured)
    monkeypatch.setattr(torch.cuda.memory, "get_allocator_backend", lambda: "native")
    return notes


def graphed(problem: Problem, func: Any, cuda_graph: str, slots: int = 9, **options: Any) -> Record:
    record, end = problem.record()
    cuda.solve(func, record, end, slots=slots, cuda_graph=cuda_graph, **OPTIONS, **options)
    return record


@pytest.mark.parametrize("slots", [9, 40])
def test_replayed_graphs_change_nothing(stubbed: Any, slots: int) -> None:
    problem = Problem((3,), torch.float32)
    expected, at = run(cuda.CudaSlots, problem, slots)
    left: list[int] = []
    calls: list[int] = []

    def func(t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        calls.append(StubGraph.replays)
        return problem(t, y, rows)

    record = graphed(problem, func, "auto", slots, reached=left.append)
    # the stub's capture works, where a real one only notes: that is one iteration more
    assert same(record, expected)
    assert calls[:3] == [0, 0, 0]
    assert left == sorted(left, reverse=True)
    late = StubGraph.replays + 3 - at.native.counter("iterations")
    assert -3 <= late <= 3


def test_what_waits_for_the_device_is_not_captured(stubbed: Any) -> None:
    problem = Problem((3,), torch.float32)
    expected, _ = run(cuda.CudaSlots, problem, 9)
    stubbed.waits.append("network.py:12")
    with pytest.warns(RuntimeWarning, match="launched plainly: the evaluation waits for the device at network.py:12"):
        record = graphed(problem, problem, "auto")
    assert StubGraph.replays == 0
    assert same(record, expected)
    with pytest.raises(ValueError, match=r"cuda_graph='while' cannot run: the evaluation waits .* network\.py:12"):
        graphed(problem, problem, "while")


def test_a_broken_capture_is_said_and_survived(stubbed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem((3,), torch.float32)
    expected, _ = run(cuda.CudaSlots, problem, 9)
    monkeypatch.setattr(StubGraph, "broken", True)

    def func(t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        if StubGraph.current is not None:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        return problem(t, y, rows)

    with pytest.warns(RuntimeWarning, match="plainly: operation not permitted when stream is capturing$"):
        record = graphed(problem, func, "auto")
    assert (record.status == expected.status).all()
    assert torch.equal(record.x.nan_to_num(9e9), expected.x.nan_to_num(9e9))


def test_errors_of_the_evaluation_pass_through(stubbed: Any) -> None:
    def func(t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        raise LookupError("mine")

    for how in ("auto", "while", "off"):
        with pytest.raises(LookupError, match="mine"):
            graphed(Problem((3,), torch.float32), func, how)


class StubWhile:
    """What pfgm_fast._C.WhileGraph does with the captured evaluation, in turns."""

    evaluate: ClassVar[Callable[[], object]]

    def __init__(self, slots: Any, answers: int, network: int) -> None:
        assert network == 1234
        self.slots, self.answers = slots, answers
        self.launched = False

    def launch(self, stream: int) -> None:
        self.launched = True

    def wait(self) -> None:
        assert self.launched
        while self.slots.counter("running") > 0:
            self.slots.stage_in(0)
            StubWhile.evaluate()
            self.slots.stage_out(self.answers, 0)


def test_a_while_node_is_given_the_evaluation_alone(stubbed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem((3,), torch.float64)
    expected, _ = run(cuda.CudaSlots, problem, 9)
    captured: list[Tensor] = []

    def keep(work: Callable[[], Any]) -> tuple[Any, Any]:
        graph, answer = capture_once(work)
        captured.append(answer)
        # a replay writes to the tensor that the capture returned
        monkeypatch.setattr(StubWhile, "evaluate", staticmethod(lambda: answer.copy_(work())), raising=False)
        return graph, answer

    capture_once = capture.capture
    monkeypatch.setattr(capture, "capture", keep)
    stubbed.extension.WhileGraph = StubWhile
    record = graphed(problem, problem, "while")
    assert len(captured) == 1
    assert same(record, expected)


def test_why_there_is_no_while_node_is_said(stubbed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem((3,), torch.float64)

    def refused(match: str) -> None:
        with pytest.raises(ValueError, match=f"^cuda_graph='while' cannot run: .*{match}.*; use 'auto'$"):
            graphed(problem, problem, "while")

    def refuse(*arguments: Any) -> None:
        raise ValueError("the captured evaluation holds a call of a host function, which a WHILE node cannot repeat")

    stubbed.extension.WhileGraph = refuse
    refused("a call of a host function")
    positions = itertools.count(0, 4)
    monkeypatch.setattr(capture, "random_position", lambda device: next(positions))
    refused("draws random numbers")
    monkeypatch.setattr(torch.cuda.memory, "get_allocator_backend", lambda: "cudaMallocAsync")
    refused("allocator 'cudaMallocAsync'")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    refused("does not hand out its graphs")
    stubbed.extension.cuda_devices = lambda: (1, "", 13000, 12040)
    refused("the driver serves CUDA 12.4")


def test_waits_are_noticed_and_other_warnings_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int | str] = [0]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    said = (
        "Synchronization debug mode is a prototype feature",
        "something else",
        "called a synchronizing CUDA operation",
    )

    def work() -> list[str]:
        with capture.noticing_waits() as places:
            for text in said:
                warnings.warn(text, stacklevel=1)
        return places

    with pytest.warns(UserWarning, match="something else") as kept:
        places = work()
    assert [str(one.message) for one in kept] == ["something else"]
    assert modes == [0, "warn", 0]
    assert len(places) == 1
    assert __file__ in places[0]
