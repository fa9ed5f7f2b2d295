"""What `benchmarks.run` measures: an operation joins with one entry."""

from __future__ import annotations

from typing import Any

from benchmarks import posterior_mean, targets
from benchmarks.core import Operation

OPERATIONS: dict[str, Operation[Any]] = {
    operation.name: operation for operation in (posterior_mean.OPERATION, targets.OPERATION)
}
