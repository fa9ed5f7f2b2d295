"""The operator for data of middling width, 16 < N <= 128, in one pass: scores, softmax and mean tile by tile.

As in flash attention a row keeps the largest log weight so far and rescales what it summed before. No weights are
written: B x M of them would cost more than they take to compute. Rows whose log weights may be off are computed again,
by differences, from the tiles that may hold weight: few, since only a narrow kernel makes small errors count.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from pfgm_fast.kernels import blend, chunks, digits, tiles
from pfgm_fast.kernels.blend import LEAST, product_of_halves
from pfgm_fast.kernels.digits import Digits, power_of_two, units_per_datum
from pfgm_fast.kernels.log_weights import log_weight, of_ratio
from pfgm_fast.kernels.mend import TOLERANCE
from pfgm_fast.kernels.recompute import Sums, recompute
from pfgm_fast.kernels.scores import of_digits, units_of
from pfgm_fast.kernels.weigh import doubt_of, left_out, nearest_first, sum_of_weights

BLOCK = 32  # data of a tile: part of the result's bits, as are
SEGMENTS = 64  # the partial sums over the data, and
SHORTEST = 16  # the tiles that one of them takes at least


def posterior(
    x: Tensor,
    scale: Tensor,
    data: list[Tensor],
    segments: Tensor | None,
    power: float,
) -> tuple[Tensor, Tensor]:
    """Posterior mean (B, N) and log-sum-exp (B,) float64; arguments as in `pfgm_fast.operator.posterior`, but for

    log masses: they may outweigh distances, and then float32 logarithms of distances will not do.
    """
    points, center = data[:2]
    y = Digits(*data[2:])
    mean, log_sum = torch.empty_like(x), torch.empty_like(scale)
    M, N = points.shape
    tiles_of_data = triton.cdiv(M, BLOCK)
    span = max(SHORTEST, triton.cdiv(tiles_of_data, SEGMENTS))
    for some in chunks.of_rows(len(x), 4 * (N * triton.cdiv(tiles_of_data, span) + tiles_of_data)):
        seen = None if segments is None else segments[some]
        sums = _sum(x[some], scale[some], data, seen, power, span)
        recompute(sums, x[some], scale[some], data, seen, power, BLOCK)
        shares = blend.share(sums.peak, sums.mass)
        blend.finish(sums.partial, shares, center, y, mean[some])
        log_sum[some] = shares.log_sum
    return mean, log_sum


def _sum(
    x: Tensor,
    scale: Tensor,
    data: list[Tensor],
    segments: Tensor | None,
    power: float,
    span: int,
) -> Sums:
    points, center = data[:2]
    y = Digits(*data[2:])
    (B, N), (planes, M, width) = x.shape, y.planes.shape
    queries = digits.of_queries(x, y, center)
    parts = triton.cdiv(triton.cdiv(M, BLOCK), span)
    sums = Sums.empty(B, N, parts, triton.cdiv(M, BLOCK), x.device)
    columns = max(32, triton.next_power_of_2(N))
    tile = tiles.choose("fused", x.device, f"{blend.kind_of(y)} {columns}")
    _fused[(triton.cdiv(B, tile.rows), parts)](
        *(points, center, *queries, *y, scale, segments, *sums),
        *(power, units_per_datum(planes == 1), left_out(N, planes), TOLERANCE[torch.float32]),
        *(B, M, N, width, span),
        PLANES=planes,
        GAUSSIAN=math.isinf(power),
        SEGMENTS=segments is not None,
        ROWS=tile.rows,
        COLUMNS=columns,
        BLOCK=BLOCK,
        STEP=32,
        **tile.options,
        enable_fp_fusion=False,
    )
    return sums


@triton.jit
def _fused(
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
    segments,
    partial,
    peak,
    mass,
    lowest,
    doubtful,
    reaches,
    power: tl.float64,
    unit,
    left_out,
    tolerance,
    B,
    M,
    N,
    width,
    span,
    PLANES: tl.constexpr,
    GAUSSIAN: tl.constexpr,
    SEGMENTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = tl.minimum(i, B - 1)
    shift, ulp, norm, error, slack = units_of(
        x_exponent, x_squares, x_error, y_exponent, y_error, left_out, row, PLANES
    )
    s = tl.load(scale + row) * unit + (error - error)  # NaN where the query is not finite
    n = tl.arange(0, COLUMNS)
    column = tl.minimum(n, N - 1)
    c = tl.load(center + column).to(tl.float32)
    to_unit = power_of_two(-tl.load(y_exponent)).to(tl.float32)

    p = tl.cast(power, tl.float32)
    s_low, error_low, slack_low = s.to(tl.float32), error.to(tl.float32), slack.to(tl.float32)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    weight_sum = tl.zeros((ROWS,), tl.float32)
    nearest = tl.full((ROWS,), float("inf"), tl.float64)
    most_off = tl.zeros((ROWS,), tl.float32)
    in_doubt = tl.full((ROWS,), float("-inf"), tl.float32)
    tile = i.to(tl.int64) * tl.cdiv(M, BLOCK)
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
        seen = tl.max(visible.to(tl.int32), 1) > 0
        rho = tl.where(seen, rho, float("inf"))
        closest = tl.minimum(nearest, rho)
        per_width = 1 / (s if GAUSSIAN else closest + s)
        log = of_ratio(
            excess * (ulp * per_width).to(tl.float32)[:, None] + ((rho - closest) * per_width).to(tl.float32)[:, None],
            *(p, GAUSSIAN),
        )
        before = of_ratio(((nearest - closest) * per_width).to(tl.float32), p, GAUSSIAN)
        rho_low = rho.to(tl.float32)
        reach = of_ratio(rho_low / s_low, p, GAUSSIAN)
        weight = tl.where(visible, tl.exp(log), 0.0)
        before = tl.where(seen, tl.exp(before), 1.0)
        nearest = closest
        off = doubt_of(excess, rho_low, ulp, error_low, slack_low, s_low, p, GAUSSIAN, False)
        most_off = tl.maximum(most_off, tl.where(seen, off, 0.0))
        in_doubt = tl.maximum(in_doubt, tl.where(seen & (off > tolerance), reach + off, float("-inf")))
        tl.store(reaches + tile + start // BLOCK, tl.where(seen, reach + off, float("-inf")), mask=i < B)
        weight_sum = weight_sum * before + sum_of_weights(weight)
        total = total * before[:, None]
        if tl.max(tl.max(weight, 1), 0) > LEAST:
            if PLANES == 1:
                value = tl.load(y_planes + y.to(tl.int64)[:, None] * width + column[None, :])
            else:
                value = (tl.load(points + y.to(tl.int64)[:, None] * N + column[None, :]) - c[None, :]) * to_unit
            total += product_of_halves(weight, value, tl.zeros((ROWS, COLUMNS), tl.float32))
    place = i.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    peaks = tl.where(weight_sum > 0, log_weight(nearest, s, power, GAUSSIAN), float("-inf"))
    tl.store(peak + place, peaks + (s - s), mask=i < B)
    tl.store(mass + place, weight_sum, mask=i < B)
    tl.store(lowest + place, (peaks - most_off).to(tl.float32), mask=i < B)
    tl.store(doubtful + place, in_doubt, mask=i < B)
    out = partial + (tl.cast(tl.program_id(1), tl.int64) * B + row[:, None]) * N + n[None, :]
    tl.store(out, total, mask=(i < B)[:, None] & (n < N)[None, :])
