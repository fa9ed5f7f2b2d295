"""What is true of every field, on data that hypothesis makes up."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import pfgm_fast as pf

few = settings(
    deadline=None, derandomize=True, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
dimensions = st.sampled_from([0.5, 1.0, 2.7, 128.0, 1e6, math.inf])
levels = st.floats(math.log(0.002), math.log(80)).map(math.exp)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, float, float]:
    """Queries (B, N) float64, data (M, N) float64, sigma and D."""
    N, M, B = draw(st.sampled_from([1, 2, 5, 17, 40])), draw(st.integers(1, 30)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    data = torch.randn(M, N, generator=generator, dtype=torch.float64)
    sigma = draw(levels)
    x = data[torch.randint(0, M, (B,), generator=generator)]
    return x + sigma * torch.randn(B, N, generator=generator, dtype=torch.float64), data, sigma, draw(dimensions)


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-7) -> bool:
    """Within tolerance of the largest number about: what float64 leaves of shares that differ by exp(1e7)."""
    return bool(((got - expected).abs() <= tolerance * (1 + expected.abs().max())).all())


@given(problem=problems(), shift=st.floats(-50, 50))
@few
def test_translation(problem: tuple[Tensor, Tensor, float, float], shift: float, backend: str) -> None:
    x, data, sigma, D = problem
    shift = round(shift * 8) / 8
    moved = pf.EmpiricalField(data + shift, D, backend=backend)(x + shift, sigma)
    # adding the shift rounds x and the data, by far more than the field does
    plain = pf.EmpiricalField(data, D, backend=backend)(x, sigma)
    assert close(moved - shift, plain, 1e-13 * 50 * 50 / sigma**2 + 1e-7)


@given(problem=problems(), exponent=st.integers(-8, 8))
@few
def test_scaling_all_lengths(problem: tuple[Tensor, Tensor, float, float], exponent: int, backend: str) -> None:
    x, data, sigma, D = problem
    factor = 2.0**exponent
    scaled = pf.EmpiricalField(data * factor, D, backend=backend)
    plain = pf.EmpiricalField(data, D, backend=backend)
    assert close(scaled(x * factor, sigma * factor) / factor, plain(x, sigma))
    density = plain.log_density(x, sigma) - data.shape[1] * math.log(factor)
    assert close(scaled.log_density(x * factor, sigma * factor), density)


@given(problem=problems(), seed=st.integers(0, 1000))
@few
def test_the_order_of_the_data(problem: tuple[Tensor, Tensor, float, float], seed: int, backend: str) -> None:
    x, data, sigma, D = problem
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    plain, permuted = (pf.EmpiricalField(d, D, backend=backend) for d in (data, data[order]))
    assert close(permuted(x, sigma), plain(x, sigma))
    assert close(permuted.log_density(x, sigma), plain.log_density(x, sigma))


@given(problem=problems(), copies=st.integers(2, 4))
@few
def test_copies_of_all_data(problem: tuple[Tensor, Tensor, float, float], copies: int, backend: str) -> None:
    x, data, sigma, D = problem
    plain, copied = (pf.EmpiricalField(d, D, backend=backend) for d in (data, data.repeat(copies, 1)))
    assert close(copied(x, sigma), plain(x, sigma))
    assert close(copied.log_density(x, sigma), plain.log_density(x, sigma))
    assert close(copied.effective_sample_size(x, sigma), copies * plain.effective_sample_size(x, sigma))


@given(problem=problems(), constant=st.floats(-500, 500))
@few
def test_a_common_mass_cancels(problem: tuple[Tensor, Tensor, float, float], constant: float, backend: str) -> None:
    x, data, sigma, D = problem
    masses = torch.linspace(-3, 0, len(data), dtype=torch.float64)
    plain, shifted = (pf.EmpiricalField(data, D, log_weights=a, backend=backend) for a in (masses, masses + constant))
    assert close(shifted(x, sigma), plain(x, sigma))
    assert close(shifted.log_density(x, sigma), plain.log_density(x, sigma))


@given(problem=problems())
@few
def test_a_lone_datum_is_the_mean(problem: tuple[Tensor, Tensor, float, float], backend: str) -> None:
    x, data, sigma, D = problem
    field = pf.EmpiricalField(data[:1], D, backend=backend)
    assert close(field(x, sigma), data[:1].expand_as(x), 1e-14)
    assert close(field.effective_sample_size(x, sigma), torch.ones(len(x), dtype=torch.float64), 1e-12)
    assert close(field.divergence(x, sigma), torch.zeros(len(x), dtype=torch.float64))


@given(problem=problems(), dtype=st.sampled_from([torch.float32, torch.float64]))
@few
def test_the_mean_is_amid_the_data(
    problem: tuple[Tensor, Tensor, float, float], dtype: torch.dtype, backend: str
) -> None:
    x, data, sigma, D = problem
    field = pf.EmpiricalField(data.to(dtype), D, backend=backend)
    mean = field(x.to(dtype), sigma).double()
    room = 4 * torch.finfo(dtype).eps * data.norm(dim=1).max()
    assert bool(((mean >= data.amin(0) - room) & (mean <= data.amax(0) + room)).all())
    sizes = field.effective_sample_size(x.to(dtype), sigma)
    assert bool(((sizes >= 0.99) & (sizes <= 1.01 * len(data))).all())


@given(problem=problems())
@few
def test_the_limit_of_many_dimensions(problem: tuple[Tensor, Tensor, float, float], backend: str) -> None:
    """D = 1e12 is diffusion, up to (|x - y|^2 / sigma^2)^2 / D in a log weight."""
    x, data, sigma, _ = problem
    sigma = max(sigma, 0.1)
    finite, diffusion = (pf.EmpiricalField(data, D, backend=backend) for D in (1e12, math.inf))
    assert close(finite(x, sigma), diffusion(x, sigma), 1e-3)
    assert close(finite.log_density(x, sigma), diffusion.log_density(x, sigma), 1e-3)
    assert close(finite.score(x, sigma), diffusion.score(x, sigma), 1e-3)


@pytest.mark.parametrize("D", [1.0, 128.0, math.inf])
def test_noise_decides_between_nearest_datum_and_mean(D: float, backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    field = pf.EmpiricalField(data, D, backend=backend)
    assert close(field(data, 1e-6), data, 1e-5)
    assert close(field(data[:3], 1e6), data.mean(0).expand(3, 6), 1e-5)
