"""What a user may pass to a field and what comes back: shapes, dtypes, classes, masses, empty batches."""

from __future__ import annotations

import math
from collections.abc import Callable

import oracle
import pytest
import torch
from torch import Tensor

import pfgm_fast as pf

B, M, SHAPE = 5, 40, (3, 2, 4)
N = math.prod(SHAPE)

METHODS: dict[str, Callable[[pf.EmpiricalField, Tensor, float | Tensor], Tensor]] = {
    "call": lambda field, x, sigma: field(x, sigma),
    "poisson_field": lambda field, x, sigma: field.poisson_field(x, sigma),
    "log_density": lambda field, x, sigma: field.log_density(x, sigma),
    "score": lambda field, x, sigma: field.score(x, sigma),
    "divergence": lambda field, x, sigma: field.divergence(x, sigma),
    "top_weights": lambda field, x, sigma: field.top_weights(x, sigma, 3)[0],
    "effective_sample_size": lambda field, x, sigma: field.effective_sample_size(x, sigma),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()


@pytest.fixture
def data() -> Tensor:
    return randn(M, *SHAPE)


@pytest.fixture
def x() -> Tensor:
    return randn(B, *SHAPE, seed=1)


@pytest.fixture
def sigma() -> Tensor:
    return torch.tensor([0.2, 0.5, 1.0, 3.0, 40.0])


def test_shape_of_every_result(data: Tensor, x: Tensor, sigma: Tensor, backend: str) -> None:
    field = pf.EmpiricalField(data, 8.0, backend=backend)
    for query in (x, x.flatten(1)):
        assert field(query, sigma).shape == query.shape
        assert field.score(query, sigma).shape == query.shape
        assert field.poisson_field(query, sigma).shape == (B, N + 1)
        for result in (field.log_density, field.divergence, field.effective_sample_size):
            assert result(query, sigma).shape == (B,)
        weights, indices = field.top_weights(query, sigma, 7)
        assert weights.shape == indices.shape == (B, 7)
        assert indices.dtype == torch.int64


@every_method
def test_the_shape_of_x_and_of_the_data_are_their_own(
    method: Callable[..., Tensor], data: Tensor, x: Tensor, sigma: Tensor, backend: str
) -> None:
    shaped, flat = (pf.EmpiricalField(d, 8.0, backend=backend) for d in (data, data.flatten(1)))
    expected = method(flat, x.flatten(1), sigma)
    for field in (shaped, flat):
        for query in (x, x.flatten(1), x.reshape(B, 4, 6)):
            assert torch.equal(method(field, query, sigma).flatten(1 if expected.ndim > 1 else 0), expected)


@every_method
def test_no_queries_no_results(method: Callable[..., Tensor], data: Tensor, backend: str) -> None:
    field = pf.EmpiricalField(data, 8.0, backend=backend)
    one = method(field, randn(1, *SHAPE), 1.0)
    for sigma in (1.0, torch.tensor(1.0), torch.ones(0), torch.ones(0, 1, 1, 1)):
        none = method(field, torch.zeros(0, *SHAPE), sigma)
        assert none.shape == (0, *one.shape[1:])
        assert none.dtype == torch.float32


def test_no_queries_with_classes(data: Tensor, backend: str) -> None:
    field = pf.EmpiricalField(data, 8.0, labels=torch.arange(M) % 4, backend=backend)
    assert field(torch.zeros(0, *SHAPE), 1.0, labels=torch.zeros(0, dtype=torch.int64)).shape == (0, *SHAPE)


@every_method
def test_any_form_of_sigma(method: Callable[..., Tensor], data: Tensor, x: Tensor, backend: str) -> None:
    field = pf.EmpiricalField(data, 8.0, backend=backend)
    expected = method(field, x, 0.75)
    rows = torch.full((B,), 0.75)
    forms = (torch.tensor(0.75), rows, rows.reshape(B, 1, 1, 1), rows.double(), rows.half(), rows[:1].expand(B))
    for sigma in (*forms, torch.tensor(0.75, dtype=torch.float64)):
        assert torch.equal(method(field, x, sigma), expected)
    assert torch.equal(method(field, x, 1), method(field, x, 1.0))


@every_method
def test_memory_layout_does_not_matter(
    method: Callable[..., Tensor], data: Tensor, x: Tensor, sigma: Tensor, backend: str
) -> None:
    expected = method(pf.EmpiricalField(data, 8.0, backend=backend), x, sigma)
    strided = data.repeat_interleave(2, 0)[::2]
    channels_last = data.contiguous(memory_format=torch.channels_last)
    for layout in (strided, channels_last):
        field = pf.EmpiricalField(layout, 8.0, backend=backend)
        for query in (x.contiguous(memory_format=torch.channels_last), x.repeat_interleave(3, 0)[::3]):
            assert torch.equal(method(field, query, sigma.repeat_interleave(2)[::2]), expected)


@every_method
def test_expanded_queries(method: Callable[..., Tensor], data: Tensor, x: Tensor, backend: str) -> None:
    field = pf.EmpiricalField(data, 8.0, backend=backend)
    same = x[:1].expand(B, *SHAPE)
    assert torch.equal(method(field, same, 0.5), method(field, same.contiguous(), 0.5))


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("data_dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8])
def test_floating_results_follow_x(
    method: Callable[..., Tensor], dtype: torch.dtype, data_dtype: torch.dtype, x: Tensor, backend: str
) -> None:
    field = pf.EmpiricalField(_images(data_dtype), 8.0, backend=backend)
    assert method(field, x.to(dtype), 0.5).dtype == dtype


def _images(dtype: torch.dtype) -> Tensor:
    u = torch.randint(0, 256, (M, *SHAPE), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    return u if dtype == torch.uint8 else (2 * u.to(torch.float64) - 255).div(255).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("data_dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8])
def test_every_pair_of_dtypes_is_accurate(dtype: torch.dtype, data_dtype: torch.dtype, x: Tensor, backend: str) -> None:
    data, query, sigma = _images(data_dtype), x.to(dtype), torch.full((B,), 0.5)
    truth = oracle.field(query, sigma, data, 8.0)
    eps = oracle.eps(query, data)
    got = pf.EmpiricalField(data, 8.0, backend=backend)(query, sigma)
    oracle.check_mean(got, truth, max(eps, torch.finfo(torch.float32).eps if dtype != torch.float64 else eps))


def test_pixels_are_their_exact_values(backend: str) -> None:
    """Pixel u stands for (2u - 255)/255, and a lone datum is its own posterior mean."""
    u = torch.arange(256, dtype=torch.uint8)[None]
    mean = pf.EmpiricalField(u, 128.0, backend=backend)(torch.zeros(1, 256, dtype=torch.float64), 1.0)
    assert torch.allclose(mean[0], (2 * torch.arange(256, dtype=torch.float64) - 255) / 255, rtol=0, atol=1e-7)


def test_a_float64_sigma_is_not_rounded(backend: str) -> None:
    data, query = randn(M, 3).double(), randn(B, 3, seed=1).double()
    sigma = torch.full((B,), 1 / 3, dtype=torch.float64)
    truth = oracle.field(query, sigma, data, 1.0)
    oracle.check_mean(pf.EmpiricalField(data, 1.0, backend=backend)(query, sigma), truth, 2.3e-16)
    oracle.check_mean(pf.EmpiricalField(data, 1.0, backend=backend)(query, 1 / 3), truth, 2.3e-16)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 5.0])
@pytest.mark.parametrize("D", [1, 2.7, 2048])
def test_poisson_field(D: float, gamma: float, data: Tensor, x: Tensor, sigma: Tensor, backend: str) -> None:
    truth = oracle.field(x, sigma, data, D)
    got = pf.EmpiricalField(data, D, backend=backend).poisson_field(x, sigma, gamma)
    oracle.check_poisson_field(got, truth, D, gamma, 1.2e-7)
    if gamma == 0:
        assert torch.allclose(got.norm(dim=1), torch.full((B,), math.sqrt(N)))


def test_no_poisson_field_without_a_radius(data: Tensor, x: Tensor, backend: str) -> None:
    with pytest.raises(ValueError, match="inf"):
        pf.EmpiricalField(data, math.inf, backend=backend).poisson_field(x, 1.0)


@pytest.mark.parametrize("D", [1, 128, math.inf])
def test_functions_and_field_agree(D: float, data: Tensor, x: Tensor, sigma: Tensor, backend: str) -> None:
    masses = randn(M, seed=3)
    field = pf.EmpiricalField(data, D, log_weights=masses, backend=backend)
    mean = pf.posterior_mean(x, sigma, data, D, log_weights=masses, backend=backend)
    assert torch.equal(mean, field(x, sigma))
    density = pf.log_density(x, sigma, data, D, log_weights=masses, backend=backend)
    assert torch.equal(density, field.log_density(x, sigma))


def test_score_is_the_gradient_of_the_log_density(backend: str) -> None:
    data, query, h = randn(M, 3).double(), randn(B, 3, seed=1).double(), 1e-5
    for D in (1.0, math.inf):
        field = pf.EmpiricalField(data, D, backend=backend)
        step = h * torch.eye(3, dtype=torch.float64)
        slope = [(field.log_density(query + e, 0.7) - field.log_density(query - e, 0.7)) / (2 * h) for e in step]
        assert torch.allclose(field.score(query, 0.7), torch.stack(slope, 1), rtol=1e-6, atol=1e-6)


def test_divergence_is_the_trace_of_the_jacobian(backend: str) -> None:
    data, query, h = randn(M, 3).double(), randn(B, 3, seed=1).double(), 1e-5
    for D in (1.0, math.inf):
        field = pf.EmpiricalField(data, D, backend=backend)
        step = h * torch.eye(3, dtype=torch.float64)
        slope = [(field(query + e, 0.7) - field(query - e, 0.7))[:, i] / (2 * h) for i, e in enumerate(step)]
        assert torch.allclose(field.divergence(query, 0.7), torch.stack(slope).sum(0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("D", [1, 2.7, math.inf])
def test_log_density_is_a_density(D: float, backend: str) -> None:
    """In one dimension its exponential integrates to 1."""
    data = torch.tensor([[-1.0], [0.2], [1.5]], dtype=torch.float64)
    t = torch.linspace(-9, 9, 20001, dtype=torch.float64)  # x = sinh(t) reaches the heavy tails
    density = pf.EmpiricalField(data, D, backend=backend).log_density(t.sinh()[:, None], 0.5).exp()
    assert torch.trapezoid(density * t.cosh(), t).item() == pytest.approx(1, abs=1e-3)


def test_top_weights_are_the_largest(data: Tensor, x: Tensor, sigma: Tensor, backend: str) -> None:
    truth = oracle.field(x, sigma, data, 8.0)
    field = pf.EmpiricalField(data, 8.0, backend=backend)
    for k in (1, 6, M):
        weights, indices = field.top_weights(x, sigma, k)
        expected = torch.from_numpy(truth.weights.astype(float)).topk(k, 1)
        assert torch.equal(indices[:, :3], expected.indices[:, :3])
        assert torch.allclose(weights.double(), expected.values, atol=1e-4, rtol=1e-3)
        assert all(len(set(row.tolist())) == k for row in indices)


def test_ties_share_their_weight_exactly(backend: str) -> None:
    """Three copies of each datum: the three largest weights are the same to the bit, at any sigma."""
    data, where = randn(17, 6), torch.arange(51) % 17
    where = where[torch.randperm(51, generator=torch.Generator().manual_seed(4))]
    field = pf.EmpiricalField(data[where], 8.0, backend=backend)
    x = data[:5] + 1e-3 * randn(5, 6, seed=5)
    for sigma in (0.002, 0.1, 1.0, 80.0):
        weights, indices = field.top_weights(x, sigma, 3)
        assert torch.equal(where[indices], where[indices[:, :1]].expand(5, 3))
        assert torch.equal(weights, weights[:, :1].expand(5, 3))


def test_classes_restrict_each_row(data: Tensor, x: Tensor, sigma: Tensor, backend: str) -> None:
    classes = torch.tensor([7, 0, 100])[torch.arange(M) % 3]
    rows = torch.tensor([0, 100, -1, 7, 0])
    field = pf.EmpiricalField(data, 8.0, labels=classes, backend=backend)
    got, poisson = field(x, sigma, labels=rows), field.poisson_field(x, sigma, 5.0, labels=rows)
    for i, label in enumerate(rows.tolist()):
        seen = data if label == -1 else data[classes == label]
        alone = pf.EmpiricalField(seen, 8.0, backend=backend)
        query = x[i : i + 1], sigma[i : i + 1]
        assert torch.allclose(got[i], alone(*query)[0], rtol=1e-4, atol=1e-5)
        assert torch.allclose(poisson[i], alone.poisson_field(*query, 5.0)[0], rtol=1e-4, atol=1e-5)


def test_classes_leave_the_data_their_places(data: Tensor, x: Tensor, sigma: Tensor, backend: str) -> None:
    """With labels the indices of top_weights count the data as the user gave them; masses stay with their data."""
    masses, classes = randn(M, seed=3), torch.arange(M) * 7 % 4
    plain = pf.EmpiricalField(data, 8.0, log_weights=masses, backend=backend)
    sorted_ = pf.EmpiricalField(data, 8.0, log_weights=masses, labels=classes, backend=backend)
    assert torch.equal(plain.top_weights(x, sigma, 3)[1], sorted_.top_weights(x, sigma, 3)[1])
    assert torch.allclose(plain(x, sigma), sorted_(x, sigma), rtol=1e-4, atol=1e-5)
    assert torch.allclose(plain.log_density(x, sigma), sorted_.log_density(x, sigma), rtol=1e-5)


def test_masses_count_as_copies(data: Tensor, x: Tensor, sigma: Tensor, backend: str) -> None:
    copies = torch.arange(M) % 3 + 1
    weighted = pf.EmpiricalField(data, 8.0, log_weights=copies.double().log(), backend=backend)
    copied = pf.EmpiricalField(data.repeat_interleave(copies, 0), 8.0, backend=backend)
    assert torch.allclose(weighted(x, sigma), copied(x, sigma), rtol=1e-4, atol=1e-5)
    assert torch.allclose(weighted.log_density(x, sigma), copied.log_density(x, sigma), rtol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_gradients_are_refused_or_stopped(name: str, data: Tensor, x: Tensor, backend: str) -> None:
    field, method = pf.EmpiricalField(data, 8.0, backend=backend), METHODS[name]
    query = x.clone().requires_grad_()
    if name in ("call", "log_density"):  # the two that are differentiable with respect to x
        assert method(field, query, 0.5).requires_grad
    else:
        with pytest.raises(ValueError, match=r"x .*grad"):
            method(field, query, 0.5)
    with pytest.raises(ValueError, match=r"sigma .*grad"):
        method(field, x, torch.full((B,), 0.5, requires_grad=True))
    with torch.no_grad():
        assert torch.equal(method(field, query, 0.5), method(field, x, 0.5))
    assert not method(field, query.detach(), 0.5).requires_grad


@every_method
def test_inputs_are_left_alone(
    method: Callable[..., Tensor], data: Tensor, x: Tensor, sigma: Tensor, backend: str
) -> None:
    before = [t.clone() for t in (data, x, sigma)]
    method(pf.EmpiricalField(data, 8.0, backend=backend), x, sigma)
    assert all(torch.equal(t, b) for t, b in zip((data, x, sigma), before, strict=True))


def test_what_a_denoiser_shows(data: Tensor, backend: str) -> None:
    field = pf.EmpiricalField(data, 8, backend=backend)
    assert field.D == 8
    assert field.device == torch.device("cpu")
    assert math.isinf(pf.EmpiricalField(data, math.inf, backend=backend, device="cpu").D)
    assert "8" in repr(field)
    assert backend in repr(field)


def test_every_precision_is_accurate_here(data: Tensor, x: Tensor, sigma: Tensor, backend: str) -> None:
    high = pf.EmpiricalField(data, 8.0, precision="high", backend=backend)
    assert torch.allclose(high(x, sigma), pf.EmpiricalField(data, 8.0, backend=backend)(x, sigma), rtol=1e-2, atol=1e-3)
