"""The samplers of EDM (2206.00364, algorithms 1 to 3), which STF and PFGM++ took over with other defaults."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pfgm_fast import _checks
from pfgm_fast.compat import _noise_schedules as schedules
from pfgm_fast.compat._noise_schedules import LINEAR, UNSCALED, Scaling, Schedule
from pfgm_fast.compat._steps import integrate

Randn = Callable[[Tensor], Tensor]
BETA_MIN = 0.1


@dataclass(frozen=True)
class Churn:
    """Noise added at the beginning of each step. It is drawn in every step, also where its factor is 0."""

    S_churn: float
    S_min: float
    S_max: float
    S_noise: float
    randn_like: Randn

    def raised(self, sigma: float, num_steps: int) -> float:
        """The level at which a step from sigma begins."""
        within = self.S_min <= sigma <= self.S_max
        return sigma + min(self.S_churn / num_steps, math.sqrt(2) - 1) * sigma if within else sigma


@dataclass(frozen=True)
class Path:
    """A network along a schedule of noise levels.

    Attributes:
        net: net(x, sigma (0-d, float64), class_labels) -> x_hat; has sigma_min, sigma_max and round_sigma.
        labels: handed to the network.
        more: from sigma to further keyword arguments of the network.
    """

    net: Any
    labels: Tensor | None
    schedule: Schedule = LINEAR
    scaling: Scaling = UNSCALED
    more: Callable[[Tensor], dict[str, Any]] = lambda sigma: {}

    def times(self, levels: Sequence[float]) -> list[float]:
        """When the levels, as the network rounds them, are reached; then 0."""
        return [*map(self.schedule.inverse, self._rounded(levels)), 0.0]

    def start(self, latents: Tensor, time: float) -> Tensor:
        """The float64 state of standard latents at a time."""
        return latents.double() * (self.schedule.sigma(time) * self.scaling.scale(time))

    def slope(self, x: Tensor, t: float) -> Tensor:
        """dx/dt (2206.00364, algorithm 1)."""
        sigma, d_sigma = self.schedule.sigma(t), self.schedule.derivative(t)
        s, d_s = self.scaling.scale(t), self.scaling.derivative(t)
        level = torch.full((), sigma, dtype=torch.float64, device=x.device)
        denoised: Tensor = self.net(x / s, level, self.labels, **self.more(level)).double()
        return (d_sigma / sigma + d_s / s) * x - d_sigma * s / sigma * denoised

    def churned(self, churn: Churn, num_steps: int, i: int, x: Tensor, t: float) -> tuple[Tensor, float]:
        """State and time at which step i begins."""
        noise, sigma = churn.randn_like(x), self.schedule.sigma(t)
        higher = churn.raised(sigma, num_steps)
        if not higher > sigma:
            return x, t
        (rounded,) = self._rounded([higher])
        t_hat = self.schedule.inverse(rounded)
        s = self.scaling.scale(t_hat)
        added = math.sqrt(max(self.schedule.sigma(t_hat) ** 2 - sigma**2, 0.0)) * s * churn.S_noise
        return s / self.scaling.scale(t) * x + added * noise, t_hat

    def _rounded(self, levels: Sequence[float]) -> list[float]:
        rounded: list[float] = self.net.round_sigma(torch.tensor(levels, dtype=torch.float64)).tolist()
        return rounded


def heun(
    path: Path,
    latents: Tensor,
    num_steps: int,
    sigma_min: float,
    sigma_max: float,
    rho: float,
    churn: Churn,
    *,
    scaled: bool = False,
    stretch: float = 1.0,
    before: Callable[[Tensor, float], Tensor] | None = None,
    visit: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Heun's method on the rho levels within the network's range: the float64 state at 0.

    Args:
        latents: standard normal, or with `scaled` the state at the first level itself.
        stretch: multiplies the ends of the range.
        before: changes the state at the beginning of a step, before the churn.
        visit: visit(i, x), after step i.
    """
    low, high = max(sigma_min, path.net.sigma_min) * stretch, min(sigma_max, path.net.sigma_max) * stretch
    times = path.times(schedules.rho_levels(num_steps, low, high, rho))
    x = latents.double() if scaled else path.start(latents, times[0])

    def prelude(i: int, x: Tensor, t: float) -> tuple[Tensor, float]:
        return path.churned(churn, num_steps, i, x if before is None else before(x, t), t)

    return integrate(path.slope, x, times, "heun", prelude=prelude, visit=visit)


