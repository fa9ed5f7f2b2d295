"""The kernel's log weight inside Triton: never the logarithm of an absolute distance where a difference will do."""

from __future__ import annotations

import math

import triton
import triton.language as tl

LOG2_E = tl.constexpr(math.log2(math.e))


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


@triton.jit
def log2_weight(u, rate, KIND: tl.constexpr):
    """rate log1p(u) with rate = -power LOG2_E < 0, by polynomials where the power keeps the u that matter small.

    They are log1p(u)/u interpolated in Chebyshev nodes, on [0, 0.08], [0, 0.31] and [0, 0.62]: weights are right to
    1e-6; beyond, u times the polynomial still grows. Of other kinds u has the rate in it.
    """
    if KIND == "quadratic":
        q = tl.fma(u, rate * 0.305355858, rate * -0.499177441)
        u = u * tl.fma(u, q, rate * 0.999996357)
    elif KIND == "quartic":
        q = tl.fma(u, rate * 0.111400238, rate * -0.228951556)
        q = tl.fma(u, tl.fma(u, q, rate * 0.331138739), rate * -0.499917242)
        u = u * tl.fma(u, q, rate * 0.99999949)
    elif KIND == "sextic":
        q = tl.fma(u, rate * 0.0294586418, rate * -0.0994698862)
        q = tl.fma(u, tl.fma(u, q, rate * 0.17628716), rate * -0.245339558)
        q = tl.fma(u, tl.fma(u, q, rate * 0.332877826), rate * -0.499982835)
        u = u * tl.fma(u, q, rate * 0.999999892)
    elif KIND == "log2":
        u = tl.log2(1.0 + u) * (rate / LOG2_E)
    elif KIND == "log":
        u = log1p(tl.minimum(u, 1e38)) * rate
    return u
