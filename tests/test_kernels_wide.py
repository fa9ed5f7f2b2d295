"""The Triton kernels for N > 16: hard cases against the oracle, and bits that depend on the row alone."""

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
from pfgm_fast import kernels, operator

pytestmark = pytest.mark.usefixtures("poison", "interpreted")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

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


def field_of(case: Case, precision: str = "highest") -> pf.EmpiricalField:
    return pf.EmpiricalField(
        case.data, case.D, labels=case.labels, log_weights=case.log_weights, precision=precision, backend="triton"
    )


def evaluate(case: Case, precision: str = "highest") -> Tensor:
    return field_of(case, precision)(case.x, case.sigma, labels=case.row_labels)


@pytest.mark.parametrize("name", NAMES)
def test_within_the_promised_bounds(name: str) -> None:
    case, truth = cases.make(name), cases.truth(name)
    eps = max(case.eps, torch.finfo(case.x.dtype).eps)
    oracle.check_mean(evaluate(case), truth, eps)
    if case.row_labels is None and len(case.data) < 150:
        oracle.check_log_density(field_of(case).log_density(case.x, case.sigma), truth, eps)


def doubts_of_high(case: Case, truth: oracle.Truth) -> tuple[oracle.Array, oracle.Array]:
    """What precision "high" may do to log weights (B, M), and to their log-sum-exp (B,), by docs/kernels.md."""
    x, y, N = truth.x, oracle.values(case.data), case.x.shape[1]
    center = oracle.values(operator.center_of(case.data)[None])
    center = center / 255 if case.data.dtype == torch.uint8 else center
    largest = np.abs(y - center).max()
    query = np.maximum(np.abs(x - center).max(1), largest)[:, None]
    d = np.stack([oracle.squared_distances(row, y) for row in x])
    e = np.sqrt(N) * 2.0**-14 * (query + (0 if case.data.dtype == torch.uint8 else largest))
    off = 2 * e * np.sqrt(d) + e * e + 2.0**-18 * query * largest
    sigma = truth.sigma[:, None]
    if math.isinf(case.D):
        nats = off / (2 * sigma**2)
    else:
        s = case.D * sigma**2 + d
        share = off / s
        nats = np.where(share < 0.999, -(N + case.D) / 2 * np.log1p(-np.minimum(share, 0.999)), np.inf)
    nats = np.minimum(nats, 500)  # such bounds tell nothing anyway
    return nats, np.log((truth.weights * np.exp(nats)).sum(1))


HIGH: tuple[str, ...] = (
    "mixture-N17-D1",
    "clusters-N64-D1",
    "mixture-N100-D128",
    "mixture-N784-Dinf",
    "pixels-N784-D128",
    "far-N64-Dinf",
    "one_datum-N64-D1",
    "one_datum-N64-Dinf",
    "one_datum-N784-D128",
)
OTHERS = ("weighted", "light_neighbours", "classes", "double_data", "double_queries")  # masses, classes, float64
if torch.cuda.is_available():
    HIGH = tuple(
        name for name, (kind, N, _) in cases.MAKERS.items() if N > kernels.NARROW and kind.__name__ not in OTHERS
    )


@pytest.mark.parametrize("name", HIGH)
def test_high_is_within_its_bounds(name: str) -> None:
    case, truth = cases.make(name), cases.truth(name)
    nats, total = doubts_of_high(case, truth)
    field, y = field_of(case, "high"), oracle.values(case.data)
    eps = 4 * case.eps * np.abs(truth.log_sum)
    off = np.abs(oracle.values(field.log_density(case.x, case.sigma)[:, None])[:, 0] - truth.log_density)
    told = total < 400  # of the others nothing is promised
    oracle.bounded("log density", off[told], np.asarray(total + 1e-3 + eps, oracle.Real)[told])
    away = np.stack([oracle.norm(y - mean) for mean in truth.mean])
    moved = (truth.weights * np.expm1(nats + total[:, None]) * away).sum(1)
    mean = field(case.x, case.sigma)
    oracle.bounded("posterior mean", oracle.mean_error(mean, truth), moved + 2.0**-11 * (truth.scale + truth.spread))
    loud = truth.sigma > 3
    if loud.any():
        assert oracle.mean_error(mean, truth)[loud].max() < 2e-3 * truth.scale[loud].max()
    if "pixels" in name:
        weights, indices = field.top_weights(case.x, case.sigma, len(case.data))
        assert torch.allclose(weights.sum(1), torch.ones(len(case.x)), atol=1e-3)
        exact, places = field_of(case).top_weights(case.x, case.sigma, 1)
        assert torch.allclose(weights[:, :1], exact, atol=2e-2)
        assert torch.equal(indices[exact[:, 0] > 0.6, 0], places[exact[:, 0] > 0.6, 0])


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("N", [20, 300])
def test_high_keeps_fewer_digits(N: int, pixels: bool) -> None:
    """And with them settles the precision: nothing else tells the operator of it."""
    from pfgm_fast.kernels import digits

    case = crowd("pixels" if pixels else "floats", 64 if N == 20 else 784, 1.0)
    data, x = case.data[:, :N].contiguous(), case.x[:, :N].contiguous()
    high, highest = (operator.prepare(data, "triton", precision) for precision in ("high", "highest"))
    there = [tensor.to(DEVICE) for tensor in high]
    y = digits.Digits(*there[2:])
    assert len(y.planes) == (1 if pixels else 2)
    assert len(digits.of_queries(x.to(DEVICE), y, there[1]).planes) == 2
    assert sum(t.nbytes for t in high) <= sum(t.nbytes for t in highest)
    assert [(t.shape, t.dtype) for t in kernels.empty_pack(data, "high")] == [(t.shape, t.dtype) for t in high[2:]]
    scale = case.sigma.double() ** 2
    rough, fine = (operator.posterior(x, scale, some, None, None, (N + 1) / 2, "triton")[0] for some in (high, highest))
    assert not torch.equal(rough, fine)
    scale[3], x[7, N - 1] = math.nan, math.inf
    spoilt, log_sum = operator.posterior(x, scale, high, None, None, (N + 1) / 2, "triton")
    bad = torch.tensor([row in (3, 7) for row in range(len(x))])
    assert bool(spoilt[bad].isnan().all() & log_sum[bad].isnan().all())
    assert torch.equal(spoilt[~bad], rough[~bad])


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


