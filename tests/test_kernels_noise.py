"""The fused noise kernel against the CPU's numbers: words, normals, chi-squares, every dtype, every place in a row."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from pfgm_fast import noise, philox

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
kernel = pytest.importorskip("pfgm_fast.kernels.noise")

# A proposal below -1 has no logarithm, here as on the CPU: it is not accepted. NumPy, the interpreter's engine, warns.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
inf = math.inf


def rows(B: int) -> tuple[Tensor, Tensor]:
    """Noise levels over five decades, and seeds with the extremes of 64 bits among them."""
    seeds = torch.arange(B) * 0x9E3779B97F4A7C15 - 5
    extremes = torch.tensor([0, -1, -(2**63), 2**63 - 1, 2**32, -(2**32)])[:B]
    seeds[: len(extremes)] = extremes
    return torch.logspace(-3, 2, B, dtype=torch.float64), seeds


def draw(y: Tensor | None, sigma: Tensor, seeds: Tensor, D: float, N: int, dtype: torch.dtype) -> Tensor:
    """The kernel's host function on the device at hand; the result on the CPU."""
    there = [t if t is None else t.to(DEVICE) for t in (y, sigma, seeds)]
    result: Tensor = kernel.student_t(*there, D, N, dtype)
    return result.cpu()


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def words_and_normals(seeds, blocks, angles, words, normals, size, TILE: tl.constexpr):  # type: ignore[no-untyped-def, name-defined]
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    block = tl.load(blocks + i)
    drawn = tl.philox(tl.load(seeds + i), block.to(tl.uint32), (block >> 32).to(tl.uint32), 3, 1)
    for k in tl.static_range(4):
        tl.store(words + k * size + i, drawn[k].to(tl.int64))
    radius, angle = block.to(tl.uint32), tl.load(angles + i).to(tl.uint32)
    x, y = kernel._box_muller(radius, angle, normals.dtype.element_ty)
    tl.store(normals + i, x)
    tl.store(normals + size + i, y)


