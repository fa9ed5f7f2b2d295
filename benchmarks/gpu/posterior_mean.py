"""The operation `posterior_mean` on a GPU: cases, inputs made there, providers, the truth of some rows, goals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor

import pfgm_fast as pf
from benchmarks import peers
from benchmarks.core import Error, Operation, Provider, Work
from benchmarks.posterior_mean import ALL_80, SPREAD
from pfgm_fast import operator

TRITON = "pfgm_fast triton"
GRAPH = "pfgm_fast triton, CUDA graph"
TORCH = "pfgm_fast torch"
ORIGINAL = "original formula"
PRODUCTS = "two products"
PRODUCTS_TF32 = "two products, TF32"
COMPILED = "two products, compiled"
COMPILED_TF32 = "two products, compiled, TF32"
KEOPS = "PyKeOps"
SINKHORN = "FlashSinkhorn"

SETS = 3  # of queries, which take turns
CHECKED = 64  # rows at most whose error is measured
ROOM = 1.6e10  # bytes of one tensor of a peer, which gets the rows in chunks beyond that
PATIENCE = 3.0  # seconds that a call of a peer may take
FLUSH = 1 << 28  # bytes written before each timed call: more than the second-level cache holds


@dataclass(frozen=True)
class Shape:
    """B queries, M data, N dimensions, D augmented ones; 8-bit data if `pixels`."""

    B: int
    M: int
    N: int
    D: float
    pixels: bool = False

    @property
    def name(self) -> str:
        kind = "uint8" if self.pixels else "float32"
        return f"B={self.B} M={self.M} N={self.N} D={self.D:g} {kind}"

    def shrunk(self, factor: int) -> Shape:
        """The same with fewer queries and data, and of many dimensions fewer."""
        N = self.N if self.N <= 64 else max(64, self.N // factor)
        return replace(self, B=max(3, self.B // factor), M=max(50, self.M // factor), N=N)


PFGM = Shape(128, 4096, 3072, 1)
CIFAR = Shape(128, 50_000, 3072, 2048, pixels=True)
CIFAR_MANY = replace(CIFAR, B=4096)
IMAGENET = Shape(128, 1_281_167, 12_288, 2048, pixels=True)
TOY = Shape(65_536, 100_000, 2, 1)
TOY_GAUSSIAN = replace(TOY, D=math.inf)
LATENTS = Shape(16_384, 1_000_000, 64, 128)
SHAPES = (PFGM, CIFAR, CIFAR_MANY, IMAGENET, TOY, TOY_GAUSSIAN, LATENTS)  # by priority


@dataclass(frozen=True)
class Query:
    """Points x (B, N) with noise levels sigma (B,) over data (M, N), float32 or uint8.

    `sets` are the queries that take turns in x and sigma; the error is measured on the first of them, at `rows`.
    """

    shape: Shape
    x: Tensor
    sigma: Tensor
    data: Tensor
    D: float
    level: float | None  # the one sigma, if all rows have the same
    sets: tuple[tuple[Tensor, Tensor], ...]
    rows: Tensor
    turns: Iterator[int] = field(default_factory=itertools.count)

    @cached_property
    def empirical(self) -> pf.EmpiricalField:
        return pf.EmpiricalField(self.data, self.D, backend="triton")

    @cached_property
    def centred(self) -> peers.Centred:
        """The data in float32 less their mean, made without a second tensor of that size."""
        step = max(1, (1 << 26) // self.data.shape[1])
        moved = torch.empty(self.data.shape, device=self.data.device)
        for part, raw in zip(moved.split(step), self.data.split(step), strict=True):
            part.copy_(values(raw, torch.float32))
        center = sum((part.sum(0) for part in moved.split(step)), torch.zeros_like(moved[0])) / len(moved)
        norms = torch.empty_like(moved[:, 0])
        for part, norm in zip(moved.split(step), norms.split(step), strict=True):
            part -= center
            norm.copy_((part * part).sum(1))
        return peers.Centred(center, moved, norms)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The next set of queries, and nothing of the last call in the caches."""
        x, sigma = self.sets[next(self.turns) % len(self.sets)]
        self.x.copy_(x)
        self.sigma.copy_(sigma)
        if self.x.is_cuda:
            torch.empty(FLUSH, dtype=torch.uint8, device=self.x.device).zero_()
        yield


