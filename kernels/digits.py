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

FLOAT, QUERY = 4, 3  # digits of a floating value, and of a query among pixels, for precision "highest",
ROUGH = 2  # and of either for "high"
ALIGNMENT = 32  # digits: the least depth of an int8 product
SHORT = 128  # digits: up to here their number is a power of two, so that one step of a product takes all
PIXEL = 2 / 255  # of data units in one unit of a pixel's digits, u - 128
NO_EXTENT = -20  # exponent of data that are all equal: their digits are 0 in any unit, and queries go above it
COLUMNS = 1024


class Digits(NamedTuple):
    """Rows (R, N) as digits (planes, R, width), zero beyond N.

    exponent: (R,) int32, or (1,) for one that all rows share.
    squares: (R,) int64, the sum of squares in units of 2^(2e - 32).
    error: (R,) float64, the norm of what rounding took away; or (1,), the largest; or None: precision "high", where
        what rounding does to a log weight is let be.
    """

    planes: Tensor
    exponent: Tensor
    squares: Tensor
    error: Tensor | None = None


def units_per_datum(pixels: bool) -> float:
    """Squared units of the digits in one of the data."""
    return PIXEL**-2 if pixels else 1.0


def width(N: int) -> int:
    return -(-N // ALIGNMENT) * ALIGNMENT if N > SHORT else max(ALIGNMENT, triton.next_power_of_2(N))


def leading(N: int) -> int:
    """The largest leading digit such that the squares of N values sum to less than 2^63."""
    return 127 >> max(0, math.ceil((math.log2(max(N, 1)) - 17) / 2))


def of_pixels(data: Tensor, rough: bool = False) -> Digits:
    """8-bit images (M, N) uint8 as one digit, u - 128: nothing is rounded."""
    exponent = torch.zeros(1, dtype=torch.int32, device=data.device)
    return _shared(_cut(data, None, 1.0, 128.0, exponent, planes=1, shared=True), rough)


def of_data(data: Tensor, center: Tensor, rough: bool = False) -> Digits:
    """Data (M, N) less their centre, with one exponent for all."""
    M, N = data.shape
    largest, rows = torch.empty(M, dtype=torch.float64, device=data.device), _rows_of(data)
    _extent[(triton.cdiv(M, rows),)](
        *(data, center, largest, 1.0, 0.0, M, N),
        *(rows, COLUMNS),
        num_warps=4,
        num_stages=2,
        enable_fp_fusion=False,
    )
    extent = largest.amax(0, keepdim=True) / leading(N)
    exponent = torch.frexp(extent).exponent.masked_fill(extent == 0, NO_EXTENT).clamp_min(-400)
    return _shared(_cut(data, center, 1.0, 0.0, exponent, ROUGH if rough else FLOAT, shared=True), rough)


def of_queries(x: Tensor, data: Digits, center: Tensor) -> Digits:
    """Queries (B, N) in the units of the data's digits, each with an exponent of its own, not below the data's."""
    rough = data.error is None
    if len(data.planes) == 1:
        return _cut(x, None, 1 / PIXEL, 0.5, data.exponent, ROUGH if rough else QUERY, shared=False)
    return _cut(x, center, 1.0, 0.0, data.exponent, ROUGH if rough else FLOAT, shared=False)


def empty(M: int, N: int, planes: int, device: torch.device, exponents: int = 1) -> Digits:
    return Digits(
        torch.empty(planes, M, width(N), dtype=torch.int8, device=device),
        torch.empty(exponents, dtype=torch.int32, device=device),
        torch.empty(M, dtype=torch.int64, device=device),
        torch.empty(exponents, dtype=torch.float64, device=device),
    )


def _shared(digits: Digits, rough: bool) -> Digits:
    error = None if rough or digits.error is None else digits.error.amax(0, keepdim=True)
    return digits._replace(exponent=digits.exponent[:1].clone(), error=error)


def _rows_of(rows: Tensor) -> int:
    """Rows of a program: the interpreter pays for each program."""
    return 64 if rows.device.type == "cpu" else 1


def _cut(
    rows: Tensor, origin: Tensor | None, gain: float, middle: float, exponent: Tensor, planes: int, shared: bool
) -> Digits:
    """Digits of gain rows - middle - origin."""
    R, N = rows.shape
    out, some = empty(R, N, planes, rows.device, exponents=R), _rows_of(rows)
    _digits[(triton.cdiv(R, some),)](
        *(rows, origin, exponent, *out),
        *(gain, middle, leading(N), R, N, width(N)),
        *(planes, shared, some, COLUMNS),
        num_warps=8,
        num_stages=2,
        enable_fp_fusion=False,
    )
    return out


@triton.jit
def _values(rows, origin, gain, middle, row, k, N):
    inside = (k < N)[None, :]
    value = tl.load((rows + row * N)[:, None] + k[None, :], mask=inside, other=0).to(tl.float64) * gain - middle
    if origin is not None:
        value -= tl.load(origin + k, mask=k < N, other=0.0)[None, :]
    return tl.where(inside, value, 0.0)


@triton.jit
def _largest(rows, origin, gain, middle, row, N, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The largest magnitude of each row; NaN and infinity come out as infinity."""
    k = tl.arange(0, BLOCK)
    largest = tl.zeros((ROWS, BLOCK), tl.float64)
    for start in range(0, N, BLOCK):
        value = tl.abs(_values(rows, origin, gain, middle, row, start + k, N))
        largest = tl.maximum(largest, tl.where(value == value, value, float("inf")))
    return tl.max(largest, 1)


@triton.jit
def _extent(rows, origin, largest, gain, middle, R, N, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.minimum(tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), R - 1)
    tl.store(largest + row, _largest(rows, origin, gain, middle, row, N, ROWS, BLOCK))


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
    middle,
    leading,
    R,
    N,
    width,
    PLANES: tl.constexpr,
    SHARED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.minimum(tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), R - 1)
    e = tl.load(given + row * 0)
    valid = row >= 0
    if not SHARED:
        largest = _largest(rows, origin, gain, middle, row, N, ROWS, BLOCK)
        valid = largest < float("inf")
        field = ((largest / leading).to(tl.int64, bitcast=True) >> 52).to(tl.int32)
        e = tl.where(valid, tl.maximum(e, field - 1022), e)
    to_integer = power_of_two(8 * (PLANES - 1) - e)[:, None]
    back = power_of_two(e - 8 * (PLANES - 1))[:, None]
    k = tl.arange(0, BLOCK)
    square = tl.zeros((ROWS, BLOCK), tl.float64)
    lost = tl.zeros((ROWS, BLOCK), tl.float64)
    for start in range(0, width, BLOCK):
        value = _values(rows, origin, gain, middle, row, start + k, N)
        value = tl.where(valid[:, None], value, 0.0)
        integer = tl.floor(value * to_integer + 0.5).to(tl.int32)
        rounded = integer.to(tl.float64) * back
        lost += (value - rounded) * (value - rounded)
        square += rounded * rounded
        for t in tl.static_range(PLANES - 1, -1, -1):
            digit = ((integer + 128) & 255) - 128
            integer = (integer - digit) >> 8
            place = planes + (t * R + row) * width
            tl.store(place[:, None] + (start + k)[None, :], digit.to(tl.int8), mask=(start + k < width)[None, :])
    tl.store(exponent + row, e)
    tl.store(squares + row, (tl.sum(square, 1) * power_of_two(32 - 2 * e)).to(tl.int64))
    tl.store(error + row, tl.where(valid, tl.sqrt(tl.sum(lost, 1)), float("nan")))
