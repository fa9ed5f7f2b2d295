"""What only a GPU can tell, for `benchmarks/gpu.sh`: the kernels at full size, their bits, their memory, their streams.

Those with "full_size" in their names need most of a large GPU's memory. Without a GPU all but one are skipped.
"""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cases
import oracle
import pytest
import torch
from cases import Case
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast import kernels, operator
from pfgm_fast.kernels import chunks

sys.path.append(str(Path(__file__).parent.parent))  # benchmarks/ is not installed
from benchmarks.gpu import posterior_mean as pm

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
digits = pytest.importorskip("pfgm_fast.kernels.digits")
scores = pytest.importorskip("pfgm_fast.kernels.scores")
wide = pytest.importorskip("pfgm_fast.kernels.wide")

GPU = torch.device("cuda")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch can use")
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
DIMENSIONS = [(2, 1.0), (8, 2.7), (17, 128.0), (64, math.inf), (300, 1.0), (784, 128.0)]
ROWS, DATA = 200, 1500


@pytest.fixture(autouse=True)
def freed() -> Iterator[None]:
    """Leaves no memory to the next test's allocator statistics, nor to other processes."""
    yield
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@pytest.fixture(params=DIMENSIONS, ids=lambda param: f"N{param[0]}-D{param[1]:g}")
def problem(request: pytest.FixtureRequest) -> tuple[pf.EmpiricalField, Tensor, Tensor]:
    """A field of several blocks of data, and queries enough for several tiles, with noise levels of every size."""
    N, D = request.param
    source = cases.Source(f"gpu-{N}-{D}", 2, D)
    source.N, source.B, source.M = N, ROWS, DATA
    case = cases.mixture(source)
    return pf.EmpiricalField(case.data, D, backend="triton", device=GPU), case.x.to(GPU), case.sigma.to(GPU)


Problem = tuple[pf.EmpiricalField, Tensor, Tensor]


@on_gpu
def test_any_batch_has_the_same_bits(problem: Problem) -> None:
    field, x, sigma = problem
    whole, density = field(x, sigma), field.log_density(x, sigma)
    assert whole.isfinite().all()
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0)).to(GPU)
    for size in (1, 2, 15, 16, 17, 33, 64, 65, 129, ROWS):
        rows = order[:size]
        assert torch.equal(field(x[rows], sigma[rows]), whole[rows]), f"batch of {size}"
        assert torch.equal(field.log_density(x[rows], sigma[rows]), density[rows]), f"batch of {size}"
    many = torch.arange(3000, device=GPU) % ROWS
    assert torch.equal(field(x[many], sigma[many]), whole[many])


@on_gpu
def test_every_run_and_stream_has_the_same_bits(problem: Problem) -> None:
    field, x, sigma = problem
    whole = field(x, sigma)
    assert all(torch.equal(field(x, sigma), whole) for _ in range(5))
    torch.cuda.synchronize()
    streams, results = [torch.cuda.Stream() for _ in range(4)], []
    for _ in range(5):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(field(x, sigma))
    torch.cuda.synchronize()
    assert all(torch.equal(result, whole) for result in results)


