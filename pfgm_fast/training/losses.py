"""PFGM's and PFGM++'s training losses, unreduced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pfgm_fast import _checks, noise
from pfgm_fast.field import EmpiricalField
from pfgm_fast.rowwise import answer_like
from pfgm_fast.solution import per_row
from pfgm_fast.training.perturbation import pfgm_perturb
from pfgm_fast.training.targets import pfgm_target, pfgmpp_target


class PFGMLoss:
    """The squared error of a PFGM network against the normalised Poisson field (2209.11178, algorithm 1).

    Called as `loss(net, images, reference=None)`. Every row of `images` is perturbed; the reference of the field, a
    batch (M, *data) or an `EmpiricalField` of D = 1 over the whole data set, defaults to the images themselves. Random
    numbers come from torch's default generator of the device; nothing waits for the device.

    Args:
        gamma: of the normalisation, >= 0.
        sigma_end, tau, M, restrict_M: as for `pfgm_fast.pfgm_perturb`.
    """

    def __init__(
        self,
        gamma: float = 5.0,
        sigma_end: float = 0.01,
        tau: float = 0.03,
        M: float = 291,
        restrict_M: bool = True,
    ) -> None:
        self.gamma = _checks.number("gamma", gamma, at_least=0)
        self.sigma_end = _checks.number("sigma_end", sigma_end, above=0)
        self.tau = _checks.number("tau", tau, above=0)
        self.M = _checks.number("M", M, above=0)
        self.restrict_M = restrict_M

    def __call__(
        self, net: Callable[..., Any], images: Tensor, reference: Tensor | EmpiricalField | None = None
    ) -> Tensor:
        """The squared error (B, N + 1), z last; gradients flow to the network.

        Args:
            net: `net(x (B, *data), z (B,)) -> (v_x like x, v_z (B,))`.
            images: (B, *data), floating, or uint8: pixel u stands for (2u - 255)/255.
            reference: see above.
        """
        y = as_data(images)
        x, z = pfgm_perturb(y, sigma_end=self.sigma_end, tau=self.tau, M=self.M, restrict_M=self.restrict_M)
        target = pfgm_target(x, z, images if reference is None else reference, self.gamma)
        v_x, v_z = net(x, z)
        v_x, v_z = answer_like("net", v_x, x), answer_like("net's v_z", v_z.reshape(-1), z)
        return (torch.cat([v_x.flatten(1), v_z[:, None]], 1) - target).square()


class PFGMPPLoss:
    """EDM's weighted squared error with the noise of PFGM++ (2302.04265, section 4; D = inf: 2206.00364, section 5).

    Called as `loss(net, images, labels=None)`: ln sigma ~ N(P_mean, P_std^2), x = perturb(y, sigma, D), and the error
    of net(x, sigma, labels) is weighted by (sigma^2 + sigma_data^2)/(sigma sigma_data)^2. With a reference the target
    is the posterior mean over it instead of the image that was perturbed. Random numbers come from torch's default
    generator of the device; nothing waits for the device.

    Args:
        D: augmented dimension > 0, or math.inf.
        P_mean, P_std: of ln sigma.
        sigma_data: standard deviation of the data, > 0.
        reference: (M, *data) or an `EmpiricalField` of the same D. If that has labels, a row's target is the mean over
            its class.
    """

    def __init__(
        self,
        D: float,
        P_mean: float = -1.2,
        P_std: float = 1.2,
        sigma_data: float = 0.5,
        reference: Tensor | EmpiricalField | None = None,
    ) -> None:
        self.D = _checks.augmented_dimension(D)
        self.P_mean = _checks.number("P_mean", P_mean)
        self.P_std = _checks.number("P_std", P_std, at_least=0)
        self.sigma_data = _checks.number("sigma_data", sigma_data, above=0)
        if isinstance(reference, Tensor):
            reference = EmpiricalField(reference, self.D)
        elif reference is not None and reference.D != self.D:
            raise ValueError(f"reference must be a tensor or a field of D={self.D:g}, got {reference!r}")
        self.reference = reference

    def __call__(self, net: Callable[..., Any], images: Tensor, labels: Tensor | None = None) -> Tensor:
        """The weighted squared error, like images in floating point; gradients flow to the network.

        Args:
            net: `net(x (B, *data), sigma (B, 1, ..., 1), labels) -> x_hat`, like x; without labels `net(x, sigma)`.
            images: (B, *data), floating, or uint8: pixel u stands for (2u - 255)/255.
            labels: given to the network as they are. For a reference with labels: (B,) int64, or one-hot (B, classes),
                where a row of zeros is unrestricted.
        """
        y = as_data(images)
        sigma = torch.exp(torch.randn(len(y), device=y.device) * self.P_std + self.P_mean)
        x = noise.perturb(y, sigma, self.D)
        target = y
        if self.reference is not None:
            classes = None if labels is None or not self.reference.labelled else class_indices(labels)
            target = pfgmpp_target(x, sigma, self.reference, self.D, classes)
        level = per_row(sigma, y).to(y.dtype)
        answer = net(x, level) if labels is None else net(x, level, labels)
        weight = (level**2 + self.sigma_data**2) / (level * self.sigma_data) ** 2
        return weight * (answer_like("net", answer, x) - target).square()


def as_data(images: Tensor) -> Tensor:
    """Images in data units: pixel u of uint8 stands for (2u - 255)/255."""
    _checks.tensor("images", images, (*_checks.FLOATING, torch.uint8))
    return (2 * images.to(torch.get_default_dtype()) - 255) / 255 if images.dtype == torch.uint8 else images


def class_indices(labels: Tensor) -> Tensor:
    """labels (B,) int64 as they are; one-hot (B, classes) as indices, a row of zeros as -1."""
    if labels.ndim == 1:
        return labels
    if labels.shape[1] == 0:
        return torch.full((len(labels),), -1, device=labels.device)
    return labels.argmax(1).where((labels != 0).any(1), -1)
