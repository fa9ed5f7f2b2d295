"""The kernels at full size on a GPU: bounds, bits, memory, and offsets past 2^31 elements; some 40 GiB, alone."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast import kernels, operator
from pfgm_fast.bench import queries
from pfgm_fast.bench.expressions import in_data_units
from pfgm_fast.bench.queries import Query, Shape
from pfgm_fast.kernels import chunks
from pfgm_fast.solution import Record, Status

sys.path.append(str(Path(__file__).parent.parent))  # benchmarks/ is not installed
from benchmarks import shapes

GPU = torch.device("cuda")
pytestmark = [
    pytest.mark.usefixtures("freed"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch can use"),
]
CASES = [
    *((shape, variant, "highest") for shape in shapes.ON_GPU for variant in (queries.SPREAD, queries.ALL_80)),
    *((shape, queries.SPREAD, "high") for shape in shapes.ON_GPU if shape.N > kernels.NARROW),
]


@pytest.mark.parametrize(("shape", "variant", "precision"), CASES, ids=str)
def test_case(shape: Shape, variant: str, precision: str) -> None:
    """Within its bounds on some rows, these rows alone to the bit, and in the memory that is stated."""
    query = queries.make(shape, variant, GPU)
    field = pf.EmpiricalField(query.data, query.D, precision=precision, backend="triton")
    field(query.x[:1], query.sigma[:1])
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = field(query.x, query.sigma)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    assert result.isfinite().all()
    assert torch.equal(field(query.x[query.rows], query.sigma[query.rows]), result[query.rows])
    assert peak <= workspace(shape), f"{peak / 2**20:.0f} MiB above the inputs"
    exact = queries.truth(query)
    if precision == "highest":
        off = queries.error(query, result, exact).bounds
        assert off is not None
        assert off <= 1
    else:
        off_by = (result[query.rows].double() - exact).norm(dim=1)
        assert (off_by <= allowed_of_high(query, exact)).all()


def workspace(shape: Shape) -> float:
    """Bytes beyond the inputs: weights or partial sums, a quarter of that beside them, the queries cut and summed."""
    inputs = 24 * shape.B * shape.N
    if shape.N <= kernels.NARROW:
        inputs += 4 * shape.M * shape.N  # the coordinates one after the other
    largest: int = max(chunks.WORKSPACE, 4 * chunks.ROWS * shape.M * (shape.N > kernels.MIDDLING))
    return 1.25 * largest + inputs


def allowed_of_high(query: Query, exact: Tensor) -> Tensor:
    """What precision "high" may be off by at the checked rows, by docs/kernels.md."""
    x, sigma = (t[query.rows].double() for t in query.sets[0])
    N, pixels = x.shape[1], query.data.dtype == torch.uint8
    center = operator.center_of(query.data).double() / (255 if pixels else 1)
    largest = torch.stack([(part - center).abs().amax() for part in query.parts(torch.float64)]).amax()
    longest = torch.stack([part.norm(dim=1).amax() for part in query.parts(torch.float64)]).amax()
    reach = (x - center).abs().amax(1).clamp_min(largest)[:, None]
    d, away = distances(x, query), distances(exact, query)
    e = math.sqrt(N) * 2**-14 * (reach + (0 if pixels else largest))
    off = 2 * e * d + e * e + 2**-18 * reach * largest
    if math.isinf(query.D):
        logs, nats = -(d * d) / (2 * sigma**2)[:, None], off / (2 * sigma**2)[:, None]
    else:
        scale, power = (query.D * sigma**2)[:, None], (N + query.D) / 2
        logs = -power * torch.log1p(d * d / scale)
        share = off / (scale + d * d)
        nats = torch.where(share < 0.999, -power * torch.log1p(-share.clamp_max(0.999)), math.inf)
    nats = nats.clamp_max(500)  # such bounds tell nothing anyway
    weights = logs.softmax(1)
    total = (weights.log() + nats).logsumexp(1)
    moved = (weights * torch.expm1((nats + total[:, None]).clamp_max(500)) * away).sum(1)
    rounded: Tensor = 2**-11 * (x.norm(dim=1).clamp_min(longest) + (weights * away).sum(1)) + 1e-9
    return moved + rounded


def distances(x: Tensor, query: Query) -> Tensor:
    """From the checked rows to all data, by differences."""
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cat([torch.cdist(x, part, compute_mode=mode) for part in query.parts(torch.float64)], 1)


KEPT = [  # bytes beside a number of the data, by docs/kernels.md
    (torch.float32, "highest", 4),
    (torch.float32, "high", 2),
    (torch.uint8, "highest", 1),
    (torch.uint8, "high", 1),
]


@pytest.mark.parametrize(("dtype", "precision", "kept"), KEPT, ids=str)
def test_full_size_fields_keep_what_is_stated(dtype: torch.dtype, precision: str, kept: int) -> None:
    M, N = 100_000, 3072
    data = torch.randint(256, (M, N), dtype=torch.uint8, device=GPU).to(dtype)
    before = torch.cuda.memory_allocated()
    field = pf.EmpiricalField(data, 128.0, precision=precision, backend="triton")
    assert torch.cuda.memory_allocated() - before <= kept * M * N + 64 * M + (1 << 20)
    assert len(field) == M


class Vast(NamedTuple):
    """A problem in which an index that is multiplied by a row's length passes 2^31."""

    B: int
    M: int
    N: int
    dtype: torch.dtype
    precision: str = "highest"

    def bytes(self) -> int:
        rows: int = min(self.B, chunks.ROWS)
        return (self.dtype.itemsize + 8) * (self.M + self.B) * self.N + self.weight * rows * self.M

    @property
    def weight(self) -> int:
        return 8 if self.dtype == torch.float64 else 4


