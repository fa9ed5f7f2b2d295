"""Scores of a tile: |y|^2 - 2 x.y, the squared distance less |x|^2, in integers that are exact or in float64."""

from __future__ import annotations

import triton
import triton.language as tl

from pfgm_fast.kernels.digits import power_of_two

CHUNK = tl.constexpr(1 << 14)  # digits: so many products of two, four at a time, sum to less than 2^31


@triton.jit
def units_of(x_exponent, x_squares, x_error, y_exponent, y_error, left_out, row, PLANES: tl.constexpr):
    """Of rows (ROWS,): by how many bits the units of |y|^2 are finer than those of the scores; these; |x|^2; and the

    error and slack of a squared distance d, which is off by 2 error sqrt(d) + slack at most.
    """
    ex, ey = tl.load(x_exponent + row), tl.load(y_exponent)
    shift = tl.minimum(ex - ey + (9 if PLANES > 1 else 17), 62)
    ulp = power_of_two(ex + ey + (-23 if PLANES > 1 else -15))
    norm = tl.load(x_squares + row).to(tl.float64) * power_of_two(2 * ex - 32)
    error = tl.load(x_error + row) + tl.load(y_error)
    return shift, ulp, norm, error, error * error + left_out * power_of_two(ex + ey)


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
    PLANES: tl.constexpr,
    DEEP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):
    """int64 (ROWS, BLOCK), in units of 2^(ex + ey + 1 - 8 orders), where orders is one less than those summed below.

    A product of digits of places s and t has order s + t. Of data with four digits the orders 0 to 3 are taken, of
    pixels, which have one, all: 0 to 2. Sums are over the first `depth` digits.
    """
    k = tl.arange(0, STEP)
    xp = x + i.to(tl.int64)[:, None] * width + k[None, :]
    yp = y + j.to(tl.int64)[None, :] * width + k[:, None]
    x_plane = tl.cast(B, tl.int64) * width
    y_plane = tl.cast(M, tl.int64) * width
    if DEEP:
        product = tl.zeros((ROWS, BLOCK), tl.int64)
        for start in range(0, depth, CHUNK):
            part = tl.minimum(depth - start, CHUNK)
            product += _product(xp + start, yp + start, x_plane, y_plane, part, PLANES, ROWS, BLOCK, STEP)
    else:
        product = _product(xp, yp, x_plane, y_plane, depth, PLANES, ROWS, BLOCK, STEP)
    squares = tl.load(y_squares + j)[None, :]
    shift = shift[:, None].to(tl.int64)
    return ((squares + ((1 << shift) >> 1)) >> shift) - product


@triton.jit
def _product(
    xp,
    yp,
    x_plane,
    y_plane,
    depth,
    PLANES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):
    order0 = tl.zeros((ROWS, BLOCK), tl.int32)
    order1 = tl.zeros((ROWS, BLOCK), tl.int32)
    order2 = tl.zeros((ROWS, BLOCK), tl.int32)
    order3 = tl.zeros((ROWS, BLOCK), tl.int32)
    for _ in range(0, depth, STEP):
        x0, x1, x2 = tl.load(xp), tl.load(xp + x_plane), tl.load(xp + 2 * x_plane)
        y0 = tl.load(yp)
        order0 = tl.dot(x0, y0, order0, out_dtype=tl.int32)
        order1 = tl.dot(x1, y0, order1, out_dtype=tl.int32)
        order2 = tl.dot(x2, y0, order2, out_dtype=tl.int32)
        if PLANES > 1:
            x3 = tl.load(xp + 3 * x_plane)
            y1, y2, y3 = tl.load(yp + y_plane), tl.load(yp + 2 * y_plane), tl.load(yp + 3 * y_plane)
            order1 = tl.dot(x0, y1, order1, out_dtype=tl.int32)
            order2 = tl.dot(x1, y1, order2, out_dtype=tl.int32)
            order2 = tl.dot(x0, y2, order2, out_dtype=tl.int32)
            order3 = tl.dot(x3, y0, order3, out_dtype=tl.int32)
            order3 = tl.dot(x2, y1, order3, out_dtype=tl.int32)
            order3 = tl.dot(x1, y2, order3, out_dtype=tl.int32)
            order3 = tl.dot(x0, y3, order3, out_dtype=tl.int32)
        xp += STEP
        yp += STEP
    product = (order0.to(tl.int64) << 16) + (order1.to(tl.int64) << 8) + order2.to(tl.int64)
    if PLANES > 1:
        product = (product << 8) + order3.to(tl.int64)
    return product


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
