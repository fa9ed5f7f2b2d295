"""What the machine can do at most, measured beside the providers with the same threads and the same clock."""

from __future__ import annotations

from typing import NamedTuple

import torch

from benchmarks.core import Work
from benchmarks.timing import Clock, Stopwatch, best, by_clock


class Ceilings(NamedTuple):
    """Rates in 1e9 a second: float32 operations of matrix products, bytes copied (read + written), log with exp.

    The matrix rate stands for the multiply-add peak as well, which no expression of PyTorch comes nearer to.
    """

    matrix: float
    copy: float
    log_exp: float

    def bound(self, work: Work) -> tuple[str, float]:
        """The ceiling that bounds the work, and the least time in seconds it leaves.

        A method that needs no log and exp for each pair can beat the last one: its share is then above 1.
        """
        times = {
            "matrix products": work.flop / self.matrix,
            "copy bandwidth": work.bytes / self.copy,
            "log and exp": work.pairs / self.log_exp,
        }
        name = max(times, key=lambda key: times[key])
        return name, times[name] / 1e9


def measure(now: Clock) -> Ceilings:
    stopwatch = by_clock(now)
    products = [_product_rate(size, stopwatch) for size in (1024, 1536)]
    source = torch.ones(1 << 26)  # 256 MiB, past every cache
    target = torch.zeros_like(source)
    copy = 2 * source.nbytes / best(lambda: target.copy_(source), stopwatch, 3)
    values = torch.linspace(0.1, 4, 1 << 17)  # stays in the second-level cache
    scratch = torch.empty_like(values)
    log_exp = len(values) / best(lambda: torch.exp(torch.log(values, out=scratch), out=scratch), stopwatch, 20)
    return Ceilings(max(products) / 1e9, copy / 1e9, log_exp / 1e9)


def _product_rate(size: int, stopwatch: Stopwatch) -> float:
    a, b = torch.rand(size, size), torch.rand(size, size)
    return 2 * size**3 / best(lambda: a @ b, stopwatch, 4)
