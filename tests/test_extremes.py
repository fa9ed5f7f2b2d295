"""Inputs at the edge of what float32 can hold, and calls in contexts that change how PyTorch computes."""

from __future__ import annotations

import math

import pytest
import torch

import pfgm_fast as pf
from pfgm_fast import operator


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_class_far_from_the_query(backend: str, generator: torch.Generator) -> None:
    images = torch.randint(0, 256, (100, 784), dtype=torch.uint8, generator=generator)
    labels = torch.arange(100) % 2
    field = pf.EmpiricalField(images, 1.0, labels=labels, backend=backend)
    x = (2.0 * images[labels == 1] - 255) / 255
    expected = pf.posterior_mean(x, 0.002, images[labels == 0], 1.0, backend=backend)
    torch.testing.assert_close(field(x, 0.002, labels=torch.zeros(50, dtype=torch.int64)), expected)


@pytest.mark.parametrize("D", [1e13, 1e15, 1e18, 1e30])
def test_a_huge_D_is_diffusion(D: float, backend: str, generator: torch.Generator) -> None:
    data = torch.randn(1500, 64, generator=generator)
    x = data[:64] + 0.05 * torch.randn(64, 64, generator=generator)
    sigma = torch.logspace(-2.7, -0.7, 64)
    expected = pf.posterior_mean(x.double(), sigma, data.double(), math.inf, backend="torch")
    assert (pf.posterior_mean(x, sigma, data, D, backend=backend) - expected).norm(dim=1).max() < 1e-5


def test_many_equal_data(backend: str) -> None:
    for value in torch.linspace(1, 2, 20):
        mean = pf.posterior_mean(value.reshape(1, 1), 80.0, value.expand(6144, 1), math.inf, backend=backend)
        assert abs(mean - value) <= 4 * torch.finfo(torch.float32).eps * value


@pytest.mark.parametrize("offset", [-1e4, -1e6, -1e8])
def test_a_class_of_tiny_mass(offset: float, backend: str, generator: torch.Generator) -> None:
    data, labels = torch.rand(400, 8, generator=generator), torch.arange(400) // 200
    masses = torch.rand(400, generator=generator) + offset * labels
    x = torch.rand(10, 8, generator=generator)
    field = pf.EmpiricalField(data, 2.0, labels=labels, log_weights=masses, backend=backend)
    expected = pf.posterior_mean(
        x.double(), 0.3, data[200:].double(), 2.0, log_weights=masses[200:].double(), backend="torch"
    )
    mean = field(x, 0.3, labels=torch.ones(10, dtype=torch.int64))
    assert (mean - expected).abs().max() < 1e-5


def test_poisson_field_neither_overflows_nor_vanishes(backend: str, generator: torch.Generator) -> None:
    field = pf.EmpiricalField(torch.randn(50, 4, generator=generator), 1.0, backend=backend)
    torch.testing.assert_close(field.poisson_field(torch.zeros(1, 4), 1e20)[0, -1], torch.tensor(-2.0))
    torch.testing.assert_close(field.poisson_field(torch.full((1, 4), 1e18), 1.0)[0, :4], torch.full((4,), -1.0))


def test_autocast_does_not_reach_the_field(backend: str, generator: torch.Generator) -> None:
    field = pf.EmpiricalField(torch.randn(50, 40, generator=generator), 2.0, backend=backend)
    x = torch.randn(5, 40, generator=generator)

    def results() -> list[torch.Tensor]:
        return [field(x, 0.5), field.score(x, 0.5), field.divergence(x, 0.5), *field.top_weights(x, 0.5, 3)]

    expected = results()
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(got, want) for got, want in zip(results(), expected, strict=True))


def test_forward_derivatives_are_refused(generator: torch.Generator) -> None:
    field = pf.EmpiricalField(torch.randn(50, 4, generator=generator), 2.0)
    x = torch.randn(5, 4, generator=generator)
    with pytest.raises(ValueError, match="x requires a gradient"):
        torch.func.jvp(lambda q: field(q, 0.5), (x,), (torch.ones_like(x),))


def test_the_raw_operator_refuses_other_dtypes(native: str) -> None:
    x = torch.randn(3, 4)
    with pytest.raises(TypeError, match="float64 scale"):
        torch.ops.pfgm_fast.posterior(x, torch.ones(3), operator.prepare(x, native), None, None, 2.0, native)


def test_one_compiled_function_serves_fields_of_any_D() -> None:
    compiled = torch.compile(lambda field, x, sigma: field(x, sigma), fullgraph=True)
    data, x, sigma = torch.randn(50, 4), torch.randn(3, 4), torch.ones(3)
    for D in (1.0, 2.0, math.inf):
        field = pf.EmpiricalField(data, D)
        torch.testing.assert_close(compiled(field, x, sigma), field(x, sigma))
