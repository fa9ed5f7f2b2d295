"""The Triton kernels for N > 16, interpreted: hard cases against the oracle, and bits that depend on the row alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import cases
import numpy as np
import oracle
import pytest
import torch
from cases import Case
from torch import Tensor

import pfgm_fast as pf

pytestmark = pytest.mark.usefixtures("poison", "interpreted")

# of every kind of case, those that take another way through the kernels; a GPU is held to all of them (test_gpu.py)
NAMES = (
    "mixture-N17-D1",
    "flat-N784-Dinf",
    "mixture-N3072-D128",
    "near_duplicates-N64-Dinf",
    "near_duplicates-N784-D1",
    "clusters-N64-D1",
    "pixels-N17-D1",
    "pixels-N784-D128",
    "weighted-N64-Dinf",
    "classes-N784-D1",
    "double_data-N64-D1",
)


def field_of(case: Case) -> pf.EmpiricalField:
    return pf.EmpiricalField(case.data, case.D, labels=case.labels, log_weights=case.log_weights, backend="triton")


def evaluate(case: Case) -> Tensor:
    return field_of(case)(case.x, case.sigma, labels=case.row_labels)


@pytest.mark.parametrize("name", NAMES)
def test_within_the_promised_bounds(name: str) -> None:
    case, truth = cases.make(name), cases.truth(name)
    eps = max(case.eps, torch.finfo(case.x.dtype).eps)
    oracle.check_mean(evaluate(case), truth, eps)
    if case.row_labels is None and len(case.data) < 150:
        oracle.check_log_density(field_of(case).log_density(case.x, case.sigma), truth, eps)


@pytest.mark.parametrize("name", ["mixture-N2-D1", "pixels-N784-D1"])
def test_the_largest_weights(name: str) -> None:
    case, truth = cases.make(name), cases.truth(name)
    weights, indices = field_of(case).top_weights(case.x, case.sigma, len(case.data))
    assert bool((weights[:, :-1] >= weights[:, 1:]).all())
    oracle.check_weights(weights, indices, truth, case.eps)


def crowd(kind: str, N: int, D: float) -> Case:
    """Queries from quiet to loud over data that span several tiles and parts."""
    source = cases.Source(f"kernels-{kind}-{N}", N, D)
    source.B, source.M = 19, 557 if N == 64 else 301
    case = cases.near_duplicates(source) if kind == "floats" else cases.mixture(source)
    if kind == "pixels":
        return Case(case.x, case.sigma, (case.data * 60 + 128).clamp(0, 255).to(torch.uint8), D)
    return case.double() if kind == "doubles" else case


PLANS = [("floats", 64, math.inf), ("pixels", 784, 1.0)]


def part(case: Case, rows: Tensor) -> Case:
    return Case(case.x[rows], case.sigma[rows], case.data, case.D)


@pytest.mark.parametrize(("kind", "N", "D"), [*PLANS, ("doubles", 64, 1.0)])
def test_any_batch(kind: str, N: int, D: float) -> None:
    """A few of the rows, in another order."""
    case = crowd(kind, N, D)
    whole, order = evaluate(case), torch.randperm(19, generator=torch.Generator().manual_seed(N))
    assert bool(whole.isfinite().all())
    assert torch.equal(evaluate(part(case, order[:9])), whole[order[:9]])


@contextmanager
def tiles_of(rows: int) -> Iterator[None]:
    from pfgm_fast.kernels import tiles

    with tiles.trying(lambda kernel, device, shape_class: tiles.Tile(rows, 1, 1)):
        yield


@pytest.mark.parametrize(("kind", "N", "D"), PLANS)
def test_any_tile(kind: str, N: int, D: float) -> None:
    """What may be tuned changes no bit; of the order of sums on a GPU, test_kernels_compiled.py."""
    case = crowd(kind, N, D)
    whole = evaluate(case)
    with tiles_of(16):
        assert torch.equal(evaluate(case), whole)


@pytest.mark.parametrize("N", [20, 300])
def test_rows_are_taken_in_chunks(N: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from pfgm_fast.kernels import chunks

    source = cases.Source("chunks", 64, 128.0)
    source.N, source.B, source.M = N, 140, 40
    case = cases.mixture(source)
    whole = evaluate(case)
    monkeypatch.setattr(chunks, "WORKSPACE", 1)
    assert torch.equal(evaluate(case), whole)


def test_digits_are_the_rounded_values() -> None:
    from pfgm_fast.kernels import digits

    rows = torch.randn(5, 100, generator=torch.Generator().manual_seed(1)) * torch.tensor(
        [[1e-6], [1], [3], [50], [1e9]]
    )
    center = torch.full((100,), 0.25, dtype=torch.float64)
    shared = digits.of_data(rows[1:3], center)
    for cut, values in ((digits.of_queries(rows, shared, center), rows), (shared, rows[1:3])):
        planes, exponent = cut.planes.numpy().astype(np.float64), cut.exponent.numpy()[:, None]
        assert planes.shape == (4, len(values), 128)
        assert not planes[:, :, 100:].any()
        sums = sum(plane / 256.0**place for place, plane in enumerate(planes)) * 2.0**exponent
        wanted = (values.double() - center).numpy()
        off = np.abs(sums[:, :100] - wanted)
        assert (off <= 2.0 ** (exponent - 25)).all()
        lost = np.linalg.norm(off, axis=1)
        np.testing.assert_allclose(cut.error.numpy(), lost if len(cut.error) > 1 else [lost.max()], rtol=1e-6)
        np.testing.assert_allclose(
            cut.squares.numpy() * 2.0 ** (2 * exponent[:, 0] - 32), (sums**2).sum(1), rtol=1e-12, atol=1e-300
        )


def test_scores_of_pixels_are_exact() -> None:
    """Integers, whatever the tile: the score of each pair is |y|^2 - 2 x.y of the rounded query."""
    from pfgm_fast.kernels import digits

    generator = torch.Generator().manual_seed(2)
    data = torch.randint(0, 256, (50, 40), generator=generator, dtype=torch.uint8)
    cut = digits.of_pixels(data)
    assert torch.equal(cut.planes[0, :, :40].int(), data.int() - 128)
    assert cut.error.item() == 0
    assert torch.equal(cut.squares >> 32, ((data.long() - 128) ** 2).sum(1))