VAST = {
    "direct, data": Vast(16, 135_000_000, 16, torch.float32),
    "direct, queries": Vast(135_000_000, 2, 16, torch.float32),
    "fused, data": Vast(64, 34_000_000, 64, torch.float32),
    "fused, pixels": Vast(64, 34_000_000, 64, torch.uint8),
    "fused, high": Vast(64, 34_000_000, 64, torch.float32, "high"),
    "fused, queries": Vast(34_000_000, 2, 64, torch.float32),
    "wide, pixels and weights": Vast(128, 17_000_000, 257, torch.uint8),
    "wide, pixels and weights, high": Vast(128, 17_000_000, 257, torch.uint8, "high"),
    "wide, data": Vast(64, 700_000, 3072, torch.float32),
    "wide, data, high": Vast(64, 700_000, 3072, torch.float32, "high"),
    "wide, doubles": Vast(16, 700_000, 3072, torch.float64),
    "wide, queries": Vast(700_000, 2, 3072, torch.float32),
}


@pytest.mark.parametrize("vast", VAST.values(), ids=list(VAST))
def test_full_size_offsets(vast: Vast) -> None:
    """Queries near the first, the middle and the last datum find it; the last queries get what they get alone."""
    refuse_without(vast.bytes())
    generator = torch.Generator(GPU).manual_seed(0)
    if vast.dtype == torch.uint8:
        data = torch.randint(256, (vast.M, vast.N), generator=generator, dtype=torch.uint8, device=GPU)
    else:
        data = torch.randn(vast.M, vast.N, generator=generator, device=GPU, dtype=vast.dtype)
    nearest = torch.linspace(0, vast.M - 1, vast.B, dtype=torch.float64, device=GPU).long()
    kind = torch.float64 if vast.dtype == torch.float64 else torch.float32
    x = torch.empty(vast.B, vast.N, device=GPU, dtype=kind)
    for part, chosen in zip(x.split(1 << 20), nearest.split(1 << 20), strict=True):
        part.copy_(in_data_units(data[chosen], kind)).add_(1e-3)
    field = pf.EmpiricalField(data, math.inf, precision=vast.precision, backend="triton")
    sigma = 0.1 if vast.precision == "high" else 0.02
    mean = field(x, sigma)
    ends = torch.cat([torch.arange(8, device=GPU), torch.arange(vast.B - 8, vast.B, device=GPU)])
    rounding = 2e-3 if vast.precision == "high" else 0.0
    wanted = in_data_units(data[nearest[ends]], kind)
    assert (mean[ends] - wanted).abs().max() < 1e-3 + rounding * wanted.abs().max()
    assert torch.equal(field(x[ends], sigma), mean[ends])
    if vast.N > kernels.NARROW and vast.M > 2:
        _, indices = field.top_weights(x[ends], sigma, 1)
        assert torch.equal(indices[:, 0], nearest[ends])


def refuse_without(needed: float) -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < needed:
        pytest.skip(f"it needs {needed / 2**30:.0f} GiB of memory, {free / 2**30:.0f} GiB are free")


def test_full_size_noise() -> None:
    """More elements than 2^31: the last rows are those that their seeds make alone."""
    B, N = 175_000, 12_288
    refuse_without(6 * B * N)
    seeds = torch.arange(B, device=GPU)
    x = pf.prior((B, N), 80.0, 128.0, seeds=seeds)
    assert torch.equal(x[-3:], pf.prior((3, N), 80.0, 128.0, seeds=seeds[-3:]))


@pytest.mark.parametrize("N", [4096, 12_288], ids=["short rows", "long rows"])
def test_full_size_half_steps(N: int) -> None:
    update = pytest.importorskip("pfgm_fast.kernels.update")
    B = 2**31 // N + 100
    refuse_without(6 * 4 * B * N)
    record = Record.start(torch.empty(B, N, device=GPU).normal_(), 2.0)
    record.x[B - 2, N - 1] = math.inf
    term, work = torch.ones(B, N, device=GPU), torch.empty(2, B, N, device=GPU)
    last = record.x[-4:].clone()
    update.advance(record.x, record.t, record.accepted, record.status, 0.5, [(2.0, term)], 1.0, 1, work)
    assert (record.status == Status.NONFINITE).nonzero().flatten().tolist() == [B - 2]
    assert torch.equal(record.x[[-4, -3, -1]], 0.5 * last[[0, 1, 3]] + 2)
    assert torch.equal(record.x[-2], last[2])


@pytest.mark.parametrize("way", ["off", "auto", "while"])
def test_full_size_slots(way: str) -> None:
    """The loop's slopes fill more than 2^31 numbers: the last rows go where they go alone."""
    from pfgm_fast.ode import cuda
    from pfgm_fast.ode.controller import IntegralController

    why = cuda.unavailable()
    if why is not None:
        pytest.skip(why)
    N = 12_288
    B = 2**31 // (cuda.SLOPES * N) + 100
    refuse_without(4 * B * N * (cuda.SLOPES + 8))
    y0 = torch.empty(B, N, device=GPU).normal_()

    def solved(y0: Tensor) -> Record:
        record = Record.start(y0, 0.0)
        options = {"rtol": 1e-2, "atol": 1e-2, "max_steps": 100, "controller": IntegralController()}
        ends = torch.full_like(record.t, 1.0)
        cuda.solve(lambda t, y, rows: -y, record, ends, cuda_graph=way, **options)  # type: ignore[arg-type]
        return record

    whole, alone = solved(y0), solved(y0[-5:].clone())
    assert (whole.status == Status.SUCCESS).all()
    assert torch.equal(whole.x[-5:], alone.x)
    assert torch.equal(whole.nfe[-5:], alone.nfe)