PLANS = [
    ("floats", 64, math.inf, "highest"),
    ("pixels", 784, 1.0, "highest"),
    ("floats", 64, 1.0, "high"),
    ("floats", 784, math.inf, "high"),
]


def part(case: Case, rows: Tensor) -> Case:
    return Case(case.x[rows], case.sigma[rows], case.data, case.D)


@pytest.mark.parametrize(("kind", "N", "D", "precision"), [*PLANS, ("doubles", 64, 1.0, "highest")])
def test_any_batch(kind: str, N: int, D: float, precision: str) -> None:
    """A few of the rows, in another order."""
    case = crowd(kind, N, D)
    whole, order = evaluate(case, precision), torch.randperm(19, generator=torch.Generator().manual_seed(N))
    assert bool(whole.isfinite().all())
    assert torch.equal(evaluate(part(case, order[:9]), precision), whole[order[:9]])


@contextmanager
def tiles_of(rows: int) -> Iterator[None]:
    from pfgm_fast.kernels import tiles

    warps = 4 if torch.cuda.is_available() else 1
    with tiles.trying(lambda kernel, device, shape_class: tiles.Tile(rows, warps, 1)):
        yield


@pytest.mark.parametrize(("kind", "N", "D", "precision"), PLANS)
def test_any_tile(kind: str, N: int, D: float, precision: str) -> None:
    """What may be tuned changes no bit; of the order of sums on a GPU, test_kernels_compiled.py."""
    case = crowd(kind, N, D)
    whole = evaluate(case, precision)
    with tiles_of(16):
        assert torch.equal(evaluate(case, precision), whole)


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
    there, origin = rows.to(DEVICE), center.to(DEVICE)
    shared = digits.of_data(there[1:3], origin)
    queries = digits.of_queries(there, shared, origin)
    for found, values in ((queries, rows), (shared, rows[1:3])):
        cut = digits.Digits(*(tensor.cpu() for tensor in found if tensor is not None))
        planes, exponent = cut.planes.numpy().astype(np.float64), cut.exponent.numpy()[:, None]
        assert planes.shape == (4, len(values), 128)
        assert not planes[:, :, 100:].any()
        sums = sum(plane / 256.0**place for place, plane in enumerate(planes)) * 2.0**exponent
        wanted = (values.double() - center).numpy()
        off = np.abs(sums[:, :100] - wanted)
        assert (off <= 2.0 ** (exponent - 25)).all()
        lost = np.linalg.norm(off, axis=1)
        assert cut.error is not None
        np.testing.assert_allclose(cut.error.numpy(), lost if len(cut.error) > 1 else [lost.max()], rtol=1e-6)
        np.testing.assert_allclose(
            cut.squares.numpy() * 2.0 ** (2 * exponent[:, 0] - 32), (sums**2).sum(1), rtol=1e-12, atol=1e-300
        )


def test_scores_of_pixels_are_exact() -> None:
    """Integers, whatever the tile: the score of each pair is |y|^2 - 2 x.y of the rounded query."""
    from pfgm_fast.kernels import digits

    generator = torch.Generator().manual_seed(2)
    data = torch.randint(0, 256, (50, 40), generator=generator, dtype=torch.uint8)
    cut = digits.Digits(*(tensor.cpu() for tensor in digits.of_pixels(data.to(DEVICE)) if tensor is not None))
    assert cut.error is not None
    assert torch.equal(cut.planes[0, :, :40].int(), data.int() - 128)
    assert cut.error.item() == 0
    assert torch.equal(cut.squares >> 32, ((data.long() - 128) ** 2).sum(1))
