"""The registered operator: its schema, fake tensors, compilation, and rows that are bad by themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from conftest import available
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

import pfgm_fast as pf
from pfgm_fast import operator

B, M = 6, 50


class Plan(NamedTuple):
    """A backend, and a dimension for which it goes its own way."""

    backend: str
    N: int


PLANS = (Plan("torch", 5), Plan("native", 5), Plan("triton", 5), Plan("triton", 20), Plan("triton", 300))


@pytest.fixture(params=PLANS, ids=lambda plan: f"{plan.backend}-N{plan.N}")
def plan(request: pytest.FixtureRequest) -> Plan:
    available(request.param.backend)
    return request.param  # type: ignore[no-any-return]


def arguments(plan: Plan, kind: str = "plain") -> tuple[Any, ...]:
    """Arguments of torch.ops.pfgm_fast.posterior: x, scale, data, log_weights, segments, power, backend."""
    N = plan.N
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
    return x, scale, operator.prepare(data, plan.backend), masses, segments, power, plan.backend


def moved(args: tuple[Any, ...], move: Callable[[Tensor], Tensor]) -> Any:
    return tree_map_only(Tensor, move, args)


KINDS = ("plain", "double", "pixels", "masses", "segments", "diffusion", "empty")


@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind: str, plan: Plan) -> None:
    torch.library.opcheck(torch.ops.pfgm_fast.posterior.default, arguments(plan, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_fake_tensors_have_the_real_shapes(kind: str, plan: Plan) -> None:
    args = arguments(plan, kind)
    real = torch.ops.pfgm_fast.posterior(*args)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = torch.ops.pfgm_fast.posterior(*moved(args, mode.from_tensor))
    for r, f in zip(real, fake, strict=True):
        assert (r.shape, r.dtype, r.device, r.stride()) == (f.shape, f.dtype, f.device, f.stride())


def test_meta_tensors(plan: Plan) -> None:
    args = moved(arguments(plan), lambda tensor: tensor.to("meta"))
    mean, log_sum = torch.ops.pfgm_fast.posterior(*args)
    assert mean.device.type == log_sum.device.type == "meta"
    assert (mean.shape, log_sum.shape) == ((B, plan.N), (B,))


BAD = {
    "x": lambda x, scale, segments: x[2].fill_(math.nan),
    "one value of x": lambda x, scale, segments: x[2, 3].fill_(math.nan),
    "infinite x": lambda x, scale, segments: x[2, 3].fill_(math.inf),
    "scale": lambda x, scale, segments: scale[2].fill_(math.nan),
    "segment": lambda x, scale, segments: segments[2].fill_(0),
}


@pytest.mark.parametrize("power", [3.0, 66.5, math.inf])
@pytest.mark.parametrize("spoil", BAD.values(), ids=BAD)
def test_a_bad_row_is_nan_alone(spoil: Any, power: float, plan: Plan, poison: None) -> None:
    x, scale, data, *_ = arguments(plan)
    segments = torch.tensor([[0, M]] * B)
    clean, clean_sum = operator.posterior(x, scale, data, None, segments, power, plan.backend)
    spoil(x, scale, segments)
    mean, log_sum = operator.posterior(x, scale, data, None, segments, power, plan.backend)
    bad = torch.arange(B) == 2
    assert bool(mean[bad].isnan().all())
    assert bool(log_sum[bad].isnan().all())
    assert torch.equal(mean[~bad], clean[~bad])
    assert torch.equal(log_sum[~bad], clean_sum[~bad])


@pytest.mark.parametrize("D", [1, 128, math.inf])
def test_a_compiled_field_is_the_field(D: float, plan: Plan) -> None:
    torch._dynamo.reset()
    x, _, (data, *_), *_ = arguments(plan)
    field, sigma = pf.EmpiricalField(data, D, backend=plan.backend), torch.linspace(0.1, 2, B)

    def step(x: Tensor, sigma: Tensor) -> Tensor:
        return x + (field(x, sigma) - x) / sigma[:, None]

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x, sigma), step(x, sigma), rtol=1e-6, atol=1e-6)
    assert torch.allclose(compiled(x + 1, sigma), step(x + 1, sigma), rtol=1e-6, atol=1e-6)


def test_every_method_compiles(plan: Plan) -> None:
    torch._dynamo.reset()
    x, _, (data, *_), *_ = arguments(plan)
    labels = torch.arange(M) % 3
    field, sigma = pf.EmpiricalField(data, 8.0, labels=labels, backend=plan.backend), torch.linspace(0.1, 2, B)

    def everything(x: Tensor, sigma: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        plain = (field.log_density(x, sigma), field.score(x, sigma), field.effective_sample_size(x, sigma))
        return field(x, sigma, labels=rows), field.poisson_field(x, sigma, 5.0, rows), *plain

    rows = torch.arange(B) % 3
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(x, sigma, rows), everything(x, sigma, rows), strict=True):
        assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_compiled_posterior_mean(plan: Plan) -> None:
    torch._dynamo.reset()
    x, _, (data, *_), *_ = arguments(plan)

    def target(x: Tensor, sigma: Tensor, data: Tensor) -> Tensor:
        return pf.posterior_mean(x, sigma, data, 128.0, backend=plan.backend)

    sigma = torch.linspace(0.1, 2, B)
    compiled = torch.compile(target, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x, sigma, data), target(x, sigma, data), rtol=1e-6, atol=1e-6)


def test_compiled_with_inductor(plan: Plan) -> None:
    torch._dynamo.reset()
    x, _, (data, *_), *_ = arguments(plan)
    field, sigma = pf.EmpiricalField(data, 8.0, backend=plan.backend), torch.linspace(0.1, 2, B)
    compiled = torch.compile(lambda x, sigma: field(x, sigma), fullgraph=True)
    assert torch.allclose(compiled(x, sigma), field(x, sigma), rtol=1e-6, atol=1e-6)
