"""One experiment of `benchmarks.gpu.questions`: `python -m benchmarks.gpu.questions_experiments NAME`."""

from __future__ import annotations

import importlib
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.checkout import ROOT
from benchmarks.gpu import questions_networks as networks
from benchmarks.gpu.questions import MARK, QUESTIONS, Answer
from benchmarks.gpu.questions_networks import Equation
from pfgm_fast.bench.timing import by_events
from pfgm_fast.ode import capture, cuda
from pfgm_fast.ode.controller import IntegralController
from pfgm_fast.solution import Record

GPU = torch.device("cuda", 0)
WAYS = {"off": "launched plainly", "auto": "graph replayed", "while": "WHILE node"}
COLUMNS = ("x", "t", "status", "nfe", "accepted", "rejected")
OPTIONS: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5, "controller": IntegralController()}
SHAPES: tuple[tuple[int, ...], ...] = ((3,), (300,))  # of a state
FEW, BUDGET = 5, 0.4  # steps of a short solve; seconds of a long one
Found = Iterator[Answer]


class Solved(NamedTuple):
    record: Record
    seconds: float

    @property
    def iterations(self) -> int:
        """If every row has its slot."""
        return int(self.record.nfe.max())


def solve(equation: Equation, way: str, end: float = 3.0, max_steps: int = 200) -> Solved:
    record = Record.start(equation.y0, 0.0)
    torch.cuda.synchronize()
    started = time.perf_counter()
    ends = torch.full_like(record.t, end)
    cuda.solve(equation.slope, record, ends, cuda_graph=way, max_steps=max_steps, **OPTIONS)
    torch.cuda.synchronize()
    return Solved(record, time.perf_counter() - started)


def same(one: Record, other: Record) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in COLUMNS)


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def in_a_while_node(question: str, equation: Equation) -> Found:
    """Whether it runs there, and what of it is like the plainly launched loop."""
    plain = solve(equation, "off").record
    for way in ("auto", "while"):
        found = solve(equation, way)
        away = apart(found.record.x, plain.x)
        others = int((found.record.x != plain.x).flatten(1).any(1).sum())
        answer = "yes, with equal bits" if same(found.record, plain) else f"yes, {others} rows with other bits"
        if not away < 0.01:
            answer = "no: it runs, with other results"
        case = f"{equation.name}, {WAYS[way]}"
        if way == "auto":
            yield Answer(question, case, answer, found.iterations, off=away)
        else:
            milliseconds, megabytes = instantiation(equation)
            yield Answer(question, case, answer, found.iterations, None, milliseconds, megabytes, away)


def instantiation(equation: Equation) -> tuple[float, float]:
    """Milliseconds and megabytes of a WHILE node around the captured evaluation, which is not launched."""
    record = Record.start(equation.y0, 0.0)
    slots = cuda.CudaSlots(record, torch.ones_like(record.t), slots=len(record.x), max_steps=10, **OPTIONS)
    with capture.aside(GPU):
        for _ in range(2):
            slots.stage_out(equation.slope(*slots.show()))
        graph, answer = capture.capture(lambda: slots.answer(equation.slope(*slots.shown())))
        torch.cuda.synchronize()
        free, started = torch.cuda.mem_get_info()[0], time.perf_counter()
        loop = extension().WhileGraph(slots.native, answer.data_ptr(), graph.raw_cuda_graph())
        milliseconds = 1e3 * (time.perf_counter() - started)
        megabytes = (free - torch.cuda.mem_get_info()[0]) / 1e6
    del loop
    return milliseconds, megabytes


def extension() -> Any:
    return importlib.import_module("pfgm_fast._C")


def resolve(question: str) -> Found:
    """The extension is linked without it: if the symbol were missing, the loop would not start, or not end."""
    _, _, runtime, driver = extension().cuda_devices()
    equation = Equation("y' = -y", torch.ones(8, 3, device=GPU), lambda t, y, rows: -y)
    plain, looped = solve(equation, "off"), solve(equation, "while")
    answer = "yes" if same(plain.record, looped.record) else "no: the loop ran otherwise than launched plainly"
    yield Answer(question, f"runtime {runtime}, driver {driver}", answer, looped.iterations)


def runtimes(question: str) -> Found:
    """Solves by the extension's kernels between kernels of PyTorch, on four streams at once and without a wait."""
    _, _, ours, driver = extension().cuda_devices()  # before PyTorch's runtime does anything
    maps = Path("/proc/self/maps").read_text().splitlines()
    loaded = sorted({line.rpartition("/")[2] for line in maps if "libcudart" in line})
    case = f"PyTorch's {torch.version.cuda} ({', '.join(loaded) or 'static'}), the extension's {ours}, driver {driver}"

    def work(seed: int) -> Tensor:
        y0 = torch.linspace(-1, 1, 400 * 30, device=GPU).reshape(400, 30) * seed
        record = Record.start(y0.cumsum(0).sin(), 0.0)
        ends = torch.full_like(record.t, 2.0)
        cuda.solve(lambda t, y, rows: y.cos() - y, record, ends, cuda_graph="auto", max_steps=100, **OPTIONS)
        return record.x.cumsum(0)

    alone = []
    for seed in range(4):
        alone.append(work(seed))
        torch.cuda.synchronize()
    streams, mixed = [torch.cuda.Stream() for _ in range(4)], []
    for seed, stream in enumerate(streams):
        with torch.cuda.stream(stream):
            mixed.append(work(seed))
    torch.cuda.synchronize()
    wrong = sum(not torch.equal(a, b) for a, b in zip(alone, mixed, strict=True))
    answer = f"no: {wrong} of 4 streams had other results" if wrong else "yes"
    if torch.cuda.current_device() != GPU.index:
        answer = "no: the current device has changed"
    yield Answer(question, case, answer)