def values(data: Tensor, dtype: torch.dtype) -> Tensor:
    """Data in data units: pixel u stands for (2u - 255)/255."""
    return (2 * data.to(dtype) - 255) / 255 if data.dtype == torch.uint8 else data.to(dtype)


def make(shape: Shape, device: torch.device, variant: str) -> Query:
    """A mixture of 10 components in which 1 % of the data nearly repeat another, and queries perturbed from it.

    A near-duplicate lies 0.005 from its original, or differs in one grey level of one pixel; every 16th query starts at
    one. The numbers depend on the kind of device.
    """
    generator = torch.Generator(device).manual_seed(shape.N)
    draw = partial(torch.randn, generator=generator, device=device)
    pick = partial(torch.randint, generator=generator, device=device)
    B, M, N = shape.B, shape.M, shape.N
    centers = 0.5 * draw(10, N)
    data = torch.empty(M, N, dtype=torch.uint8 if shape.pixels else torch.float32, device=device)
    for part in data.split(max(1, (1 << 26) // N)):
        y = centers[pick(10, (len(part),))] + 0.2 * draw(len(part), N)
        part.copy_((127.5 * y + 127.5).round().clamp(0, 255) if shape.pixels else y)
    pairs = torch.randperm(M, generator=generator, device=device)[: 2 * math.ceil(M / 100)]
    copies, originals = pairs.chunk(2)
    if shape.pixels:
        data[copies] = data[originals]
        data[copies, pick(N, (len(copies),))] ^= 1
    else:
        data[copies] = data[originals] + 0.005 * torch.nn.functional.normalize(draw(len(copies), N), dim=1)

    low, high = math.log(0.002), math.log(80)
    sets = []
    for turn in range(SETS):
        start = pick(M, (B,))
        start[::16] = copies[pick(len(copies), (len(start[::16]),))]
        levels = torch.exp(low + (high - low) * torch.rand(B, generator=generator, device=device))
        sigma = levels if variant == SPREAD else torch.full_like(levels, 80.0)
        seeds = turn * B + torch.arange(B, device=device)
        sets.append((pf.perturb(values(data[start], torch.float32), sigma, shape.D, seeds=seeds), sigma))
    x, sigma = (t.clone() for t in sets[0])
    rows = torch.linspace(0, B - 1, min(B, CHECKED), device=device).long()  # row 0 starts at a near-duplicate
    return Query(shape, x, sigma, data, shape.D, 80.0 if variant == ALL_80 else None, tuple(sets), rows)


def truth(query: Query) -> Tensor:
    """The posterior mean of the checked rows in float64, distances by direct differences."""
    x, sigma = (t[query.rows].double() for t in query.sets[0])
    N = x.shape[1]
    parts = query.data.split(max(1, (1 << 26) // N))
    direct = partial(torch.cdist, compute_mode="donot_use_mm_for_euclid_dist")
    rho = torch.cat([direct(x, values(part, torch.float64)) ** 2 for part in parts], 1)
    if math.isinf(query.D):
        logits = -rho / (2 * sigma[:, None] ** 2)
    else:
        logits = -(N + query.D) / 2 * torch.log1p(rho / (query.D * sigma[:, None] ** 2))
    weights = torch.softmax(logits, 1).split(len(parts[0]), 1)
    return torch.stack([w @ values(part, torch.float64) for w, part in zip(weights, parts, strict=True)]).sum(0)


def error(query: Query, result: Tensor, exact: Tensor) -> Error:
    """Of the checked rows, in units of 1e-4 |x - x*| + 4 eps max(|x|, max |y|) and relative to |x*|; NaN: infinite."""
    x = query.sets[0][0][query.rows].double()
    off = (result[query.rows].double() - exact).norm(dim=1).nan_to_num(math.inf)
    parts = query.data.split(max(1, (1 << 26) // x.shape[1]))
    largest = torch.stack([values(part, torch.float32).norm(dim=1).amax() for part in parts]).amax().double()
    bound = 1e-4 * (x - exact).norm(dim=1) + 4 * torch.finfo(torch.float32).eps * x.norm(dim=1).clamp_min(largest)
    return Error((off / bound).max().item(), (off / exact.norm(dim=1)).max().item())


def work(query: Query) -> Work:
    (B, N), M = query.x.shape, len(query.data)
    return Work(pairs=B * M, flop=4 * B * M * N, bytes=query.data.nbytes + (2 * B * N + B) * 4)


@dataclass(frozen=True)
class Candidate(Provider[Query]):
    """A provider that may not serve every query: `refuses` says why, or None."""

    refuses: Callable[[Query], str | None] = lambda query: None


def providers(device: torch.device) -> tuple[Candidate, ...]:
    """By priority; what comes last is skipped first where time is short."""
    no_triton = partial(operator.BACKENDS["triton"].refuses, device)
    return (
        Candidate(TRITON, _ours, ours=True, unavailable=no_triton),
        Candidate(GRAPH, _graph, ours=True, unavailable=lambda: no_triton() or _no_cuda(device)),
        Candidate(PRODUCTS, partial(_products, peers.two_products, False), refuses=_too_large, remark=_chunks),
        Candidate(PRODUCTS_TF32, partial(_products, peers.two_products, True), refuses=_too_large, remark=_chunks),
        Candidate(ORIGINAL, _original, refuses=_too_long, remark=_original_chunks),
        Candidate(SINKHORN, _sinkhorn, unavailable=peers.sinkhorn_unavailable, refuses=_not_a_plan),
        Candidate(KEOPS, _keops, unavailable=peers.keops_unavailable, refuses=_too_large),
        Candidate(COMPILED, partial(_compiled, False), refuses=_too_large, remark=_chunks),
        Candidate(COMPILED_TF32, partial(_compiled, True), refuses=_too_large, remark=_chunks),
        Candidate(TORCH, _reference, ours=True, refuses=_too_many_launches),
    )


def _ours(query: Query) -> Callable[[], Tensor]:
    return lambda: query.empirical(query.x, query.sigma)


def _graph(query: Query) -> Callable[[], Tensor]:
    """Replays one captured call."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        query.empirical(query.x, query.sigma)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = query.empirical(query.x, query.sigma)

    def call() -> Tensor:
        graph.replay()
        return result

    return call


def _reference(query: Query) -> Callable[[], Tensor]:
    plain = pf.EmpiricalField(query.data, query.D, backend="torch")
    return lambda: plain(query.x, query.sigma)


Expression = Callable[[Tensor, Tensor, peers.Centred, float], Tensor]


def _products(expression: Expression, tf32: bool, query: Query) -> Callable[[], Tensor]:
    rows = _rows(query)

    def call() -> Tensor:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        try:
            parts = zip(query.x.split(rows), query.sigma.split(rows), strict=True)
            results = [expression(x, sigma, query.centred, query.D) for x, sigma in parts]
        finally:
            torch.set_float32_matmul_precision(before)
        return results[0] if len(results) == 1 else torch.cat(results)

    return call


def _compiled(tf32: bool, query: Query) -> Callable[[], Tensor]:
    """For every shape and D anew; fullgraph makes it an error, not an eager call, to pass the limit of compilations."""
    torch._dynamo.config.recompile_limit = 100
    return _products(torch.compile(peers.two_products, dynamic=False, fullgraph=True), tf32, query)


def _original(query: Query) -> Callable[[], Tensor]:
    data = values(query.data, torch.float32)
    return lambda: peers.original(query.x, query.sigma, data, query.D, ROOM)


def _keops(query: Query) -> Callable[[], Tensor]:
    return peers.keops(query.x, query.sigma, query.centred, query.D)


def _sinkhorn(query: Query) -> Callable[[], Tensor]:
    assert query.level is not None
    return peers.sinkhorn(query.x, query.level, query.centred)


def _no_cuda(device: torch.device) -> str | None:
    return None if device.type == "cuda" else f"CUDA graphs are not for {device.type} tensors"


def _rows(query: Query) -> int:
    """A power of two of rows whose logits fit in `ROOM`, or all."""
    fit = int(ROOM // (4 * len(query.data)))
    return len(query.x) if fit >= len(query.x) else 1 << (fit.bit_length() - 1)


def _chunks(query: Query) -> str:
    rows = _rows(query)
    return f"{rows} rows at a time" if rows < len(query.x) else ""


def _original_chunks(query: Query) -> str:
    rows = peers.original_rows(query.x, query.data, ROOM)
    return f"{rows} rows at a time" if rows < len(query.x) else ""


def _too_large(query: Query) -> str | None:
    """Of the data in float32, which are made once for all peers, beside two tensors of logits."""
    if "centred" in query.__dict__:
        return None
    logits = 4 * _rows(query) * len(query.data)
    return _lacking(query, 4 * query.data.numel() + 3 * logits)


def _too_long(query: Query) -> str | None:
    row = 4 * len(query.data) * (query.data.shape[1] + 1)
    if row > ROOM:
        return f"one row of its tensor takes {row / 1e9:.0f} GB, several times"
    seconds = 10 * row * len(query.x) / (4e12 if query.x.is_cuda else 4e9)
    if seconds > PATIENCE:
        return f"one call would take some {seconds:.0f} s"
    rows = peers.original_rows(query.x, query.data, ROOM)
    return _lacking(query, 4 * query.data.numel() + 3 * rows * row)


def _too_many_launches(query: Query) -> str | None:
    """The reference works in small blocks; what their launches take bounds it from below."""
    M, N = query.data.shape
    seconds = math.ceil(len(query.x) * M / (1 << 20)) * math.ceil(M * N / (1 << 20)) * 10 * 5e-6
    return f"one call would take some {seconds:.0f} s" if seconds > PATIENCE and query.x.is_cuda else None


def _not_a_plan(query: Query) -> str | None:
    if not math.isinf(query.D):
        return "it has no kernel for finite D"
    return "it has one sigma for all rows" if query.level is None else _too_large(query)


def _lacking(query: Query, needed: float) -> str | None:
    if not query.x.is_cuda:
        return None
    free, _ = torch.cuda.mem_get_info(query.x.device)
    free += torch.cuda.memory_reserved(query.x.device) - torch.cuda.memory_allocated(query.x.device)
    return f"it needs {needed / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB are free" if needed > free else None


@dataclass(frozen=True)
class Goal:
    """In every variant: `quantity` "times" faster than `baseline`, at most so many "ms", or at least "Gpairs/s"."""

    shape: Shape
    quantity: str
    value: float
    baseline: str = ""


GOALS = (
    Goal(PFGM, "times", 200, ORIGINAL),
    Goal(PFGM, "times", 2, PRODUCTS),
    Goal(CIFAR, "ms", 0.3),
    Goal(CIFAR_MANY, "times", 4, PRODUCTS),
    Goal(IMAGENET, "ms", 40),
    Goal(TOY, "times", 5, PRODUCTS),
    Goal(TOY_GAUSSIAN, "times", 10, PRODUCTS),
    Goal(LATENTS, "Gpairs/s", 350),
)
VARIANTS: Mapping[str, float] = {SPREAD: 1.0, ALL_80: 1.0}


def operation(device: torch.device, shrink: int = 1) -> Operation[Query]:
    """The operation on a device; the sizes of its cases divided by `shrink`, under the names of the whole ones."""
    return Operation(
        name="posterior_mean",
        cases={shape.name: partial(make, shape.shrunk(shrink) if shrink > 1 else shape, device) for shape in SHAPES},
        variants=VARIANTS,
        providers=providers(device),
        bars=(),
        small=lambda query: query,
        truth=truth,
        error=error,
        work=work,
    )
