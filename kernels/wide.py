"""The operator for wide data, N > 16: weights of all pairs, the doubtful ones made right, then the mean under them.

Recomputing distances for every block of output columns would cost more than the B x M weights between the passes, and a
mean of thousands of columns does not fit a processor; so there are two passes, over some rows at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pfgm_fast.kernels import NARROW, blend, chunks, digits, weigh
from pfgm_fast.kernels.digits import Digits
from pfgm_fast.kernels.mend import mend
from pfgm_fast.kernels.weigh import Weights


def posterior(
    x: Tensor,
    scale: Tensor,
    data: list[Tensor],
    log_weights: Tensor | None,
    segments: Tensor | None,
    power: float,
) -> tuple[Tensor, Tensor]:
    """Posterior mean (B, N) and log-sum-exp (B,) float64; arguments as in `pfgm_fast.operator.posterior`."""
    if x.dtype == torch.float64:
        data = doubles(data)
    points, center = data[:2]
    y = None if x.dtype == torch.float64 else Digits(*data[2:])
    (B, N), M = x.shape, len(points)
    mean, log_sum = torch.empty_like(x), torch.empty_like(scale)
    for rows in chunks.of_rows(B, (M + blend.PARTS * N) * x.element_size()):
        seen = None if segments is None else segments[rows]
        w = weights(x[rows], scale[rows], data, log_weights, seen, power)
        shares = blend.share(w.peak, w.mass)
        blend.mean(w, shares, points, center, y, mean[rows])
        log_sum[rows] = shares.log_sum
    return mean, log_sum


def top_weights(
    x: Tensor, scale: Tensor, data: list[Tensor], log_weights: Tensor | None, power: float, k: int
) -> tuple[Tensor, Tensor]:
    """The k largest normalised weights of each row, largest first, and their indices: (B, k) and (B, k) int64."""
    B, M, dtype = len(x), len(data[0]), x.dtype
    if data[0].shape[1] <= NARROW:  # narrow data have no digits
        x = x.double()
    if x.dtype == torch.float64:
        data = doubles(data)
    top, indices = torch.empty(B, k, dtype=dtype, device=x.device), scale.new_empty(B, k, dtype=torch.int64)
    for rows in chunks.of_rows(B, M * 16):
        w = weights(x[rows], scale[rows], data, log_weights, None, power)
        shares = blend.share(w.peak, w.mass)
        share = (shares.share / shares.total[:, None]).repeat_interleave(w.block, 1)
        weight = w.weights if w.doubt is not None else w.weights.float() / weigh.LIFT.value
        found = (weight * share)[:, :M].topk(k, 1)
        top[rows], indices[rows] = found.values.to(dtype), found.indices
    return top, indices


def weights(
    x: Tensor,
    scale: Tensor,
    data: list[Tensor],
    log_weights: Tensor | None,
    segments: Tensor | None,
    power: float,
) -> Weights:
    """The weights of all pairs, at "highest" right where they count; for float64 x the data are those of `doubles`."""
    points, center = data[:2]
    if x.dtype == torch.float64:
        w = weigh.by_doubles(x, points, center, scale, log_weights, segments, power)
    else:
        y = Digits(*data[2:])
        queries = digits.of_queries(x, y, center)
        w = weigh.by_digits(queries, y, scale, log_weights, segments, power, points.shape[1])
    if w.doubt is not None:
        mend(w, x, scale, points, log_weights, segments, power)
    return w


def doubles(data: list[Tensor]) -> list[Tensor]:
    """The data and their centre in float64: a copy, unless that is what they are."""
    points, center = data[:2]
    if points.dtype == torch.uint8:
        return [(2 * points.double() - 255) / 255, center / 255]
    return [points.double(), center]
