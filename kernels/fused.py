"""The operator for data of middling width, 16 < N <= 128, in one pass: scores, softmax and mean tile by tile.

As in flash attention a row keeps the largest log weight so far and rescales what it summed before. No weights are
written: B x M of them would cost more than they take to compute. Rows whose log weights may be off are computed again,
by differences, from the tiles that may hold weight: few, since only a narrow kernel makes small errors count.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pfgm_fast.kernels import blend, chunks, digits, pairs, tiles
from pfgm_fast.kernels.blend import LEAST, product_of_halves
from pfgm_fast.kernels.digits import Digits, power_of_two, units_per_datum
from pfgm_fast.kernels.log_weights import LOG2_E, log2_weight, log_weight, of_ratio
from pfgm_fast.kernels.mend import TOLERANCE
from pfgm_fast.kernels.recompute import Sums, recompute
from pfgm_fast.kernels.scores import errors_of, joined, multiplied, no_products, of_product, planes, units_of
from pfgm_fast.kernels.weigh import LIFT, doubt_of, left_out, sum_of_weights

SEGMENTS = 64  # partial sums over the data, part of the result's bits, as are
SHORTEST = 512  # the data that one of them takes at least, and those of a tile


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
    center, y = data[1], Digits(*data[2:])
    mean, log_sum = torch.empty_like(x), torch.empty_like(scale)
    M, N = data[0].shape
    block = block_of(N)
    span = triton.cdiv(max(SHORTEST, triton.cdiv(M, SEGMENTS)), block)  # tiles of a partial sum
    for some in chunks.of_rows(len(x), 4 * (N * triton.cdiv(M, span * block) + triton.cdiv(M, block))):
        seen = None if segments is None else segments[some]
        sums = _sum(x[some], scale[some], data, seen, power, span)
        if y.error is not None:
            recompute(sums, x[some], scale[some], data, seen, power, block)
        shares = blend.share(sums.peak, sums.mass)
        blend.finish(sums.partial, shares, center, y, mean[some])
        log_sum[some] = shares.log_sum
    return mean, log_sum


def block_of(N: int) -> int:
    """Data of a tile: as many as registers hold beside the sums."""
    return 64 if N <= 64 else 32


def kind_of(power: float) -> str:
    """How `log2_weight` is to compute: right down to 28 nats, as a million data may lie that far below the nearest."""
    return "log2" if power < 64 else pairs.kind_of(power / 2, double=False, masses=True)[0]


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
    (B, N), (Y, M, width) = x.shape, y.planes.shape
    queries, block = digits.of_queries(x, y, center), block_of(N)
    parts = triton.cdiv(M, span * block)
    sums, kind = Sums.empty(B, N, parts, x.device), blend.kind_of(y)
    if y.error is not None:
        sums = sums.doubted(triton.cdiv(M, block))
    tile = tiles.choose("fused", x.device, f"{'rough ' if y.error is None else ''}{kind} {width}")
    _fused[(triton.cdiv(B, tile.rows), parts)](
        *(points, center, *queries, *y, scale, segments, *sums),
        *(power, units_per_datum(Y == 1), left_out(N, Y), TOLERANCE[torch.float32]),
        *(B, M, N, span),
        X=len(queries.planes),
        Y=Y,
        KIND=kind_of(power),
        ROWS=tile.rows,
        WIDTH=width,
        BLOCK=block,
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
    span,
    X: tl.constexpr,
    Y: tl.constexpr,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    EXACT: tl.constexpr = y_error is not None
    GAUSSIAN: tl.constexpr = KIND == "gaussian"
    INFINITE: tl.constexpr = float("-inf") if KIND == "gaussian" or KIND == "linear" else float("inf")
    TYPE: tl.constexpr = tl.int32 if X == 2 else tl.int64  # of scores
    FAR: tl.constexpr = 1 << (30 if X == 2 else 62)  # beyond all of them, and twice that still a number
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = tl.minimum(i, B - 1)
    shift, ulp, norm, nothing = units_of(x_exponent, x_squares, x_error, y_exponent, row, X)
    s = tl.load(scale + row) * unit + nothing
    n = tl.arange(0, WIDTH)
    column = tl.minimum(n, N - 1)
    c = tl.load(center + column).to(tl.float32)
    to_unit = power_of_two(-tl.load(y_exponent)).to(tl.float32)
    x = planes(x_planes + row.to(tl.int64)[:, None] * WIDTH + n[None, :], tl.cast(B, tl.int64) * WIDTH, X)

    norm_ulps, width = norm / ulp, tl.maximum((s / ulp).to(tl.float32), 1e-30)
    rate = tl.cast(power, tl.float32) * -LOG2_E
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    nearest = tl.full((ROWS,), FAR, TYPE)
    if EXACT:
        p, s_low, ulp_low = tl.cast(power, tl.float32), s.to(tl.float32), ulp.to(tl.float32)
        error, slack = errors_of(x_exponent, x_error, y_exponent, y_error, left_out, row)
        error_low, slack_low = error.to(tl.float32), slack.to(tl.float32)
        weight_sum = tl.zeros((ROWS,), tl.float32)
        most_off = tl.zeros((ROWS,), tl.float32)
        in_doubt = tl.full((ROWS,), float("-inf"), tl.float32)
        tile = i.to(tl.int64) * tl.cdiv(M, BLOCK)
    else:
        weight_sum = tl.zeros((ROWS, 16), tl.float32)
    begin = tl.program_id(1) * span * BLOCK
    end = tl.minimum(begin + span * BLOCK, M)
    if segments is not None:
        first, last = tl.load(segments + 2 * row), tl.load(segments + 2 * row + 1)
        some = first < last
        begin = tl.maximum(begin, tl.min(tl.where(some, first, M), 0).to(tl.int32) // BLOCK * BLOCK)
        end = tl.minimum(end, tl.max(tl.where(some, last, 0), 0).to(tl.int32))
    for start in range(begin, end, BLOCK):
        j = start + tl.arange(0, BLOCK)
        y = tl.minimum(j, M - 1).to(tl.int64)  # beyond the last datum it is met again, and then infinitely far away
        beyond = tl.where(j < M, 0.0, INFINITE)[None, :]
        digit = planes(y_planes + y[None, :] * WIDTH + n[:, None], tl.cast(M, tl.int64) * WIDTH, Y)
        product = joined(multiplied(x, digit, no_products(ROWS, BLOCK), X, Y), X, Y, tl.int32)
        score = of_product(product, tl.load(y_squares + y)[None, :], shift)
        if segments is not None:
            visible = (j[None, :] >= first[:, None]) & (j[None, :] < last[:, None])
            score = tl.where(visible, score, FAR)
        here = tl.min(score, 1)
        closest = tl.minimum(nearest, here)
        distance = tl.maximum((norm_ulps + closest.to(tl.float64)).to(tl.float32), 0.0)
        factor = _factor(distance + width, width, rate, KIND)
        log = log2_weight((score - closest[:, None]).to(tl.float32) * factor[:, None] + beyond, rate, KIND)
        before = tl.exp2(log2_weight((nearest - closest).to(tl.float32) * factor, rate, KIND))
        nearest = closest
        weight = tl.exp2(log)
        if segments is not None:
            weight = tl.where(visible, weight, 0.0)
        total = total * before[:, None]
        if EXACT:
            seen = here < FAR
            rho = tl.maximum((norm_ulps + here.to(tl.float64)).to(tl.float32), 0.0) * ulp_low
            off = doubt_of(None, rho, ulp, error_low, slack_low, s_low, p, GAUSSIAN, False)
            reach = tl.where(seen, of_ratio(rho / s_low, p, GAUSSIAN) + off, float("-inf"))
            most_off = tl.maximum(most_off, tl.where(seen, off, 0.0))
            in_doubt = tl.maximum(in_doubt, tl.where(off > tolerance, reach, float("-inf")))
            tl.store(reaches + tile + start // BLOCK, reach, mask=i < B)
            weight_sum = weight_sum * before + sum_of_weights(weight)
            most = tl.exp2(log2_weight((here - closest).to(tl.float32) * factor, rate, KIND))
            if tl.max(tl.where(seen, most, 0.0), 0) > LEAST:
                value = _values(points, y_planes, c, to_unit, y, column, N, Y, WIDTH)
                total += product_of_halves(weight, value, tl.zeros((ROWS, WIDTH), tl.float32))
        else:
            half = (weight * LIFT).to(tl.float16)
            value = _values(points, y_planes, c, to_unit, y, column, N, Y, WIDTH).to(tl.float16)
            total = tl.dot(half, value, total)
            # by the same instructions: the sum of the same rounded weights, rounded likewise
            weight_sum = tl.dot(half, tl.full((BLOCK, 16), 1.0, tl.float16), weight_sum * before[:, None])
    if not EXACT:
        weight_sum = tl.max(weight_sum, 1) / LIFT
    place = i.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    rho = tl.maximum(norm + nearest.to(tl.float64) * ulp, 0.0)
    peaks = tl.where(weight_sum > 0, log_weight(rho, s, power, GAUSSIAN), float("-inf"))
    tl.store(peak + place, peaks + (s - s), mask=i < B)
    tl.store(mass + place, weight_sum, mask=i < B)
    if EXACT:
        tl.store(lowest + place, (peaks - most_off).to(tl.float32), mask=i < B)
        tl.store(doubtful + place, in_doubt, mask=i < B)
    out = partial + (tl.cast(tl.program_id(1), tl.int64) * B + row[:, None]) * N + n[None, :]
    tl.store(out, total, mask=(i < B)[:, None] & (n < N)[None, :])


@triton.jit
def _factor(distance_and_width, width, rate, KIND: tl.constexpr):
    """What the excess of a squared distance over the nearest is to be multiplied with for `log2_weight`."""
    if KIND == "gaussian":
        factor = -LOG2_E / width
    elif KIND == "linear":
        factor = rate / distance_and_width
    else:
        factor = 1.0 / distance_and_width
    return factor


@triton.jit
def _values(points, y_planes, c, to_unit, y, column, N, Y: tl.constexpr, WIDTH: tl.constexpr):
    """The data of a tile in units of their digits: pixels' are digits."""
    if Y == 1:
        value = tl.load(y_planes + y[:, None] * WIDTH + column[None, :])
    else:
        value = (tl.load(points + y[:, None] * N + column[None, :]) - c[None, :]) * to_unit
    return value
