"""The operator in plain PyTorch: the readable truth, on every device and in every dtype.

Log weights come from one matrix product on centred data, in float64. Its rounding error in a squared distance, divided
by the width of the kernel, is the error of a log weight: harmless at large sigma, ruinous between near-duplicates at
small sigma. So the pairs that matter, and only those, get their distance again by differences.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
PAIRS = 1 << 20  # elements of a (rows, M) temporary
TOLERANCE = {
    torch.float32: 2e-5,
    torch.float64: 1e-11,
}  # of a log weight; a pair that may be worse is evaluated by differences
NEGLIGIBLE = 40.0  # nats below the largest log weight at which a pair needs no care


def unavailable() -> str | None:
    return None


def supports(device: torch.device) -> bool:
    return True


def pack(data: Tensor, center: Tensor) -> list[Tensor]:
    return []


def empty_pack(data: Tensor) -> list[Tensor]:
    return []


class Logits(NamedTuple):
    """Log weights (b, M) of some rows, up to the row's constant `offset` (b,), which is kept in float64."""

    relative: Tensor
    offset: Tensor


def in_full_precision(function: Callable[..., Result]) -> Callable[..., Result]:
    """`function` out of reach of autocast, which would round the products behind the log weights."""

    @functools.wraps(function)
    def wrapped(x: Tensor, *args: Any) -> Result:
        with torch.autocast(x.device.type, enabled=False):
            return function(x, *args)

    return wrapped


@in_full_precision
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
    means, log_sums = [torch.empty_like(x[:0])], [scale[:0]]
    for rows in row_chunks(len(x), len(points)):
        relative, offset = logits(x[rows], scale[rows], data, log_weights, _of(segments, rows), power)
        top = relative.amax(1, keepdim=True)
        weights = torch.exp(relative - top)
        total = weights.sum(1, dtype=scale.dtype)
        means.append(average(weights, points, center))
        log_sums.append(offset + top[:, 0] + total.log())
    return torch.cat(means), torch.cat(log_sums)


