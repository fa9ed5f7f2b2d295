"""The kernel's log weight inside Triton: never the logarithm of an absolute distance where a difference will do."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def log1p(u):
    """To two units in the last place; libdevice's does not run in the interpreter."""
    w = 1.0 + u
    return tl.log(w) + tl.where(w < 2.0, u - (w - 1.0), 0.0)  # what rounding 1 + u took away


@triton.jit
def of_ratio(u, power, GAUSSIAN: tl.constexpr):
    """-power log1p(u), or -u."""
    return -u if GAUSSIAN else -power * log1p(u)


@triton.jit
def log_weight(distance, width, power, GAUSSIAN: tl.constexpr):
    """-power log1p(distance / width), or -distance / width: of a squared distance, or of one in excess of a reference.

    In excess of a reference rho, the width is scale + rho, or still scale for a Gaussian.
    """
    return of_ratio(distance / width, power, GAUSSIAN)
