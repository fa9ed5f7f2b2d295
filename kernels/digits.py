"""Rows of numbers cut into int8 digits, so that their products are sums of integers and exact on every device.

A value is 2^e (d_0 + d_1/256 + d_2/65536 + ...) with balanced digits, -128 <= d <= 127: the leading ones of one rounded
integer, never digits rounded one by one. Scores made of them do not depend on tiles, devices or the order of summation;
the one error is the rounding of the values, whose size is known.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

FLOAT, QUERY = 4, 3  # digits of a floating value, and of a query among pixels
ALIGNMENT = 32  # digits: the least depth of an int8 product
PIXEL = 2 / 255  # of data units in one unit of a pixel's digits, u - 128
COLUMNS = 1024


class Digits(NamedTuple):
    """Rows (R, N) as digits (planes, R, width), zero beyond N.

    exponent: (R,) int32, or (1,) for one that all rows share.
    squares: (R,) int64, the sum of squares in units of 2^(2e - 32).
    error: (R,) float64, the norm of what rounding took away; or (1,), the largest.
    """

    planes: Tensor
    exponent: Tensor
    squares: Tensor
    error: Tensor


def units_per_datum(pixels: bool) -> float:
    """Squared units of the digits in one of the data."""
    return PIXEL**-2 if pixels else 1.0


def width(N: int) -> int:
    return -(-N // ALIGNMENT) * ALIGNMENT


def leading(N: int) -> int:
    """The largest leading digit such that the squares of N values sum to less than 2^63."""
    return 127 >> max(0, math.ceil((math.log2(max(N, 1)) - 17) / 2))


def of_pixels(data: Tensor) -> Digits:
    """8-bit images (M, N) uint8 as one digit, u - 128: nothing is rounded."""
    exponent = torch.zeros(1, dtype=torch.int32, device=data.device)
    origin = torch.full((data.shape[1],), 128.0, dtype=torch.float64, device=data.device)
    return _shared(_cut(data, origin, 1.0, exponent, planes=1, shared=True))


def of_data(data: Tensor, center: Tensor) -> Digits:
    """Data (M, N) less their centre, with one exponent for all."""
    M, N = data.shape
    largest = torch.empty(M, dtype=torch.float64, device=data.device)
    _extent[(M,)](data, center, largest, 1.0, N, BLOCK=COLUMNS, num_warps=4, num_stages=2, enable_fp_fusion=False)
    exponent = torch.frexp(largest.amax(0, keepdim=True) / leading(N)).exponent.clamp_min(-400)
    return _shared(_cut(data, center, 1.0, exponent, FLOAT, shared=True))


def of_queries(x: Tensor, data: Digits, center: Tensor) -> Digits:
    """Queries (B, N) in the units of the data's digits, each with an exponent of its own, not below the data's."""
    if len(data.planes) > 1:
        return _cut(x, center, 1.0, data.exponent, FLOAT, shared=False)
    return _cut(x, torch.full_like(center, 0.5), 1 / PIXEL, data.exponent, QUERY, shared=False)


def empty(M: int, N: int, planes: int, device: torch.device, exponents: int = 1) -> Digits:
    return Digits(
        torch.empty(planes, M, width(N), dtype=torch.int8, device=device),
        torch.empty(exponents, dtype=torch.int32, device=device),
        torch.empty(M, dtype=torch.int64, device=device),
        torch.empty(exponents, dtype=torch.float64, device=device),
    )


def _shared(digits: Digits) -> Digits:
    return digits._replace(exponent=digits.exponent[:1].clone(), error=digits.error.amax(0, keepdim=True))


def _cut(rows: Tensor, origin: Tensor, gain: float, exponent: Tensor, planes: int, shared: bool) -> Digits:
    R, N = rows.shape
    out = empty(R, N, planes, rows.device, exponents=R)
    _digits[(R,)](
        *(rows, origin, exponent, *out),
        *(gain, leading(N), R, N, width(N)),
        *(planes, shared, COLUMNS),
        num_warps=4,
        num_stages=2,
        enable_fp_fusion=False,
    )
    return out


@triton.jit
def _values(rows, origin, gain, row, k, N):
    inside = k < N
    value = tl.load(rows + row * N + k, mask=inside, other=0).to(tl.float64)
    return tl.where(inside, value * gain - tl.load(origin + k, mask=inside, other=0.0), 0.0)


@triton.jit
def _largest(rows, origin, gain, row, N, BLOCK: tl.constexpr):
    """The largest magnitude of a row; NaN and infinity come out as infinity."""
    k = tl.arange(0, BLOCK)
    largest = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, N, BLOCK):
        value = tl.abs(_values(rows, origin, gain, row, start + k, N))
        largest = tl.maximum(largest, tl.where(value == value, value, float("inf")))
    return tl.max(largest, 0)


@triton.jit
def _extent(rows, origin, largest, gain, N, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    tl.store(largest + row, _largest(rows, origin, gain, row, N, BLOCK))


@triton.jit
def power_of_two(e):
    return ((e.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def _digits(
    rows,
    origin,
    given,
    planes,
    exponent,
    squares,
    error,
    gain,
    leading,
    R,
    N,
    width,
    PLANES: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    e = tl.load(given)
    valid = True
    if not SHARED:
        largest = _largest(rows, origin, gain, row, N, BLOCK)
        valid = largest < float("inf")
        field = ((largest / leading).to(tl.int64, bitcast=True) >> 52).to(tl.int32)
        e = tl.where(valid, tl.maximum(e, field - 1022), e)
    to_integer = power_of_two(8 * (PLANES - 1) - e)
    back = power_of_two(e - 8 * (PLANES - 1))
    k = tl.arange(0, BLOCK)
    square = tl.zeros((BLOCK,), tl.float64)
    lost = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, width, BLOCK):
        value = _values(rows, origin, gain, row, start + k, N)
        value = tl.where(valid, value, 0.0)
        integer = tl.floor(value * to_integer + 0.5).to(tl.int32)
        rounded = integer.to(tl.float64) * back
        lost += (value - rounded) * (value - rounded)
        square += rounded * rounded
        for t in tl.static_range(PLANES - 1, -1, -1):
            digit = ((integer + 128) & 255) - 128
            integer = (integer - digit) >> 8
            place = planes + (t * R + row) * width + start + k
            tl.store(place, digit.to(tl.int8), mask=start + k < width)
    tl.store(exponent + row, e)
    tl.store(squares + row, (tl.sum(square, 0) * power_of_two(32 - 2 * e)).to(tl.int64))
    tl.store(error + row, tl.where(valid, tl.sqrt(tl.sum(lost, 0)), float("nan")))