def edm_sampler_with(noise: float) -> Callable[..., Tensor]:
    """edm_sampler with this default of S_noise."""

    def edm_sampler(
        net: Any,
        latents: Tensor,
        class_labels: Tensor | None = None,
        randn_like: Randn = torch.randn_like,
        num_steps: int = 18,
        sigma_min: float = 0.002,
        sigma_max: float = 80,
        rho: float = 7,
        S_churn: float = 0,
        S_min: float = 0,
        S_max: float = math.inf,
        S_noise: float = noise,
    ) -> Tensor:
        """Heun's method with churn (algorithm 2): float64 samples like latents, which are standard normal.

        The range of levels is cut to the network's, and levels are rounded by it. In every step randn_like draws.
        """
        churn = Churn(S_churn, S_min, S_max, S_noise, randn_like)
        return heun(Path(net, class_labels), latents, num_steps, sigma_min, sigma_max, rho, churn)

    return edm_sampler


def ablation_sampler_with(beta_d: float) -> Callable[..., Tensor]:
    """ablation_sampler with the default range of "vp" that belongs to this beta_d (and beta_min = 0.1)."""

    def ablation_sampler(
        net: Any,
        latents: Tensor,
        class_labels: Tensor | None = None,
        randn_like: Randn = torch.randn_like,
        num_steps: int = 18,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        rho: float = 7,
        solver: str = "heun",
        discretization: str = "edm",
        schedule: str = "linear",
        scaling: str = "none",
        epsilon_s: float = 1e-3,
        C_1: float = 0.001,
        C_2: float = 0.008,
        M: int = 1000,
        alpha: float = 1,
        S_churn: float = 0,
        S_min: float = 0,
        S_max: float = math.inf,
        S_noise: float = 1,
    ) -> Tensor:
        """The samplers of the ablations (appendix C): float64 samples like latents, which are standard normal.

        Args:
            sigma_min, sigma_max: by default those of the discretization.
            solver: "euler" or "heun", with the inner stage at the share alpha of the step.
            discretization: "vp", "ve", "iddpm" (with M, C_1 and C_2) or "edm" (with rho).
            schedule: sigma(t): "vp", "ve" or "linear". scaling: s(t): "vp" or "none".
            epsilon_s: where "vp" ends.
        """
        default = schedules.vp(beta_d, BETA_MIN)
        ranges = {"vp": (default.sigma(epsilon_s), default.sigma(1.0)), "ve": (0.02, 100.0)}
        ranges.update({"iddpm": (0.002, 81.0), "edm": (0.002, 80.0)})
        lowest, highest = ranges[_checks.choice("discretization", discretization, ranges)]
        low = max(lowest if sigma_min is None else sigma_min, net.sigma_min)
        high = min(highest if sigma_max is None else sigma_max, net.sigma_max)
        preserving = schedules.vp_between(low, high, epsilon_s)
        levels = {
            "vp": partial(schedules.vp_levels, num_steps, preserving, epsilon_s),
            "ve": partial(schedules.ve_levels, num_steps, low, high),
            "iddpm": partial(schedules.iddpm_levels, num_steps, low, high, M, C_1, C_2),
            "edm": partial(schedules.rho_levels, num_steps, low, high, rho),
        }[discretization]()
        curves = {"vp": preserving, "ve": schedules.VE, "linear": LINEAR}
        curve = curves[_checks.choice("schedule", schedule, curves)]
        scales = {"vp": schedules.preserving(curve), "none": UNSCALED}
        path = Path(net, class_labels, curve, scales[_checks.choice("scaling", scaling, scales)])
        times = path.times(levels)
        prelude = partial(path.churned, Churn(S_churn, S_min, S_max, S_noise, randn_like), num_steps)
        return integrate(path.slope, path.start(latents, times[0]), times, solver, alpha=alpha, prelude=prelude)

    return ablation_sampler
