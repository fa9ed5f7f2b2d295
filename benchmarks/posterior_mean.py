"""The operation `posterior_mean`: cases, inputs by fixed seed, providers, the float64 truth and the bars."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

import pfgm_fast as pf
from benchmarks import peers
from benchmarks.core import Bar, Error, Operation, Provider, Work
from pfgm_fast import operator

ORIGINAL = "original formula"
PRODUCTS = "centred addmm + softmax + mm"
PRODUCTS_FLUSHED = "centred addmm + softmax + mm, subnormals flushed"
PRODUCTS_UNPREPARED = "addmm + softmax + mm, centring included"
BARE = "two bare matrix products"
CDIST = "cdist + softmax + mm"
KEOPS = "PyKeOps"
NATIVE = "pfgm_fast native"
NATIVE_UNPREPARED = "pfgm_fast native, unprepared"
NATIVE_AVX2 = "pfgm_fast native avx2"
TORCH = "pfgm_fast torch"

SPREAD, ALL_80 = "sigma 0.002 to 80", "sigma 80"


@dataclass(frozen=True)
class Shape:
    """B queries, M data, N dimensions, D augmented ones."""

    B: int
    M: int
    N: int
    D: float

    @property
    def name(self) -> str:
        return f"B={self.B} M={self.M} N={self.N} D={self.D:g}"


@dataclass(frozen=True)
class Query:
    """Points x (B, N) with noise levels sigma (B,) over data (M, N)."""

    x: Tensor
    sigma: Tensor
    data: Tensor
    D: float


def make(shape: Shape, variant: str) -> Query:
    """A mixture of 10 components in which 1 % of the data nearly repeat another, and queries perturbed from it.

    A near-duplicate lies 0.005 from its original, where the two compete at the smallest noise levels; every 16th query
    starts at one.
    """
    generator = torch.Generator().manual_seed(shape.N)
    draw = partial(torch.randn, generator=generator)
    component = torch.randint(10, (shape.M,), generator=generator)
    data = 0.5 * draw(10, shape.N)[component] + 0.2 * draw(shape.M, shape.N)
    order = torch.randperm(shape.M, generator=generator)
    copies, originals = order[: math.ceil(shape.M / 100)], order[-math.ceil(shape.M / 100) :]
    data[copies] = data[originals] + 0.005 * torch.nn.functional.normalize(draw(len(copies), shape.N), dim=1)

    start = torch.randint(shape.M, (shape.B,), generator=generator)
    start[::16] = copies[torch.randint(len(copies), (len(start[::16]),), generator=generator)]
    low, high = math.log(0.002), math.log(80)
    levels = torch.exp(low + (high - low) * torch.rand(shape.B, generator=generator))
    sigma = levels if variant == SPREAD else torch.full((shape.B,), 80.0)
    x = pf.perturb(data[start], sigma, shape.D, seeds=range(shape.B))
    return Query(x, sigma, data, shape.D)


def small(query: Query) -> Query:
    return replace(query, x=query.x[:4], sigma=query.sigma[:4], data=query.data[:64])


def truth(query: Query) -> Tensor:
    """The posterior mean in float64, distances by direct differences (B, N)."""
    data = query.data.double()
    rows = max(1, 10**7 // len(data))
    parts = []
    for x, sigma in zip(query.x.double().split(rows), query.sigma.double().split(rows), strict=True):
        rho = torch.cdist(x, data, compute_mode="donot_use_mm_for_euclid_dist") ** 2
        power = (data.shape[1] + query.D) / 2
        parts.append(torch.softmax(-power * torch.log1p(rho / (query.D * sigma**2)[:, None]), 1) @ data)
    return torch.cat(parts)


def error(query: Query, result: Tensor, exact: Tensor) -> Error:
    """In units of the bound 1e-4 |x - x*| + 4 eps max(|x|, max |y|), and relative to |x*|; NaN counts as infinite."""
    off = (result.double() - exact).norm(dim=1).nan_to_num(math.inf)
    x = query.x.double()
    scale = x.norm(dim=1).clamp_min(query.data.double().norm(dim=1).max())
    bound = 1e-4 * (x - exact).norm(dim=1) + 4 * torch.finfo(query.x.dtype).eps * scale
    return Error((off / bound).max().item(), (off / exact.norm(dim=1)).max().item())


def work(query: Query) -> Work:
    (B, N), M = query.x.shape, len(query.data)
    return Work(pairs=B * M, flop=4 * B * M * N, bytes=(M * N + 2 * B * N + B) * query.x.element_size())


def _prepared(backend: str, query: Query) -> Callable[[], Tensor]:
    field = pf.EmpiricalField(query.data, query.D, backend=backend)
    return lambda: field(query.x, query.sigma)


def _unprepared(query: Query) -> Callable[[], Tensor]:
    return lambda: pf.posterior_mean(query.x, query.sigma, query.data, query.D, backend="native")


def _products(query: Query) -> Callable[[], Tensor]:
    centred = peers.Centred.of(query.data)
    return lambda: peers.two_products(query.x, query.sigma, centred, query.D)


def _products_unprepared(query: Query) -> Callable[[], Tensor]:
    return lambda: peers.two_products(query.x, query.sigma, peers.Centred.of(query.data), query.D)


def _original_remark(query: Query) -> str:
    rows = peers.original_rows(query.x, query.data)
    return f"{rows} rows at a time" if rows < len(query.x) else ""


def _native_unavailable() -> str | None:
    return operator.BACKENDS["native"].refuses(torch.device("cpu"))


@contextmanager
def _instruction_set(name: str) -> Iterator[None]:
    extension = importlib.import_module("pfgm_fast._C")
    before = extension.instruction_set()
    extension.select_instruction_set(name)
    try:
        yield
    finally:
        extension.select_instruction_set(before)


@contextmanager
def _flushed() -> Iterator[None]:
    """Of the calling thread alone: PyTorch's other threads go on with subnormal numbers."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _avx2_unavailable() -> str | None:
    why = _native_unavailable()
    if why is None:
        extension = importlib.import_module("pfgm_fast._C")
        before = extension.instruction_set()
        why = None if extension.select_instruction_set("avx2") else "this machine or build has no AVX2"
        extension.select_instruction_set(before)
    return why


