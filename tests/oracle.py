"""The field's formulas written out in extended precision with NumPy, without the library, and the accuracy it owes.

Everything here is by direct differences, one query at a time: slow, and obviously right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import mpmath  # type: ignore[import-untyped]  # it publishes none
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Real = np.longdouble
Array = NDArray[np.longdouble]


def values(t: Tensor) -> Array:
    """The exact values of a tensor, one flattened row each; pixel u of an image stands for (2u - 255)/255."""
    if t.dtype == torch.uint8:
        exact = (2 * t.numpy().astype(Real) - 255) / 255
    else:
        exact = t.to(torch.float64).numpy().astype(Real)
    return exact.reshape(len(t), -1)


def squared_distances(x: Array, y: Array) -> Array:
    """rho_j = |x - y_j|^2, (M,)."""
    difference = x - y
    squares: Array = (difference * difference).sum(1)
    return squares


def log_weights(rho: Array, sigma: Real, N: int, D: float, a: Array) -> Array:
    """l_j = a_j - (N + D)/2 log1p(rho_j / (D sigma^2)), or a_j - rho_j / (2 sigma^2), (M,)."""
    if math.isinf(D):
        return a - rho / (2 * sigma * sigma)
    return a - (N + Real(D)) / 2 * np.log1p(rho / (Real(D) * sigma * sigma))


def log_sum_exp(values: Array) -> Real:
    top = values.max()
    total: Real = top + np.log(np.exp(values - top).sum())
    return total


def curvature(rho: Array, sigma: Real, N: int, D: float) -> Array:
    """c_j = (N + D)/(D sigma^2 + rho_j), or 1/sigma^2, (M,)."""
    if math.isinf(D):
        return np.full_like(rho, 1 / (sigma * sigma))
    return (N + Real(D)) / (Real(D) * sigma * sigma + rho)


def log_normaliser(sigma: Real, N: int, D: float) -> Real:
    """The log of the kernel's density at its own centre: lnG((N+D)/2) - lnG(D/2) - N/2 log(D pi sigma^2)."""
    with mpmath.workdps(40):
        s = mpmath.mpf(repr(float(sigma)))
        if math.isinf(D):
            constant = -mpmath.mpf(N) / 2 * mpmath.log(2 * mpmath.pi * s**2)
        else:
            d = mpmath.mpf(repr(float(D)))
            constant = mpmath.loggamma((N + d) / 2) - mpmath.loggamma(d / 2)
            constant -= mpmath.mpf(N) / 2 * mpmath.log(d * mpmath.pi * s**2)
        return Real(mpmath.nstr(constant, 25))


@dataclass(frozen=True)
class Truth:
    """What the field is at B queries; every array leads with B."""

    x: Array
    sigma: Array
    mean: Array
    log_sum: Array
    weights: Array
    log_density: Array
    score: Array
    divergence: Array
    effective_sample_size: Array
    spread: Array  # mean distance of the posterior's data from its mean
    pull: Array  # mean of c_j over the posterior
    scale: Array  # max(|x_i|, max_j |y_j|), the magnitude that rounding errors of a mean are measured in

    @property
    def residual(self) -> Array:
        """|x - x_hat|, (B,)."""
        return norm(self.x - self.mean)


def field(
    x: Tensor, sigma: Tensor, data: Tensor, D: float, a: Tensor | None = None, allowed: NDArray[np.bool_] | None = None
) -> Truth:
    """The field of `data` (M, ...) at the queries x (B, ...) with noise levels sigma (B,).

    Args:
        a: log masses (M,), 0 by default.
        allowed: (B, M), the data that each query sees, all by default.
    """
    queries, y, levels = values(x), values(data), sigma.to(torch.float64).numpy().astype(Real)
    masses = np.zeros(len(y), Real) if a is None else a.to(torch.float64).numpy().astype(Real)
    rows = []
    for i, (query, level) in enumerate(zip(queries, levels, strict=True)):
        seen = np.ones(len(y), bool) if allowed is None else allowed[i]
        rows.append(_row(query, level, y, D, np.where(seen, masses, -np.inf)))
    columns = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return Truth(x=queries, sigma=levels, scale=np.maximum(norm(queries), norm(y).max()), **columns)


def _row(x: Array, sigma: Real, y: Array, D: float, a: Array) -> dict[str, Array | Real]:
    N = len(x)
    rho = squared_distances(x, y)
    logits = log_weights(rho, sigma, N, D, a)
    L = log_sum_exp(logits)
    w = np.exp(logits - L)
    held = w > 1e-30  # lighter data change nothing in 18 digits
    wh, yh = w[held], y[held]
    mean = (wh[:, None] * yh).sum(0)
    wc = wh * curvature(rho, sigma, N, D)[held]
    score = (wc[:, None] * (yh - x)).sum(0)
    divergence = (wc * ((yh - x) * (yh - mean)).sum(1)).sum()
    log_density = L - log_sum_exp(a) + log_normaliser(sigma, N, D)
    spread = (wh * norm(yh - mean)).sum()
    return {
        "mean": mean,
        "log_sum": L,
        "weights": w,
        "log_density": log_density,
        "score": score,
        "divergence": divergence,
        "effective_sample_size": 1 / (wh * wh).sum(),
        "spread": spread,
        "pull": wc.sum(),
    }


