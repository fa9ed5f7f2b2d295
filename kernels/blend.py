"""Pass 2 over wide data: the mean of the data under the weights of pass 1."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pfgm_fast.kernels import tiles
from pfgm_fast.kernels.digits import Digits, power_of_two
from pfgm_fast.kernels.weigh import DOUBLES, LIFT, Weights

COLUMNS = {"pixels": 128, "floats": 128, "doubles": 32}  # of a mean, in one program
PARTS = 8  # partial sums over the data; which tiles go into which is part of the result's bits
LEAST = tl.constexpr(2.0**-40)  # what is at most that, times LIFT, is 0 in float16


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
    kind, rough = kind_of(y), w.doubt is None
    sizes = f"{'rough ' if rough else ''}{kind} {w.block}"
    tile = DOUBLES if kind == "doubles" else tiles.choose("wide.blend", out.device, sizes)
    columns = COLUMNS[kind]
    span = triton.cdiv(T, PARTS)
    parts = triton.cdiv(T, span)
    partial = torch.empty(parts, B, N, dtype=w.mass.dtype, device=out.device)
    source = y.planes if y is not None and kind == "pixels" else points
    _blend[(triton.cdiv(B, tile.rows) * triton.cdiv(N, columns), parts)](
        *(w.weights, shares.share, source, center, center if y is None else y.exponent, partial),
        *(B, M, N, source.shape[-1], T, span),
        KIND=kind,
        ROWS=tile.rows,
        COLUMNS=columns,
        BLOCK=w.block,
        STEP=min(w.block, 64),
        **tile.options,
        enable_fp_fusion=False,
    )
    finish(partial, shares._replace(share=None), center, y, out)


def kind_of(y: Digits | None) -> str:
    return "doubles" if y is None else "pixels" if len(y.planes) == 1 else "floats"


def finish(partial: Tensor, shares: Shares, center: Tensor, y: Digits | None, out: Tensor) -> None:
    """Writes the mean (B, N) from sums (parts, B, N): each times its share, if there are shares."""
    parts, B, N = partial.shape
    _finish[(B, triton.cdiv(N, 1024))](
        *(partial, shares.share, shares.total, center, center if y is None else y.exponent, out, parts, B, N),
        KIND=kind_of(y),
        SHARED=shares.share is not None,
        BLOCK=min(1024, max(32, triton.next_power_of_2(N))),
        num_warps=4,
        num_stages=2,
        enable_fp_fusion=False,
    )


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
def product_of_halves(weight, y, product):
    """product + LIFT weight y: weights <= 1 as two float16, data as one if they are pixels' digits, else as two."""
    weight *= LIFT
    high = weight.to(tl.float16)
    low = (weight - high.to(tl.float32)).to(tl.float16)
    y_high = y.to(tl.float16)
    product = tl.dot(low, y_high, product)
    if y.dtype != tl.int8:
        product = tl.dot(high, (y - y_high.to(tl.float32)).to(tl.float16), product)
    return tl.dot(high, y_high, product)


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
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):
    across = tl.cdiv(N, COLUMNS)
    i = (tl.program_id(0) // across) * ROWS + tl.arange(0, ROWS)
    n = (tl.program_id(0) % across) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.minimum(i, B - 1).to(tl.int64)
    column = tl.minimum(n, N - 1)
    k = tl.arange(0, STEP)
    DTYPE: tl.constexpr = partial.dtype.element_ty
    ROUGH: tl.constexpr = weights.dtype.element_ty == tl.float16  # and LIFTed
    c = tl.load(center + column).to(DTYPE)
    if KIND == "floats":
        scale = power_of_two(-tl.load(exponent)).to(tl.float32)
    share += row * T
    weights += row * T * BLOCK
    total = tl.zeros((ROWS, COLUMNS), DTYPE)
    for t in range(tl.program_id(1) * span, tl.minimum(tl.program_id(1) * span + span, T)):
        lot = tl.load(share + t)
        if tl.max(tl.where(lot > 0, lot, 0.0), 0) > LEAST:
            product = tl.zeros((ROWS, COLUMNS), DTYPE)
            for start in tl.static_range(0, BLOCK, STEP):
                first = t * BLOCK + start
                weight = tl.load(weights[:, None] + (first + k)[None, :])
                if not ROUGH:  # or the product is multiplied, since weights are not to be rounded again
                    weight = tl.where((lot > 0)[:, None], weight * lot[:, None], 0.0)
                # beyond the last datum weights are 0: any datum will do
                j = tl.maximum(tl.minimum(k, M - 1 - first), 0)
                base = points + tl.minimum(first, M - 1).to(tl.int64) * stride
                y = tl.load(base + (j[:, None] * stride + column[None, :]))
                if KIND == "doubles":
                    product = tl.dot(weight, y - c[None, :], product, input_precision="ieee", out_dtype=tl.float64)
                else:
                    if KIND == "floats":
                        y = (y - c[None, :]) * scale
                    if ROUGH:
                        product = tl.dot(weight, y.to(tl.float16), product)
                    else:
                        product = product_of_halves(weight, y, product)
            if ROUGH:
                product *= tl.where(lot > 0, lot, 0.0)[:, None]
            total += product
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
    for part in range(parts):
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
