"""What `benchmarks.run` measures: an operation joins with one entry."""

from __future__ import annotations

from typing import Any

from benchmarks import accuracy, scaling, shapes, training_target
from benchmarks.solvers import linear, nfe, overhead, poisson, sampling
from pfgm_fast.bench import posterior_mean
from pfgm_fast.bench.core import Operation

_ALL: tuple[Operation[Any], ...] = (
    posterior_mean.operation(shapes.cases()),
    training_target.OPERATION,
    poisson.OPERATION,
    sampling.OPERATION,
    linear.OPERATION,
    overhead.OPERATION,
    nfe.OPERATION,
    *map(scaling.operation, scaling.SCALING),
    accuracy.OPERATION,
)
OPERATIONS = {operation.name: operation for operation in _ALL}


def find(name: str) -> Operation[Any]:
    """For processes that get an operation by its name."""
    return OPERATIONS[name]
