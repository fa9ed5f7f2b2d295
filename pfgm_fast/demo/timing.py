"""Speed, peak memory and error of the exact field beside two ways to write it in PyTorch, on the demo's own data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

import pfgm_fast as pf
from pfgm_fast.bench import expressions, memory, queries
from pfgm_fast.bench.core import Effort
from pfgm_fast.bench.machine import busy as busy
from pfgm_fast.bench.queries import Query
from pfgm_fast.bench.timing import Timed, interleaved, stopwatch, torch_threads

Call = Callable[[], Tensor]  # the posterior mean (B, N) of a query


@dataclass(frozen=True)
class Case:
    """Queries of a data set, both flattened, with one noise level a row, log-uniform in [0.002, 80]."""

    name: str
    query: Query

    @classmethod
    def draw(cls, name: str, data: Tensor, D: float, B: int, generator: torch.Generator) -> Case:
        chosen = torch.randint(len(data), (B,), generator=generator)
        query = queries.perturbed(data.flatten(1), D, [chosen], None, generator)
        return cls(name, replace(query, rows=torch.arange(B)))


@dataclass(frozen=True)
class Result:
    """Median seconds a call, peak memory in MB beyond the data, and the largest error of the field's direction.

    The memory is None where this system does not tell it.
    """

    seconds: float
    memory: float | None
    error: float


def original(query: Query) -> Call:
    return partial(expressions.original, query.x, query.sigma, query.values, query.D)


def two_products(query: Query) -> Call:
    return partial(expressions.two_products, query.x, query.sigma, query.centred, query.D)


def exact_field(query: Query) -> Call:
    return partial(pf.EmpiricalField(query.data, query.D), query.x, query.sigma)


METHODS = MappingProxyType(
    {
        "original B x M x (N+1) formula": original,
        "two matrix products": two_products,
        "pfgm_fast": exact_field,
    }
)


def measure(case: Case, repeats: int) -> dict[str, Result]:
    """Every method on the case, on one thread: medians of interleaved calls after a warm-up.

    The error is |x_hat - x_hat*| / |(x - x_hat*, r)|, the largest of all rows, where x_hat* is computed in float64.
    """
    query = case.query
    oracle = queries.truth(query)
    length = torch.cat([query.x - oracle, query.sigma[:, None] * math.sqrt(query.D)], 1).norm(dim=1)
    calls = {name: make(query) for name, make in METHODS.items()}
    errors = {name: float(((call() - oracle).norm(dim=1) / length).max()) for name, call in calls.items()}
    with torch_threads(1), tqdm(total=repeats * len(calls), desc=f"timing {case.name}", leave=False) as bar:

        @contextmanager
        def counted() -> Iterator[None]:
            yield
            bar.update()

        timed = {name: Timed(call, counted) for name, call in calls.items()}
        seconds = interleaved(timed, stopwatch(torch.device("cpu")), Effort(least=repeats, most=repeats))
    peaks = {name: peak_memory(name, case) for name in tqdm(calls, desc=f"memory {case.name}", leave=False)}
    return {name: Result(statistics.median(seconds[name]), peaks[name], errors[name]) for name in calls}


def peak_memory(method: str, case: Case) -> float | None:
    """MB above the inputs: what the method keeps and the peak of a call; None where this system does not tell."""
    if memory.unavailable() is not None:
        return None
    query = case.query
    # Arrays, not tensors: these would reach the other process through shared memory, which a container may lack.
    return memory.peak(partial(_task, method, query.D, query.data.numpy(), query.x.numpy(), query.sigma.numpy()))


def _task(method: str, D: float, *arrays: NDArray[Any]) -> memory.Task:
    data, x, sigma = (torch.from_numpy(np.array(array)) for array in arrays)
    query = Query(x, sigma, data, D, None, ((x, sigma),), torch.arange(len(x)))
    return memory.Task(lambda: METHODS[method](query), lambda: METHODS[method](queries.small(query))())


def table(case: Case, results: dict[str, Result]) -> str:
    """The results of a case as lines of text."""
    shape = case.query.shape
    lines = [
        f"{case.name}: {shape.B} points in the field of {shape.M} data, N = {shape.N}, D = {shape.D:g}",
        f"  {'one thread':<32}{'time':>11}{'memory':>12}{'error':>10}{'pfgm_fast is':>18}",
    ]
    own = results["pfgm_fast"].seconds
    for name, result in results.items():
        ratio = "" if name == "pfgm_fast" else f"{result.seconds / own:.1f} x as fast"
        size, error = _memory(result.memory), f"{result.error:.0e}"
        lines.append(f"  {name:<32}{1e3 * result.seconds:>8.1f} ms{size:>12}{error:>10}{ratio:>18}".rstrip())
    return "\n".join(lines)


def _memory(size: float | None) -> str:
    if size is None:
        return ""
    mebibytes = size * 1e6 / 2**20
    return "< 1 MiB" if mebibytes < 1 else f"{mebibytes:.0f} MiB"


def backend_in_use() -> str:
    """Which backend runs on the CPU, with its instruction set, or why it is plain PyTorch."""
    found = pf.info()
    if found.backends["native"] == "ok":
        return f"native (C++, {found.build['isa in use']})"
    return f"torch, because native cannot run: {found.backends['native']}"
