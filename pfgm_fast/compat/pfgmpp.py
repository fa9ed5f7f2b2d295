"""Newbeeer/pfgmpp: its losses, targets, samplers and random generator, under their own names.

`pfgm_fast.compat.pfgmpp.EDMLoss` can stand for `training.loss.EDMLoss` in the checkout's train.py, which makes the loss
of a class name. Written from the formulas of the paper (Xu et al. 2023, 2302.04265). Kept from the original code:

- Training clips beta to [1e-3, 1 - 1e-3] and adds 1e-8 to 1 - beta and to the ratio: the noise has the wrong law for D
  below about 2e-3 N and above about 500 N. `pfgm_perturation` does not clip, and `rand_beta_prime` does neither.
- `rand_beta_prime` draws beta in float32, so that no radius exceeds 4096 sqrt(D) sigma_max, and takes sigma_max = 80
  whatever it is told, up to N = 196607; it seeds torch's global generator with the seed of each sample.
- S_noise is 0 by default; ablation_sampler knows no `pfgmpp`, so that the checkout's generate.py cannot call it with
  that; edm_sampler_alpha changes float64 latents in place.

Where this differs: the large-batch targets are exact, without the 1e-7 of the original, which show only where
|(x - y, r)| is below about (N + D) 1e-8; with stf=True and without an augmentation the reference batch may be of any
size, where the original raises; nothing is printed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfgm_fast.compat import edm
from pfgm_fast.compat._draws import GLOBAL, Draws, beta_radius, sphere_noise
from pfgm_fast.compat._edm_samplers import Churn, Path, Randn, heun
from pfgm_fast.compat._losses import AugmentPipe, augmented, log_normal, refreshed, weight
from pfgm_fast.compat.stf import ablation_sampler, required
from pfgm_fast.training.targets import pfgmpp_target, reference, stf_target

__all__ = ["EDMLoss", "StackedRandomGenerator", "VELoss", "ablation_sampler", "edm_sampler", "edm_sampler_alpha"]

CLIP = 1e-3  # of beta, in training
GUARD = 1e-8  # added to 1 - beta and to the ratio
LSUN = 4.75  # by which opts.lsun multiplies sigma
LARGEST = 80.0  # sigma_max of the latents below N = 256 * 256 * 3


class VELoss:
    """The variance-exploding loss: sigma log-uniform, weight 1/sigma^2, and with pfgmpp=True PFGM++'s noise.

    Called as `loss(net, images, labels, augment_pipe=None, stf=False, pfgmpp=False, ref_images=None)`; the target is
    always the image. Draws, in order: rand (B,), or (B, 1, 1, 1); then as `EDMLoss`.

    Args:
        sigma_min, sigma_max: range of the noise levels.
        D, N: augmented and data dimension.
        opts: not read.
    """

    draws: Draws = GLOBAL

    def __init__(
        self, sigma_min: float = 0.02, sigma_max: float = 100, D: float = 128, N: int = 3072, opts: Any = None
    ) -> None:
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self.D = D
        self.N = N

    def __call__(
        self,
        net: Any,
        images: Tensor,
        labels: Tensor | None,
        augment_pipe: AugmentPipe | None = None,
        stf: bool = False,
        pfgmpp: bool = False,
        ref_images: Tensor | None = None,
    ) -> Tensor:
        """The weighted squared error, like images."""
        share = self.draws.rand(_level_shape(images, pfgmpp), images.device)
        sigma = self.sigma_min * (self.sigma_max / self.sigma_min) ** share
        sigma, y, _, answer = _denoised(self, net, images, sigma, labels, augment_pipe, pfgmpp)
        return (1 / sigma**2) * (answer - y) ** 2


class EDMLoss:
    """EDM's loss with the noise of PFGM++ (pfgmpp=True) and with targets over a reference batch (stf=True).

    Called as `loss(net, images, labels=None, augment_pipe=None, stf=False, pfgmpp=False, ref_images=None)`. ref_images
    (M, ...) is written to: its first rows become the augmented images, the rest is augmented. Draws, in order: randn
    (B,) for ln sigma, beta (B,), randn (B, N) on the CPU, what the augmentation draws; without pfgmpp randn (B, 1, 1,
    1), what the augmentation draws, randn like the images.

    Args:
        P_mean, P_std: of ln sigma.
        sigma_data: standard deviation of the data.
        D, N: augmented and data dimension.
        gamma: of `pfgm_target`.
        opts: if it has a true `lsun`, sigma is multiplied by 4.75.
    """

    draws: Draws = GLOBAL

    def __init__(
        self,
        P_mean: float = -1.2,
        P_std: float = 1.2,
        sigma_data: float = 0.5,
        D: float = 128,
        N: int = 3072,
        gamma: float = 5,
        opts: Any = None,
    ) -> None:
        self.P_mean = P_mean
        self.P_std = P_std
        self.sigma_data = sigma_data
        self.D = D
        self.N = N
        self.gamma = gamma
        self.opts = opts

    def __call__(
        self,
        net: Any,
        images: Tensor,
        labels: Tensor | None = None,
        augment_pipe: AugmentPipe | None = None,
        stf: bool = False,
        pfgmpp: bool = False,
        ref_images: Tensor | None = None,
    ) -> Tensor:
        """The weighted squared error, like images."""
        normal = self.draws.randn(_level_shape(images, pfgmpp), images.device)
        sigma = log_normal(normal, self.P_mean, self.P_std)
        if getattr(self.opts, "lsun", False):
            sigma = sigma * LSUN
        sigma, y, x, answer = _denoised(self, net, images, sigma, labels, augment_pipe, pfgmpp)
        target = y
        if stf:
            seen = refreshed(required(ref_images), y, augment_pipe)
            level = sigma.flatten()
            means = self.pfgmpp_target(_r(level, self.D), x, seen) if pfgmpp else self.stf_scores(level, x, seen)
            target = means.view_as(y)
        return weight(sigma, self.sigma_data) * (answer - target) ** 2

    def stf_scores(self, sigmas: Tensor, perturbed_samples: Tensor, samples_full: Tensor) -> Tensor:
        """The posterior means (B, N) at D = inf, in the dtype of the samples (B, ...)."""
        return stf_target(perturbed_samples, sigmas.reshape(-1), samples_full).flatten(1)

    def pfgmpp_target(self, r: Tensor, perturbed_samples: Tensor, samples_full: Tensor) -> Tensor:
        """The posterior means (B, N) over the reference (M, ...) at r = sigma sqrt(D) (B,): float64 inside, float32."""
        x = _of_dimension(perturbed_samples, self.N).double()
        return pfgmpp_target(x, _sigma(r.reshape(-1), self.D), samples_full, self.D).flatten(1).float()

    def pfgm_target(self, perturbed_samples_vec: Tensor, samples_full: Tensor) -> Tensor:
        """The normalised field (B, N + 1) at (x, r) (B, N + 1), times sqrt(N + D), its last component over sqrt(D)."""
        x, r = _of_dimension(perturbed_samples_vec[:, :-1], self.N), perturbed_samples_vec[:, -1]
        field = reference(samples_full, self.D)
        target = field.poisson_field(x, _sigma(r, self.D), self.gamma) * math.sqrt((self.N + self.D) / self.N)
        target[:, -1] /= math.sqrt(self.D)
        return target

    def pfgm_perturation(self, samples: Tensor, r: Tensor) -> Tensor:
        """Perturbed samples, like samples, at r = sigma sqrt(D) (B,), with no clipping of beta."""
        return samples + _student_t(self.draws, r, self.N, self.D, clip=0).view_as(samples)


class StackedRandomGenerator(edm.StackedRandomGenerator):
    """EDM's, and the prior of PFGM++ seed for seed.

    Args:
        device: of the generators.
        seeds: one for each sample.
    """

    def rand_beta_prime(self, size: Sequence[int], N: int = 3072, D: float = 128, **kwargs: Any) -> Tensor:
        """The state at sigma_max (B, ...), float64: sigma_max sqrt(D) sqrt(b/(1 - b)) in a uniform direction.

        sigma_max is 80, and from N = 196608 on kwargs["sigma_max"]; kwargs["device"] is where beta goes. With
        align=True, as generate_alpha.py calls it, sigma_max is multiplied by sqrt(1 + N/D).
        """
        if size[0] != len(self.seeds):
            raise ValueError(f"size must begin with the {len(self.seeds)} seeds, got {tuple(size)}")
        if kwargs.get("pfgm"):
            raise ValueError("pfgm=True needs a network of two outputs, which the original does not have either")
        sigma_max = LARGEST if N < 256 * 256 * 3 else kwargs.get("sigma_max", LARGEST)
        if kwargs.get("align"):
            sigma_max = sigma_max * math.sqrt(1 + N / D)
        law = torch.distributions.Beta(torch.tensor([N / 2.0]), torch.tensor([D / 2.0]))
        rows = []
        for seed in self.seeds:
            torch.manual_seed(int(seed))
            b = law.sample().to(kwargs["device"]).double()
            gauss = torch.randn(N).to(b.device)
            rows.append(gauss / torch.linalg.vector_norm(gauss) * beta_radius(b, sigma_max * math.sqrt(D)))
        return torch.stack(rows).reshape(tuple(size))


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
    S_noise: float = 0,
    pfgmpp: bool = False,
) -> tuple[Tensor, Tensor]:
    """Heun's method of generate.py: samples like latents and the states after each step (num_steps, B, ...) on the CPU.

    Both are float64. With pfgmpp=True latents are the state at sigma_max itself, else standard normal.
    """
    steps: list[Tensor] = []
    churn = Churn(S_churn, S_min, S_max, S_noise, randn_like)
    options: dict[str, Any] = {"scaled": pfgmpp, "visit": lambda i, x: steps.append(x)}
    x = heun(Path(net, class_labels), latents, num_steps, sigma_min, sigma_max, rho, churn, **options)
    return x, torch.stack(steps).cpu()


def edm_sampler_alpha(
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
    S_noise: float = 0,
    alpha: float = 0.0,
    pfgm: bool = False,
    pfgmpp: bool = False,
    align: bool = False,
    D: float = 128,
    align_precond: bool = False,
    draws: Draws = GLOBAL,
) -> Tensor:
    """The edm_sampler of generate_alpha.py, generate_steps.py and generate_quant.py: the samples alone, float64.

    Each step begins with x += alpha t randn, in place: float64 latents with pfgmpp=True are changed. Before it randn
    (B, N) is drawn and not used. align multiplies the range of levels by sqrt(1 + N/D); align_precond gives the network
    sigma_old = sigma/sqrt(1 + N/D). pfgm=True, for networks that the original does not have, is a ValueError.
    """
    if pfgm:
        raise ValueError("pfgm=True needs a network of two outputs, which the original does not have either")
    N = latents[:1].numel()
    wider = math.sqrt(1 + N / D)

    def noisy(x: Tensor, t: float) -> Tensor:
        draws.randn((len(x), N))
        return x.add_(draws.randn_like(x) * t * alpha)

    path = Path(net, class_labels)
    if align_precond:
        path = Path(net, class_labels, more=lambda sigma: {"sigma_old": sigma / wider})
    churn = Churn(S_churn, S_min, S_max, S_noise, randn_like)
    options: dict[str, Any] = {"scaled": pfgmpp, "stretch": wider if align else 1.0, "before": noisy}
    return heun(path, latents, num_steps, sigma_min, sigma_max, rho, churn, **options)


def _level_shape(images: Tensor, pfgmpp: bool) -> tuple[int, ...]:
    """PFGM++'s levels are drawn flat, the others as they are used."""
    return (len(images),) if pfgmpp else (len(images), 1, 1, 1)


