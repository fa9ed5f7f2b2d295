"""Scores of a tile: |y|^2 - 2 x.y, the squared distance less |x|^2, in integers that are exact or in float64.

A product of digits of places s and t has order s + t. A query with X digits is multiplied with data that have as many,
or one if they are pixels, and a score is in units of order X - 1, 2^(ex + ey + 1 - 8 (X - 1)). With four digits a side
the products of orders above that are left out; with two they are taken and rounded down.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pfgm_fast.kernels.digits import SHORT as _SHORT
from pfgm_fast.kernels.digits import power_of_two
from pfgm_fast.kernels.pairs import appended, nothing

CHUNK = tl.constexpr(1 << 14)  # digits: so many products of two, four at a time, sum to less than 2^31
SHORT = tl.constexpr(_SHORT)  # digits: so many products of orders 0 and 1 make one number of 32 bits


@triton.jit
def units_of(x_exponent, x_squares, x_error, y_exponent, row, X: tl.constexpr):
    """Of rows (ROWS,): the bits by which |y|^2 is finer than the scores, their unit, |x|^2, and NaN where x is not

    finite, else 0.
    """
    ex, ey = tl.load(x_exponent + row), tl.load(y_exponent)
    shift = tl.minimum(ex - ey + (41 - 8 * X), 62)
    ulp = power_of_two(ex + ey + (9 - 8 * X))
    norm = tl.load(x_squares + row).to(tl.float64) * power_of_two(2 * ex - 32)
    error = tl.load(x_error + row)
    return shift, ulp, norm, error - error


@triton.jit
def errors_of(x_exponent, x_error, y_exponent, y_error, left_out, row):
    """error and slack (ROWS,) of a squared distance d, which is off by 2 error sqrt(d) + slack at most."""
    error = tl.load(x_error + row) + tl.load(y_error)
    return error, error * error + left_out * power_of_two(tl.load(x_exponent + row) + tl.load(y_exponent))


@triton.jit
def planes(pointers, plane, COUNT: tl.constexpr):
    """The tiles of the first planes of digits."""
    loaded = nothing()
    for t in tl.static_range(COUNT):
        loaded = appended(loaded, tl.load(pointers + t * plane))
    return loaded


@triton.jit
def no_products(ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Sums of products by order."""
    zero = tl.zeros((ROWS, BLOCK), tl.int32)
    return zero, zero, zero, zero


@triton.jit
def multiplied(x, y, sums, X: tl.constexpr, Y: tl.constexpr):
    order0, order1, order2, order3 = sums
    order0 = tl.dot(x[0], y[0], order0, out_dtype=tl.int32)
    order1 = tl.dot(x[1], y[0], order1, out_dtype=tl.int32)
    if Y > 1:
        order1 = tl.dot(x[0], y[1], order1, out_dtype=tl.int32)
        order2 = tl.dot(x[1], y[1], order2, out_dtype=tl.int32)
    if X > 2:
        order2 = tl.dot(x[2], y[0], order2, out_dtype=tl.int32)
    if Y > 2:
        order2 = tl.dot(x[0], y[2], order2, out_dtype=tl.int32)
        order3 = tl.dot(x[3], y[0], order3, out_dtype=tl.int32)
        order3 = tl.dot(x[2], y[1], order3, out_dtype=tl.int32)
        order3 = tl.dot(x[1], y[2], order3, out_dtype=tl.int32)
        order3 = tl.dot(x[0], y[3], order3, out_dtype=tl.int32)
    return order0, order1, order2, order3


@triton.jit
def joined(sums, X: tl.constexpr, Y: tl.constexpr, TYPE: tl.constexpr):
    """x.y, int64 or, where sums are SHORT, int32 if that holds it; leading orders are joined in TYPE."""
    order0, order1, order2, order3 = sums
    product = (order0.to(TYPE) << 8) + order1
    if X == 2:
        if Y == 2:
            product += order2 >> 8
    elif X == 3:
        product = (product.to(tl.int64) << 8) + order2
    else:
        product = (product.to(tl.int64) << 16) + ((order2.to(TYPE) << 8) + order3)
    return product


@triton.jit
def of_product(product, y_squares, shift):
    """Scores like the product, from |y|^2 (1, BLOCK)."""
    if product.dtype == tl.int32:
        score = ((y_squares >> 24).to(tl.int32) >> tl.minimum(shift - 24, 31)[:, None]) - product
    else:
        shift = shift[:, None].to(tl.int64)
        score = ((y_squares + ((1 << shift) >> 1)) >> shift) - product
    return score


@triton.jit
def of_digits(
    x,
    y,
    y_squares,
    shift,
    i,
    j,
    B,
    M,
    width,
    depth,
    X: tl.constexpr,
    Y: tl.constexpr,
    DEEP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):
    """int64 (ROWS, BLOCK), over the first `depth` digits."""
    k = tl.arange(0, STEP)
    xp = x + i.to(tl.int64)[:, None] * width + k[None, :]
    yp = y + j.to(tl.int64)[None, :] * width + k[:, None]
    x_plane = tl.cast(B, tl.int64) * width
    y_plane = tl.cast(M, tl.int64) * width
    if DEEP:
        product = tl.zeros((ROWS, BLOCK), tl.int64)
        for start in range(0, depth, CHUNK):
            part = tl.minimum(depth - start, CHUNK)
            product += _product(xp + start, yp + start, x_plane, y_plane, part, X, Y, ROWS, BLOCK, STEP)
    else:
        product = _product(xp, yp, x_plane, y_plane, depth, X, Y, ROWS, BLOCK, STEP)
    return of_product(product, tl.load(y_squares + j)[None, :], shift)


@triton.jit
def _product(
    xp,
    yp,
    x_plane,
    y_plane,
    depth,
    X: tl.constexpr,
    Y: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):
    sums = no_products(ROWS, BLOCK)
    for _ in range(0, depth, STEP):
        sums = multiplied(planes(xp, x_plane, X), planes(yp, y_plane, Y), sums, X, Y)
        xp += STEP
        yp += STEP
    return joined(sums, X, Y, tl.int64)


@triton.jit
def of_doubles(x, points, center, i, j, N, depth, ROWS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr):
    """float64 (ROWS, BLOCK) of values less the centre, with |x|^2 and a bound on the rounding errors, (ROWS,)."""
    k = tl.arange(0, STEP)
    product = tl.zeros((ROWS, BLOCK), tl.float64)
    x_squares = tl.zeros((ROWS,), tl.float64)
    y_squares = tl.zeros((BLOCK,), tl.float64)
    xp = x + i.to(tl.int64)[:, None] * N + k[None, :]
    yp = points + j.to(tl.int64)[None, :] * N + k[:, None]
    for start in range(0, depth, STEP):
        inside = start + k < N
        c = tl.load(center + start + k, mask=inside, other=0.0)
        xv = tl.where(inside[None, :], tl.load(xp + start, mask=inside[None, :], other=0.0) - c[None, :], 0.0)
        yv = tl.where(inside[:, None], tl.load(yp + start, mask=inside[:, None], other=0.0) - c[:, None], 0.0)
        product = tl.dot(xv, yv, product, input_precision="ieee", out_dtype=tl.float64)
        x_squares += tl.sum(xv * xv, 1)
        y_squares += tl.sum(yv * yv, 0)
    largest = tl.max(y_squares, 0)
    bound = 1.1e-16 * tl.cast(N + 2, tl.float64) * (largest + 2 * tl.sqrt(x_squares * largest))
    return y_squares[None, :] - 2 * product, x_squares, bound
