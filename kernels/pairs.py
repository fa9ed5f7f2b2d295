"""What the kernels for few dimensions know of a query and a datum: coordinates, squared distance, weight.

Units are those of the raw data, where a pixel u is 2u - 255, times a power of two of the query's own, its grid: that
changes no digit and keeps squares in range.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from pfgm_fast.kernels.log_weights import log2_weight, log_weight


def kind_of(power: float, double: bool, masses: bool) -> tuple[str, int]:
    """How weights are computed, and 2 power where they are products of reciprocal square roots (else 0).

    In such a product a rounding error of the distance counts `power` times, but hardly in what is a function of the
    distance from the nearest datum.
    """
    if math.isinf(power):
        return "gaussian", 0
    if not masses and power <= 10 and 2 * power == int(2 * power):
        return "root", int(2 * power)
    if double or power < 32:
        return "log", 0
    if power < 256:
        return "sextic" if power < 64 else "quartic", 0
    return "quadratic" if power < 1e9 else "linear", 0


@triton.jit
def nothing():
    return ()


@triton.jit
def appended(items, item):
    return items + (item,)  # noqa: RUF005 (Triton does not know a star)


@triton.jit
def _exponent(value):
    """floor(log2) of a positive float64."""
    return ((value.to(tl.int64, bitcast=True) >> 52) & 2047) - 1023


@triton.jit
def _grid(exponent, DOUBLE: tl.constexpr):
    """2^-exponent as float64, held where coordinates times it stay finite in the compute dtype."""
    HIGHEST: tl.constexpr = 400 if DOUBLE else 126
    held = tl.minimum(tl.maximum(exponent, -HIGHEST // 2), HIGHEST)
    return ((1023 - held) << 52).to(tl.float64, bitcast=True)


@triton.jit
def early_grid(x, center, scale, N: tl.constexpr, DOUBLE: tl.constexpr):
    """The grid of rows whose distances are not known yet: coordinates of order one, or 2^60 where the data lie away."""
    size, away = scale * 0.0, scale * 0.0
    for k in tl.static_range(N):
        size = tl.maximum(size, tl.abs(x[k].to(tl.float64)))
        away = tl.maximum(away, tl.abs(tl.load(center + k)))
    return _grid(tl.maximum(tl.maximum(_exponent(size), _exponent(scale) >> 1), _exponent(away) - 60), DOUBLE)


@triton.jit
def late_grid(reference, scale, power, KIND: tl.constexpr, DOUBLE: tl.constexpr):
    """The grid on which a row's weights have a width of order one."""
    width = scale / power if KIND == "linear" else scale
    return _grid(_exponent(reference + width) >> 1, DOUBLE)


@triton.jit
def queries(x, scale, rows, N: tl.constexpr, PIXELS: tl.constexpr, DOUBLE: tl.constexpr):
    """Coordinates, N times (rows,), and scales (rows,) in raw units."""
    UNIT: tl.constexpr = 255 if PIXELS else 1
    coordinates = nothing()
    for k in tl.static_range(N):
        xk = tl.load(x + rows * N + k).to(tl.float64 if DOUBLE else tl.float32)
        coordinates = appended(coordinates, xk * UNIT)
    return coordinates, tl.load(scale + rows) * (UNIT * UNIT)


@triton.jit
def on_grid(x, grid, N: tl.constexpr):
    scaled = nothing()
    for k in tl.static_range(N):
        scaled = appended(scaled, (x[k] * grid.to(x[k].dtype))[:, None])
    return scaled, grid.to(x[0].dtype)[:, None]


@triton.jit
def _load(pointer, inside):
    return tl.load(pointer) if inside is None else tl.load(pointer, mask=inside, other=0)


@triton.jit
def differences(x, step, data, columns, M, inside, N: tl.constexpr):
    """x - y on the grid, N times (rows, columns), right to the last bit."""
    d = nothing()
    for k in tl.static_range(N):
        y = _load(data + M.to(tl.int64) * k + columns, inside)
        if data.dtype.element_ty == tl.uint8:
            y = 2 * y.to(tl.int32) - 255
        d = appended(d, tl.fma(-y.to(step.dtype)[None, :], step, x[k]))
    return d


@triton.jit
def squares(d, start, N: tl.constexpr):
    """start + |d|^2, four coordinates at a time: that halves the rounding error of a chain of sixteen."""
    total = start
    for k in tl.static_range(0, N, 4):
        part = total if k == 0 else 0.0
        for i in tl.static_range(k, k + 4):
            if i < N:
                part = tl.fma(d[i], d[i], part)
        total = part if k == 0 else total + part
    return total


@triton.jit
def fall(rho, scale, power, KIND: tl.constexpr):
    """power log1p(rho / scale), or rho / scale: how far a log weight lies below its mass, in float64."""
    return -log_weight(rho.to(tl.float64), scale, power, KIND == "gaussian")


@triton.jit
def cost(rho, scale, power, masses, columns, inside, KIND: tl.constexpr):
    """What the reference is the smallest of: the squared distance, or with masses the negative log weight."""
    cost = rho
    if masses is not None:
        cost = fall(rho, scale, power, KIND) - _load(masses + columns, inside)[None, :]
    return cost


@triton.jit
def weight(rho, near, factor, rate, KIND: tl.constexpr, TWICE: tl.constexpr):
    """Weights of data at squared distances rho relative to data at the distance `near`, taken off rho in float32.

    Of kind "root" they are rho^(-TWICE/2), where rho includes the scale.
    """
    if KIND == "root":
        r = tl.rsqrt(rho)
        w = tl.full(rho.shape, 1.0, rho.dtype)
        for bit in tl.static_range(5):
            if (TWICE >> bit) % 2 == 1:
                w = w * r
            r = r * r
    else:
        u = (rho - near if rho.dtype == tl.float64 else rho) * factor
        w = tl.exp2(log2_weight(u, rate, KIND))
    return w
