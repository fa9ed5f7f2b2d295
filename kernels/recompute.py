"""The repair of the fused pass: rows in doubt are computed again, from distances by differences in float64."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pfgm_fast.kernels.digits import power_of_two, units_per_datum
from pfgm_fast.kernels.log_weights import log_weight
from pfgm_fast.kernels.mend import distances, negligible
from pfgm_fast.kernels.weigh import LIFT


class Sums(NamedTuple):
    """What the fused pass leaves of B rows, for each part of the data; a tile is the finest it looks at.

    partial: (parts, B, N), the weighted sums of the data, relative to peak. peak: (B, parts) float64, the largest log
    weight of a part. mass: (B, parts), the sum of its weights. lowest: (B, parts), a log weight that its largest is not
    below. doubtful: (B, parts), one that no log weight in doubt is above. reach: (B, tiles), one that none of a tile's
    is above. The last three in float32, which is off by less than the margin that they are used with; None if errors
    are let be.
    """

    partial: Tensor
    peak: Tensor
    mass: Tensor
    lowest: Tensor | None = None
    doubtful: Tensor | None = None
    reach: Tensor | None = None

    @classmethod
    def empty(cls, B: int, N: int, parts: int, device: torch.device) -> Sums:
        return cls(
            torch.empty(parts, B, N, device=device, dtype=torch.float32),
            torch.empty(B, parts, device=device, dtype=torch.float64),
            torch.empty(B, parts, device=device, dtype=torch.float32),
        )

    def doubted(self, tiles: int) -> Sums:
        """The same with room for what tells which are in doubt."""
        lowest, doubtful = torch.empty_like(self.mass), torch.empty_like(self.mass)
        return self._replace(
            lowest=lowest, doubtful=doubtful, reach=self.mass.new_full((len(self.mass), tiles), -math.inf)
        )


def recompute(
    sums: Sums,
    x: Tensor,
    scale: Tensor,
    data: list[Tensor],
    segments: Tensor | None,
    power: float,
    block: int,
) -> None:
    """Makes the rows in doubt right, in place: all of such a row goes into its first part."""
    points, center, _, exponent = data[:4]
    pixels = points.dtype == torch.uint8
    (B, N), M = x.shape, len(points)
    parts, T = sums.peak.shape[1], triton.cdiv(M, block)
    _recompute[(B,)](
        *(*sums, x, scale, points, center, exponent, segments),
        *(power, units_per_datum(pixels), negligible(M), B, M, N, parts, T),
        GAUSSIAN=math.isinf(power),
        PIXELS=pixels,
        SEGMENTS=segments is not None,
        BLOCK=block,
        SPAN=256,
        COLUMNS=max(32, triton.next_power_of_2(N)),
        num_warps=8,
        num_stages=1,
        enable_fp_fusion=False,
    )


@triton.jit
def _recompute(
    partial,
    peak,
    mass,
    lowest,
    doubtful,
    reach,
    x,
    scale,
    points,
    center,
    exponent,
    segments,
    power: tl.float64,
    unit,
    negligible,
    B,
    M,
    N,
    parts,
    T,
    GAUSSIAN: tl.constexpr,
    PIXELS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, 64)
    place, inside = row * parts + part, part < parts
    threshold = tl.max(tl.load(lowest + place, mask=inside, other=float("-inf")), 0) - negligible
    highest = tl.max(tl.load(doubtful + place, mask=inside, other=float("-inf")), 0)
    if (highest >= threshold) & (highest > float("-inf")):  # a bad row has no threshold
        s = tl.load(scale + row) * unit
        first, last = 0, M
        if SEGMENTS:
            first, last = tl.load(segments + 2 * row), tl.load(segments + 2 * row + 1)
        n = tl.arange(0, COLUMNS)
        column = tl.minimum(n, N - 1)
        c = tl.load(center + column)
        total = tl.zeros((COLUMNS,), tl.float64)
        weight_sum = tl.sum(tl.zeros((SPAN,), tl.float64), 0)
        top = weight_sum - float("inf")
        for start in range(0, T, SPAN):
            t = start + tl.arange(0, SPAN)
            high = tl.load(reach + row * T + t, mask=t < T, other=float("-inf"))
            needed = (high >= threshold).to(tl.int32)
            rank = tl.cumsum(needed, 0)
            for nth in range(1, tl.sum(needed, 0) + 1):
                tile = tl.sum(tl.where((rank == nth) & (needed > 0), t, 0), 0)
                j = tl.cast(tile, tl.int64) * BLOCK + tl.arange(0, BLOCK)
                seen = (j >= first) & (j < last)
                rho = distances(x + row * N, points, j, seen, N, PIXELS, BLOCK, BLOCK, 64)
                log = log_weight(rho, s, power, GAUSSIAN)
                log = tl.where(seen, log, float("-inf"))
                new = tl.maximum(top, tl.max(log, 0))
                weight = tl.where(seen, tl.exp(log - new), 0.0)
                before = tl.exp(top - new)
                y = points + tl.minimum(j, M - 1)[:, None] * N + column[None, :]
                value = tl.load(y).to(tl.float64) - (128.0 if PIXELS else c[None, :])
                total = total * before + tl.sum(weight[:, None] * value, 0)
                weight_sum = weight_sum * before + tl.sum(weight, 0)
                top = new
        total *= LIFT * power_of_two(-tl.load(exponent))
        tl.store(partial + row * N + n, total.to(tl.float32), mask=n < N)
        only = part == 0
        tl.store(peak + place, tl.where(only, top, float("-inf")), mask=inside)
        tl.store(mass + place, tl.where(only, weight_sum, 0.0).to(tl.float32), mask=inside)
