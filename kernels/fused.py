"""The operator for data of middling width, 16 < N <= 256, in one pass: scores, softmax and mean tile by tile.

As in flash attention a row keeps the largest log weight so far and rescales what it summed before. No weights are
written: B x M of them would cost more than they take to compute.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from pfgm_fast.kernels import blend, digits, tiles
from pfgm_fast.kernels.blend import LEAST, LIFT
from pfgm_fast.kernels.digits import PIXEL, Digits, power_of_two
from pfgm_fast.kernels.log_weights import log_weight
from pfgm_fast.kernels.mend import TOLERANCE, distances, negligible
from pfgm_fast.kernels.scores import of_digits
from pfgm_fast.kernels.weigh import Estimate, doubt_of, nearest_first, softmax

WORKSPACE = 1 << 30  # bytes of partial sums at a time
BLOCK = 64  # data of a tile: part of the result's bits, as are
SEGMENTS = 64  # the partial sums over the data, and
SHORTEST = 8  # the tiles that one of them takes at least


def posterior(
    x: Tensor,
    scale: Tensor,
    data: list[Tensor],
    log_weights: Tensor | None,
    segments: Tensor | None,
    power: float,
) -> tuple[Tensor, Tensor]:
    """Posterior mean (B, N) and log-sum-exp (B,) float64; arguments as in `pfgm_fast.operator.posterior`."""
    points, center = data[:2]
    y = Digits(*data[2:])
    mean, log_sum = torch.empty_like(x), torch.empty_like(scale)
    M, N = points.shape
    span = max(SHORTEST, triton.cdiv(triton.cdiv(M, BLOCK), SEGMENTS))
    parts = triton.cdiv(triton.cdiv(M, BLOCK), span)
    rows = max(1, WORKSPACE // (4 * N * parts * 128)) * 128
    for start in range(0, len(x), rows):
        some = slice(start, start + rows)
        part = None if segments is None else segments[some]
        shares = _sums(x[some], scale[some], points, center, y, log_weights, part, power, span, parts, mean[some])
        log_sum[some] = shares
    return mean, log_sum


def _sums(
    x: Tensor,
    scale: Tensor,
    points: Tensor,
    center: Tensor,
    y: Digits,
    log_weights: Tensor | None,
    segments: Tensor | None,
    power: float,
    span: int,
    parts: int,
    mean: Tensor,
) -> Tensor:
    (B, N), M = x.shape, len(points)
    queries = digits.of_queries(x, y, center)
    pixels = len(y.planes) == 1
    partial = torch.empty(parts, B, N, dtype=torch.float32, device=x.device)
    peak = torch.empty(B, parts, dtype=torch.float64, device=x.device)
    mass = torch.empty(B, parts, dtype=torch.float32, device=x.device)
    width = y.planes.shape[2]
    columns = max(32, triton.next_power_of_2(N))
    tile = tiles.choose("fused", x.device, f"{'pixels' if pixels else 'floats'} {columns}")
    estimate = Estimate.of(N, len(y.planes))
    _fused[(triton.cdiv(B, tile.rows), parts)](
        *(x, points, center, *queries, *y, scale, log_weights, segments, partial, peak, mass),
        *(power, *estimate, TOLERANCE[torch.float32], negligible(M)),
        *(B, M, N, width, span),
        PLANES=len(y.planes),
        GAUSSIAN=math.isinf(power),
        PRIOR=log_weights is not None,
        SEGMENTS=segments is not None,
        ROWS=tile.rows,
        COLUMNS=columns,
        BLOCK=BLOCK,
        STEP=next(step for step in (128, 64, 32) if width % step == 0),
        **tile.options,
        enable_fp_fusion=False,
    )
    shares = blend.share(peak, mass)
    blend.finish(partial, shares, center, y, mean)
    return shares.log_sum


@triton.jit
def _fused(
    x,
    points,
    center,
    x_planes,
    x_exponent,
    x_squares,
    x_error,
    y_planes,
    y_exponent,
    y_squares,
    y_error,
    scale,
    log_weights,
    segments,
    partial,
    peak,
    mass,
    power: tl.float64,
    unit,
    left_out,
    rounding,
    tolerance,
    negligible,
    B,
    M,
    N,
    width,
    span,
    PLANES: tl.constexpr,
    GAUSSIAN: tl.constexpr,
    PRIOR: tl.constexpr,
    SEGMENTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = tl.minimum(i, B - 1)
    ex, ey = tl.load(x_exponent + row), tl.load(y_exponent)
    shift = tl.minimum(ex - ey + (9 if PLANES > 1 else 1), 62)
    ulp = power_of_two(ex + ey + (-23 if PLANES > 1 else -15))
    norm = tl.load(x_squares + row).to(tl.float64) * power_of_two(2 * ex - 32)
    error = tl.load(x_error + row) + tl.load(y_error)
    slack = error * error + left_out * power_of_two(ex + ey)
    s = tl.load(scale + row) * unit
    n = tl.arange(0, COLUMNS)
    column = tl.minimum(n, N - 1)
    c = tl.load(center + column).to(tl.float32)
    to_unit = power_of_two(-ey).to(tl.float32)

    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    weight_sum = tl.zeros((ROWS,), tl.float32)
    top = tl.full((ROWS,), float("-inf"), tl.float64)
    begin = tl.program_id(1) * span * BLOCK
    end = tl.minimum(begin + span * BLOCK, M)
    if SEGMENTS:
        first, last = tl.load(segments + 2 * row), tl.load(segments + 2 * row + 1)
        some = first < last
        begin = tl.maximum(begin, tl.min(tl.where(some, first, M), 0).to(tl.int32) // BLOCK * BLOCK)
        end = tl.minimum(end, tl.max(tl.where(some, last, 0), 0).to(tl.int32))
    for start in range(begin, end, BLOCK):
        j = start + tl.arange(0, BLOCK)
        y = tl.minimum(j, M - 1)
        visible = (j < M)[None, :] & (i < B)[:, None]
        if SEGMENTS:
            visible = visible & (j[None, :] >= first[:, None]) & (j[None, :] < last[:, None])
        score = of_digits(
            *(x_planes, y_planes, y_squares, shift, row, y, B, M, width, width),
            *(PLANES, False, ROWS, BLOCK, STEP),
        )
        excess, rho = nearest_first(score, visible, norm, ulp, tl.float32)
        off = doubt_of(excess, rho, ulp, error * rounding, slack, s, power, GAUSSIAN, PRIOR)
        bound = log_weight(rho, s, power, GAUSSIAN) + off
        if PRIOR:
            bound += tl.max(tl.load(log_weights + y), 0)
        wrong = (off > tolerance) & (bound >= top - negligible)
        rank = tl.cumsum(wrong.to(tl.int32), 0)
        for nth in range(1, tl.sum(wrong.to(tl.int32), 0) + 1):
            this = wrong & (rank == nth)
            at = tl.sum(tl.where(this, row, 0), 0).to(tl.int64)
            seen = j < M
            if SEGMENTS:
                seen = seen & (j >= tl.load(segments + 2 * at)) & (j < tl.load(segments + 2 * at + 1))
            apart = distances(x + at * N, points, j.to(tl.int64), seen, N, PLANES == 1, BLOCK, 8, 32)
            closest = tl.min(tl.where(seen, apart, float("inf")), 0)
            apart = tl.where(seen, (apart - closest) / tl.sum(tl.where(this, ulp, 0.0), 0), 0.0)
            excess = tl.where(this[:, None], apart.to(tl.float32)[None, :], excess)
            rho = tl.where(this, closest, rho)
        weight, high = softmax(excess, rho, visible, ulp, s, log_weights, y, power, tl.float32, GAUSSIAN, PRIOR)
        new = tl.maximum(top, high)
        before = tl.where(top > float("-inf"), tl.exp(top - new), 0.0).to(tl.float32)
        lot = tl.where(high > float("-inf"), tl.exp(high - new), 0.0).to(tl.float32)
        lot = tl.where(lot <= LEAST, 0.0, lot)  # so that leaving it out changes no bit; NaN stays
        top = new
        weight_sum = weight_sum * before + tl.sum(weight, 1) * lot
        total = total * before[:, None]
        if tl.max(tl.where(lot > 0, 1, 0), 0) > 0:
            weight = tl.where((lot > 0)[:, None], weight * LIFT, 0.0)
            w_high = weight.to(tl.float16)
            w_low = (weight - w_high.to(tl.float32)).to(tl.float16)
            if PLANES == 1:
                y_high = tl.load(y_planes + y.to(tl.int64)[:, None] * width + column[None, :]).to(tl.float16)
                product = tl.dot(w_low, y_high)
            else:
                value = (tl.load(points + y.to(tl.int64)[:, None] * N + column[None, :]) - c[None, :]) * to_unit
                y_high = value.to(tl.float16)
                product = tl.dot(w_low, y_high)
                product = tl.dot(w_high, (value - y_high.to(tl.float32)).to(tl.float16), product)
            total += tl.dot(w_high, y_high, product) * tl.where(lot > 0, lot, 0.0)[:, None]
    place = i.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(peak + place, top + (s - s), mask=i < B)
    tl.store(mass + place, weight_sum, mask=i < B)
    out = partial + (tl.cast(tl.program_id(1), tl.int64) * B + row[:, None]) * N + n[None, :]
    tl.store(out, total, mask=(i < B)[:, None] & (n < N)[None, :])