def equal(question: str) -> Found:
    """On the hard rows of the tests, by which the C++ slots have the bits of the device's kernels run by the host."""
    sys.path.append(str(ROOT / "tests"))
    rows = importlib.import_module("ode_rows")
    native = importlib.import_module("pfgm_fast.ode.native")
    for dtype in (torch.float32, torch.float64):
        for shape in SHAPES:
            problem = rows.Problem(shape, dtype)
            expected, _ = rows.run(native.NativeSlots, problem, 40)
            there = problem.to(GPU)
            record, end = there.record()
            cuda.solve(there, record, end, slots=40, cuda_graph="off", **rows.OPTIONS)
            values = {name: getattr(record, name).cpu() for name in COLUMNS}
            ended = torch.equal(values["status"], expected.status)
            counts = int((values["nfe"] == expected.nfe).sum())
            bits = (values["x"].nan_to_num(9e9) == expected.x.nan_to_num(9e9)).flatten(1).all(1)
            good = expected.x.flatten(1).isfinite().all(1)
            B = len(good)
            answer = f"{'' if ended else 'no: other rows failed; '}{int(bits.sum())} of {B} rows have equal bits"
            answer += f", {counts} equal numbers of evaluations"
            case = f"{shape} {str(dtype).removeprefix('torch.')}"
            yield Answer(question, case, answer, off=apart(values["x"][good], expected.x[good]))


def cost(question: str) -> Found:
    """Beside the evaluation alone, and what the node itself costs once."""
    for equation in networks.by_size():
        alone = evaluation(equation)
        yield Answer(question, f"{equation.name}, the evaluation alone, graph replayed", "", None, 1e6 * alone)
        for way, words in WAYS.items():
            iterations, each, setup = repeated(equation, way)
            over, megabytes = f"{1e6 * (each - alone):.1f} us beyond the evaluation", None
            if way == "while":
                milliseconds, megabytes = instantiation(equation)
                over += f", {milliseconds:.1f} ms to instantiate"
            case = f"{equation.name}, {words}"
            yield Answer(question, case, over, iterations, 1e6 * each, 1e3 * setup, megabytes)


def repeated(equation: Equation, way: str) -> tuple[int, float, float]:
    """Iterations of a long solve, the seconds of each, and those of the rest of a solve.

    From solves of two lengths, of which only the number of iterations differs; the least of three each.
    """

    def least(steps: int) -> Solved:
        return min((solve(equation, way, 1e9, steps) for _ in range(3)), key=lambda one: one.seconds)

    def between(one: Solved, other: Solved) -> float:
        return (other.seconds - one.seconds) / (other.iterations - one.iterations)

    short = least(FEW)
    guess = max(between(short, solve(equation, way, 1e9, FEW + 20)), 1e-6)
    long = least(FEW + min(max(int(BUDGET / guess / 6), 20), 4000))
    each = between(short, long)
    return long.iterations, each, short.seconds - short.iterations * each


def evaluation(equation: Equation) -> float:
    """Seconds, from replays one after another."""
    y = equation.y0.clone()
    t, rows = torch.zeros(len(y), dtype=torch.float64, device=GPU), torch.arange(len(y), device=GPU)
    with capture.aside(GPU):
        for _ in range(2):
            equation.slope(t, y, rows)
        graph, _held = capture.capture(lambda: equation.slope(t, y, rows))
        graph.replay()

        def replays() -> None:
            for _ in range(100):
                graph.replay()

        return min(by_events(replays) for _ in range(3)) / 100


def of(*equations: Callable[[], Equation]) -> Callable[[str], Found]:
    def experiment(question: str) -> Found:
        for make in equations:
            yield from in_a_while_node(question, make())

    return experiment


EXPERIMENTS: Mapping[str, Callable[[str], Found]] = {
    "resolve": resolve,
    "runtimes": runtimes,
    "equal": equal,
    "linear": of(networks.linear, networks.half_linear),
    "convolution": of(networks.convolution, networks.half_convolution),
    "attention": of(networks.attention),
    "field": of(networks.field),
    "compiled": of(networks.compiled),
    "cost": cost,
}


def main(name: str) -> int:
    why = cuda.unavailable()
    if why is not None:
        print(f"no loop on CUDA devices: {why}", file=sys.stderr)
        return 1
    warnings.filterwarnings("error", "no CUDA graph", RuntimeWarning)  # that would be another way
    with torch.no_grad():
        for answer in EXPERIMENTS[name](QUESTIONS[name].question):
            print(MARK + json.dumps(answer._asdict()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
