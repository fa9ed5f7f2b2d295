"""Gradients with respect to the queries: closed forms against differences, against each other, and refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pfgm_fast as pf
from pfgm_fast import operator, reference, streaming

B, M, N = 5, 24, 4
SIGMA = torch.tensor([0.3, 0.5, 1.0, 2.0, 8.0], dtype=torch.float64)
CLASSES = torch.arange(M) % 3
ROWS = torch.tensor([0, 1, -1, 2, 0])  # the class that each query sees
METHODS: dict[str, Callable[[pf.EmpiricalField, Tensor], Tensor]] = {
    "mean": lambda field, x: field(x, SIGMA),
    "mean of a class": lambda field, x: field(x, SIGMA, ROWS),
    "unchecked": lambda field, x: field.unchecked(x, SIGMA, ROWS),
    "log_density": lambda field, x: field.log_density(x, SIGMA),
}


def data_of(kind: str, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if kind == "pixels":
        return torch.randint(256, (M, N), generator=generator, dtype=torch.uint8)
    return torch.randn(M, N, generator=generator, dtype=torch.float64).to(dtype)


def make(kind: str, D: float, backend: str) -> pf.EmpiricalField:
    masses = torch.linspace(-2, 1, M, dtype=torch.float64) if kind == "masses" else None
    return pf.EmpiricalField(data_of(kind), D, labels=CLASSES, log_weights=masses, backend=backend)


def queries(dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(B, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x.to(dtype).requires_grad_()


@pytest.fixture
def x() -> Tensor:
    return queries()


@pytest.mark.parametrize("method", [METHODS["mean of a class"], METHODS["log_density"]], ids=["mean", "log_density"])
@pytest.mark.parametrize("D", [1, 8, math.inf])
@pytest.mark.parametrize("kind", ["float", "pixels", "masses"])
def test_gradcheck(
    kind: str, D: float, method: Callable[[pf.EmpiricalField, Tensor], Tensor], x: Tensor, backend: str
) -> None:
    field = make(kind, D, backend)
    assert gradcheck(lambda x: method(field, x), (x,))


def test_gradcheck_of_the_functions(x: Tensor) -> None:
    data, masses = data_of("float"), torch.linspace(-2, 1, M)
    assert gradcheck(lambda x: pf.posterior_mean(x, 0.5, data, 2.7, log_weights=masses), (x,))
    assert gradcheck(lambda x: pf.log_density(x, 0.5, data, 2.7, log_weights=masses), (x,))


@pytest.mark.parametrize("D", [0.5, 128, 1e6, math.inf])
def test_agreement_with_score_and_divergence(D: float, x: Tensor, backend: str) -> None:
    field = make("masses", D, backend)
    (score,) = torch.autograd.grad(field.log_density(x, SIGMA).sum(), x)
    assert torch.allclose(score, field.score(x.detach(), SIGMA), rtol=1e-8, atol=1e-10)
    mean = field(x, SIGMA)
    columns = [torch.autograd.grad(mean[:, n].sum(), x, retain_graph=True)[0][:, n] for n in range(N)]
    assert torch.allclose(sum(columns, torch.zeros(B)), field.divergence(x.detach(), SIGMA), rtol=1e-8, atol=1e-10)


def truth(x: Tensor, sigma: float, data: Tensor, D: float, u: Tensor, v: Tensor) -> tuple[oracle.Array, oracle.Array]:
    """sum_j w_j c_j (y_j - x) ((y_j - x_hat).u + v) by differences, in extended precision.

    And by how much it moves, at most, as x_hat moves by one: sum_j w_j c_j |y_j - x| |u|.
    """
    level, rows, reach = oracle.Real(sigma), [], []
    y, N = oracle.values(data), x.shape[1]
    for query, along, by in zip(oracle.values(x), oracle.values(u), oracle.values(v[:, None])[:, 0], strict=True):
        rho = oracle.squared_distances(query, y)
        logits = oracle.log_weights(rho, level, N, D, np.zeros(len(y), oracle.Real))
        w = np.exp(logits - oracle.log_sum_exp(logits))
        mean = (w[:, None] * y).sum(0)
        slopes = w * oracle.curvature(rho, level, N, D)
        rows.append(((slopes * (((y - mean) * along).sum(1) + by))[:, None] * (y - query)).sum(0))
        reach.append((slopes * np.sqrt(rho)).sum() * np.sqrt((along**2).sum()))
    return np.stack(rows), np.stack(reach)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("D", [1, 128, math.inf])
@pytest.mark.parametrize("pixels", [False, True])
def test_near_duplicates_at_small_sigma(pixels: bool, D: float, dtype: torch.dtype, backend: str) -> None:
    """In float32 within 1e-5 of the truth, in float64 within 1e-9, where two images differ by a unit in one pixel.

    And within what float64's rounding of x_hat does to it, which shows where one image has nearly all the weight.
    """
    N, sigma = 192, 0.003
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(1, 255, (40, N), generator=generator, dtype=torch.uint8)
    images[1::2] = images[::2]
    images[1::2, 7] += 1
    data = images if pixels else ((2 * images.double() - 255) / 255).to(dtype)
    exact = torch.from_numpy(oracle.values(images).astype("float64"))
    noise = sigma * torch.randn(10, N, generator=generator, dtype=torch.float64)
    x = (exact[:20:2] + noise).to(dtype).requires_grad_()
    x.data[:, 7] = (exact[:20:2, 7] + torch.linspace(0, 2 / 255, 10)).to(dtype)
    u, v = torch.randn(10, N, generator=generator).to(dtype), torch.randn(10, generator=generator).to(dtype)
    field = pf.EmpiricalField(data, D, backend=backend)
    for left, right in ((u, 0 * v), (0 * u, v), (u, v)):
        value = (field(x, sigma) * left).sum() + (field.log_density(x, sigma) * right).sum()
        (got,) = torch.autograd.grad(value, x)
        expected, reach = truth(x.detach(), sigma, data, D, left, right)
        rounding = 4 * np.finfo(np.float64).eps * oracle.norm(oracle.values(data)).max() * reach
        error = oracle.norm(oracle.values(got) - expected)
        assert (error < (1e-5 if dtype == torch.float32 else 1e-9) * oracle.norm(expected) + rounding).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_and_shapes(dtype: torch.dtype, backend: str) -> None:
    x, field = queries(dtype), make("float", 8, backend)
    shaped = x.detach().reshape(B, 2, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(field(shaped, SIGMA).sum(), shaped)
    assert (gradient.dtype, gradient.shape) == (dtype, shaped.shape)
    double = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(field(double, SIGMA).sum(), double)
    assert torch.allclose(gradient.double().reshape(B, N), expected, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)
    empty = x.detach()[:0].requires_grad_()
    (nothing,) = torch.autograd.grad(field(empty, 0.5).sum(), empty)
    assert nothing.shape == (0, N)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_gradient_changes_no_bit(method: Callable[..., Tensor], x: Tensor, backend: str) -> None:
    field = make("pixels", 8, backend)
    plain = method(field, x.detach())
    tracked = method(field, x)
    assert tracked.requires_grad
    assert torch.equal(tracked, plain)
    with torch.no_grad():
        untracked = method(field, x)
    assert not untracked.requires_grad
    assert torch.equal(untracked, plain)


def test_a_bad_row_is_nan_alone(x: Tensor, backend: str) -> None:
    field, spoilt = make("float", 8, backend), x.detach().clone()
    spoilt[1, 0], sigma, rows = math.nan, SIGMA.clone(), ROWS.clone()
    sigma[2], rows[3] = -1, 99
    spoilt.requires_grad_()
    (got,) = torch.autograd.grad(field.unchecked(spoilt, sigma, rows).sum(), spoilt)
    (good,) = torch.autograd.grad(field(x, SIGMA, ROWS).sum(), x)
    bad = torch.tensor([False, True, True, True, False])
    assert bool(got[bad].isnan().all())
    assert torch.equal(got[~bad], good[~bad])


class Sizes(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.largest = max([self.largest, *(t.numel() for t in tree_leaves(made) if isinstance(t, Tensor))])
        return made


def test_in_pieces(monkeypatch: pytest.MonkeyPatch, x: Tensor) -> None:
    """The result does not depend on the chunks, and nothing larger than they is ever made."""
    data = [data_of("float"), torch.zeros(N, dtype=torch.float64)]
    args = (x.detach(), 8 * SIGMA**2, data, None, None, (N + 8) / 2, torch.ones(B, N), torch.ones(B))
    whole = reference.pullback(*args)
    monkeypatch.setattr(reference, "PAIRS", M)
    with Sizes() as sizes:  # type: ignore[no-untyped-call]  # torch's
        assert torch.allclose(reference.pullback(*args), whole, rtol=1e-12, atol=1e-14)
    assert sizes.largest <= M * N


def test_the_operator_behind_it() -> None:
    x, segments = queries().detach(), torch.tensor([[0, 10], [10, M], [0, M], [3, 4], [0, M]])
    data = operator.prepare(data_of("pixels"), "torch")[:2]
    args = (x, SIGMA, *data, None, segments, 3.0, x, SIGMA)
    torch.library.opcheck(torch.ops.pfgm_fast.pullback.default, args)


def test_compiled_and_functional(x: Tensor) -> None:
    torch._dynamo.reset()
    field = make("masses", 8, "auto")

    def value(x: Tensor) -> Tensor:
        return field(x, SIGMA, ROWS).square().sum() + field.log_density(x, SIGMA).sum()

    (eager,) = torch.autograd.grad(value(x), x)
    (compiled,) = torch.autograd.grad(torch.compile(value, fullgraph=True, backend="aot_eager")(x), x)
    assert torch.allclose(compiled, eager, rtol=1e-12)
    assert torch.allclose(torch.func.grad(value)(x.detach()), eager, rtol=1e-12)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_second_derivatives_are_refused(method: Callable[..., Tensor], x: Tensor, backend: str) -> None:
    field = make("float", 8, backend)
    (first,) = torch.autograd.grad(method(field, x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        (first.square().sum() + x.sum()).backward()


REFUSED: dict[str, Callable[[pf.EmpiricalField, Tensor], Any]] = {
    "poisson_field": lambda field, x: field.poisson_field(x, 0.5),
    "score": lambda field, x: field.score(x, 0.5),
    "divergence": lambda field, x: field.divergence(x, 0.5),
    "top_weights": lambda field, x: field.top_weights(x, 0.5, 2),
    "effective_sample_size": lambda field, x: field.effective_sample_size(x, 0.5),
}


@pytest.mark.parametrize("method", REFUSED.values(), ids=REFUSED)
def test_other_gradients_are_refused(method: Callable[..., Any], x: Tensor, backend: str) -> None:
    field = make("float", 8, backend)
    with pytest.raises(ValueError, match="x requires a gradient"):
        method(field, x)
    with torch.no_grad():
        method(field, x)


def test_sigma_has_no_gradient(x: Tensor, backend: str) -> None:
    field, sigma = make("float", 8, backend), SIGMA.clone().requires_grad_()
    for method in (field, field.log_density):
        with pytest.raises(ValueError, match="sigma requires a gradient"):
            method(x, sigma)


def test_streamed_data_have_no_gradient(monkeypatch: pytest.MonkeyPatch, x: Tensor) -> None:
    monkeypatch.setattr(streaming, "needed", lambda *_: True)
    field = make("float", 8, "torch")
    for method in (field, field.log_density):
        with pytest.raises(ValueError, match=r"x requires a gradient, .* stream"):
            method(x, SIGMA)
    assert not field(x.detach(), SIGMA).requires_grad


def test_the_divergence_of_a_class(x: Tensor, backend: str) -> None:
    field, data = make("float", 8, backend), data_of("float")
    got = field.divergence(x.detach(), SIGMA, ROWS)
    for row, label in enumerate(ROWS.tolist()):
        seen = data if label < 0 else data[label == CLASSES]
        alone = pf.EmpiricalField(seen, 8, backend=backend).divergence(x.detach()[row : row + 1], SIGMA[row].item())
        assert torch.allclose(got[row], alone, rtol=1e-9)


def test_streamed_data_have_no_divergence_of_a_class(monkeypatch: pytest.MonkeyPatch, x: Tensor) -> None:
    monkeypatch.setattr(streaming, "needed", lambda *_: True)
    with pytest.raises(ValueError, match="labels must be None"):
        make("float", 8, "torch").divergence(x.detach(), SIGMA, ROWS)
