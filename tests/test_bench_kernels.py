"""Times of single operations while a kernel is worked on: `pytest tests/test_bench_kernels.py --benchmark-enable`.

Where timing is disabled each runs once, as a test that it runs at all.
"""

from __future__ import annotations

import math

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import pfgm_fast as pf

SHAPES = [(1024, 10000, 2, 1.0), (256, 5000, 64, 128.0), (64, 2000, 784, math.inf), (1, 5000, 64, 128.0)]


@pytest.mark.parametrize(("B", "M", "N", "D"), SHAPES)
@pytest.mark.parametrize("pixels", [False, True], ids=["float32", "uint8"])
def test_field(benchmark: BenchmarkFixture, native: str, B: int, M: int, N: int, D: float, pixels: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(256, (M, N), generator=generator, dtype=torch.uint8)
    if not pixels:
        data = (2 * data.float() - 255) / 255
    field = pf.EmpiricalField(data, D, backend=native)
    sigma = torch.exp(torch.linspace(math.log(0.002), math.log(80), B))
    x = pf.prior((B, N), sigma, D, seeds=range(B))
    assert benchmark(field, x, sigma).isfinite().all()


@pytest.mark.parametrize("D", [1.0, 128.0, math.inf])
def test_perturb(benchmark: BenchmarkFixture, D: float) -> None:
    y, seeds = torch.zeros(128, 3072), torch.arange(128)
    assert benchmark(pf.perturb, y, 0.5, D, seeds=seeds).shape == y.shape
