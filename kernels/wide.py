"""The operator for wide data, N > 16: weights of all pairs, the doubtful ones made right, then the mean under them.

Recomputing distances for every block of output columns would cost more than the B x M weights between the passes, and a
mean of thousands of columns does not fit a processor; so there are two passes, over some rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pfgm_fast.kernels import blend, digits, weigh
from pfgm_fast.kernels.digits import Digits
from pfgm_fast.kernels.mend import mend
from pfgm_fast.kernels.weigh import Weights

WORKSPACE = 1 << 30  # bytes of weights at a time, but always at least ROWS rows
ROWS = 128


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
    y = None if x.dtype == torch.float64 else Digits(*data[2:])
    mean, log_sum = torch.empty_like(x), torch.empty_like(scale)
    for rows in _chunks(len(x), len(points), x.element_size()):
        part = None if segments is None else segments[rows]
        w = weights(x[rows], scale[rows], data, log_weights, part, power)
        shares = blend.share(w.peak, w.mass)
        blend.mean(w, shares, points, center if y else _origin(data), y, mean[rows])
        log_sum[rows] = shares.log_sum
    return mean, log_sum


def weights(
    x: Tensor,
    scale: Tensor,
    data: list[Tensor],
    log_weights: Tensor | None,
    segments: Tensor | None,
    power: float,
) -> Weights:
    """The weights of all pairs, right wherever they count."""
    points, center = data[:2]
    if x.dtype == torch.float64:
        w = weigh.by_doubles(x, points, _origin(data), scale, log_weights, segments, power)
    else:
        y = Digits(*data[2:])
        queries = digits.of_queries(x, y, center)
        w = weigh.by_digits(queries, y, scale, log_weights, segments, power, points.shape[1])
    mend(w, x, scale, points, log_weights, segments, power)
    return w


def _origin(data: list[Tensor]) -> Tensor:
    """The centre in units of the data: that of pixels is in units of 1/255."""
    points, center = data[:2]
    return center / 255 if points.dtype == torch.uint8 else center


def _chunks(B: int, M: int, element: int) -> Iterator[slice]:
    rows = max(1, WORKSPACE // (M * element * ROWS)) * ROWS
    return (slice(start, start + rows) for start in range(0, B, rows))
