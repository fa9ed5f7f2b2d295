"""The operator for few dimensions (N <= 16): every distance by direct differences, in two passes over the data.

A program takes a tile of queries and one split of the data. The reference pass finds the smallest cost of each row, its
smallest squared distance or with log masses its smallest negative log weight, so that the accumulation pass can weigh
every datum relative to it, with weights that neither overflow nor need rescaling. Each lane adds up w and w (x - y) on
its own until the split ends; a third, tiny kernel adds up the splits in float64. As w (x - y) is summed, nothing
cancels where x, y and the mean share most of their digits.

Float32 serves all rows but those whose nearest datum lies so far out in the kernel that the last bit of a distance
decides: these, the delicate ones, go through the passes again in float64.
"""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pfgm_fast.kernels import pairs
from pfgm_fast.kernels.log_weights import LOG2_E

PARTIALS = 1 << 26  # bytes of partial results; more rows are served in turns
COLUMNS = 128  # data of a block
MERGED = 64  # rows of a program that adds up splits
CONTENT = 8.0  # nats to the nearest datum, and half of one for each dimension, up to which float32 will do


@triton.jit
def _rows(tile, B, ROWS: tl.constexpr):
    """The rows of a tile, int64; those that fall beyond the batch are its last row again and write the same."""
    return tl.minimum(tile.to(tl.int64) * ROWS + tl.arange(0, ROWS), B - 1)


@triton.jit
def _span(split, wanted, segments, rows, M, length, BLOCK: tl.constexpr):
    """The data of a program, counted from `first`: whole blocks, then guarded ones, between bounds[0], [1] and [2].

    Each row sees lower..upper of it. Blocks lie where they lie whatever rows share the tile; those that no row of the
    tile wants or sees are skipped.
    """
    first = split.to(tl.int64) * length
    last = tl.minimum(M - first, length).to(tl.int32)
    begin = last * 0
    whole = last // BLOCK * BLOCK
    lower, upper = rows * 0, rows * 0 + last
    if segments is not None:
        lower = tl.minimum(tl.maximum(tl.load(segments + rows * 2) - first, 0), last)
        upper = tl.minimum(tl.maximum(tl.load(segments + rows * 2 + 1) - first, 0), last)
        begin = tl.min(lower, 0).to(tl.int32) // BLOCK * BLOCK
        whole = begin
        last = tl.max(upper, 0).to(tl.int32)
    if wanted is not None:
        any_wanted = tl.max(tl.load(wanted + rows), 0) > 0
        whole = tl.where(any_wanted, whole, begin)
        last = tl.where(any_wanted, last, begin)
    return first, (begin, whole, last), lower.to(tl.int32)[:, None], upper.to(tl.int32)[:, None]


@triton.jit
def _best(reference, rows, B, splits):
    """The reference of each row: its smallest cost over all splits."""
    best = tl.load(reference + rows)
    for _ in range(1, splits):
        reference += B
        best = tl.minimum(best, tl.load(reference + rows))
    return best