@on_gpu
def test_a_captured_call_is_replayed(problem: Problem) -> None:
    field, x, sigma = problem
    expected = [(field(x, sigma), field.log_density(x, sigma)) for x, sigma in ((x, sigma), (x.flip(0), sigma.flip(0)))]
    inputs = x.clone(), sigma.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        field(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        mean, density = field(*inputs), field.log_density(*inputs)
    for turn, want in enumerate(expected):
        for held, new in zip(inputs, (x, sigma), strict=True):
            held.copy_(new.flip(0) if turn else new)
        graph.replay()
        assert torch.equal(mean, want[0])
        assert torch.equal(density, want[1])


@on_gpu
def test_a_compiled_call_is_the_call(problem: Problem) -> None:
    torch._dynamo.reset()
    field, x, sigma = problem

    def step(x: Tensor, sigma: Tensor) -> Tensor:
        return x + (field(x, sigma) - x) / sigma[:, None]

    compiled = torch.compile(step, fullgraph=True)
    torch.testing.assert_close(compiled(x, sigma), step(x, sigma), rtol=1e-5, atol=1e-5)
    compiled = torch.compile(lambda x, sigma: field(x, sigma), fullgraph=True, mode="reduce-overhead")
    for _ in range(3):
        assert torch.equal(compiled(x, sigma), field(x, sigma))


def without_waiting(call: Callable[[], object]) -> None:
    """Runs a call twice, the second time as an error if it waits for the GPU."""
    call()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


METHODS = {
    "mean": lambda field, x, sigma, rows: field(x, sigma),
    "mean at one sigma": lambda field, x, sigma, rows: field(x, 0.5),
    "mean of classes": lambda field, x, sigma, rows: field(x, sigma, labels=rows),
    "unchecked mean": lambda field, x, sigma, rows: field.unchecked(x, sigma, rows),
    "Poisson field": lambda field, x, sigma, rows: field.poisson_field(x, sigma, 5.0),
    "log density": lambda field, x, sigma, rows: field.log_density(x, sigma),
    "score": lambda field, x, sigma, rows: field.score(x, sigma),
    "effective sample size": lambda field, x, sigma, rows: field.effective_sample_size(x, sigma),
}


@on_gpu
@pytest.mark.parametrize("N", [2, 64, 784])
@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_no_method_waits_for_the_gpu(method: Callable[..., Tensor], N: int) -> None:
    data, x = torch.rand(DATA, N, device=GPU), torch.rand(ROWS, N, device=GPU)
    labels = torch.arange(DATA, device=GPU) % 3
    field = pf.EmpiricalField(data, 8.0, labels=labels, log_weights=torch.rand(DATA, device=GPU), backend="triton")
    sigma, rows = torch.linspace(0.1, 2, ROWS, device=GPU), torch.arange(ROWS, device=GPU) % 4 - 1
    without_waiting(lambda: method(field, x, sigma, rows))


@on_gpu
@pytest.mark.parametrize("D", [1.0, 128.0, math.inf])
def test_no_noise_waits_for_the_gpu(D: float) -> None:
    y, sigma, seeds = torch.zeros(64, 300, device=GPU), torch.ones(64, device=GPU), torch.arange(64, device=GPU)
    without_waiting(lambda: pf.perturb(y, sigma, D, seeds=seeds))
    without_waiting(lambda: pf.perturb(y, 0.5, D))
    without_waiting(lambda: pf.prior((64, 300), 80.0, D, seeds=seeds))


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("D", [0.5, 1.0, 2.7, 128.0, 1e6, math.inf])
def test_noise_is_that_of_the_cpu(D: float, dtype: torch.dtype) -> None:
    """To 1e-6, or a rounding unit where the dtype is coarser."""
    sigma = torch.logspace(-2, 1, 300, dtype=torch.float64)
    exact = pf.prior((300, 517), sigma, D, seeds=range(300), dtype=torch.float64)
    got = pf.prior((300, 517), sigma.to(GPU), D, seeds=range(300), dtype=dtype, device=GPU)
    tolerance = max(1e-6, torch.finfo(dtype).eps)
    within = exact.abs() < torch.finfo(dtype).max  # beyond, the value is infinite
    torch.testing.assert_close(got.cpu().double()[within], exact[within], rtol=tolerance, atol=torch.finfo(dtype).tiny)
    assert got.cpu()[~within].isinf().all()


@on_gpu
@two_gpus
@pytest.mark.parametrize(("N", "D"), DIMENSIONS)
def test_every_gpu_has_the_same_bits(N: int, D: float) -> None:
    """While another device is the current one."""
    data, x, sigma = torch.rand(DATA, N), torch.rand(ROWS, N), torch.linspace(0.1, 2, ROWS)
    results = []
    for index in range(2):
        device = torch.device("cuda", index)
        field = pf.EmpiricalField(data, D, backend="triton", device=device)
        noisy = pf.perturb(x.to(device), sigma.to(device), D, seeds=range(ROWS))
        results.append((field(noisy, sigma.to(device)).cpu(), noisy.cpu()))
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


TILE, BLOCK = tl.constexpr(64), tl.constexpr(128)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def score_kernel(x, y, y_squares, shift, out, B, M, width):  # type: ignore[no-untyped-def]
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row, column = tl.minimum(i, B - 1), tl.minimum(j, M - 1)
    step = tl.load(shift + row)
    score = scores.of_digits(x, y, y_squares, step, row, column, B, M, width, width, 3, 1, False, TILE, BLOCK, 32)
    tl.store(out + i[:, None] * M + j[None, :], score, mask=(i < B)[:, None] & (j < M)[None, :])


@pytest.mark.skipif(kernels.unavailable() is not None, reason=str(kernels.unavailable()))
def test_scores_of_pixels_are_exact() -> None:
    """The same integers on a GPU and in the interpreter, because they are those of 64-bit arithmetic on the CPU."""
    device = GPU if kernels.supports(GPU) else torch.device("cpu")
    B, M, N = 33, 130, 200
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(256, (M, N), generator=generator, dtype=torch.uint8)
    x = torch.randn(B, N, generator=generator) * torch.logspace(-2, 2, B)[:, None]
    y = digits.of_pixels(data.to(device))
    queries = digits.of_queries(x.to(device), y, torch.zeros(N, dtype=torch.float64, device=device))
    shift = (queries.exponent - y.exponent + 17).clamp_max(62)  # |y|^2 comes in units finer by so many bits
    out = torch.empty(B, M, dtype=torch.int64, device=device)
    grid = (triton.cdiv(B, TILE.value), triton.cdiv(M, BLOCK.value))
    tensors, sizes = (queries.planes, y.planes, y.squares, shift, out), (B, M, y.planes.shape[2])
    score_kernel[grid](*tensors, *sizes, num_warps=4, num_stages=2, enable_fp_fusion=False)
    places = torch.tensor([65536, 256, 1])[:, None, None]
    integers = (queries.planes.cpu().long() * places).sum(0)[:, :N]
    values = data.long() - 128
    squares = (values * values).sum(1) << 32
    assert torch.equal(y.squares.cpu(), squares)
    steps = shift.cpu().long()[:, None]
    assert torch.equal(out.cpu(), ((squares + ((1 << steps) >> 1)) >> steps) - integers @ values.T)


@on_gpu
@pytest.mark.parametrize("N", [5, 20, 300])
def test_a_bad_row_is_nan_alone(N: int) -> None:
    data, x = torch.rand(DATA, N, device=GPU), torch.rand(9, N, device=GPU)
    sigma, rows = torch.full((9,), 0.5, device=GPU), torch.zeros(9, dtype=torch.int64, device=GPU)
    field = pf.EmpiricalField(data, 8.0, labels=torch.arange(DATA, device=GPU) % 3, backend="triton")
    clean = field.unchecked(x, sigma, rows)
    x[1, N - 1], x[2, 0], sigma[3], sigma[4], rows[5] = math.nan, math.inf, 0.0, math.nan, 77
    got = field.unchecked(x, sigma, rows)
    assert got[1:6].isnan().all()
    assert torch.equal(got[[0, 6, 7, 8]], clean[[0, 6, 7, 8]])


@on_gpu
@pytest.mark.parametrize("N", [5, 20, 300])
def test_opcheck(N: int) -> None:
    scale, data = torch.linspace(0.1, 2, 6, dtype=torch.float64, device=GPU), torch.rand(50, N, device=GPU)
    arguments = (
        torch.rand(6, N, device=GPU),
        scale,
        operator.prepare(data, "triton"),
        None,
        None,
        (N + 1) / 2,
        "triton",
    )
    torch.library.opcheck(torch.ops.pfgm_fast.posterior.default, arguments)


class Remote:
    """A field on the GPU that is asked from the CPU."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.field = pf.EmpiricalField(
            case.data, case.D, labels=case.labels, log_weights=case.log_weights, backend="triton", device=GPU
        )

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(*extra: Any) -> Any:
            there = [value.to(GPU) if isinstance(value, Tensor) else value for value in extra]
            result = getattr(self.field, method)(self.case.x.to(GPU), self.case.sigma.to(GPU), *there)
            return tuple(t.cpu() for t in result) if isinstance(result, tuple) else result.cpu()

        return call


def check_all(case: Case, truth: oracle.Truth) -> None:
    field, eps = Remote(case), max(case.eps, torch.finfo(case.x.dtype).eps)
    mean = field.__getattr__("__call__")(case.row_labels)
    assert (mean.shape, mean.dtype) == (case.x.shape, case.x.dtype)
    oracle.check_mean(mean, truth, eps)
    if math.isfinite(case.D):
        oracle.check_poisson_field(field.poisson_field(5.0, case.row_labels), truth, case.D, 5.0, eps)
    if case.row_labels is None:
        oracle.check_log_density(field.log_density(), truth, eps)
        oracle.check_score(field.score(), truth, eps)
        oracle.check_divergence(field.divergence(), truth, eps)
        oracle.check_effective_sample_size(field.effective_sample_size(), truth, eps)
        weights, indices = field.top_weights(len(case.data))
        oracle.check_weights(weights, indices, truth, eps)


@on_gpu
@pytest.mark.parametrize("name", cases.NAMES)
def test_within_the_promised_bounds(name: str) -> None:
    check_all(cases.make(name), cases.truth(name))


@on_gpu
@pytest.mark.parametrize("name", cases.DOUBLE)
def test_float64_is_computed_in_float64(name: str) -> None:
    case = cases.make(name)
    if case.eps < 1e-10:
        case = Case(case.x, case.sigma, case.data, case.D)  # mixed dtypes: only the queries' rounding differs
    check_all(case.double(), cases.truth(name))


@on_gpu
@pytest.mark.parametrize("variant", pm.VARIANTS)
@pytest.mark.parametrize("shape", pm.SHAPES, ids=lambda shape: shape.name)
def test_full_size_case(shape: pm.Shape, variant: str) -> None:
    """Within its bounds on some rows, these rows alone to the bit, and in the memory that is stated."""
    query = pm.make(shape, GPU, variant)
    field = query.empirical
    field(query.x[:1], query.sigma[:1])
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = field(query.x, query.sigma)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    assert result.isfinite().all()
    assert pm.error(query, result, pm.truth(query)).bounds <= 1
    assert torch.equal(field(query.x[query.rows], query.sigma[query.rows]), result[query.rows])
    assert peak <= workspace(shape), f"{peak / 2**20:.0f} MiB above the inputs"


def workspace(shape: pm.Shape) -> float:
    """Bytes beyond the inputs: weights or partial sums, a quarter of that beside them, the queries cut and summed."""
    inputs = 24 * shape.B * shape.N
    if shape.N <= kernels.NARROW:
        inputs += 4 * shape.M * shape.N  # the coordinates one after the other
    largest: int = max(chunks.WORKSPACE, 4 * chunks.ROWS * shape.M * (shape.N > kernels.MIDDLING))
    return 1.25 * largest + inputs


class Vast(NamedTuple):
    """A problem in which an index that is multiplied by a row's length passes 2^31."""

    B: int
    M: int
    N: int
    dtype: torch.dtype

    def bytes(self) -> int:
        rows: int = min(self.B, chunks.ROWS)
        return 12 * (self.M + self.B) * self.N + 4 * rows * self.M


VAST = {
    "direct, data": Vast(16, 135_000_000, 16, torch.float32),
    "direct, queries": Vast(135_000_000, 2, 16, torch.float32),
    "fused, data": Vast(64, 34_000_000, 64, torch.float32),
    "fused, queries": Vast(34_000_000, 2, 64, torch.float32),
    "wide, pixels and weights": Vast(128, 17_000_000, 257, torch.uint8),
    "wide, data": Vast(64, 700_000, 3072, torch.float32),
    "wide, queries": Vast(700_000, 2, 3072, torch.float32),
}


@on_gpu
@pytest.mark.parametrize("vast", VAST.values(), ids=list(VAST))
def test_full_size_offsets(vast: Vast) -> None:
    """Queries near the first, the middle and the last datum find it; the last queries get what they get alone."""
    free, _ = torch.cuda.mem_get_info()
    if free < vast.bytes():
        pytest.skip(f"it needs {vast.bytes() / 2**30:.0f} GiB of memory, {free / 2**30:.0f} GiB are free")
    generator = torch.Generator(GPU).manual_seed(0)
    if vast.dtype == torch.uint8:
        data = torch.randint(256, (vast.M, vast.N), generator=generator, dtype=torch.uint8, device=GPU)
    else:
        data = torch.randn(vast.M, vast.N, generator=generator, device=GPU)
    nearest = torch.linspace(0, vast.M - 1, vast.B, dtype=torch.float64, device=GPU).long()
    x = torch.empty(vast.B, vast.N, device=GPU)
    for part, chosen in zip(x.split(1 << 20), nearest.split(1 << 20), strict=True):
        part.copy_(pm.values(data[chosen], torch.float32)).add_(1e-3)
    field = pf.EmpiricalField(data, math.inf, backend="triton")
    mean = field(x, 0.02)
    ends = torch.cat([torch.arange(8, device=GPU), torch.arange(vast.B - 8, vast.B, device=GPU)])
    assert (mean[ends] - pm.values(data[nearest[ends]], torch.float32)).abs().max() < 1e-3
    assert torch.equal(field(x[ends], 0.02), mean[ends])


@on_gpu
def test_full_size_noise() -> None:
    """More elements than 2^31: the last rows are those that their seeds make alone."""
    B, N = 175_000, 12_288
    seeds = torch.arange(B, device=GPU)
    x = pf.prior((B, N), 80.0, 128.0, seeds=seeds)
    assert torch.equal(x[-3:], pf.prior((3, N), 80.0, 128.0, seeds=seeds[-3:]))
