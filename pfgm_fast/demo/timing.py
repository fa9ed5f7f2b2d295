"""Speed, peak memory and error of the exact field beside two ways to write it in PyTorch, on the demo's own data."""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from types import MappingProxyType

import torch
from torch import Tensor
from tqdm.auto import tqdm

import pfgm_fast as pf

Mean = Callable[[Tensor, Tensor], Tensor]  # (x (B, N), sigma (B,)) -> posterior mean (B, N)


@dataclass(frozen=True)
class Case:
    """Queries of a data set: y and x flattened, one noise level a row, log-uniform in [0.002, 80]."""

    name: str
    data: Tensor
    D: float
    x: Tensor
    sigma: Tensor

    @classmethod
    def draw(cls, name: str, data: Tensor, D: float, B: int, generator: torch.Generator) -> Case:
        data = data.flatten(1)
        sigma = torch.exp(torch.empty(B).uniform_(math.log(0.002), math.log(80), generator=generator))
        chosen = torch.randint(len(data), (B,), generator=generator)
        return cls(name, data, D, pf.perturb(data[chosen], sigma, D, generator=generator), sigma)


@dataclass(frozen=True)
class Result:
    """Median seconds a call, peak memory in bytes beyond the data, and the largest error of the field's direction."""

    seconds: float
    memory: int
    error: float


def original(data: Tensor, D: float) -> Mean:
    """PFGM's published formula (2209.11178, equation 5), which keeps B x M x (N + 1) differences, epsilons included."""
    charges = torch.cat([data, torch.zeros(len(data), 1)], 1)
    N = data.shape[1]

    def mean(x: Tensor, sigma: Tensor) -> Tensor:
        difference = torch.cat([x, sigma[:, None] * math.sqrt(D)], 1)[:, None] - charges
        distance = difference.square().sum(2).sqrt()
        ratio = (distance.amin(1, keepdim=True) / (distance + 1e-7)) ** (N + D)
        weight = ratio / (ratio.sum(1, keepdim=True) + 1e-7)
        return x - (weight[:, :, None] * difference).sum(1)[:, :N]

    return mean


def two_products(data: Tensor, D: float) -> Mean:
    """The expansion |x|^2 - 2xy + |y|^2 about the data's centre, softmax, and a second product."""
    center = data.mean(0)
    y = data - center
    squares = y.square().sum(1)
    power = (data.shape[1] + D) / 2

    def mean(x: Tensor, sigma: Tensor) -> Tensor:
        q = x - center
        scores = torch.addmm(squares, q, y.T, alpha=-2).add_(q.square().sum(1, keepdim=True))
        scores.clamp_min_(0).div_(D * sigma[:, None] ** 2).log1p_().mul_(-power)
        return scores.softmax(1) @ y + center

    return mean


def exact_field(data: Tensor, D: float) -> Mean:
    return pf.EmpiricalField(data, D)


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
    means = {name: make(case.data, case.D) for name, make in METHODS.items()}
    oracle = pf.posterior_mean(case.x.double(), case.sigma, case.data.double(), case.D, backend="torch")
    length = torch.cat([case.x - oracle, case.sigma[:, None] * math.sqrt(case.D)], 1).norm(dim=1)
    errors = {
        name: float(((mean(case.x, case.sigma) - oracle).norm(dim=1) / length).max()) for name, mean in means.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in means}
    with _one_thread():
        for _ in tqdm(range(repeats), desc=f"timing {case.name}", leave=False):
            for name, mean in means.items():
                begin = time.perf_counter()
                mean(case.x, case.sigma)
                seconds[name].append(time.perf_counter() - begin)
    memory = {name: peak_memory(name, case) for name in tqdm(means, desc=f"memory {case.name}", leave=False)}
    return {name: Result(statistics.median(seconds[name]), memory[name], errors[name]) for name in means}


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def peak_memory(method: str, case: Case) -> int:
    """The bytes by which one call, preparation included, raises the high-water mark of a process of its own.

    The process is forked from a server that has imported the libraries, before any of them has started a thread.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    arrays = [t.numpy() for t in (case.data, case.x, case.sigma)]
    process = context.Process(target=_report_peak, args=(sender, method, case.D, *arrays))
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is for this process alone
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, handler)
    process.start()
    sender.close()
    try:
        return int(receiver.recv())
    finally:
        process.join()


def _report_peak(sender: Connection, method: str, D: float, *arrays: object) -> None:
    torch.set_num_threads(1)
    data, x, sigma = (torch.as_tensor(array) for array in arrays)
    METHODS[method](data[:64], D)(x[:64], sigma[:64])  # loads what is loaded once
    before = _high_water()
    METHODS[method](data, D)(x, sigma)
    with suppress(BrokenPipeError):  # the parent was interrupted meanwhile
        sender.send(_high_water() - before)


def _high_water() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def table(case: Case, results: dict[str, Result]) -> str:
    """The results of a case as lines of text."""
    (B, N), M = case.x.shape, len(case.data)
    lines = [
        f"{case.name}: {B} points in the field of {M} data, N = {N}, D = {case.D:g}",
        f"  {'one thread':<32}{'time':>11}{'memory':>12}{'error':>10}{'pfgm_fast is':>18}",
    ]
    own = results["pfgm_fast"].seconds
    for name, result in results.items():
        ratio = "" if name == "pfgm_fast" else f"{result.seconds / own:.1f} x as fast"
        size, error = _memory(result.memory), f"{result.error:.0e}"
        lines.append(f"  {name:<32}{1e3 * result.seconds:>8.1f} ms{size:>12}{error:>10}{ratio:>18}".rstrip())
    return "\n".join(lines)


def _memory(size: int) -> str:
    return "< 1 MiB" if size < 2**20 else f"{size / 2**20:.0f} MiB"


def backend_in_use() -> str:
    """Which backend runs on the CPU, with its instruction set, or why it is plain PyTorch."""
    found = pf.info()
    if found.backends["native"] == "ok":
        return f"native (C++, {found.build['isa in use']})"
    return f"torch, because native cannot run: {found.backends['native']}"


def busy() -> str | None:
    """A warning, if other processes keep this machine so busy that no time means much."""
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    if load <= cores + 1:  # our own part of it is about one core
        return None
    return f"Other processes keep this machine busy (load {load:.1f} on {cores} cores): read the times with care."
