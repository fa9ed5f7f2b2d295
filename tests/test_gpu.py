"""What only a GPU can tell, for `benchmarks/gpu.sh`: the kernels' bits, streams, graphs and compiled calls.

Without a GPU all but one are skipped. What needs most of a large GPU's memory is in test_gpu_full_size.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import cases
import oracle
import pytest
import torch
from cases import Case
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast import kernels, operator

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
digits = pytest.importorskip("pfgm_fast.kernels.digits")
scores = pytest.importorskip("pfgm_fast.kernels.scores")

GPU = torch.device("cuda")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch can use")
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
DIMENSIONS = [(2, 1.0), (8, 2.7), (17, 128.0), (64, math.inf), (300, 1.0), (784, 128.0)]
ROWS, DATA = 200, 1500
pytestmark = pytest.mark.usefixtures("freed")


class Kind(NamedTuple):
    """A way through the kernels: N dimensions, "floats", "pixels" or "doubles", with classes and log masses or not."""

    N: int
    D: float
    data: str = "floats"
    precision: str = "highest"
    priors: bool = False

    @property
    def name(self) -> str:
        words = [self.precision] * (self.precision != "highest") + ["priors"] * self.priors
        return "-".join([f"N{self.N}", f"D{self.D:g}", self.data, *words])


KINDS = (
    *(Kind(N, D) for N, D in DIMENSIONS),
    Kind(2, math.inf, priors=True),
    Kind(16, 128.0, "pixels"),
    Kind(3, 1.0, "doubles"),
    Kind(64, 128.0, "pixels"),
    Kind(100, 1.0, precision="high"),
    Kind(64, math.inf, priors=True),
    Kind(784, 1.0, "pixels"),
    Kind(784, math.inf, "pixels", "high"),
    Kind(300, 128.0, precision="high"),
    Kind(300, math.inf, "pixels", priors=True),
    Kind(300, 1.0, "doubles"),
)


class Problem(NamedTuple):
    """A field and as many queries as rows are asked for, each with its noise level and its class."""

    field: pf.EmpiricalField
    x: Tensor
    sigma: Tensor
    labels: Tensor | None

    def mean(self, rows: Tensor | slice = slice(None)) -> Tensor:
        return self.field(self.x[rows], self.sigma[rows], None if self.labels is None else self.labels[rows])

    def density(self, rows: Tensor | slice = slice(None)) -> Tensor:
        return self.field.log_density(self.x[rows], self.sigma[rows])


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def problem(request: pytest.FixtureRequest) -> Problem:
    """A field of several blocks of data, and queries enough for several tiles, with noise levels of every size."""
    kind: Kind = request.param
    source = cases.Source(f"gpu-{kind.N}-{kind.D}", 2, kind.D)
    source.N, source.B, source.M = kind.N, ROWS, DATA
    case = cases.pixels(source) if kind.data == "pixels" else cases.mixture(source)
    case = case.double() if kind.data == "doubles" else case
    labels = masses = rows = None
    if kind.priors:
        labels, masses = torch.arange(DATA) % 3, torch.linspace(-3, 0, DATA)
        rows = (torch.arange(ROWS) % 4 - 1).to(GPU)
    field = pf.EmpiricalField(
        case.data, kind.D, labels=labels, log_weights=masses, precision=kind.precision, backend="triton", device=GPU
    )
    return Problem(field, case.x.to(GPU), case.sigma.to(GPU), rows)


@on_gpu
def test_any_batch_has_the_same_bits(problem: Problem) -> None:
    whole, density = problem.mean(), problem.density()
    assert whole.isfinite().all()
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0)).to(GPU)
    for size in (1, 2, 15, 16, 17, 33, 64, 65, 129, ROWS):
        rows = order[:size]
        assert torch.equal(problem.mean(rows), whole[rows]), f"batch of {size}"
        assert torch.equal(problem.density(rows), density[rows]), f"batch of {size}"
    many = torch.arange(3000, device=GPU) % ROWS
    assert torch.equal(problem.mean(many), whole[many])


@on_gpu
def test_every_run_and_stream_has_the_same_bits(problem: Problem) -> None:
    whole = problem.mean()
    assert all(torch.equal(problem.mean(), whole) for _ in range(5))
    torch.cuda.synchronize()
    streams, results = [torch.cuda.Stream() for _ in range(4)], []
    for _ in range(5):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(problem.mean())
    torch.cuda.synchronize()
    assert all(torch.equal(result, whole) for result in results)


@on_gpu
def test_a_captured_call_is_replayed(problem: Problem) -> None:
    turned = problem._replace(x=problem.x.flip(0), sigma=problem.sigma.flip(0))
    expected = [(one.mean(), one.density()) for one in (problem, turned)]
    held = problem._replace(x=problem.x.clone(), sigma=problem.sigma.clone())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        held.mean()
        held.density()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        mean, density = held.mean(), held.density()
    for new, want in zip((problem, turned), expected, strict=True):
        held.x.copy_(new.x)
        held.sigma.copy_(new.sigma)
        graph.replay()
        assert torch.equal(mean, want[0])
        assert torch.equal(density, want[1])


@on_gpu
def test_a_compiled_call_is_the_call(problem: Problem) -> None:
    torch._dynamo.reset()
    field, x, sigma, _ = problem

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
