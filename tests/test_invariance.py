"""Native: a row's result is the same bits whatever its batch, its place in it, the threads or the layout."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import cases
import pytest
import torch
from cases import Case
from torch import Tensor

import pfgm_fast as pf

pytestmark = pytest.mark.usefixtures("poison")

# data that span several blocks, at each of the kernels' ranges of N, and rows enough to fill several tiles
SHAPES = [(N, D) for N in (2, 8, 17, 64, 784) for D in (1, 128, math.inf)] + [(2, 2.7), (64, 2.7), (3072, 1)]
ROWS = 100
Evaluate = Callable[[Case], tuple[Tensor, ...]]


def crowd(N: int, D: float) -> Case:
    source = cases.Source(f"crowd-{N}-{D}", N, D)
    source.B, source.M = ROWS, {2: 3001, 8: 3001, 17: 2003, 64: 1501, 784: 203, 3072: 67}[N]
    return cases.mixture(source)


@pytest.fixture
def evaluate(native: str) -> Evaluate:
    def evaluate(case: Case) -> tuple[Tensor, ...]:
        field = pf.EmpiricalField(case.data, case.D, backend=native)
        return field(case.x, case.sigma), field.log_density(case.x, case.sigma)

    return evaluate


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rows(case: Case, index: Tensor) -> Case:
    return Case(case.x[index], case.sigma[index], case.data, case.D)


def same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], index: Tensor) -> bool:
    return all(torch.equal(g, e[index]) for g, e in zip(got, expected, strict=True))


@pytest.mark.parametrize(("N", "D"), SHAPES)
def test_any_batch(N: int, D: float, evaluate: Evaluate) -> None:
    """Alone, in batches of every awkward size, and in any order."""
    case = crowd(N, D)
    whole, order = evaluate(case), torch.randperm(ROWS, generator=torch.Generator().manual_seed(N))
    assert all(bool(t.isfinite().all()) for t in whole)
    assert same(evaluate(rows(case, order)), whole, order)
    for size in (2, 31, 32, 33):
        assert same(evaluate(rows(case, order[:size])), whole, order[:size]), f"batch of {size}"
    for i in range(0, ROWS, 9):
        assert same(evaluate(rows(case, torch.tensor([i]))), whole, torch.tensor([i])), f"row {i} alone"


@pytest.mark.parametrize(("N", "D"), SHAPES)
def test_company_does_not_matter(N: int, D: float, evaluate: Evaluate) -> None:
    """A quiet row among loud ones, which skip nothing, and among its like, which skip nearly everything."""
    case = crowd(N, D)
    i = torch.arange(ROWS)
    mixed, alone = evaluate(case), torch.tensor([7])
    for level in (0.002, 80.0):
        sigma = torch.where(i == 7, case.sigma, level)
        result = evaluate(Case(case.x, sigma, case.data, D))
        assert same(tuple(t[alone] for t in result), mixed, alone)


@pytest.mark.parametrize(("N", "D"), SHAPES)
def test_any_number_of_threads(N: int, D: float, evaluate: Evaluate, threads: None) -> None:
    case = crowd(N, D)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(evaluate(case))
        few = rows(case, torch.arange(3))
        assert same(evaluate(few), results[0], torch.arange(3))
    assert all(same(result, results[0], torch.arange(ROWS)) for result in results)


@pytest.mark.parametrize(("N", "D"), SHAPES[::2])
def test_any_layout_and_every_time(N: int, D: float, evaluate: Evaluate) -> None:
    case, every = crowd(N, D), torch.arange(ROWS)
    whole = evaluate(case)
    wide = torch.cat([case.x, torch.full_like(case.x, math.nan)], 1)[:, :N]
    columns = case.data.T.contiguous().T
    assert same(evaluate(Case(wide, case.sigma, case.data, D)), whole, every)
    assert same(evaluate(Case(case.x, case.sigma.repeat_interleave(2)[::2], columns, D)), whole, every)
    for _ in range(3):
        assert same(evaluate(case), whole, every)


def test_double_and_pixels(evaluate: Evaluate) -> None:
    case = crowd(64, 128)
    pixels = (case.data * 60 + 128).clamp(0, 255).to(torch.uint8)
    for other in (case.double(), Case(case.x, case.sigma, pixels, case.D)):
        whole, some = evaluate(other), torch.tensor([41, 3, 99])
        assert same(evaluate(rows(other, some)), whole, some)


@pytest.mark.parametrize("D", [1, 128, math.inf])
@pytest.mark.parametrize("N", [2, 17, 64, 784])
def test_copies_share_their_weight_exactly(N: int, D: float, native: str) -> None:
    """Three copies of every datum weigh the same to the bit, wherever they lie, and leave the mean where it was."""
    case = crowd(N, D)
    distinct = case.data[:67]
    where = (torch.arange(201) % 67)[torch.randperm(201, generator=torch.Generator().manual_seed(N))]
    field = pf.EmpiricalField(distinct[where], D, backend=native)
    weights, indices = field.top_weights(case.x, case.sigma, 201)
    by_place = torch.zeros_like(weights).scatter_(1, indices, weights)
    copies = by_place[:, torch.argsort(where, stable=True)].reshape(ROWS, 67, 3)
    assert torch.equal(copies, copies[:, :, :1].expand_as(copies))
    single = pf.EmpiricalField(distinct, D, backend=native)(case.x, case.sigma)
    assert torch.allclose(field(case.x, case.sigma), single, rtol=1e-4, atol=1e-5)
