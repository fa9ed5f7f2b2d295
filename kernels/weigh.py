"""Pass 1 over wide data: the scores of all pairs, and the softmax within each tile of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pfgm_fast.kernels import tiles
from pfgm_fast.kernels.digits import Digits, units_per_datum
from pfgm_fast.kernels.log_weights import log_weight
from pfgm_fast.kernels.scores import CHUNK, errors_of, of_digits, of_doubles, units_of

DOUBLES = tiles.Tile(32, 4, 2)  # of float64: not tuned, as sums of it would change their order
SPREAD = tl.constexpr(40.0)  # nats: no pair that far below the nearest one of a Gaussian matters
LIFT = tl.constexpr(2.0**15)  # weights of at most 1 fill the range of float16


class Weights(NamedTuple):
    """Weights (B, tiles * block) of some rows, those of each tile of `block` data relative to the largest among them.

    weights: float64 or float32, or for precision "high" float16, and then LIFT times as large.
    peak: (B, tiles) float64, the log weight that the weights of a tile are relative to; -inf where the row sees none.
    mass: (B, tiles), their sum, of rounded ones if they are rounded.
    doubt: (B, tiles) float32, by how many nats a log weight near the peak may be off; None if that is let be.
    """

    weights: Tensor
    peak: Tensor
    mass: Tensor
    doubt: Tensor | None

    @property
    def block(self) -> int:
        return self.weights.shape[1] // self.peak.shape[1]


def left_out(N: int, planes: int) -> float:
    """The most that the terms which scores of "highest" leave out add up to, in units of 2^(ex + ey)."""
    return 2 * N * 3.05 * 2.0**14 * 2.0**-32 if planes > 1 else 2.0**-16


def by_digits(
    x: Digits,
    y: Digits,
    scale: Tensor,
    log_weights: Tensor | None,
    segments: Tensor | None,
    power: float,
    N: int,
) -> Weights:
    """Weights of the queries x (B, N) over the data y (M, N), in float32 or, if the data say so, roughly."""
    planes, M, width = y.planes.shape
    pixels, rough = planes == 1, y.error is None
    deep = width > CHUNK.value * (4 if pixels else 1)  # of pixels, one product and not four is summed in each order
    plain = pixels and not deep and log_weights is None
    out = _empty(len(scale), M, 128 if plain else 64, torch.float16 if rough else torch.float32, scale.device)
    kind = f"{'rough ' if rough else ''}{'deep ' if deep else ''}{'pixels' if pixels else 'floats'}"
    tile = tiles.choose("wide.weigh", scale.device, kind)
    _weigh_digits[_grid(out, tile)](
        *(*x, *y, scale, log_weights, segments, *out),
        *(power, units_per_datum(pixels), left_out(N, planes), len(scale), M, width),
        X=len(x.planes),
        Y=planes,
        DEEP=deep,
        STEP=next(step for step in (128, 64, 32) if width % step == 0),
        **_options(out, tile, log_weights, segments, power),
    )
    return out


def by_doubles(
    x: Tensor,
    points: Tensor,
    center: Tensor,
    scale: Tensor,
    log_weights: Tensor | None,
    segments: Tensor | None,
    power: float,
) -> Weights:
    """Weights of the queries x (B, N) over the data (M, N), all float64."""
    M, N = points.shape
    out = _empty(len(x), M, 64, torch.float64, x.device)
    _weigh_doubles[_grid(out, DOUBLES)](
        *(x, points, center, scale, log_weights, segments, *out),
        *(power, len(x), M, N),
        STEP=16,
        **_options(out, DOUBLES, log_weights, segments, power),
    )
    return out


def _empty(B: int, M: int, block: int, dtype: torch.dtype, device: torch.device) -> Weights:
    T, rough = triton.cdiv(M, block), dtype == torch.float16
    kinds = ((T * block, dtype), (T, torch.float64), (T, torch.float32 if rough else dtype), (T, torch.float32))
    weights, peak, mass, doubt = (torch.empty(B, n, dtype=kind, device=device) for n, kind in kinds)
    return Weights(weights, peak, mass, None if rough else doubt)


def _grid(out: Weights, tile: tiles.Tile) -> tuple[int]:
    return (triton.cdiv(len(out.peak), tile.rows) * out.peak.shape[1],)


def _options(
    out: Weights, tile: tiles.Tile, log_weights: Tensor | None, segments: Tensor | None, power: float
) -> dict[str, int | bool]:
    return {
        "GAUSSIAN": math.isinf(power),
        "PRIOR": log_weights is not None,
        "SEGMENTS": segments is not None,
        "ROWS": tile.rows,
        "BLOCK": out.block,
        **tile.options,
        "enable_fp_fusion": False,
    }


@triton.jit
def _weigh_digits(
    x,
    x_exponent,
    x_squares,
    x_error,
    y,
    y_exponent,
    y_squares,
    y_error,
    scale,
    log_weights,
    segments,
    weights,
    peak,
    mass,
    doubt,
    power: tl.float64,
    unit,
    left_out,
    B,
    M,
    width,
    X: tl.constexpr,
    Y: tl.constexpr,
    DEEP: tl.constexpr,
    STEP: tl.constexpr,
    GAUSSIAN: tl.constexpr,
    PRIOR: tl.constexpr,
    SEGMENTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i, j, row, column, visible, depth = _tile(segments, B, M, width, SEGMENTS, ROWS, BLOCK)
    shift, ulp, norm, nothing = units_of(x_exponent, x_squares, x_error, y_exponent, row, X)
    s = tl.load(scale + row) * unit + nothing
    score = of_digits(x, y, y_squares, shift, row, column, B, M, width, depth, X, Y, DEEP, ROWS, BLOCK, STEP)
    excess, rho = nearest_first(score, visible, norm, ulp, tl.float32)
    off = None
    if y_error is not None:
        error, slack = errors_of(x_exponent, x_error, y_exponent, y_error, left_out, row)
        off = doubt_of(excess, rho, ulp, error, slack, s, power, GAUSSIAN, PRIOR)
    weight, top = softmax(excess, rho, visible, ulp, s, log_weights, column, power, tl.float32, GAUSSIAN, PRIOR)
    _store(weight, top, off, weights, peak, mass, doubt, i, j, B, M, ROWS, BLOCK)


@triton.jit
def _weigh_doubles(
    x,
    points,
    center,
    scale,
    log_weights,
    segments,
    weights,
    peak,
    mass,
    doubt,
    power: tl.float64,
    B,
    M,
    N,
    STEP: tl.constexpr,
    GAUSSIAN: tl.constexpr,
    PRIOR: tl.constexpr,
    SEGMENTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i, j, row, column, visible, depth = _tile(segments, B, M, N, SEGMENTS, ROWS, BLOCK)
    score, norm, slack = of_doubles(x, points, center, row, column, N, depth, ROWS, BLOCK, STEP)
    s = tl.load(scale + row)
    excess, rho = nearest_first(score, visible, norm, 1.0, tl.float64)
    off = doubt_of(excess, rho, 1.0, 0.0, slack, s, power, GAUSSIAN, PRIOR)
    weight, top = softmax(excess, rho, visible, 1.0, s, log_weights, column, power, tl.float64, GAUSSIAN, PRIOR)
    _store(weight, top, off, weights, peak, mass, doubt, i, j, B, M, ROWS, BLOCK)


@triton.jit
def _tile(segments, B, M, depth, SEGMENTS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Rows and columns of this program, the same within bounds, which pairs count, and how deep to sum: 0 if none."""
    across = tl.cdiv(B, ROWS)
    i = (tl.program_id(0) % across) * ROWS + tl.arange(0, ROWS)
    j = (tl.program_id(0) // across) * BLOCK + tl.arange(0, BLOCK)
    row, column = tl.minimum(i, B - 1), tl.minimum(j, M - 1)
    visible = (j < M)[None, :] & (i < B)[:, None]
    if SEGMENTS:
        first, last = tl.load(segments + 2 * row), tl.load(segments + 2 * row + 1)
        visible = visible & (j[None, :] >= first[:, None]) & (j[None, :] < last[:, None])
        depth = tl.where(tl.max(tl.max(visible.to(tl.int32), 1), 0) > 0, depth, 0)
    return i, j, row, column, visible, depth


@triton.jit
def nearest_first(score, visible, norm, ulp, DTYPE: tl.constexpr):
    """Squared distances as the smallest of each row and the excess of each over it, in units of ulp.

    |x - y|^2 is norm + ulp score. Differences are taken before anything is rounded.
    """
    if score.dtype == tl.int64:
        score = tl.where(visible, score, 0x7FFFFFFFFFFFFFFF)
    else:
        score = tl.where(visible, score, float("inf"))
    nearest = tl.min(score, 1)
    excess = tl.where(visible, score - nearest[:, None], 0).to(DTYPE)
    return excess, tl.maximum(norm + nearest.to(tl.float64) * ulp, 0.0)


@triton.jit
def doubt_of(excess, rho, ulp, error, slack, scale, power, GAUSSIAN: tl.constexpr, PRIOR: tl.constexpr):
    """How many nats the log weights of a tile may be off, if a squared distance d is by 2 error sqrt(d) + slack."""
    if GAUSSIAN:
        far = rho + SPREAD * scale
        if PRIOR:
            far = rho + tl.max(excess, 1).to(tl.float64) * ulp
        off = (2 * error * tl.sqrt(far) + slack) / scale
    else:
        far = tl.maximum(rho, scale)  # there an error weighs most
        off = power * (2 * error * tl.sqrt(far) / (far + scale) + slack / (rho + scale))
    return off


@triton.jit
def softmax(
    excess,
    rho,
    visible,
    ulp,
    scale,
    log_weights,
    column,
    power,
    DTYPE: tl.constexpr,
    GAUSSIAN: tl.constexpr,
    PRIOR: tl.constexpr,
):
    """Weights of a tile relative to the largest of each row, and its log weight: -inf where a row sees nothing."""
    width = (scale if GAUSSIAN else rho + scale) / ulp
    top = log_weight(rho, scale, power, GAUSSIAN)
    if PRIOR:
        log = log_weight(excess.to(tl.float64), width[:, None], power, GAUSSIAN)
        log = tl.where(visible, log + tl.load(log_weights + column)[None, :], float("-inf"))
        largest = tl.max(log, 1)
        top += largest
        log = (log - largest[:, None]).to(DTYPE)
    else:
        log = log_weight(excess, width.to(DTYPE)[:, None], tl.cast(power, DTYPE), GAUSSIAN)
    seen = tl.max(visible.to(tl.int32), 1) > 0
    return tl.where(visible, tl.exp(log), 0.0), tl.where(seen, top, float("-inf"))


@triton.jit
def sum_of_weights(weight):
    """Sums over rows of at most 256 weights <= 1. In float32 as integers of 2^-44, so that no order shows in it."""
    if weight.dtype == tl.float64:
        total = tl.sum(weight, 1)
    else:
        scaled = weight * 4194304.0
        high = scaled.to(tl.int32)
        low = ((scaled - high.to(tl.float32)) * 4194304.0).to(tl.int32)
        sums = (tl.sum(high, 1).to(tl.int64) << 22) + tl.sum(low, 1).to(tl.int64)
        total = sums.to(tl.float32) * 2.0**-44
    return total


@triton.jit
def _store(weight, top, off, weights, peak, mass, doubt, i, j, B, M, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    tiles = tl.cast(tl.cdiv(M, BLOCK), tl.int64)
    place = i.to(tl.int64) * tiles + tl.program_id(0) // tl.cdiv(B, ROWS)
    at = weights + i.to(tl.int64)[:, None] * tiles * BLOCK + j[None, :]
    if weights.dtype.element_ty == tl.float16:
        half = (weight * LIFT).to(tl.float16)
        tl.store(at, half, mask=(i < B)[:, None])
        weight = half.to(tl.float32) / LIFT
    else:
        tl.store(at, weight, mask=(i < B)[:, None])
    tl.store(peak + place, top, mask=i < B)
    tl.store(mass + place, sum_of_weights(weight), mask=i < B)
    if doubt is not None:
        tl.store(doubt + place, off.to(tl.float32), mask=i < B)