def launch(seeds: Tensor, blocks: Tensor, angles: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    size, tile = len(seeds), min(len(seeds), 2**16)
    assert size % tile == 0
    words = torch.empty(4, size, dtype=torch.int64, device=DEVICE)
    normals = torch.empty(2, size, dtype=dtype, device=DEVICE)
    inputs = (t.to(DEVICE) for t in (seeds, blocks, angles))
    words_and_normals[(size // tile,)](*inputs, words, normals, size, TILE=tile, enable_fp_fusion=False)
    return words.cpu(), normals.cpu()


def test_words_are_those_of_the_cpu() -> None:
    _, seeds = rows(1024)
    blocks = torch.arange(1024) * 0x1234567 + torch.tensor([0, 2**32 - 5, 2**33, 2**45]).repeat(256)
    words, _ = launch(seeds, blocks, blocks, torch.float32)
    expected = philox.words(seeds, blocks, torch.full((1024,), 3), 1)
    assert torch.equal(words, torch.stack(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_at_every_seam(dtype: torch.dtype) -> None:
    """Near 0, 1, 1/2, sqrt(1/2) and a power of two; near the axes and the diagonals; and at random."""
    centers = torch.tensor(
        [0, 2**31, 2**32, round(2**32 * math.sqrt(0.5)), 2**32 - round(2**32 * math.sqrt(0.5)), 2**9]
    )
    near = (centers[:, None] + torch.arange(-1024, 1024)).flatten()
    radii = torch.cat([near[(near >= 0) & (near < 2**32)], torch.arange(2**16) * 65_521 + 7])
    near = (torch.arange(9)[:, None] * 2**20 + torch.arange(-4096, 4096)).flatten()
    angles = torch.cat([near[(near >= 0) & (near < 2**23)], torch.arange(2**16) * 127]) * 512 + 77
    radii = radii.repeat(-(-len(angles) // len(radii)))[: len(angles)]
    _, normals = launch(torch.zeros(len(angles), dtype=torch.int64), radii, angles, dtype)
    exact = torch.stack(philox._box_muller(radii, angles))
    # In float64 the difference is the CPU's, which rounds the angle once more.
    assert ((normals - exact) / exact).abs().max() < (4e-7 if dtype == torch.float32 else 2e-9)


@pytest.mark.parametrize("D", [5e-324, 0.01, 0.5, 1.0, 1.999, 2.0, 2.7, 128.0, 1e6, 1e18, 1e300])
def test_chi_squares_are_those_of_the_cpu(D: float) -> None:
    sigma, seeds = rows(1500)
    g = philox.normals(seeds, 1, torch.float64)[:, 0]
    ratio = draw(None, sigma, seeds, D, 1, torch.float64)[:, 0] / g / sigma
    expected = (-0.5 * philox.log_chi2_over_D(seeds, D)).exp()
    torch.testing.assert_close(ratio, expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("D", [0.5, 1.0, 2.7, 128.0, 1e6, inf])
@pytest.mark.parametrize(("B", "N"), [(70, 1), (5, 3), (1, 4), (33, 5), (3, 3072)])
def test_noise_is_that_of_the_cpu(B: int, N: int, D: float) -> None:
    """To 1e-6 relative in every element, and float64 far beyond."""
    sigma, seeds = rows(B)
    exact = noise.prior((B, N), sigma, D, seeds=seeds, dtype=torch.float64)
    for dtype, tolerance in ((torch.float32, 6e-7), (torch.float64, 1e-8)):
        x = draw(None, sigma, seeds, D, N, dtype)
        assert x.dtype == dtype
        torch.testing.assert_close(x.double(), exact, rtol=tolerance, atol=0)


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("D", [0.5, 128.0, inf])
def test_perturbation_is_that_of_the_cpu(D: float, dtype: torch.dtype, poison: None) -> None:
    sigma, seeds = rows(7)
    y = torch.randn(7, 61, generator=torch.Generator().manual_seed(2)).to(dtype)
    x, expected = draw(y, sigma, seeds, D, 61, dtype), noise.perturb(y, sigma, D, seeds=seeds)
    pure = noise.prior((7, 61), sigma, D, seeds=seeds, dtype=torch.float64).abs()
    assert x.dtype == dtype
    infinite = expected.isinf()
    assert torch.equal(x[infinite], expected[infinite])
    step = torch.finfo(dtype).eps * expected.double().abs()  # the interpreter cuts bfloat16 off where devices round
    assert bool(((x.double() - expected.double()).abs() <= 1e-6 * pure + step)[~infinite].all())


def test_the_addition_is_that_of_pytorch() -> None:
    """Fused or not, x is the rounded sum of y and of the rounded noise: a gradient asked for changes no bit."""
    sigma, seeds = rows(7)
    for dtype in (torch.float16, torch.float32, torch.float64):
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        y = torch.randn(7, 61, generator=torch.Generator().manual_seed(2)).to(dtype)
        pure = draw(None, sigma, seeds, 8.0, 61, compute)
        assert torch.equal(draw(y, sigma, seeds, 8.0, 61, dtype), (y + pure).to(dtype))


@pytest.mark.parametrize("N", [2, 37, 5000])
def test_no_tile_changes_a_bit(N: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sigma, seeds = rows(9)
    x = draw(None, sigma, seeds, 1.0, N, torch.float32)
    monkeypatch.setattr(kernel, "_TILE", 4096)
    monkeypatch.setattr(kernel, "_COLUMNS", 2048)
    monkeypatch.setattr(kernel, "_ROWS", 4)
    assert torch.equal(draw(None, sigma, seeds, 1.0, N, torch.float32), x)


def test_a_row_and_an_element_stand_alone() -> None:
    sigma, seeds = rows(20)
    x = draw(None, sigma, seeds, 1.0, 1100, torch.float32)
    order = torch.tensor([19, 3, 10])
    assert torch.equal(draw(None, sigma[order], seeds[order], 1.0, 1100, torch.float32), x[order])
    assert torch.equal(draw(None, sigma[:5], seeds[:5], 1.0, 333, torch.float32), x[:5, :333])


@pytest.mark.parametrize("bad", [math.nan, inf])
def test_a_bad_level_spoils_its_own_row(bad: float) -> None:
    sigma, seeds = rows(5)
    x = draw(None, sigma, seeds, 2.0, 6, torch.float32)
    sigma[2] = bad
    spoilt = draw(None, sigma, seeds, 2.0, 6, torch.float32)
    kept = torch.tensor([0, 1, 3, 4])
    assert torch.equal(spoilt[kept], x[kept])
    assert torch.equal(spoilt[2].nan_to_num(7.0), (x[2].sign() * bad).nan_to_num(7.0))


def test_strided_arguments() -> None:
    sigma, seeds = rows(8)
    y = torch.randn(6, 4, generator=torch.Generator().manual_seed(2)).T
    x = draw(y, sigma[::2], seeds[::2], 8.0, 6, torch.float32)
    expected = draw(y.contiguous(), sigma[::2].contiguous(), seeds[::2].contiguous(), 8.0, 6, torch.float32)
    assert torch.equal(x, expected)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_to_draw(shape: tuple[int, int]) -> None:
    sigma, seeds = rows(shape[0])
    assert draw(None, sigma, seeds, 8.0, shape[1], torch.float16).shape == shape


@pytest.mark.parametrize("D", [1.0, inf])
def test_one_launch_that_reads_no_values(D: float, monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[tuple[int]] = []

    class Recorder:
        def __getitem__(self, grid: tuple[int]) -> Any:
            return lambda *_, **__: launches.append(grid)

    monkeypatch.setattr(kernel, "_student_t", Recorder())
    meta = torch.device("meta")
    B, N = 2**16, 2**20 + 3  # their product is far beyond 2**31
    seeds, sigma = torch.empty(B, dtype=torch.int64, device=meta), torch.empty(B, device=meta)
    x = kernel.student_t(None, sigma, seeds, D, N, torch.bfloat16)
    assert x.shape == (B, N)
    assert launches == [(B // 4 * (2**10 + 1),)]


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """perturb and prior as on a GPU that Triton serves."""
    monkeypatch.setattr(noise, "_fused", lambda device: True)


def images() -> tuple[Tensor, Tensor, Tensor]:
    sigma, seeds = rows(6)
    y = torch.randn(6, 3, 4, 5, generator=torch.Generator().manual_seed(2))
    return y.to(DEVICE), sigma.to(DEVICE), seeds.to(DEVICE)


@pytest.mark.parametrize("D", [0.5, 8.0, inf])
def test_perturb_and_prior_reach_the_kernel(D: float, fused: None, monkeypatch: pytest.MonkeyPatch) -> None:
    y, sigma, seeds = images()
    x = noise.perturb(y, sigma, D, seeds=seeds)
    assert torch.equal(x.cpu().flatten(1), draw(y.flatten(1), sigma, seeds, D, 60, torch.float32))
    x = noise.prior((6, 3, 20), sigma, D, seeds=seeds, dtype=torch.float64, device=DEVICE)
    assert x.shape == (6, 3, 20)
    assert torch.equal(x.cpu().flatten(1), draw(None, sigma, seeds, D, 60, torch.float64))
    monkeypatch.setattr(noise, "_fused", lambda device: False)
    torch.testing.assert_close(x, noise.prior((6, 3, 20), sigma, D, seeds=seeds, dtype=torch.float64, device=DEVICE))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_derivatives_flow_to_y_and_change_no_bit(dtype: torch.dtype, fused: None) -> None:
    y, sigma, seeds = images()
    y = y.to(dtype)
    expected = noise.perturb(y, sigma, 8.0, seeds=seeds)
    leaf, weight = y.clone().requires_grad_(), torch.randn_like(y)
    x = noise.perturb(leaf, sigma, 8.0, seeds=seeds)
    (gradient,) = torch.autograd.grad((x * weight).sum(), leaf)
    assert torch.equal(gradient, weight)
    assert torch.equal(x.detach(), expected)
    with forward_ad.dual_level():
        x = noise.perturb(forward_ad.make_dual(y, weight), sigma, 8.0, seeds=seeds)
        assert torch.equal(forward_ad.unpack_dual(x).tangent, weight)
    with torch.no_grad():
        assert torch.equal(noise.perturb(leaf, sigma, 8.0, seeds=seeds), expected)


@pytest.mark.parametrize("y", [None, torch.randn(4, 6, generator=torch.Generator().manual_seed(2))])
def test_the_op_is_a_good_citizen(y: Tensor | None) -> None:
    sigma, seeds = (t.to(DEVICE) for t in rows(4))
    arguments = (y if y is None else y.to(DEVICE), sigma, seeds, 8.0, 6, torch.float32)
    torch.library.opcheck(torch.ops.pfgm_fast.student_t.default, arguments)


@pytest.mark.parametrize("D", [0.5, inf])
def test_perturb_compiles_into_one_graph(D: float, fused: None) -> None:
    torch.compiler.reset()
    compiled = torch.compile(
        lambda y, sigma, seeds: noise.perturb(y, sigma, D, seeds=seeds), fullgraph=True, backend="aot_eager"
    )
    y, sigma, seeds = images()
    for B in (3, 6):
        arguments = y[:B], sigma[:B], seeds[:B]
        assert torch.equal(compiled(*arguments), noise.perturb(*arguments[:2], D, seeds=arguments[2]))


def test_gpus_alone_are_served_and_without_triton_by_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    from pfgm_fast import kernels

    assert noise._fused(torch.device("cuda"))
    assert not noise._fused(torch.device("cpu"))
    monkeypatch.setattr(kernels, "unavailable", lambda: "Triton is not installed")
    sigma, seeds = (t.to(DEVICE) for t in rows(5))
    y = torch.randn(5, 6, generator=torch.Generator().manual_seed(2)).to(DEVICE, torch.float16)
    for around in (None, y):
        x = torch.ops.pfgm_fast.student_t(around, sigma, seeds, 8.0, 6, torch.float16)
        assert torch.equal(x, noise._plain(around, sigma, seeds, 8.0, 6, torch.float16))
    assert torch.equal(x.cpu(), noise.perturb(y.cpu(), sigma.cpu(), 8.0, seeds=seeds.cpu()))
