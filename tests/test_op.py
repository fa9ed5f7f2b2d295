"""The registered operator: its schema, fake tensors, compilation, and rows that are bad by themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

import pfgm_fast as pf
from pfgm_fast import operator

B, M, N = 6, 50, 5


def arguments(backend: str, kind: str = "plain") -> tuple[Any, ...]:
    """Arguments of torch.ops.pfgm_fast.posterior: x, scale, data, log_weights, segments, power, backend."""
    generator = torch.Generator().manual_seed(0)
    dtype = torch.float64 if kind == "double" else torch.float32
    x = torch.randn(B, N, generator=generator).to(dtype)
    data = torch.randn(M, N, generator=generator).to(dtype)
    if kind == "pixels":
        data = torch.randint(0, 256, (M, N), generator=generator, dtype=torch.uint8)
    scale = torch.linspace(0.1, 2, B, dtype=torch.float64)
    masses = torch.randn(M, generator=generator, dtype=torch.float64) if kind == "masses" else None
    segments = torch.tensor([[0, 10], [10, M]] * 3) if kind == "segments" else None
    if kind == "empty":
        x, scale = x[:0], scale[:0]
    power = math.inf if kind == "diffusion" else (N + 1) / 2
    return x, scale, operator.prepare(data, backend), masses, segments, power, backend


def moved(args: tuple[Any, ...], move: Callable[[Tensor], Tensor]) -> Any:
    return tree_map_only(Tensor, move, args)


KINDS = ("plain", "double", "pixels", "masses", "segments", "diffusion", "empty")


@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind: str, backend: str) -> None:
    torch.library.opcheck(torch.ops.pfgm_fast.posterior.default, arguments(backend, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_fake_tensors_have_the_real_shapes(kind: str, backend: str) -> None:
    args = arguments(backend, kind)
    real = torch.ops.pfgm_fast.posterior(*args)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = torch.ops.pfgm_fast.posterior(*moved(args, mode.from_tensor))
    for r, f in zip(real, fake, strict=True):
        assert (r.shape, r.dtype, r.device, r.stride()) == (f.shape, f.dtype, f.device, f.stride())


def test_meta_tensors(backend: str) -> None:
    args = moved(arguments(backend), lambda tensor: tensor.to("meta"))
    mean, log_sum = torch.ops.pfgm_fast.posterior(*args)
    assert mean.device.type == log_sum.device.type == "meta"
    assert (mean.shape, log_sum.shape) == ((B, N), (B,))


BAD = {
    "x": lambda x, scale, segments: x[2].fill_(math.nan),
    "one value of x": lambda x, scale, segments: x[2, 3].fill_(math.nan),
    "infinite x": lambda x, scale, segments: x[2, 3].fill_(math.inf),
    "scale": lambda x, scale, segments: scale[2].fill_(math.nan),
    "segment": lambda x, scale, segments: segments[2].fill_(0),
}


@pytest.mark.parametrize("power", [3.0, 66.5, math.inf])
@pytest.mark.parametrize("spoil", BAD.values(), ids=BAD)
def test_a_bad_row_is_nan_alone(spoil: Any, power: float, backend: str, poison: None) -> None:
    x, scale, data, *_ = arguments(backend)
    segments = torch.tensor([[0, M]] * B)
    clean, clean_sum = operator.posterior(x, scale, data, None, segments, power, backend)
    spoil(x, scale, segments)
    mean, log_sum = operator.posterior(x, scale, data, None, segments, power, backend)
    bad = torch.arange(B) == 2
    assert bool(mean[bad].isnan().all())
    assert bool(log_sum[bad].isnan().all())
    assert torch.equal(mean[~bad], clean[~bad])
    assert torch.equal(log_sum[~bad], clean_sum[~bad])


@pytest.mark.parametrize("D", [1, 128, math.inf])
def test_a_compiled_field_is_the_field(D: float, backend: str) -> None:
    torch._dynamo.reset()
    x, _, (data, *_), *_ = arguments(backend)
    field, sigma = pf.EmpiricalField(data, D, backend=backend), torch.linspace(0.1, 2, B)

    def step(x: Tensor, sigma: Tensor) -> Tensor:
        return x + (field(x, sigma) - x) / sigma[:, None]

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x, sigma), step(x, sigma), rtol=1e-6, atol=1e-6)
    assert torch.allclose(compiled(x + 1, sigma), step(x + 1, sigma), rtol=1e-6, atol=1e-6)


def test_every_method_compiles(backend: str) -> None:
    torch._dynamo.reset()
    x, _, (data, *_), *_ = arguments(backend)
    labels = torch.arange(M) % 3
    field, sigma = pf.EmpiricalField(data, 8.0, labels=labels, backend=backend), torch.linspace(0.1, 2, B)

    def everything(x: Tensor, sigma: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        plain = (field.log_density(x, sigma), field.score(x, sigma), field.effective_sample_size(x, sigma))
        return field(x, sigma, labels=rows), field.poisson_field(x, sigma, 5.0, rows), *plain

    rows = torch.arange(B) % 3
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(x, sigma, rows), everything(x, sigma, rows), strict=True):
        assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_compiled_posterior_mean(backend: str) -> None:
    torch._dynamo.reset()
    x, _, (data, *_), *_ = arguments(backend)

    def target(x: Tensor, sigma: Tensor, data: Tensor) -> Tensor:
        return pf.posterior_mean(x, sigma, data, 128.0, backend=backend)

    sigma = torch.linspace(0.1, 2, B)
    compiled = torch.compile(target, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x, sigma, data), target(x, sigma, data), rtol=1e-6, atol=1e-6)


def test_compiled_with_inductor(backend: str) -> None:
    torch._dynamo.reset()
    x, _, (data, *_), *_ = arguments(backend)
    field, sigma = pf.EmpiricalField(data, 8.0, backend=backend), torch.linspace(0.1, 2, B)
    compiled = torch.compile(lambda x, sigma: field(x, sigma), fullgraph=True)
    assert torch.allclose(compiled(x, sigma), field(x, sigma), rtol=1e-6, atol=1e-6)
