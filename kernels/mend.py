"""The repair of what pass 1 may have got wrong: contenders have their distance taken again, by differences in float64.

A log weight is off by the error of its squared distance over the width of the kernel: nothing at large sigma, nats
between near-duplicates at small sigma. Pass 1 says by how much (`doubt`); here every pair that is in doubt and may hold
weight is made right. They are few where the kernel is narrow, and none where it is wide.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from pfgm_fast.kernels.digits import units_per_datum
from pfgm_fast.kernels.log_weights import log_weight
from pfgm_fast.kernels.weigh import Weights

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}  # nats
UNDERFLOW = {torch.float32: -87.0, torch.float64: -700.0}  # log of the smallest weight that a tile can tell from 0


def negligible(M: int) -> float:
    """Nats below the largest log weight at which all M data together weigh less than 1e-6."""
    return math.log(M) + 14.0


def mend(
    w: Weights,
    x: Tensor,
    scale: Tensor,
    points: Tensor,
    log_weights: Tensor | None,
    segments: Tensor | None,
    power: float,
) -> None:
    """Makes the weights in doubt right, in place."""
    B, T = w.peak.shape
    M, N = points.shape
    pixels = points.dtype == torch.uint8
    kind = w.weights.dtype
    _mend[(B,)](
        *(*w, x, scale, points, log_weights, segments),
        *(power, units_per_datum(pixels)),
        *(TOLERANCE[kind], UNDERFLOW[kind], negligible(M), M, N, T),
        GAUSSIAN=math.isinf(power),
        PIXELS=pixels,
        PRIOR=log_weights is not None,
        SEGMENTS=segments is not None,
        BLOCK=w.block,
        SPAN=256,
        GROUP=8,
        STEP=256,
        num_warps=8,
        num_stages=1,
        enable_fp_fusion=False,
    )


@triton.jit
def _mend(
    weights,
    peak,
    mass,
    doubt,
    x,
    scale,
    points,
    log_weights,
    segments,
    power: tl.float64,
    unit,
    tolerance,
    underflow,
    negligible,
    M,
    N,
    T,
    GAUSSIAN: tl.constexpr,
    PIXELS: tl.constexpr,
    PRIOR: tl.constexpr,
    SEGMENTS: tl.constexpr,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
    GROUP: tl.constexpr,
    STEP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    peak += row * T
    mass += row * T
    doubt += row * T
    weights += row * T * BLOCK
    s = tl.load(scale + row) * unit
    first, last = 0, M
    if SEGMENTS:
        first, last = tl.load(segments + 2 * row), tl.load(segments + 2 * row + 1)

    lane = tl.arange(0, SPAN)
    lowest = tl.full((SPAN,), float("-inf"), tl.float64)
    for start in range(0, T, SPAN):
        t = start + lane
        off = tl.load(doubt + t, mask=t < T, other=0.0).to(tl.float64)
        lowest = tl.maximum(lowest, tl.load(peak + t, mask=t < T, other=float("-inf")) - off)
    threshold = tl.max(lowest, 0) - negligible

    column = tl.arange(0, BLOCK)
    for start in range(0, T, SPAN):
        t = start + lane
        off = tl.load(doubt + t, mask=t < T, other=0.0)
        high = tl.load(peak + t, mask=t < T, other=float("-inf"))
        needed = ((off > tolerance) & (high + off >= threshold)).to(tl.int32)
        rank = tl.cumsum(needed, 0)
        for n in range(1, tl.sum(needed, 0) + 1):
            tile = tl.sum(tl.where((rank == n) & (needed > 0), t, 0), 0)
            high_n, off_n = tl.load(peak + tile), tl.load(doubt + tile)
            j = tl.cast(tile, tl.int64) * BLOCK + column
            weight = tl.load(weights + j)
            log = tl.where(weight > 0, tl.log(tl.maximum(weight, 1e-45)), underflow).to(tl.float64) + high_n
            contends = (log + off_n >= threshold) & (j >= first) & (j < last)
            rho = distances(x + row * N, points, j, contends, N, PIXELS, BLOCK, GROUP, STEP)
            exact = log_weight(rho, s, power, GAUSSIAN)
            if PRIOR:
                exact += tl.load(log_weights + j, mask=contends, other=0.0)
            log = tl.where(contends, exact, tl.where(weight > 0, log, float("-inf")))
            top = tl.max(log, 0)
            weight = tl.exp(log - top).to(weight.dtype)
            tl.store(weights + j, weight)
            tl.store(peak + tile, top)
            tl.store(mass + tile, tl.sum(weight, 0))


@triton.jit
def distances(
    x,
    points,
    j,
    wanted,
    N,
    PIXELS: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    STEP: tl.constexpr,
):
    """|x - y_j|^2 (BLOCK,) float64 of the wanted ones, in units of the scores; GROUP at a time."""
    count = tl.sum(wanted.to(tl.int32), 0)
    rank = tl.where(wanted, tl.cumsum(wanted.to(tl.int32), 0) - 1, -1)
    result = tl.zeros((BLOCK,), tl.float64)
    k = tl.arange(0, STEP)
    for group in range(0, count, GROUP):
        picked = rank[None, :] == (group + tl.arange(0, GROUP))[:, None]
        y = points + tl.sum(tl.where(picked, j[None, :], 0), 1)[:, None] * N
        squares = tl.zeros((GROUP, STEP), tl.float64)
        for start in range(0, N, STEP):
            inside = start + k < N
            xv = tl.load(x + start + k, mask=inside, other=0.0).to(tl.float64)
            yv = tl.load(y + start + k[None, :], mask=inside[None, :], other=0).to(tl.float64)
            if PIXELS:
                xv = xv * 127.5 - 0.5
                yv -= 128.0
            apart = tl.where(inside[None, :], xv[None, :] - yv, 0.0)
            squares += apart * apart
        result += tl.sum(tl.where(picked, tl.sum(squares, 1)[:, None], 0.0), 0)
    return result
