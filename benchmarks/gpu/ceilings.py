"""What a GPU can do at most: nominal rates for predictions, measured ones beside the providers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.core import Work
from benchmarks.timing import Stopwatch, best


class Ceilings(NamedTuple):
    """Rates in 1e12 a second: bytes copied (read + written), operations of matrix products by kind of operand."""

    copy: float
    bf16: float
    int8: float
    fp32: float

    def bound(self, work: Work) -> tuple[str, float]:
        """The ceiling that bounds the work, its two products being of bf16, and the least seconds it leaves."""
        products, copy = work.flop / self.bf16 / 1e12, work.bytes / self.copy / 1e12
        return ("bf16 products", products) if products >= copy else ("copy bandwidth", copy)


H200 = Ceilings(copy=4.3, bf16=790, int8=1580, fp32=60)


def measure(device: torch.device, stopwatch: Stopwatch) -> Ceilings:
    """The best of some repeats; TF32 is off."""
    large = device.type == "cuda"
    copy = _copy_rate(torch.randint(256, (1 << (31 if large else 24),), dtype=torch.uint8, device=device), stopwatch)
    size = 8192 if large else 256
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    i, j = ((20 * t).to(torch.int8) for t in (a, b))
    h, k = a.bfloat16(), b.bfloat16()

    def rate(product: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor) -> float:
        return 2 * size**3 / best(lambda: product(left, right), stopwatch, 5) / 1e12

    # the second int8 operand lies in columns, as the fast instructions want it
    return Ceilings(copy, rate(torch.mm, h, k), rate(torch._int_mm, i, j.T), rate(torch.mm, a, b))


def _copy_rate(source: Tensor, stopwatch: Stopwatch) -> float:
    target = torch.zeros_like(source)
    return 2 * source.nbytes / best(lambda: target.copy_(source), stopwatch, 5) / 1e12
