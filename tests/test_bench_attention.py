"""The benchmark's FlexAttention computes the posterior mean, of the arguments as they are when it is called."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from pfgm_fast.bench import attention
from pfgm_fast.bench.expressions import Centred, in_chunks, two_products

CPU = torch.device("cpu")

# Each test compiles, so shapes are few: a head dimension with zeros, several tiles with a rest, single rows and data.
compiled = pytest.mark.skipif(
    attention.flex_refuses(2, 100, 1.0, CPU) is not None, reason=str(attention.flex_refuses(2, 100, 1.0, CPU))
)


def inputs(B: int, M: int, N: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Points, noise levels of all sizes and data off the origin."""
    generator = torch.Generator().manual_seed(seed)
    data = 1 + 0.5 * torch.randn(M, N, generator=generator)
    sigma = torch.exp(-2 + 6 * torch.rand(B, generator=generator))
    noise = torch.randn(B, N, generator=generator)
    return data[torch.randint(M, (B,), generator=generator)] + sigma[:, None] * noise, sigma, data


def excess(result: Tensor, x: Tensor, sigma: Tensor, data: Tensor, D: float) -> float:
    """The largest error of a row against float64, over 1e-4 |x - x_hat| + 4 eps max(|x|, max |y|)."""
    direct = partial(torch.cdist, compute_mode="donot_use_mm_for_euclid_dist")
    exact = in_chunks(x.double(), sigma.double(), [data.double()], D, direct)
    size = x.norm(dim=1).clamp_min(data.norm(dim=1).max().item())
    bound = 1e-4 * (x - exact).norm(dim=1) + 4 * torch.finfo(torch.float32).eps * size
    worst: float = ((result - exact).norm(dim=1) / bound).max().item()
    return worst


@compiled
@pytest.mark.parametrize(("B", "M", "N", "D"), [(150, 600, 2, 1.0), (37, 77, 100, math.inf), (1, 1, 16, 128.0)])
def test_as_accurate_as_two_products(B: int, M: int, N: int, D: float) -> None:
    x, sigma, data = inputs(B, M, N)
    call = attention.flex(x, sigma, data, D)
    for seed in range(2):  # the second time with other arguments in place
        other, levels, _ = inputs(B, M, N, seed)
        x.copy_(other)
        sigma.copy_(levels)
        theirs = excess(two_products(x, sigma, Centred.of(data), D), x, sigma, data, D)
        assert excess(call(), x, sigma, data, D) <= 2 * theirs + 0.1


def test_refuses_what_does_not_fit_a_gpu() -> None:
    pytest.importorskip("triton")
    cuda = torch.device("cuda")
    assert attention.flex_refuses(64, 1_000_000, 128.0, cuda) is None
    assert "shared memory in 4096 dimensions" in str(attention.flex_refuses(3072, 50_000, 1.0, cuda))
    assert "32 bits" in str(attention.flex_refuses(64, 1 << 25, math.inf, cuda))


def test_refuses_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert attention.flex_refuses(2, 100, 1.0, CPU) == "it is compiled by no-such-compiler, which was not found"


def test_refuses_an_old_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert attention.flex_refuses(2, 100, 1.0, CPU) == "its kernel for CPUs needs AVX2"
