"""How time and memory grow with the number of data, of queries and of dimensions, and what a second thread brings."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast import streaming
from pfgm_fast.bench import posterior_mean as pm
from pfgm_fast.bench.core import Effort, Operation, Provider
from pfgm_fast.bench.queries import SPREAD, Query, Shape
from pfgm_fast.bench.rows import Row, Table

LEAST_MB = 1.0  # memory below which a fit would be of the allocator
MAPPED = "pfgm_fast, data in a mapped file"
STREAMED = "pfgm_fast, data streamed from the host"
PROVIDERS = (pm.NATIVE, pm.TRITON, pm.PRODUCTS, pm.PRODUCTS_TF32, pm.CHUNKED, pm.KEOPS, pm.ORIGINAL)


class Sizes(NamedTuple):
    """Shapes along one letter of B, M, N."""

    letter: str
    base: Shape
    values: tuple[int, ...]
    threads: tuple[int, ...] = (1,)

    def shapes(self) -> dict[int, Shape]:
        return {value: replace(self.base, **{self.letter: value}) for value in self.values}  # type: ignore[arg-type]


SCALING = {
    "scaling_data": Sizes("M", Shape(32, 0, 16, 128), (1000, 10_000, 100_000, 1_000_000, 10_000_000)),
    "scaling_queries": Sizes("B", Shape(0, 20_000, 64, 128), (1, 10, 100, 1000, 10_000), threads=(1, 2)),
    "scaling_dimensions": Sizes("N", Shape(64, 4096, 0, 128), (2, 8, 32, 128, 512, 2048, 8192)),
}


def operation(name: str) -> Operation[Query]:
    sizes = SCALING[name]
    cases = {shape.name: pm.case(shape, threads=sizes.threads) for shape in sizes.shapes().values()}
    made = pm.operation(cases, EXTRA if sizes.letter == "M" else (), name)
    kept = tuple(provider for provider in made.providers if provider.name in (*PROVIDERS, MAPPED, STREAMED))
    return replace(made, variants=(SPREAD,), providers=kept, effort=Effort(0.4, 1, 15))


def _mapped(query: Query) -> Callable[[], Tensor]:
    """The field of a file that stays on disk; its pages come through the system's cache."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npy"
        np.save(path, query.data.numpy())
        data = torch.from_numpy(np.load(path, mmap_mode="c"))
        os.unlink(path)  # the map keeps what it needs
    field = pf.EmpiricalField(data, query.D)
    return lambda: field(query.x, query.sigma)


def _streamed(query: Query) -> Callable[[], Tensor]:
    """As if the GPU had no room for the data."""
    with mock.patch.object(streaming, "free_memory", return_value=0):
        field = pf.EmpiricalField(query.data.cpu(), query.D, device=query.x.device)
    return lambda: field(query.x, query.sigma)


EXTRA: tuple[Provider[Query], ...] = (
    Provider(MAPPED, _mapped, ours=True, devices=pm.CPU),
    Provider(STREAMED, _streamed, ours=True, devices=pm.GPU),
)


@dataclass(frozen=True)
class Curve:
    """A provider's rows along the letter of an operation, by size."""

    provider: str
    points: dict[int, Row]

    def line(self, column: str) -> list[tuple[float, float]]:
        found = ((size, getattr(row, column)) for size, row in self.points.items())
        return [(float(size), value) for size, value in found if value is not None]

    def exponent(self, column: str = "median_ms") -> float | None:
        """Of the power law through the points of the last two decades, by least squares in logarithms."""
        line = self.line(column)
        last = [(x, y) for x, y in line if x >= line[-1][0] / 100]
        if len(last) < 2 or (column == "memory_mb" and min(y for _, y in last) < LEAST_MB):
            return None
        x, y = np.log(last).T
        return float(np.polyfit(x, y, 1)[0])


def curves(name: str, table: Table, threads: int = 1) -> list[Curve]:
    """Of the providers that were measured at two sizes or more."""
    sizes = {shape.name: value for value, shape in SCALING[name].shapes().items()}
    rows = [row for row in table.where(operation=name, threads=threads) if row.case in sizes and row.median_ms]
    found = [Curve(who, _by_size(sizes, rows, who)) for who in dict.fromkeys(row.provider for row in rows)]
    return [curve for curve in found if len(curve.points) > 1]


def _by_size(sizes: dict[str, int], rows: Iterable[Row], provider: str) -> dict[int, Row]:
    return dict(sorted((sizes[row.case], row) for row in rows if row.provider == provider))
