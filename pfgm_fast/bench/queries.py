"""Inputs of the posterior mean, a data set and queries perturbed from it; the float64 truth and errors against it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast.bench.core import Answer, Error, Work
from pfgm_fast.bench.expressions import Centred, in_chunks, in_data_units

SPREAD, ALL_80 = "sigma 0.002 to 80", "sigma 80"
LOWEST, HIGHEST = 0.002, 80.0

SETS = 3  # of queries, which take turns
CHECKED = 64  # rows at most whose error is measured
FLUSH = 1 << 28  # bytes written on a GPU before each timed call: more than its caches hold
PART = 1 << 24  # numbers of the data at a time


@dataclass(frozen=True)
class Shape:
    """B queries, M data, N dimensions, D augmented ones; 8-bit data if `pixels`, else float32."""

    B: int
    M: int
    N: int
    D: float
    pixels: bool = False

    @property
    def name(self) -> str:
        return f"B={self.B} M={self.M} N={self.N} D={self.D:g}" + " uint8" * self.pixels


@dataclass(frozen=True)
class Query:
    """Points x (B, N) with noise levels sigma (B,), float32, over data (M, N), float32 or uint8.

    Attributes:
        level: the one sigma, if all rows have the same.
        sets: what takes turns in x and sigma; errors are those of the first, at `rows`.
    """

    x: Tensor
    sigma: Tensor
    data: Tensor
    D: float
    level: float | None
    sets: tuple[tuple[Tensor, Tensor], ...]
    rows: Tensor
    turns: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def shape(self) -> Shape:
        (B, N), M = self.x.shape, len(self.data)
        return Shape(B, M, N, self.D, self.data.dtype == torch.uint8)

    @cached_property
    def values(self) -> Tensor:
        """The data as float32."""
        return in_data_units(self.data, torch.float32)

    @cached_property
    def centred(self) -> Centred:
        return Centred.of(self.data)

    def turn(self) -> None:
        """Puts the next set of queries in place; on a GPU nothing of the last call stays in the caches."""
        x, sigma = self.sets[next(self.turns) % len(self.sets)]
        self.x.copy_(x)
        self.sigma.copy_(sigma)
        if self.x.is_cuda:
            torch.empty(FLUSH, dtype=torch.uint8, device=self.x.device).zero_()

    def parts(self, dtype: torch.dtype) -> Iterator[Tensor]:
        return (in_data_units(part, dtype) for part in self.data.split(max(1, PART // self.data.shape[1])))


def make(shape: Shape, variant: str, device: torch.device) -> Query:
    """A mixture of 10 components in which 1 % of the data nearly repeat another, and queries perturbed from it.

    The variant is SPREAD or "sigma X" for one noise level.

    A near-duplicate lies 0.005 from its original, where the two compete at the smallest noise levels, or differs in one
    grey level of one pixel; every 16th query starts at one. The numbers depend on the kind of device.
    """
    generator = torch.Generator(device).manual_seed(shape.N)
    draw = partial(torch.randn, generator=generator, device=device)
    pick = partial(torch.randint, generator=generator, device=device)
    M, N = shape.M, shape.N
    centers = 0.5 * draw(10, N)
    data = torch.empty(M, N, dtype=torch.uint8 if shape.pixels else torch.float32, device=device)
    for part in data.split(max(1, PART // N)):
        y = centers[pick(10, (len(part),))] + 0.2 * draw(len(part), N)
        part.copy_((127.5 * y + 127.5).round().clamp(0, 255) if shape.pixels else y)
    copies, originals = torch.randperm(M, generator=generator, device=device)[: 2 * math.ceil(M / 100)].chunk(2)
    if shape.pixels:
        data[copies] = data[originals]
        data[copies, pick(N, (len(copies),))] ^= 1
    else:
        data[copies] = data[originals] + 0.005 * torch.nn.functional.normalize(draw(len(copies), N), dim=1)

    def starts() -> Tensor:
        start = pick(M, (shape.B,))
        start[::16] = copies[pick(len(copies), (len(start[::16]),))]
        return start

    level = None if variant == SPREAD else float(variant.removeprefix("sigma "))
    return perturbed(data, shape.D, [starts() for _ in range(SETS)], level, generator)


def of_data(data: Tensor, D: float, B: int, seed: int = 0) -> Query:
    """Queries perturbed from data (M, N) of a user, float32 or uint8, with all noise levels."""
    generator = torch.Generator(data.device).manual_seed(seed)
    starts = [torch.randint(len(data), (B,), generator=generator, device=data.device) for _ in range(SETS)]
    return perturbed(data, D, starts, None, generator)


def perturbed(data: Tensor, D: float, starts: list[Tensor], level: float | None, generator: torch.Generator) -> Query:
    """Sets of queries from the data at `starts` (B,), at one noise level or log-uniform over all."""
    B, device = len(starts[0]), data.device
    sets = []
    for turn, start in enumerate(starts):
        spread = torch.rand(B, generator=generator, device=device)
        sigma = LOWEST * (HIGHEST / LOWEST) ** spread if level is None else torch.full_like(spread, level)
        seeds = turn * B + torch.arange(B, device=device)
        sets.append((pf.perturb(in_data_units(data[start], torch.float32), sigma, D, seeds=seeds), sigma))
    rows = torch.linspace(0, B - 1, min(B, CHECKED), device=device).long()  # row 0 starts at a near-duplicate
    x, sigma = (t.clone() for t in sets[0])
    return Query(x, sigma, data, D, level, tuple(sets), rows)


def small(query: Query) -> Query:
    """A few rows, by the same kinds of kernels."""
    sets = tuple((x[:4], sigma[:4]) for x, sigma in query.sets)
    rows = query.rows[query.rows < 4]
    return replace(query, x=query.x[:4], sigma=query.sigma[:4], data=query.data[:64], sets=sets, rows=rows)


def truth(query: Query) -> Tensor:
    """The posterior mean of the checked rows in float64, distances by direct differences."""
    x, sigma = (t[query.rows].double() for t in query.sets[0])
    distance = partial(torch.cdist, compute_mode="donot_use_mm_for_euclid_dist")
    return in_chunks(x, sigma, query.parts(torch.float64), query.D, distance)


def bound(query: Query, exact: Tensor) -> Tensor:
    """Of the accuracy contract at the checked rows: 1e-4 |x - x*| + 4 eps max(|x|, max |y|)."""
    x = query.sets[0][0][query.rows].double()
    largest = torch.stack([part.norm(dim=1).amax() for part in query.parts(torch.float32)]).amax().double()
    allowed: Tensor = 1e-4 * (x - exact).norm(dim=1) + 4 * torch.finfo(torch.float32).eps * x.norm(dim=1).clamp_min(
        largest
    )
    return allowed


def error(query: Query, result: Tensor, exact: Tensor) -> Error:
    """Of the checked rows, in units of the bound, and relative to |x - x*|; NaN counts as infinite."""
    x = query.sets[0][0][query.rows].double()
    off = (result[query.rows].double() - exact).norm(dim=1).nan_to_num(math.inf)
    return of_rows(off / bound(query, exact), off / (x - exact).norm(dim=1))


def of_rows(bounds: Tensor | None, errors: Tensor) -> Error:
    """From the errors (B,) of rows."""
    quantiles = torch.quantile(errors.double(), torch.tensor((0.5, 0.99, 1.0), dtype=torch.float64).to(errors.device))
    return Error(None if bounds is None else bounds.max().item(), *quantiles.nan_to_num(math.inf, math.inf).tolist())


def work(query: Query, answer: Answer) -> Work:
    """One pass over the data for each evaluation; queries are read and means written once."""
    (B, N), M = query.x.shape, len(query.data)
    pairs = answer.evaluations * B * M
    return Work(pairs=pairs, flop=4 * pairs * N, bytes=query.data.nbytes + (2 * B * N + B) * 4)
