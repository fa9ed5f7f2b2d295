"""Churn: noise put back between the steps (Karras et al. 2022, algorithm 2), of the right law for every D."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from pfgm_fast import philox
from pfgm_fast.solution import per_row

_MOST = math.sqrt(2) - 1  # a level is raised by at most this share of itself


@dataclass(frozen=True)
class Churn:
    """How much noise a step puts back before it is taken, and where it comes from.

    The state x at sigma becomes x + sqrt(sigma_hat^2 - sigma^2) noise z/sqrt(kappa), z standard normal. For D = inf,
    kappa = 1: EDM. For finite D the kernel p(x | y) is the Student-t, a normal whose precision has a gamma law; given x
    and y that is

        kappa ~ Gamma((N + D)/2, rate (D + |x - y|^2/sigma^2)/2)

    and noise of variance (sigma_hat^2 - sigma^2)/kappa carries x from the kernel at sigma to that at sigma_hat exactly.
    (EDM's own noise does not: in 64 dimensions, sigma .5 -> 1.2, its radii are visibly wrong for D = 4 to 128.)

    It is approximate in one place: y is not known to a sampler, and its posterior mean stands for it. Where the
    posterior is spread over points further apart than sigma, the residual and with it the noise are then too small.
    For N = 64 no test has told the difference; N = 2, D = 4 fails a Kolmogorov-Smirnov test.

    Attributes:
        amount: EDM's S_churn: in a solve of n steps, sigma_hat = sigma (1 + min(amount/n, sqrt(2) - 1)).
        D: augmented dimension, > 0 or math.inf.
        seeds: (B,) int64, one a row: its noise depends on that and the step, never on the batch.
        lowest, highest: levels outside of these are left alone (S_min, S_max).
        noise: factor of the noise (S_noise); 0 draws nothing.
    """

    amount: float
    D: float
    seeds: Tensor
    lowest: float = 0.0
    highest: float = math.inf
    noise: float = 1.0

    @property
    def needs_denoised(self) -> bool:
        """Whether `draw` asks for the posterior mean at the state, one evaluation more a step."""
        return math.isfinite(self.D)

    def level(self, sigma: float, first: float, steps: int) -> float:
        """sigma_hat of a step that starts at sigma; never above `first`, the first level of the solve."""
        if not self.lowest <= sigma <= self.highest:
            return sigma
        return max(sigma, min(sigma + min(self.amount / steps, _MOST) * sigma, first))

    def draw(self, step: int, x: Tensor, denoised: Tensor | None, sigma: float) -> Tensor:
        """z/sqrt(kappa) of a step, like x (B, ...), given the posterior mean there; None will do for D = inf."""
        N = math.prod(x.shape[1:])
        z = philox.normals(self.seeds, N, x.dtype, draw=step, stream=philox.CHURN_NORMAL).view_as(x)
        if denoised is None:
            return z
        residual = ((x.double() - denoised.double()) / sigma).flatten(1).square().sum(1)
        # 2 kappa rate is chi-squared with N + D degrees of freedom.
        log_ratio = philox.log_chi2_over_D(self.seeds, N + self.D, block=step, stream=philox.CHURN_CHI2)
        scale = ((self.D + residual) / (N + self.D)).sqrt() * (-0.5 * log_ratio).exp()
        return z * per_row(scale.to(x.dtype), x)