@triton.jit
def _sum(lanes, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Sum (ROWS,) of (ROWS, BLOCK) by pairs of neighbours: an order of its own, where tl.sum's is the layout's."""
    for level in tl.static_range(7):
        lanes = tl.sum(tl.reshape(lanes, (ROWS, BLOCK >> level + 1, 2)), 2)
    return tl.reshape(lanes, (ROWS,))


@triton.jit(do_not_specialize=["B", "M", "length", "power_bits"])
def _reference_pass(
    x, scale, data, center, masses, segments, wanted, reference, B, M, length, power_bits,
    N: tl.constexpr, DOUBLE: tl.constexpr, KIND: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The smallest cost of each row in each split of the data, (splits, B) float64."""
    tiles = tl.cdiv(B, ROWS)
    split = tl.program_id(0) // tiles
    rows = _rows(tl.program_id(0) % tiles, B, ROWS)
    power = power_bits.to(tl.float64, bitcast=True)
    query, scales = pairs.queries(x, scale, rows, N, data.dtype.element_ty == tl.uint8, DOUBLE)
    grid = pairs.early_grid(query, center, scales, N, DOUBLE)
    query, step = pairs.on_grid(query, grid, N)
    scales = (scales * grid * grid)[:, None]
    first, bounds, lower, upper = _span(split, wanted, segments, rows, M, length, BLOCK)
    data += first
    masses = None if masses is None else masses + first
    best = tl.full((ROWS, BLOCK), float("inf"), step.dtype)
    for guarded in tl.static_range(2):
        for j in range(bounds[guarded], bounds[guarded + 1], BLOCK):
            columns = j + tl.arange(0, BLOCK)
            inside = columns < bounds[2] if guarded else None
            rho = pairs.squares(pairs.differences(query, step, data, columns, M, inside, N), 0.0, N)
            cost = pairs.cost(rho, scales, power, masses, columns, inside, KIND)
            if guarded:
                cost = tl.where((columns[None, :] >= lower) & (columns[None, :] < upper), cost, float("inf"))
            best = tl.minimum(best, cost)
    smallest = tl.min(best, 1).to(tl.float64)
    smallest = smallest / grid / grid if masses is None else smallest
    tl.store(reference + split.to(tl.int64) * B + rows, smallest)


@triton.jit(do_not_specialize=["B", "M", "length", "splits", "power_bits"])
def _accumulation_pass(
    x, scale, data, center, masses, segments, wanted, reference, sums, B, M, length, splits, power_bits,
    N: tl.constexpr, DOUBLE: tl.constexpr, KIND: tl.constexpr, TWICE: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums over each split of the data, (splits, N + 1, B): of w, and on the row's grid of w (x - y)."""
    tiles = tl.cdiv(B, ROWS)
    split = tl.program_id(0) // tiles
    rows = _rows(tl.program_id(0) % tiles, B, ROWS)
    power = power_bits.to(tl.float64, bitcast=True)
    query, scales = pairs.queries(x, scale, rows, N, data.dtype.element_ty == tl.uint8, DOUBLE)
    best = _best(reference, rows, B, splits)
    if masses is None:
        grid = pairs.late_grid(best, scales, power, KIND, DOUBLE)
    else:
        grid = pairs.early_grid(query, center, scales, N, DOUBLE)
    query, step = pairs.on_grid(query, grid, N)
    scales = scales * grid * grid
    near = best * grid * grid
    factor = 1 / (near + scales)
    if KIND == "gaussian":
        factor = -1 / scales * LOG2_E
    elif KIND == "linear":
        factor *= -power * LOG2_E
    factor = tl.maximum(factor, -1e37).to(step.dtype)[:, None]
    near, best, scales = near.to(step.dtype)[:, None], best[:, None], scales[:, None]
    start = 0.0 if DOUBLE else -near
    if KIND == "root":
        start = scales.to(step.dtype)
    rate = (-power * LOG2_E).to(step.dtype)
    first, bounds, lower, upper = _span(split, wanted, segments, rows, M, length, BLOCK)
    data += first
    masses = None if masses is None else masses + first
    total = tl.zeros((ROWS, BLOCK), step.dtype)
    moments = pairs.nothing()
    for _ in tl.static_range(N):
        moments = pairs.appended(moments, total)
    for guarded in tl.static_range(2):
        for j in range(bounds[guarded], bounds[guarded + 1], BLOCK):
            columns = j + tl.arange(0, BLOCK)
            inside = columns < bounds[2] if guarded else None
            d = pairs.differences(query, step, data, columns, M, inside, N)
            rho = pairs.squares(d, start, N)
            if masses is None:
                w = pairs.weight(rho, near, factor, rate, KIND, TWICE)
            else:
                w = tl.exp(best - pairs.cost(rho, scales, power, masses, columns, inside, KIND))
            if guarded:
                w = tl.where((columns[None, :] >= lower) & (columns[None, :] < upper), w, 0.0)
            total += w
            moments = _moments(moments, w, d, N)
    place = sums + split.to(tl.int64) * (N + 1) * B + rows
    tl.store(place, _sum(total, ROWS, BLOCK))
    for k in tl.static_range(N):
        place += B
        tl.store(place, _sum(moments[k], ROWS, BLOCK))


@triton.jit
def _moments(moments, w, d, N: tl.constexpr):
    added = pairs.nothing()
    for k in tl.static_range(N):
        added = pairs.appended(added, tl.fma(w, d[k], moments[k]))
    return added


@triton.jit(do_not_specialize=["B", "splits", "power_bits"])
def _merge(
    x, scale, data, center, masses, wanted, reference, sums, mean, log_sum, delicate, B, splits, power_bits, content,
    N: tl.constexpr, DOUBLE: tl.constexpr, KIND: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Mean (B, N) and log-sum-exp (B,) from the sums over the splits, in their order; NaN for rows that have none."""
    PIXELS: tl.constexpr = data.dtype.element_ty == tl.uint8
    rows = _rows(tl.program_id(0), B, ROWS)
    power = power_bits.to(tl.float64, bitcast=True)
    query, scales = pairs.queries(x, scale, rows, N, PIXELS, DOUBLE)
    best = _best(reference, rows, B, splits)
    total = scales * 0.0
    moments = pairs.nothing()
    for _ in tl.static_range(N):
        moments = pairs.appended(moments, total)
    place = sums + rows
    for _ in range(splits):
        total += tl.load(place)
        added = pairs.nothing()
        for k in tl.static_range(N):
            place += B
            added = pairs.appended(added, moments[k] + tl.load(place))
        moments = added
        place += B
    logarithm = tl.log(total)
    if masses is None:
        grid = pairs.late_grid(best, scales, power, KIND, DOUBLE)
        logarithm -= pairs.fall(best, scales, power, KIND)
        if KIND == "root":
            logarithm += power * tl.log((best + scales) * grid * grid)
    else:
        grid = pairs.early_grid(query, center, scales, N, DOUBLE)
        logarithm -= best
    good = (scales > 0) & (best < float("inf"))
    mine = rows >= 0
    if wanted is not None:
        mine = tl.load(wanted + rows) > 0
    for k in tl.static_range(N):
        value = query[k].to(tl.float64) - moments[k] / total / grid
        value = tl.where(good, value / 255 if PIXELS else value, float("nan"))
        tl.store(mean + rows * N + k, value.to(mean.dtype.element_ty), mask=mine)
    tl.store(log_sum + rows, tl.where(good, logarithm, float("nan")), mask=mine)
    if delicate is not None:
        nats = best / (scales if KIND == "gaussian" else (best + scales) / power)
        tl.store(delicate + rows, good & (nats > content))


class Inputs(NamedTuple):
    """What the kernels read."""

    x: Tensor
    scale: Tensor
    planes: Tensor  # (N, M)
    center: Tensor
    masses: Tensor | None
    segments: Tensor | None
    power: float

    def rows(self, part: slice) -> Inputs:
        seen = None if self.segments is None else self.segments[part]
        return self._replace(x=self.x[part], scale=self.scale[part], segments=seen)


def posterior(
    x: Tensor,
    scale: Tensor,
    data: Tensor,
    center: Tensor,
    log_weights: Tensor | None,
    segments: Tensor | None,
    power: float,
) -> tuple[Tensor, Tensor]:
    """Posterior mean (B, N) and log-sum-exp (B,) float64; arguments as in `pfgm_fast.operator.posterior`, N <= 16.

    Data whose coordinates lie one after the other, strides (1, M), are read in place; others are copied at each call.
    """
    masses = None if log_weights is None else log_weights.contiguous()
    segments = None if segments is None else segments.contiguous()
    inputs = Inputs(x.contiguous(), scale.contiguous(), data.t().contiguous(), center, masses, segments, power)
    mean, log_sum = torch.empty_like(inputs.x), torch.empty_like(inputs.scale)
    N, M = inputs.planes.shape
    content = CONTENT + N / 2
    double = torch.float64 in (x.dtype, data.dtype) or masses is not None
    turn = max(1, PARTIALS // (-(-M // split_length(M)) * (N + 2) * 8))
    for first in range(0, len(x), turn):
        part = slice(first, first + turn)
        some, out = inputs.rows(part), (mean[part], log_sum[part])
        if double or power <= content:  # the power bounds the nats
            _reduce(some, double, out)
        else:
            delicate = torch.empty(len(some.x), dtype=torch.uint8, device=x.device)
            _reduce(some, False, out, delicate=delicate, content=content)
            _reduce(some, True, out, wanted=delicate)
    return mean, log_sum


def _reduce(
    inputs: Inputs,
    double: bool,
    out: tuple[Tensor, Tensor],
    wanted: Tensor | None = None,
    delicate: Tensor | None = None,
    content: float = 0.0,
) -> None:
    """The three kernels in float64 or float32, for all rows or those wanted; tells which are delicate."""
    *read, segments, power = inputs
    (N, M), B, device = inputs.planes.shape, len(inputs.x), inputs.x.device
    length = split_length(M)
    splits = triton.cdiv(M, length)
    reference = torch.empty((splits, B), dtype=torch.float64, device=device)
    sums = torch.empty((splits, N + 1, B), dtype=torch.float64 if double else torch.float32, device=device)
    kind, twice = pairs.kind_of(power, double, inputs.masses is not None)
    bits = struct.unpack("<q", struct.pack("<d", power))[0]
    rows = tile_rows(B, N, double, device.type)
    programs = (triton.cdiv(B, rows) * splits,)
    tile = {"ROWS": rows, "BLOCK": COLUMNS}
    common = {"N": N, "DOUBLE": double, "num_warps": 4, "num_stages": 2, "enable_fp_fusion": False}
    cost = None if inputs.masses is None else kind
    _reference_pass[programs](
        *read, segments, wanted, reference, B, M, length, bits, KIND=cost, **tile, **common
    )  # fmt: skip
    _accumulation_pass[programs](
        *read, segments, wanted, reference, sums, B, M, length, splits, bits, KIND=kind, TWICE=twice, **tile, **common
    )
    _merge[(triton.cdiv(B, MERGED),)](
        *read, wanted, reference, sums, *out, delicate, B, splits, bits, content, KIND=kind, ROWS=MERGED, **common
    )


def split_length(M: int) -> int:
    """Data of one split: enough to pay for its start, few enough to keep a GPU busy and partial sums short."""
    return max(512, min(_next_power_of_two(M / 16), 8192), _next_power_of_two(M / 64))


def tile_rows(B: int, N: int, double: bool, device: str) -> int:
    """Queries of a program: as many as the lanes hold in registers, fewer of a small batch. No bit depends on it."""
    if device == "cpu":  # the interpreter, whose time is that of its steps
        return min(1024, _next_power_of_two(B))
    held = (35 if double else 120) // (2 * N + 3)
    return min(1 << held.bit_length() - 1, _next_power_of_two(B / 32))


def _next_power_of_two(value: float) -> int:
    return 1 << max(0, math.ceil(value) - 1).bit_length()
