"""What the machine can do at most, measured beside the providers with the same threads and the same clock."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pfgm_fast.bench.core import Work
from pfgm_fast.bench.timing import Stopwatch, best


class Ceilings(NamedTuple):
    """Rates in 1e9 a second; None where it means nothing on the device.

    Attributes:
        copy: bytes copied, read and written.
        matrix: float32 operations of matrix products without TF32; on a CPU it stands for the multiply-add peak as
            well, which no expression of PyTorch comes nearer to.
        half: bfloat16 operations of matrix products.
        int8: 8-bit operations of matrix products.
        log_exp: one log with one exp, in float32.
    """

    copy: float
    matrix: float
    half: float | None = None
    int8: float | None = None
    log_exp: float | None = None

    def bound(self, work: Work) -> tuple[str, float]:
        """The ceiling that bounds the work, and the least seconds it leaves.

        The products are of bfloat16 where that is known. A method that needs no log and exp for each pair can beat the
        last ceiling: its share is then above 1.
        """
        times = {"copy bandwidth": work.bytes / self.copy}
        if self.half:
            times["bf16 products"] = work.flop / self.half
        else:
            times["matrix products"] = work.flop / self.matrix
        if self.log_exp:
            times["log and exp"] = work.pairs / self.log_exp
        name = max(times, key=lambda key: times[key])
        return name, times[name] / 1e9


def measure(device: torch.device, stopwatch: Stopwatch) -> Ceilings:
    """The best of some repeats; TF32 is off."""
    return _of_gpu(device, stopwatch) if device.type == "cuda" else _of_cpu(stopwatch)


def _of_cpu(stopwatch: Stopwatch) -> Ceilings:
    matrix = max(_product_rate(torch.rand(size, size), torch.rand(size, size), stopwatch) for size in (1024, 1536))
    values = torch.linspace(0.1, 4, 1 << 17)  # stays in the second-level cache
    scratch = torch.empty_like(values)
    log_exp = len(values) / best(lambda: torch.exp(torch.log(values, out=scratch), out=scratch), stopwatch, 20)
    copy = _copy_rate(torch.ones(1 << 26), stopwatch)  # 256 MiB, past every cache
    return Ceilings(copy, matrix, log_exp=log_exp / 1e9)


def _of_gpu(device: torch.device, stopwatch: Stopwatch) -> Ceilings:
    a, b = (torch.randn(8192, 8192, device=device) for _ in range(2))
    i, j = ((20 * t).to(torch.int8) for t in (a, b))
    products = 2 * 8192**3 / best(lambda: torch._int_mm(i, j.T), stopwatch, 5)  # in columns, as the instructions want
    return Ceilings(
        copy=_copy_rate(torch.ones(1 << 29, device=device), stopwatch),  # 2 GiB
        matrix=_product_rate(a, b, stopwatch),
        half=_product_rate(a.bfloat16(), b.bfloat16(), stopwatch),
        int8=products / 1e9,
    )


def _product_rate(a: Tensor, b: Tensor, stopwatch: Stopwatch) -> float:
    return 2 * len(a) ** 3 / best(lambda: a @ b, stopwatch, 4) / 1e9


def _copy_rate(source: Tensor, stopwatch: Stopwatch) -> float:
    target = torch.zeros_like(source)
    return 2 * source.nbytes / best(lambda: target.copy_(source), stopwatch, 4) / 1e9