def poisson_field(truth: Truth, D: float, gamma: float) -> Array:
    """-sqrt(N) (x - x_hat, r)/(|(x - x_hat, r)| + gamma) with r = sigma sqrt(D), (B, N + 1)."""
    r = truth.sigma * np.sqrt(Real(D))
    vector = np.concatenate([truth.x - truth.mean, r[:, None]], 1)
    N = truth.x.shape[1]
    return -np.sqrt(Real(N)) * vector / (norm(vector)[:, None] + gamma)


def norm(rows: Array) -> Array:
    result: Array = np.sqrt((rows * rows).sum(1))
    return result


def eps(*tensors: Tensor) -> float:
    """The rounding unit of a computation on these tensors: float64's if any of them is float64, else float32's."""
    double = any(t.dtype == torch.float64 for t in tensors)
    return torch.finfo(torch.float64 if double else torch.float32).eps


def tolerance(truth: Truth, eps: float, loose: float) -> Array:
    """The error allowed in a log weight: `loose` in float32; in float64 1e-5 of that and its rounding."""
    if eps > 1e-10:
        return np.full(len(truth.log_sum), loose, Real)
    return Real(loose * 1e-5) + Real(8 * eps) * np.abs(truth.log_sum)


def mean_error(got: Tensor, truth: Truth) -> Array:
    return norm(values(got) - truth.mean)


def mean_bound(truth: Truth, eps: float, rounding: float = 0.0) -> Array:
    """1e-4 |x - x_hat| + 4 eps max(|x|, max|y|), and the rounding unit of the result where its dtype is coarser.

    In float64, where the first term is small, what an error of a log weight can do is counted by the spread too:
    |x - x_hat| vanishes half-way between two data.
    """
    length = truth.residual if eps > 1e-10 else truth.residual + truth.spread
    return tolerance(truth, eps, 1e-4) * length + (4 * eps + rounding / 2) * truth.scale


def bounded(what: str, error: Array, bound: Array) -> None:
    """Fails unless error <= bound in every row, and names the worst row."""
    ratio = np.where(np.isfinite(error), error / bound, np.inf)
    if len(ratio):
        worst = int(np.argmax(ratio))
        off, times = float(error[worst]), float(ratio[worst])
        assert times <= 1, f"{what}: row {worst} of {len(ratio)} is off by {off:.3g}, {times:.3g} times the bound"


def check_mean(got: Tensor, truth: Truth, eps: float) -> None:
    rounding = max(0.0, torch.finfo(got.dtype).eps - eps)
    bounded("posterior mean", mean_error(got, truth), mean_bound(truth, eps, rounding))


def check_log_density(got: Tensor, truth: Truth, eps: float) -> None:
    """|L - L*| <= 1e-3 + 4 eps |L*|, and a rounding unit of the log density, which differs by a constant."""
    error = np.abs(values(got)[:, 0] - truth.log_density)
    slack = 4 * eps * np.abs(truth.log_sum) + eps * np.abs(truth.log_density)
    bounded("log density", error, tolerance(truth, eps, 1e-3) + slack)


def check_weights(weights: Tensor, indices: Tensor, truth: Truth, eps: float) -> None:
    """Total variation between all weights, given as (B, M) weights and the data they belong to."""
    got = np.zeros_like(truth.weights)
    np.put_along_axis(got, indices.numpy(), values(weights), 1)
    bounded("weights", np.abs(got - truth.weights).sum(1) / 2, tolerance(truth, eps, 1e-3) + 4 * eps)


def check_score(got: Tensor, truth: Truth, eps: float) -> None:
    """score * sigma^2 under the bound of x_hat, times sigma^2 sum_j w_j c_j where that is above 1 (D = inf: 1)."""
    size = np.maximum(1, truth.pull * truth.sigma**2)
    error = norm(values(got) - truth.score) * truth.sigma**2
    bounded("score * sigma^2", error, size * mean_bound(truth, eps))


def check_divergence(got: Tensor, truth: Truth, eps: float) -> None:
    error = np.abs(values(got)[:, 0] - truth.divergence)
    bounded("divergence", error, tolerance(truth, eps, 1e-3) * (np.abs(truth.divergence) + 1))


def check_effective_sample_size(got: Tensor, truth: Truth, eps: float) -> None:
    error = np.abs(values(got)[:, 0] / truth.effective_sample_size - 1)
    bounded("effective sample size", error, tolerance(truth, eps, 1e-2))


def check_poisson_field(got: Tensor, truth: Truth, D: float, gamma: float, eps: float) -> None:
    """The field turns by at most the error of x_hat over the length of (x - x_hat, r)."""
    expected = poisson_field(truth, D, gamma)
    N = truth.x.shape[1]
    length = np.sqrt(truth.residual**2 + D * truth.sigma**2)
    bound = np.sqrt(Real(N)) * (2 * mean_bound(truth, eps) / (length + gamma) + 4 * eps)
    bounded("Poisson field", norm(values(got) - expected), bound)