PROVIDERS: tuple[Provider[Query], ...] = (
    Provider(NATIVE, partial(_prepared, "native"), ours=True, unavailable=_native_unavailable),
    Provider(NATIVE_UNPREPARED, _unprepared, ours=True, unavailable=_native_unavailable),
    Provider(
        NATIVE_AVX2,
        partial(_prepared, "native"),
        ours=True,
        unavailable=_avx2_unavailable,
        within=partial(_instruction_set, "avx2"),
    ),
    Provider(TORCH, partial(_prepared, "torch"), ours=True),
    Provider(BARE, lambda q: lambda: peers.bare_products(q.x, q.data), complete=False),
    Provider(PRODUCTS, _products),
    Provider(PRODUCTS_FLUSHED, _products, within=_flushed),
    Provider(PRODUCTS_UNPREPARED, _products_unprepared),
    Provider(CDIST, lambda q: lambda: peers.cdist(q.x, q.sigma, q.data, q.D)),
    Provider(
        KEOPS,
        lambda q: peers.keops(q.x, q.sigma, peers.Centred.of(q.data), q.D),
        unavailable=peers.keops_unavailable,
    ),
    Provider(ORIGINAL, lambda q: lambda: peers.original(q.x, q.sigma, q.data, q.D), remark=_original_remark),
)

# Speed-ups to reach against the original formula, and against the two matrix products.
BARS = {
    Shape(1024, 10000, 2, 1): (80, 15),
    Shape(256, 20000, 64, 128): (100, 1.8),
    Shape(64, 10000, 784, 128): (120, 1.25),
    Shape(32, 4096, 3072, 2048): (120, 1.5),
    Shape(128, 4096, 3072, 1): (80, 1.3),
}


def _bars() -> Iterator[Bar]:
    for shape, (against_original, against_products) in BARS.items():
        yield Bar(shape.name, NATIVE, ORIGINAL, against_original)
        yield Bar(shape.name, NATIVE, PRODUCTS, against_products)
    yield Bar(Shape(128, 4096, 3072, 1).name, NATIVE, ORIGINAL, 20, quantity="memory")


VARIANTS: Mapping[str, float] = MappingProxyType({SPREAD: 1.0, ALL_80: 0.9})

OPERATION = Operation(
    name="posterior_mean",
    cases={shape.name: partial(make, shape) for shape in BARS},
    variants=VARIANTS,
    providers=PROVIDERS,
    bars=tuple(_bars()),
    small=small,
    truth=truth,
    error=error,
    work=work,
)
