"""Student-t noise in one launch: the numbers of pfgm_fast.philox, made in registers (docs/random-numbers.md).

Words are bit-identical to the CPU's. For float32 and shorter dtypes the normals are computed in float32 by operations
that IEEE 754 rounds alike everywhere, to 4e-7 relative however small they are; for float64 in float64. The chi-square
of a row is computed in float64 by each program that works on it. Every element stands alone: no tile changes a bit.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from pfgm_fast import philox

_TILE = 1024  # Philox blocks of four normals per program
_COLUMNS = 256  # of them at most this many side by side: several rows share the work on their chi-squares
_ROWS = 256
_OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False}

_NORMAL, _CHI2 = tl.constexpr(philox.NORMAL), tl.constexpr(philox.CHI2)
_ATTEMPTS = tl.constexpr(philox._ATTEMPTS)

# sin(pi t)/t and cos(pi t) in powers of t**2 by Taylor: on |t| <= 1/4 enough for float64, the first five for float32.
_SINE = tl.constexpr(tuple((-1) ** k * math.pi ** (2 * k + 1) / math.factorial(2 * k + 1) for k in range(9)))
_COSINE = tl.constexpr(tuple((-1) ** k * math.pi ** (2 * k) / math.factorial(2 * k) for k in range(10)))
# log1p(f)/f in powers of f, a minimax fit: 3.5e-8 relative on [sqrt(1/2) - 1, sqrt(2) - 1].
_LOG1P = tl.constexpr(
    (1.0, -0.5, 0.333339095, -0.250013381, 0.199630633, -0.16577585, 0.149147719, -0.142674848, 0.0870041847)
)
_LN2 = tl.constexpr(math.log(2))


def student_t(y: Tensor | None, sigma: Tensor, seeds: Tensor, D: float, N: int, dtype: torch.dtype) -> Tensor:
    """y + sigma * g * sqrt(D / X), or the noise alone, (B, N) of `dtype`, in one launch.

    Args:
        y: (B, N) of `dtype`; None for 0.
        sigma: (B,) floating, one noise level a row.
        seeds: (B,) int64.
        D: degrees of freedom > 0, or inf.
        N: numbers a row.
        dtype: float16, bfloat16, float32 or float64; computed in float64 if it is float64, else in float32.
    """
    B = len(seeds)
    x = torch.empty(B, N, dtype=dtype, device=seeds.device)
    if not x.numel():
        return x
    finite = math.isfinite(D)
    gamma = philox.gamma_law(D) if finite else philox.GammaLaw(0.0, 0.0, 0.0, 0.0)
    blocks = triton.cdiv(N, 4)
    columns = min(triton.next_power_of_2(blocks), _COLUMNS)
    rows = min(_TILE // columns, _ROWS)
    grid = (triton.cdiv(B, rows) * triton.cdiv(blocks, columns),)
    tensors = (x, None if y is None else y.contiguous(), sigma.contiguous(), seeds.contiguous())
    choices = {"FINITE": finite, "BOOST": gamma.boost > 0, "ROWS": rows, "COLUMNS": columns}
    with torch.cuda.device_of(seeds):
        _student_t[grid](*tensors, B, N, *gamma, **choices, **_OPTIONS)
    return x


@triton.jit
def _student_t(
    x_ptr,
    y_ptr,
    sigma_ptr,
    seeds_ptr,
    B,
    N,
    d: tl.float64,
    spread: tl.float64,
    shift: tl.float64,
    boost: tl.float64,
    FINITE: tl.constexpr,
    BOOST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    wide: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    across = tl.cdiv(tl.cdiv(N, 4), COLUMNS)
    program = tl.program_id(0)
    row = (program // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    first = (program % across).to(tl.int64) * COLUMNS
    inside = row < B
    seeds = tl.load(seeds_ptr + row, mask=inside, other=0)
    scale = tl.load(sigma_ptr + row, mask=inside, other=0.0).to(tl.float64)
    if FINITE:
        scale *= tl.exp(-0.5 * _log_chi2_over_D(seeds, inside, d, spread, shift, boost, BOOST))

    block = first.to(tl.uint32) + tl.arange(0, COLUMNS).to(tl.uint32)  # COLUMNS divides 2**32: no carry
    w0, w1, w2, w3 = tl.philox(seeds[:, None], block[None, :], (first >> 32).to(tl.uint32), 0, _NORMAL)
    g0, g1 = _box_muller(w0, w1, wide)
    g2, g3 = _box_muller(w2, w3, wide)
    x = tl.interleave(tl.interleave(g0, g2), tl.interleave(g1, g3)) * scale.to(wide)[:, None]

    n = 4 * first + tl.arange(0, 4 * COLUMNS)
    offset = row[:, None] * N + n[None, :]
    mask = inside[:, None] & (n < N)[None, :]
    if y_ptr is not None:
        x += tl.load(y_ptr + offset, mask=mask, other=0.0).to(wide)
    tl.store(x_ptr + offset, x.to(x_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _log_chi2_over_D(seeds, wanted, d, spread, shift, boost, BOOST: tl.constexpr):
    """ln(X / D) of each row in float64: philox.log_chi2_over_D, attempt by attempt until every wanted row has one."""
    result = tl.zeros_like(seeds).to(tl.float64)
    pending = wanted.to(tl.int32)
    attempt = 0
    while (attempt < _ATTEMPTS) & (tl.max(pending, 0) > 0):
        w0, w1, w2, w3 = tl.philox(seeds, 0, 0, attempt, _CHI2)
        z, _ = _box_muller(w0, w1, tl.float64)
        t = z * spread
        whole = 1 + t
        log_1p = tl.where(whole == 1, t, tl.log(whole) * (t / (whole - 1)))
        log_ratio = 3 * log_1p + shift
        if BOOST:
            log_ratio += _log_uniform(w3, tl.float64) * boost
        result = tl.where(pending > 0, log_ratio, result)
        accepted = _log_uniform(w2, tl.float64) < 3 * d * (log_1p - t + t * t * (0.5 - t / 3))
        pending = tl.where(accepted, 0, pending)
        attempt += 1
    return result


@triton.jit
def _box_muller(radius_word, angle_word, dtype: tl.constexpr):
    """Two independent normals. The angle is reduced to |t| <= 1/4 half-turns in integers, so that t is exact."""
    square = -2 * _log_uniform(radius_word, dtype)
    odd = ((angle_word >> 9).to(tl.int32) << 1) + 1  # in units of 2**-23 half-turns
    quarter = (odd + (1 << 21)) >> 22
    t = (odd - (quarter << 22)).to(dtype) * 1.1920928955078125e-07
    if dtype == tl.float64:
        radius = tl.sqrt(square)
        sine = t * _polynomial(t * t, _SINE, 9)
        cosine = _polynomial(t * t, _COSINE, 10)
    else:
        radius = tl.sqrt_rn(square)
        sine = t * _polynomial(t * t, _SINE, 5)
        cosine = _polynomial(t * t, _COSINE, 5)
    swap = (quarter & 1) == 1
    x, y = tl.where(swap, sine, cosine), tl.where(swap, cosine, sine)
    return radius * tl.where(((quarter + 1) & 2) == 0, x, -x), radius * tl.where((quarter & 2) == 0, y, -y)


@triton.jit
def _log_uniform(word, dtype: tl.constexpr):
    """ln((w + 1/2) / 2**32), to full relative accuracy at both ends."""
    if dtype == tl.float64:
        result = tl.log((word.to(tl.float64) + 0.5) * 2.3283064365386963e-10)
    else:
        signed = word.to(tl.int32, bitcast=True)
        least = ((signed ^ (signed >> 31)).to(tl.float32) + 0.5) * 2.3283064365386963e-10  # the smaller of u and 1 - u
        bits = tl.where(signed >= 0, least, 1 - least).to(tl.int32, bitcast=True)
        exponent = (bits - 0x3F3504F3) >> 23  # u = m 2**exponent with m from sqrt(1/2) to sqrt(2)
        m = (bits - (exponent << 23)).to(tl.float32, bitcast=True)
        f = tl.where(exponent == 0, -least, m - 1)
        result = tl.fma(exponent.to(tl.float32), tl.full(f.shape, _LN2, tl.float32), f * _polynomial(f, _LOG1P, 9))
    return result


@triton.jit
def _polynomial(x, coefficients: tl.constexpr, terms: tl.constexpr):
    """The polynomial of the first `terms` coefficients, by Horner's rule."""
    result = tl.full(x.shape, coefficients[terms - 1], x.dtype)
    for i in tl.static_range(1, terms):
        result = tl.fma(result, x, tl.full(x.shape, coefficients[terms - 1 - i], x.dtype))
    return result