def _of_dimension(x: Tensor, N: int) -> Tensor:
    if math.prod(x.shape[1:]) != N:
        raise ValueError(f"samples must have the N={N} components of the loss, got shape {tuple(x.shape)}")
    return x


def _denoised(
    loss: VELoss | EDMLoss,
    net: Any,
    images: Tensor,
    sigma: Tensor,
    labels: Tensor | None,
    pipe: AugmentPipe | None,
    pfgmpp: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """sigma (B, 1, 1, 1), the augmented images, what the network sees of them, and its answer."""
    if pfgmpp:
        _of_dimension(images, loss.N)
    noise = _student_t(loss.draws, _r(sigma, loss.D), loss.N, loss.D, CLIP) if pfgmpp else None
    sigma = sigma.reshape(-1, 1, 1, 1)
    y, augment_labels = augmented(pipe, images)
    x = y + (loss.draws.randn_like(y) * sigma if noise is None else noise.view_as(y))
    return sigma, y, x, net(x, sigma, labels, augment_labels=augment_labels)


def _student_t(draws: Draws, r: Tensor, N: int, D: float, clip: float) -> Tensor:
    """PFGM++'s noise (B, N) float32 at r (B,) float64, on its device."""
    b = torch.from_numpy(np.clip(draws.beta(N / 2, D / 2, len(r)), clip, 1 - clip)).to(r.device)
    radius = beta_radius(b, r, below=GUARD, inside=GUARD)
    return sphere_noise(draws.randn((len(r), N)).to(r.device), radius)


def _r(sigma: Tensor, D: float) -> Tensor:
    return sigma.double() * math.sqrt(D)


def _sigma(r: Tensor, D: float) -> Tensor:
    return r.double() / math.sqrt(D)
