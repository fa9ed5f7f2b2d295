"""The kernels for few dimensions: what the shared cases cannot show of splits, tiles, kinds of weight and rows."""

from __future__ import annotations

import math
from typing import Any

import cases
import oracle
import pytest
import torch
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast import operator

pytest.importorskip("triton")
direct = pytest.importorskip("pfgm_fast.kernels.direct")

# A bad row is NaN, a datum far out may be infinitely far: NumPy, the interpreter's engine, warns of both.
pytestmark = [
    pytest.mark.usefixtures("poison"),
    pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning"),
]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
inf = math.inf
Outcome = tuple[Tensor, Tensor]


def crowd(N: int, M: int, B: int, D: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Data from a mixture, queries and noise levels over five decades."""
    source = cases.Source(f"direct-{seed}", 2, D)
    source.N, source.M, source.B = N, M, B
    case = cases.mixture(source)
    return case.x, case.sigma.double(), case.data


def run(
    x: Tensor, sigma: Tensor, data: Tensor, D: float, masses: Tensor | None = None, segments: Tensor | None = None
) -> Outcome:
    """The host function on the device at hand; the result on the CPU."""
    scale = (2.0 if math.isinf(D) else D) * sigma.double() ** 2
    inputs = [t if t is None else t.to(DEVICE) for t in (x, scale, data, operator.center_of(data), masses, segments)]
    mean, log_sum = direct.posterior(*inputs, (data.shape[1] + D) / 2)
    return mean.cpu(), log_sum.cpu()


def check(got: Outcome, x: Tensor, sigma: Tensor, data: Tensor, D: float) -> None:
    truth, eps = oracle.field(x, sigma, data, D), oracle.eps(x, data)
    oracle.check_mean(got[0], truth, eps)
    error = abs(oracle.values(got[1][:, None])[:, 0] - truth.log_sum)
    oracle.bounded("log sum", error, oracle.tolerance(truth, eps, 1e-3) + 4 * eps * abs(truth.log_sum))


def same(got: Outcome, expected: Outcome, index: Any = slice(None)) -> bool:
    return all(torch.equal(g, e[index]) for g, e in zip(got, expected, strict=True))


BORDERS = (1, 10, 10.5, 31.5, 32, 63.5, 64, 255, 256, 9e8, 1e9, 1e20, inf)


@pytest.mark.parametrize("power", BORDERS)
@pytest.mark.parametrize("N", [1, 2, 5])
def test_every_kind_of_weight_at_the_ends_of_its_range(N: int, power: float) -> None:
    D = 2 * power - N
    if D <= 0:
        D = 0.1
    x, sigma, data = crowd(N, 600, 20, min(D, 1e6))
    check(run(x, sigma, data, D), x, sigma, data, D)


@pytest.mark.parametrize("D", [3, 20, 50, 128, 2048, inf])
@pytest.mark.parametrize("N", [2, 5, 16])
def test_the_last_bit_of_a_distance(N: int, D: float) -> None:
    """Half-way between two data, and amid a sphere of them, at levels on both sides of those float32 can serve."""
    generator = torch.Generator().manual_seed(N)
    data = torch.randn(200, N, generator=generator)
    sphere = 1.5 * torch.nn.functional.normalize(data, dim=1)
    for y, x in ((data, (data[:32] + data[1:33]) / 2), (sphere, 1e-4 * data[:32])):
        nearest = ((x[:, None].double() - y) ** 2).sum(2).amin(1)
        for nats in (4.0, direct.CONTENT, direct.CONTENT + N / 2 - 0.1, 60.0):
            if math.isinf(D):
                sigma = (nearest / (2 * nats)).sqrt()
            elif nats < (N + D) / 2:
                sigma = (nearest * ((N + D) / 2 / nats - 1) / D).sqrt()
            else:
                continue
            check(run(x, sigma, y, D), x, sigma, y, D)


@pytest.mark.parametrize("M", [1, 2, 127, 128, 129, 511, 512, 513, 640, 1025, 8193])
@pytest.mark.parametrize("D", [1.0, inf])
def test_data_that_end_anywhere_in_a_split_or_block(M: int, D: float) -> None:
    x, sigma, data = crowd(3, M, 7, D)
    check(run(x, sigma, data, D), x, sigma, data, D)


def test_splits_cover_the_data_and_stay_few() -> None:
    for M in (1, 100, 511, 512, 513, 4096, 100_000, 1_000_000, 2**31 + 5, 10**12):
        length = direct.split_length(M)
        assert length % direct.COLUMNS == 0
        assert -(-M // length) <= 64


VARIANTS = [(2, 1.0), (2, 128.0), (3, inf), (16, inf), (16, 2.7)]


@pytest.mark.parametrize(("N", "D"), VARIANTS)
def test_bits_of_a_row_are_its_own(N: int, D: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its batch, its place there, its company, the tile and the turn in which it is served."""
    x, sigma, data = crowd(N, 1100 if N < 16 else 600, 12, D)
    whole, order = run(x, sigma, data, D), torch.randperm(12, generator=torch.Generator().manual_seed(N))
    assert all(bool(t.isfinite().all()) for t in whole)
    for size in (1, 5, 12):
        assert same(run(x[order[:size]], sigma[order[:size]], data, D), whole, order[:size])
    for level in (0.002, 80.0):
        company = torch.where(torch.arange(12) == 7, sigma, level)
        assert same(tuple(t[7:8] for t in run(x, company, data, D)), whole, slice(7, 8))  # type: ignore[arg-type]
    for rows in (4, 8):
        monkeypatch.setattr(direct, "tile_rows", lambda *_, rows=rows: rows)
        assert same(run(x, sigma, data, D), whole)
    monkeypatch.setattr(direct, "PARTIALS", 3 * 8 * 5 * (N + 2))
    assert same(run(x, sigma, data, D), whole)


def test_layout_does_not_matter() -> None:
    x, sigma, data = crowd(3, 700, 9, 1.0)
    whole = run(x, sigma, data, 1.0)
    wide = torch.cat([x, torch.full_like(x, math.nan)], 1)[:, :3]
    assert same(run(wide, sigma.repeat_interleave(2)[::2], data, 1.0), whole)
    assert same(run(x, sigma, data.t().contiguous().t(), 1.0), whole)
    assert same(run(x, sigma, data.repeat_interleave(2, 0)[::2], 1.0), whole)


def test_a_field_keeps_the_data_as_the_kernels_read_them(interpreted: str) -> None:
    """Coordinate by coordinate, so that no call copies them."""
    x, sigma, data = crowd(3, 700, 9, 1.0)
    _, center, planes = operator.prepare(data, interpreted)
    assert torch.equal(planes, data.t())
    assert planes.is_contiguous()
    assert planes.t().t().contiguous().data_ptr() == planes.data_ptr()
    mean = pf.EmpiricalField(data, 1.0, backend=interpreted)(x, sigma)
    assert torch.equal(mean, run(x, sigma, data, 1.0)[0])
    assert torch.equal(center, operator.center_of(data))


def test_segments_see_what_they_name() -> None:
    """Ranges that begin and end within a block, span splits, hold one datum, or none; alone and in company."""
    x, sigma, data = crowd(2, 1500, 8, 1.0)
    ranges = [(0, 1500), (130, 131), (500, 1100), (1499, 1500), (0, 128), (128, 512), (700, 700), (1024, 1500)]
    for D in (1.0, 128.0, inf):
        got = run(x, sigma, data, D, segments=torch.tensor(ranges))
        for i, (low, high) in enumerate(ranges):
            row = slice(i, i + 1)
            mine = tuple(t[row] for t in got)
            alone = run(x[row], sigma[row], data, D, segments=torch.tensor([ranges[i]]))
            if low == high:
                assert all(bool(t.isnan().all()) for t in (*mine, *alone))
            else:
                assert same(alone, mine)  # type: ignore[arg-type]
                check(mine, x[row], sigma[row], data[low:high], D)  # type: ignore[arg-type]
        assert same(tuple(t[:1] for t in got), run(x[:1], sigma[:1], data, D))  # type: ignore[arg-type]


@pytest.mark.parametrize("D", [1.0, 128.0, inf])
@pytest.mark.parametrize("prior", [False, True])
def test_a_bad_row_is_nan_alone(D: float, prior: bool) -> None:
    x, sigma, data = crowd(2, 300, 12, D)
    masses = torch.linspace(-3, 0, 300, dtype=torch.float64) if prior else None
    whole = run(x, sigma, data, D, masses)
    bad = {0: math.nan, 3: inf, 4: -inf}
    for row, value in bad.items():
        x[row, row % 2] = value
    scaled = sigma.clone()
    scaled[6], scaled[7] = 0.0, math.nan
    got = run(x, scaled, data, D, masses)
    rows = torch.tensor([0, 3, 4, 6, 7])
    assert all(bool(t[rows].isnan().all()) for t in got)
    rest = torch.tensor([1, 2, 5, 8, 9, 10, 11])
    assert same(tuple(t[rest] for t in got), whole, rest)  # type: ignore[arg-type]


def test_a_negative_scale_is_nan() -> None:
    x, _, data = crowd(2, 300, 2, 1.0)
    inputs = [t.to(DEVICE) for t in (x, torch.tensor([-1.0, 1.0]).double(), data, operator.center_of(data))]
    mean, log_sum = direct.posterior(*inputs, None, None, 1.5)
    assert mean.isfinite().all(1).tolist() == log_sum.isfinite().tolist() == [False, True]


def test_an_empty_batch() -> None:
    x, sigma, data = crowd(2, 300, 2, 1.0)
    mean, log_sum = run(x[:0], sigma[:0], data, 1.0)
    assert mean.shape == (0, 2)
    assert log_sum.shape == (0,)


@pytest.mark.parametrize("D", [1.0, 50.0, 1e4, inf])
@pytest.mark.parametrize("N", [2, 16])
@pytest.mark.parametrize("size", [1e-17, 1e-8, 1e8, 1e17, 1e30])
def test_what_squares_would_overflow(size: float, N: int, D: float) -> None:
    """All quantities of a size, then the query alone, then some of the data alone."""
    generator = torch.Generator().manual_seed(N)
    data, x = torch.randn(300, N, generator=generator), torch.randn(6, N, generator=generator)
    sigma = torch.logspace(-2, 2, 6, dtype=torch.float64)
    mixed = torch.cat([data[:100], size * data[100:]])
    for query, level, y in ((size * x, size * sigma, size * data), (size * x, sigma, data), (x, sigma, mixed)):
        check(run(query, level, y, D), query, level, y, D)


@pytest.mark.parametrize("sigma", [1e-20, 1e10, 1e20])
@pytest.mark.parametrize("D", [1.0, 1e4, inf])
def test_extreme_noise(sigma: float, D: float) -> None:
    x, _, data = crowd(2, 300, 6, D)
    level = torch.full((6,), sigma, dtype=torch.float64)
    check(run(x, level, data, D), x, level, data, D)


@pytest.mark.parametrize("D", [1.0, 128.0, inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pixels_in_classes(dtype: torch.dtype, D: float, interpreted: str) -> None:
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (200, 4), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 3, (200,), generator=generator)
    x = torch.rand(30, 4, generator=generator, dtype=dtype) * 2 - 1
    wanted = torch.arange(30) % 3
    got = pf.EmpiricalField(images, D, labels=labels, backend=interpreted)(x, 0.1, labels=wanted)
    level = torch.full((30,), 0.1, dtype=torch.float64)
    truth = oracle.field(x, level, images, D, allowed=(labels == wanted[:, None]).numpy())
    oracle.check_mean(got, truth, oracle.eps(x))
