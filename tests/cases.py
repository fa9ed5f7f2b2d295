"""The one list of hard cases that every backend is held to: data sets and queries by fixed seed."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import oracle
import torch
from numpy.typing import NDArray
from torch import Tensor

Rows = NDArray[np.float64]

DIMENSIONS = (0.5, 1, 2, 2.7, 128, 2048, 1e6, math.inf)
SIZES = {
    1: (33, 517),
    2: (33, 517),
    3: (33, 517),
    8: (33, 517),
    16: (33, 301),
    17: (33, 301),
    64: (33, 301),
    100: (31, 257),
}
LARGE = {784: (13, 131), 3072: (9, 67), 12288: (5, 29)}


@dataclass(frozen=True)
class Case:
    """Queries x (B, N) with noise levels sigma (B,) over data (M, N)."""

    x: Tensor
    sigma: Tensor
    data: Tensor
    D: float
    log_weights: Tensor | None = None  # (M,)
    labels: Tensor | None = None  # (M,), the class of each datum
    row_labels: Tensor | None = None  # (B,), the class each query sees

    @property
    def eps(self) -> float:
        return oracle.eps(self.x, self.data)

    def double(self) -> Case:
        """The same values, held and computed in float64."""
        data = self.data if self.data.dtype == torch.uint8 else self.data.double()
        return replace(self, x=self.x.double(), sigma=self.sigma.double(), data=data)


class Source:
    """Random numbers of one case, and the shapes it is made of."""

    def __init__(self, name: str, N: int, D: float) -> None:
        self.rng = np.random.default_rng(zlib.crc32(name.encode()))
        self.N, self.D = N, D
        self.B, self.M = (SIZES | LARGE)[N]

    def levels(self, low: float = 0.002, high: float = 80.0) -> Rows:
        """Noise levels (B,), log-uniform with both ends among them."""
        sigma = np.exp(self.rng.uniform(math.log(low), math.log(high), self.B))
        sigma[:1], sigma[-1:] = low, high
        return sigma

    def mixture(self, M: int | None = None) -> Rows:
        """A mixture of ten Gaussians (M, N), 1 % of it near-duplicates that differ in one coordinate."""
        M = M or self.M
        centres = self.rng.uniform(-1, 1, (10, self.N))
        y = centres[self.rng.integers(0, 10, M)] + 0.1 * self.rng.standard_normal((M, self.N))
        for j in range(1, M, 100):
            y[j] = y[j - 1]
            y[j, self.rng.integers(self.N)] += 1 / 127.5
        return y

    def noisy(self, y: Rows, sigma: Rows) -> Rows:
        """Data chosen at random and perturbed as the family does: Student-t of D degrees of freedom and scale sigma."""
        chosen = y[self.rng.integers(0, len(y), self.B)]
        stretch = np.ones(self.B) if math.isinf(self.D) else np.sqrt(self.D / self.rng.chisquare(self.D, self.B))
        return chosen + (sigma * stretch)[:, None] * self.rng.standard_normal(chosen.shape)

    def faint(self, y: Rows, sigma: Rows) -> Rows:
        """Data perturbed by all of the noise, by next to none, or by none, so that the terms of a sum may be equal."""
        share = np.resize([0.0, 1.0, 1e-4, 0.0], (self.B, 1))
        chosen = y[self.rng.integers(0, len(y), self.B)]
        return chosen + share * sigma[:, None] * self.rng.standard_normal(chosen.shape)

    def case(self, x: Rows, sigma: Rows, y: Rows, dtype: torch.dtype = torch.float32) -> Case:
        return Case(_tensor(x, dtype), _tensor(sigma, dtype), _tensor(y, dtype), self.D)


def _tensor(rows: Rows, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(rows)).to(dtype)


def mixture(s: Source) -> Case:
    y, sigma = s.mixture(), s.levels()
    return s.case(s.noisy(y, sigma), sigma, y)


def near_duplicates(s: Source) -> Case:
    """Images in families of eight that differ from each other in one pixel by one grey level."""
    u = s.rng.integers(0, 256, (-(-s.M // 8), s.N)).repeat(8, 0)[: s.M]
    u[np.arange(s.M), s.rng.integers(0, s.N, s.M)] ^= 1
    y, sigma = u / 127.5 - 1, s.levels()
    return s.case(s.noisy(y, sigma), sigma, y)


def duplicates(s: Source) -> Case:
    """Every datum three times, in random order."""
    y, sigma = s.mixture(s.M // 3).repeat(3, 0), s.levels()
    s.rng.shuffle(y)
    return s.case(s.noisy(y, sigma), sigma, y)


def on_data(s: Source) -> Case:
    """Queries that are data, near-duplicated ones among them."""
    y, sigma = s.mixture(), s.levels()
    y = y.astype(np.float32).astype(np.float64)
    return s.case(y[: s.B], sigma, y)


def midpoints(s: Source) -> Case:
    """Queries half-way between two data, where at small sigma the last bit of a distance decides."""
    y, sigma = s.mixture().astype(np.float32).astype(np.float64), s.levels(0.02)
    near = s.rng.integers(0, s.M - 1, s.B)
    return s.case((y[near] + y[near + 1]) / 2, sigma, y)


def offset(s: Source) -> Case:
    """Data with a large common mean."""
    y, sigma = 1000 + s.mixture(), s.levels()
    return s.case(s.noisy(y, sigma), sigma, y)


def outlier(s: Source) -> Case:
    """One datum far from all others."""
    y, sigma = s.mixture(), s.levels()
    y[s.M // 2] = 1e4
    return s.case(s.noisy(y[: s.M // 2], sigma), sigma, y)


def clusters(s: Source) -> Case:
    """Tight clusters far apart: at small sigma every query has many contenders."""
    centres = s.rng.uniform(-10, 10, (8, s.N))
    y, sigma = centres[s.rng.integers(0, 8, s.M)] + 0.003 * s.rng.standard_normal((s.M, s.N)), s.levels()
    return s.case(s.noisy(y, sigma), sigma, y)


def far(s: Source) -> Case:
    """Queries at distances of 1e3 to 1e4 from data of unit size."""
    y = s.mixture()
    sigma = s.levels(0.002 if s.D == 1 else 20.0)
    direction = s.rng.standard_normal((s.B, s.N))
    distance = np.exp(s.rng.uniform(math.log(1e3), math.log(1e4), (s.B, 1)))
    return s.case(distance * direction / np.linalg.norm(direction, axis=1, keepdims=True), sigma, y)


def off_scale(s: Source) -> Case:
    """Queries whose distance has nothing to do with their noise level."""
    y, sigma = s.mixture(), s.levels()
    return s.case(s.rng.uniform(-1.5, 1.5, (s.B, s.N)), sigma, y)


def tiny(s: Source) -> Case:
    y, sigma = 1e-3 * s.mixture(), s.levels()
    return s.case(s.noisy(y, sigma), sigma, y)


def huge(s: Source) -> Case:
    y, sigma = 1e3 * s.mixture(), s.levels()
    return s.case(s.noisy(y, sigma), sigma, y)


def approaching(s: Source) -> Case:
    """Data sorted so that each is nearer to the queries than all before it."""
    y, sigma = s.mixture(), s.levels(0.01)
    y = y[np.argsort(-np.linalg.norm(y - y[0], axis=1))]
    return s.case(s.noisy(y[-1:], sigma), sigma, y)


def one_datum(s: Source) -> Case:
    y, sigma = s.mixture(1), s.levels()
    return s.case(s.noisy(y, sigma), sigma, y)


def two_data(s: Source) -> Case:
    y, sigma = s.mixture(2), s.levels()
    return s.case(s.noisy(y, sigma), sigma, y)


def one_query(s: Source) -> Case:
    s.B = 1
    return mixture(s)


def many_queries(s: Source) -> Case:
    s.B, s.M = 1025, 3
    return mixture(s)


def many_data(s: Source) -> Case:
    s.B, s.M = 5, {2: 50_001, 16: 20_001, 64: 5_001, 784: 801}[s.N]
    return mixture(s)


def dense_plane(s: Source) -> Case:
    """So many data in the plane that at every noise level some query has many contenders."""
    s.B, s.M = 64, 10_000
    return mixture(s)


def loud(s: Source) -> Case:
    """Every query at sigma = 80, where all data count."""
    y, sigma = s.mixture(), np.full(s.B, 80.0)
    return s.case(s.noisy(y, sigma), sigma, y)


def quiet(s: Source) -> Case:
    """Every query at sigma = 0.002, where almost none does."""
    y, sigma = s.mixture(), np.full(s.B, 0.002)
    return s.case(s.noisy(y, sigma), sigma, y)


def pixels(s: Source) -> Case:
    """8-bit images, near-duplicates and copies among them."""
    u, sigma = s.rng.integers(0, 256, (s.M, s.N)).astype(np.uint8), s.levels()
    u[1], u[3], u[5] = u[0], u[2], u[2]
    u[1, 0] ^= 1
    y = (2.0 * u - 255) / 255
    return replace(s.case(s.noisy(y, sigma), sigma, y), data=torch.from_numpy(u))


def flat(s: Source) -> Case:
    """Images of one grey level each, some of which differ in one pixel: all terms of a product round the same way."""
    s.B = 48
    y, sigma = s.rng.integers(0, 256, (6, 1))[s.rng.integers(0, 6, s.M)] / 127.5 - np.ones(s.N), s.levels()
    y[np.arange(0, s.M, 4), s.rng.integers(0, s.N, len(y[::4]))] += 1 / 127.5
    return s.case(s.faint(y, sigma), sigma, y)


def shades(s: Source) -> Case:
    """Flat images of any grey level, so close to one another that neighbours contend."""
    s.B = 48
    y, sigma = s.rng.uniform(-1, 1, (s.M, 1)) * np.ones(s.N), s.levels(0.002, 0.1)
    return s.case(s.faint(y, sigma), sigma, y)


def two_tone(s: Source) -> Case:
    """Images that are black or white but for a strip of texture."""
    y, sigma = s.rng.choice([-1.0, 1.0], (s.M, 1)) * np.ones(s.N), s.levels()
    y[:, : s.N // 8] = s.rng.uniform(-1, 1, (s.M, s.N // 8))
    return s.case(s.faint(y, sigma), sigma, y)


def one_hot(s: Source) -> Case:
    """Unit vectors: all equally far from each other, with equal weights that are added up."""
    y, sigma = np.eye(s.N)[s.rng.integers(0, s.N, s.M)], s.levels()
    return s.case(s.faint(y, sigma), sigma, y)


def weighted(s: Source) -> Case:
    """Log masses over two hundred nats."""
    return replace(mixture(s), log_weights=_tensor(s.rng.uniform(-200, 0, s.M)))


def light_neighbours(s: Source) -> Case:
    """Next to no mass but in every fiftieth datum, so that the nearest datum hardly ever matters."""
    a = np.full(s.M, -40.0)
    a[::50] = 0
    return replace(mixture(s), log_weights=_tensor(a))


def classes(s: Source) -> Case:
    """Five classes in random order; some queries see all of them."""
    labels, rows = s.rng.integers(0, 5, s.M), s.rng.integers(-1, 5, s.B)
    labels[:5] = np.arange(5)
    return replace(mixture(s), labels=torch.from_numpy(labels), row_labels=torch.from_numpy(rows))


def double_data(s: Source) -> Case:
    case = mixture(s)
    return replace(case, data=case.data.double() + 1e-9)


def double_queries(s: Source) -> Case:
    case = mixture(s)
    return replace(case, x=case.x.double() + 1e-9)


Kind = Callable[[Source], Case]
ENDS = (1, 128, math.inf)
SHAPES = (2, 16, 64, 784)

GRID: tuple[tuple[Kind, tuple[int, ...], tuple[float, ...]], ...] = (
    (mixture, tuple(SIZES), DIMENSIONS),
    (mixture, tuple(LARGE), (1, 2, 128, 2048, 1e6, math.inf)),
    (near_duplicates, (2, 16, 64, 784, 3072), ENDS),
    (duplicates, SHAPES, ENDS),
    (on_data, (2, 16, 64, 3072), ENDS),
    (midpoints, SHAPES, (1, math.inf)),
    (offset, SHAPES, ENDS),
    (outlier, SHAPES, (1, math.inf)),
    (clusters, SHAPES, ENDS),
    (far, (2, 16, 64), (1, math.inf)),
    (off_scale, SHAPES, (1, math.inf)),
    (tiny, SHAPES, (1, math.inf)),
    (huge, SHAPES, (1, math.inf)),
    (approaching, SHAPES, (1, math.inf)),
    (one_datum, SHAPES, ENDS),
    (two_data, SHAPES, ENDS),
    (one_query, SHAPES, ENDS),
    (many_queries, (2, 64), (1, math.inf)),
    (many_data, SHAPES, (1, math.inf)),
    (dense_plane, (2,), (1,)),
    (loud, SHAPES, ENDS),
    (quiet, SHAPES, ENDS),
    (pixels, (1, 16, 17, 64, 784, 3072), ENDS),
    (flat, (64, 784, 3072), ENDS),
    (shades, (64, 784, 3072), ENDS),
    (two_tone, (64, 784, 3072), ENDS),
    (one_hot, (64, 784, 3072), ENDS),
    (weighted, SHAPES, ENDS),
    (light_neighbours, (2, 64), ENDS),
    (classes, SHAPES, (1, math.inf)),
    (double_data, SHAPES, (1, math.inf)),
    (double_queries, SHAPES, (1, math.inf)),
)

MAKERS = {f"{kind.__name__}-N{N}-D{D:g}": (kind, N, D) for kind, Ns, Ds in GRID for N in Ns for D in Ds}
NAMES = tuple(MAKERS)
# Half of them, as the black squares of a chess-board: of every kind each N and each D.
DOUBLE = tuple(
    f"{kind.__name__}-N{N}-D{D:g}"
    for kind, Ns, Ds in GRID
    for row, N in enumerate(Ns)
    for column, D in enumerate(Ds)
    if (row + column) % 2 == 0
)


def make(name: str) -> Case:
    """The case of that name, the same tensors every time."""
    kind, N, D = MAKERS[name]
    return kind(Source(name, N, D))


@cache
def truth(name: str) -> oracle.Truth:
    """What the oracle says of a case, computed once."""
    case = make(name)
    allowed = None
    if case.labels is not None and case.row_labels is not None:
        rows = case.row_labels[:, None]
        allowed = ((rows < 0) | (rows == case.labels)).numpy()
    return oracle.field(case.x, case.sigma, case.data, case.D, case.log_weights, allowed)
