"""Pass 2 over wide data: the mean of the data under the weights of pass 1."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pfgm_fast.kernels import tiles
from pfgm_fast.kernels.digits import Digits, power_of_two
from pfgm_fast.kernels.scores import values
from pfgm_fast.kernels.weigh import Weights

COLUMNS = 128
SEGMENTS = 32  # partial sums over the data; which tiles go into which is part of the result's bits
LIFT = tl.constexpr(2.0**15)  # weights of at most 1 fill the range of float16
LEAST = tl.constexpr(2.0**-40)  # and what is at most that, times LIFT, is 0 in float16


class Shares(NamedTuple):
    """What each tile weighs in its row.

    share: (B, tiles), exp(peak - the row's largest). total: (B,) float64. log_sum: (B,) float64.
    """

    share: Tensor | None
    total: Tensor
    log_sum: Tensor


def share(peak: Tensor, mass: Tensor) -> Shares:
    """Of tiles or any other parts, from their peaks and masses (B, parts) as in `Weights`."""
    B, T = peak.shape
    out = Shares(torch.empty_like(mass), peak.new_empty(B), peak.new_empty(B))
    _share[(B,)](peak, mass, *out, T, SPAN=1024, num_warps=4, num_stages=2, enable_fp_fusion=False)
    return out


def mean(w: Weights, shares: Shares, points: Tensor, center: Tensor, y: Digits | None, out: Tensor) -> None:
    """Writes the posterior mean (B, N) of some rows. `y`: digits of the data, None to compute in float64."""
    (B, T), (M, N) = w.peak.shape, points.shape
    pixels = points.dtype == torch.uint8
    kind = "doubles" if y is None else "pixels" if pixels else "floats"
    tile = tiles.choose("wide.blend", out.device, kind)
    across = triton.cdiv(B, tile.rows), triton.cdiv(N, COLUMNS)
    span = triton.cdiv(T, SEGMENTS)
    segments = triton.cdiv(T, span)
    # few rows: the segments go to programs of their own; many: one program after the other, with the same bits
    parts = segments if across[0] * across[1] < 2 * _processors(out.device) else 1
    partial = torch.empty(parts, B, N, dtype=w.weights.dtype, device=out.device)
    exponent = center if y is None else y.exponent
    source = y.planes if y is not None and pixels else points
    _blend[(across[0] * across[1], parts)](
        *(w.weights, shares.share, source, center, exponent, partial),
        *(B, M, N, source.shape[-1], T, span, segments // parts),
        KIND=kind,
        PIXELS=pixels,
        ROWS=tile.rows,
        COLUMNS=COLUMNS,
        BLOCK=w.block,
        **tile.options,
        enable_fp_fusion=False,
    )
    finish(partial, shares._replace(share=None), center, y, out)


def finish(partial: Tensor, shares: Shares, center: Tensor, y: Digits | None, out: Tensor) -> None:
    """Writes the mean (B, N) from sums (parts, B, N): each times its share, or as it stands where there are no shares."""
    parts, B, N = partial.shape
    kind = "doubles" if y is None else "pixels" if len(y.planes) == 1 else "floats"
    _finish[(B, triton.cdiv(N, 1024))](
        *(partial, shares.share, shares.total, center, center if y is None else y.exponent, out, parts, B, N),
        KIND=kind,
        SHARED=shares.share is not None,
        BLOCK=min(1024, max(32, triton.next_power_of_2(N))),
        num_warps=4,
        num_stages=2,
        enable_fp_fusion=False,
    )


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@triton.jit
def _share(peak, mass, share, total, log_sum, T, SPAN: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, SPAN)
    top = tl.full((SPAN,), float("-inf"), tl.float64)
    for start in range(0, T, SPAN):
        t = start + lane
        top = tl.maximum(top, tl.load(peak + row * T + t, mask=t < T, other=float("-inf")))
    largest = tl.max(top, 0)
    sums = tl.zeros((SPAN,), tl.float64)
    for start in range(0, T, SPAN):
        t = start + lane
        inside = t < T
        part = tl.exp(tl.load(peak + row * T + t, mask=inside, other=0.0) - largest)
        tl.store(share + row * T + t, part.to(share.dtype.element_ty), mask=inside)
        sums += tl.where(inside, part * tl.load(mass + row * T + t, mask=inside, other=0.0).to(tl.float64), 0.0)
    weight = tl.sum(sums, 0)
    tl.store(total + row, weight)
    tl.store(log_sum + row, largest + tl.log(weight))


@triton.jit
def _blend(
    weights,
    share,
    points,
    center,
    exponent,
    partial,
    B,
    M,
    N,
    stride,
    T,
    span,
    segments,
    KIND: tl.constexpr,
    PIXELS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    across = tl.cdiv(N, COLUMNS)
    i = (tl.program_id(0) // across) * ROWS + tl.arange(0, ROWS)
    n = (tl.program_id(0) % across) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.minimum(i, B - 1).to(tl.int64)
    column = tl.minimum(n, N - 1)
    jj = tl.arange(0, BLOCK)
    DTYPE: tl.constexpr = partial.dtype.element_ty
    if KIND == "floats":
        c = tl.load(center + column).to(tl.float32)
        scale = power_of_two(-tl.load(exponent)).to(tl.float32)
    total = tl.zeros((ROWS, COLUMNS), DTYPE)
    for segment in range(tl.program_id(1) * segments, tl.program_id(1) * segments + segments):
        part = tl.zeros((ROWS, COLUMNS), DTYPE)
        for t in range(segment * span, tl.minimum(segment * span + span, T)):
            lot = tl.load(share + row * T + t)
            if tl.max(tl.where(lot == lot, lot, 0.0), 0) > LEAST:
                weight = tl.load(weights + row[:, None] * T * BLOCK + t * BLOCK + jj[None, :])
                weight = tl.where((lot > 0)[:, None], weight * lot[:, None], 0.0)
                j = tl.minimum(tl.cast(t, tl.int64) * BLOCK + jj, M - 1)
                if KIND == "doubles":
                    y = values(points, j[:, None], column[None, :], N, PIXELS)
                    y -= tl.load(center + column)[None, :]
                    part = tl.dot(weight, y, part, input_precision="ieee", out_dtype=tl.float64)
                else:
                    weight *= LIFT
                    high = weight.to(tl.float16)
                    low = (weight - high.to(tl.float32)).to(tl.float16)
                    y = tl.load(points + j[:, None] * stride + column[None, :])
                    if KIND == "pixels":
                        y_high = y.to(tl.float16)
                        product = tl.dot(low, y_high)
                    else:
                        y = (y - c[None, :]) * scale
                        y_high = y.to(tl.float16)
                        product = tl.dot(low, y_high)
                        product = tl.dot(high, (y - y_high.to(tl.float32)).to(tl.float16), product)
                    part += tl.dot(high, y_high, product)
        total += part
    out = partial + (tl.cast(tl.program_id(1), tl.int64) * B + row[:, None]) * N + n[None, :]
    tl.store(out, total, mask=(i < B)[:, None] & (n < N)[None, :])


@triton.jit
def _finish(
    partial,
    share,
    total,
    center,
    exponent,
    out,
    parts,
    B,
    N,
    KIND: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = n < N
    sums = tl.zeros((BLOCK,), partial.dtype.element_ty)
    for part in range(0, parts):
        term = tl.load(partial + (part * B + row) * N + n, mask=inside, other=0.0)
        if SHARED:
            term *= tl.load(share + row * parts + part)
        sums += term
    mean = sums.to(tl.float64) / tl.load(total + row)
    if KIND == "pixels":
        mean = (2.0 * mean / LIFT + 1.0) / 255.0
    else:
        c = tl.load(center + n, mask=inside, other=0.0)
        mean = c + (mean if KIND == "doubles" else mean / LIFT * power_of_two(tl.load(exponent)))
    tl.store(out + row * N + n, mean.to(out.dtype.element_ty), mask=inside)