@in_full_precision
def divergence(
    x: Tensor,
    scale: Tensor,
    data: list[Tensor],
    log_weights: Tensor | None,
    power: float,
    segments: Tensor | None = None,
) -> Tensor:
    """Trace of the Jacobian of the posterior mean, sum_j w_j c_j (y_j - x).(y_j - x_hat), as (B,) float64.

    The sums cancel to all digits of float32, so they are taken in float64; where even its products cancel, by
    differences.
    """
    points, center = data[:2]
    wide, unit = scale.dtype, pixel_unit(points)
    parts = [scale[:0]]
    for rows in row_chunks(len(x), len(points)):
        xr, sr = x[rows].to(wide), scale[rows]
        weights = torch.softmax(logits(xr, sr, data, log_weights, _of(segments, rows), power).relative, 1)
        x_hat = average(weights, points, center)
        a, b = xr * unit - center, x_hat * unit - center
        total = torch.zeros_like(sr)
        for cols, y in blocks(points, center, wide):
            norms, w = squared_norm(y), weights[:, cols]
            rho = norms - 2 * a @ y.T + squared_norm(a)[:, None]
            product = norms - (a + b) @ y.T + (a * b).sum(1, keepdim=True)
            size = norms + squared_norm(a)[:, None] + squared_norm(b)[:, None]
            error = torch.finfo(wide).eps * math.sqrt(y.shape[1]) * size
            closest = (rho - error).clamp_min(0)
            unsafe = w * error * curvature(closest, sr[:, None] * unit**2, power) > TOLERANCE[wide] * w.clamp_min(1e-12)
            i, j = unsafe.nonzero(as_tuple=True)
            for p, q in zip(i.split(PAIRS // y.shape[1] + 1), j.split(PAIRS // y.shape[1] + 1), strict=True):
                rho[p, q] = squared_norm(a[p] - y[q])
                product[p, q] = ((y[q] - a[p]) * (y[q] - b[p])).sum(1)
            total += (w * product * curvature(rho, sr[:, None] * unit**2, power)).sum(1)
        parts.append(total)
    return torch.cat(parts)


@in_full_precision
def pullback(
    x: Tensor,
    scale: Tensor,
    data: list[Tensor],
    log_weights: Tensor | None,
    segments: Tensor | None,
    power: float,
    mean_gradient: Tensor,
    log_sum_gradient: Tensor,
) -> Tensor:
    """Gradient (B, N) for x of the gradients u (B, N) and v (B,) that arrive for the results of `posterior`:

        sum_j w_j c_j (y_j - x) ((y_j - x_hat).u + v)

    In float64, for the reason given in `divergence`, and rounded to the dtype of x. c_j comes from the log weight,
    which is accurate where a distance from a matrix product need not be.
    """
    points, center = data[:2]
    wide, unit = scale.dtype, pixel_unit(points)
    parts = [torch.empty_like(x[:0])]
    for rows in row_chunks(len(x), len(points)):
        xr, u, v = x[rows].to(wide), mean_gradient[rows].to(wide), log_sum_gradient[rows, None].to(wide)
        relative, offset = logits(xr, scale[rows], data, log_weights, _of(segments, rows), power)
        weights = torch.softmax(relative, 1)
        slopes = weights * curvature_of(relative + offset[:, None], scale[rows, None], log_weights, power)
        x_hat = average(weights, points, center)
        a, b = xr * unit - center, x_hat * unit - center
        along = (b * u).sum(1, keepdim=True) / unit
        total, mass = torch.zeros_like(a), torch.zeros_like(v)
        for cols, y in blocks(points, center, wide):
            g = slopes[:, cols] * (y @ u.T / unit).T.sub(along).add(v)
            total.addmm_(g, y)
            mass += g.sum(1, keepdim=True)
        parts.append(((total - mass * a) / unit).to(x.dtype))
    return torch.cat(parts)


@in_full_precision
def top_weights(
    x: Tensor, scale: Tensor, data: list[Tensor], log_weights: Tensor | None, power: float, k: int
) -> tuple[Tensor, Tensor]:
    """The k largest normalised weights of each row, largest first, and their indices: (B, k) and (B, k) int64.

    The weights come from differences: those of equal data are equal, where a matrix product may round one otherwise.
    """
    points, wide, unit = data[0], scale.dtype, pixel_unit(data[0])
    weights, indices = [x.new_empty(0, k)], [torch.empty(0, k, dtype=torch.int64, device=x.device)]
    for rows in row_chunks(len(x), len(points)):
        relative, offset = logits(x[rows], scale[rows], data, log_weights, None, power)
        top = relative.topk(k, 1).indices
        row = torch.arange(len(top), device=x.device).repeat_interleave(k)
        rho = _distances(x[rows].to(wide) * unit, points, (row, top.flatten())).reshape(top.shape)
        share = rho / (scale[rows, None] * unit**2)
        log = -share if math.isinf(power) else -power * torch.log1p(share)
        if log_weights is not None:
            log += log_weights[top]
        total = torch.logsumexp(relative.to(wide), 1) + offset
        found, order = torch.exp(log - total[:, None]).sort(dim=1, descending=True, stable=True)
        weights.append(found.to(x.dtype))
        indices.append(top.gather(1, order))
    return torch.cat(weights), torch.cat(indices)


def logits(
    x: Tensor,
    scale: Tensor,
    data: list[Tensor],
    log_weights: Tensor | None,
    segments: Tensor | None,
    power: float,
) -> Logits:
    """Log weights of every pair, accurate to about `TOLERANCE` wherever a weight is not negligible."""
    points, center = data[:2]
    unit = pixel_unit(points)
    scale = scale[:, None] * unit**2
    a = x.to(scale.dtype) * unit - center
    shifted = a.new_empty(len(x), len(points))  # |y|^2 - 2 x.y: the squared distance less |x|^2
    largest = a.new_zeros(())
    for cols, y in blocks(points, center, a.dtype):
        norms = squared_norm(y)
        shifted[:, cols] = torch.addmm(norms, a, y.T, alpha=-2)
        largest = torch.maximum(largest, norms.max())
    prior = x.new_zeros(1, 1) if log_weights is None else log_weights[None].to(scale.dtype)
    if segments is not None:
        column = torch.arange(len(points), device=x.device)
        outside = (column < segments[:, :1]) | (column >= segments[:, 1:])
        prior = torch.where(outside, -math.inf, prior)

    norm = squared_norm(a)[:, None]
    error = product_error(norm, largest, x.shape[1])
    near = torch.where(prior > -math.inf, shifted, math.inf).amin(1, keepdim=True)
    rho, delta = (near + norm).clamp_min(0), (shifted - near).to(x.dtype)
    pairs = _delicate(delta + rho, scale, error, prior, power, x.dtype).nonzero(as_tuple=True)
    if len(pairs[0]):
        exact = _distances(x.to(a.dtype) * unit, points, pairs)
        closest = torch.full_like(rho[:, 0], math.inf).scatter_reduce(0, pairs[0], exact, "amin")[:, None]
        rho = torch.where(closest.isfinite(), closest, rho)
        delta = torch.where(closest.isfinite(), (shifted + norm - rho).to(x.dtype), delta)
        delta[pairs] = (exact - rho[pairs[0], 0]).to(x.dtype)
    delta = torch.where(prior > -math.inf, delta, 0.0)  # a pair outside may be nearer than the nearest within
    if math.isinf(power):
        kernel, offset = -delta / scale.to(x.dtype), -rho / scale
    else:
        kernel = -power * torch.log1p(delta / (rho + scale).to(x.dtype))
        offset = -power * torch.log1p(rho / scale)
    if log_weights is None and segments is None:
        return Logits(kernel, offset[:, 0])
    # only differences among contenders are kept in the compute dtype: log masses may be far from zero
    log = kernel.to(scale.dtype) + prior
    top = log.amax(1, keepdim=True)
    return Logits((log - top).to(x.dtype), (offset + top)[:, 0])


def product_error(norm: Tensor, largest: Tensor, N: int) -> Tensor:
    """Bound on the rounding error of a squared distance that was formed by a matrix product, whatever its order.

    Roundings do not cancel where all terms are alike, as in an image of one colour, so none of them is counted on to.
    """
    return torch.finfo(norm.dtype).eps / 2 * (N + 2) * (largest + 2 * (norm * largest).sqrt())


def curvature(rho: Tensor, scale: Tensor, power: float) -> Tensor:
    """c_ij = -2 d(log weight)/d(rho): (N + D)/(D sigma^2 + rho), or 1/sigma^2."""
    return 2 / scale if math.isinf(power) else 2 * power / (scale + rho)


def curvature_of(log_weight: Tensor, scale: Tensor, log_weights: Tensor | None, power: float) -> Tensor:
    """c_ij from the log weight a_j - power log1p(rho/scale) instead of the distance; 0 where there is no weight."""
    if math.isinf(power):
        return 2 / scale
    kernel = log_weight if log_weights is None else log_weight - log_weights
    return 2 * power / scale * torch.exp(kernel / power)


def _delicate(
    distance: Tensor, scale: Tensor, error: Tensor, prior: Tensor, power: float, dtype: torch.dtype
) -> Tensor:
    """The pairs whose log weight may be wrong by more than the tolerance and that may hold weight: (b, M) bool."""

    def log_weight(distance: Tensor) -> Tensor:
        distance = distance.clamp_min(0)
        return prior - (distance / scale if math.isinf(power) else power * torch.log1p(distance / scale))

    lowest = log_weight(distance + error).amax(1, keepdim=True)
    contends = log_weight(distance - error) >= lowest - NEGLIGIBLE
    closest = (distance - error).clamp_min(0)
    return contends & (error * curvature(closest, scale, power) / 2 > TOLERANCE[dtype])


def _distances(x: Tensor, data: Tensor, pairs: tuple[Tensor, ...]) -> Tensor:
    """Squared distance of each pair (row, column) by differences, in the units of `blocks`."""
    step = max(1, PAIRS // max(1, x.shape[1]))
    parts = [squared_norm(x[i] - raw(data[j], x.dtype)) for i, j in zip(*(p.split(step) for p in pairs), strict=True)]
    return torch.cat(parts)


def average(weights: Tensor, data: Tensor, center: Tensor) -> Tensor:
    """Mean of the data under weights (b, M) of any sum, in data units.

    In float64: one large weight beside many small ones loses digits at each addition. Where the weights are float64
    themselves, the small ones are summed apart.
    """
    wide, parts = center.dtype, [weights]
    if weights.dtype == wide:
        large = weights > 1e-6 * weights.amax(1, keepdim=True)
        parts = [torch.where(large, 0.0, weights), torch.where(large, weights, 0.0)]
    sums = [center.new_zeros(len(weights), data.shape[1]) for _ in parts]
    for cols, y in blocks(data, center, weights.dtype):
        for total, part in zip(sums, parts, strict=True):
            total.addmm_(part[:, cols].to(wide), y.to(wide))
    mean = sum(sums) / sum(part.sum(1, keepdim=True, dtype=wide) for part in parts) + center
    return (mean / pixel_unit(data)).to(weights.dtype)


def blocks(data: Tensor, center: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The data less its centre, widened to `dtype` block by block; 8-bit data in whole units of 1/255."""
    rows = max(1, PAIRS // max(1, data.shape[1]))
    for start in range(0, len(data), rows):
        part = slice(start, start + rows)
        yield part, raw(data[part], dtype) - center.to(dtype)


def raw(data: Tensor, dtype: torch.dtype) -> Tensor:
    """Data in `dtype`; a pixel u is 2u - 255, so that it stays a whole number."""
    return 2 * data.to(dtype) - 255 if data.dtype == torch.uint8 else data.to(dtype)


def pixel_unit(data: Tensor) -> float:
    """Units of `raw` in one unit of the data."""
    return 255.0 if data.dtype == torch.uint8 else 1.0


def squared_norm(t: Tensor) -> Tensor:
    return (t * t).sum(1)


def row_chunks(B: int, M: int) -> Iterator[slice]:
    step = max(1, PAIRS // max(1, M))
    return (slice(start, start + step) for start in range(0, B, step))


def _of(segments: Tensor | None, rows: slice) -> Tensor | None:
    return None if segments is None else segments[rows]
