"""NVlabs/edm: its loss, samplers, preconditioners and random generator, under their own names.

Written from the formulas of the paper (Karras et al. 2022, 2206.00364). Where this differs from the original code:

- The samplers keep the levels on the host: nothing waits for the device.
- The preconditioners take the class of the inner network as `model_type`, not its name in a module of the checkout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pfgm_fast.compat._draws import GLOBAL, Draws
from pfgm_fast.compat._edm_samplers import ablation_sampler_with, edm_sampler_with
from pfgm_fast.compat._losses import AugmentPipe, augmented, log_normal, weight
from pfgm_fast.compat._preconditioning import EDMPrecond, VEPrecond, VPPrecond, iDDPMPrecond

__all__ = [
    "EDMLoss",
    "EDMPrecond",
    "StackedRandomGenerator",
    "VEPrecond",
    "VPPrecond",
    "ablation_sampler",
    "edm_sampler",
    "iDDPMPrecond",
]


class EDMLoss:
    """EDM's weighted squared error, unreduced: `loss(net, images, labels=None, augment_pipe=None)`, like images.

    Draws, in order: randn (B, 1, 1, 1) for ln sigma, what the augmentation draws, randn like the images.

    Args:
        P_mean, P_std: of ln sigma.
        sigma_data: standard deviation of the data.
    """

    draws: Draws = GLOBAL

    def __init__(self, P_mean: float = -1.2, P_std: float = 1.2, sigma_data: float = 0.5) -> None:
        self.P_mean = P_mean
        self.P_std = P_std
        self.sigma_data = sigma_data

    def __call__(
        self, net: Any, images: Tensor, labels: Tensor | None = None, augment_pipe: AugmentPipe | None = None
    ) -> Tensor:
        """The weighted squared error of net(x, sigma, labels, augment_labels=...) against the augmented images."""
        sigma = self._levels(images)
        y, _, answer = self._denoised(net, images, sigma, labels, augment_pipe)
        return weight(sigma, self.sigma_data) * (answer - y) ** 2

    def _levels(self, images: Tensor) -> Tensor:
        normal = self.draws.randn((len(images), 1, 1, 1), images.device)
        return log_normal(normal, self.P_mean, self.P_std)

    def _denoised(
        self, net: Any, images: Tensor, sigma: Tensor, labels: Tensor | None, pipe: AugmentPipe | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The augmented images, what the network sees of them through Gaussian noise, and its answer."""
        y, augment_labels = augmented(pipe, images)
        x = y + self.draws.randn_like(y) * sigma
        return y, x, net(x, sigma, labels, augment_labels=augment_labels)


edm_sampler = edm_sampler_with(1.0)
ablation_sampler = ablation_sampler_with(19.9)


class StackedRandomGenerator:
    """A generator for each sample of a batch.

    Args:
        device: of the generators.
        seeds: one for each sample, taken modulo 2^32.
    """

    def __init__(self, device: torch.device | str, seeds: Sequence[int] | Tensor) -> None:
        self.generators = [torch.Generator(device).manual_seed(int(seed) % (1 << 32)) for seed in seeds]
        self.seeds = seeds
        self.device = device

    def randn(self, size: Sequence[int], **kwargs: Any) -> Tensor:
        """Standard normal (B, ...)."""
        return self._stack(torch.randn, size, **kwargs)

    def randn_like(self, input: Tensor) -> Tensor:  # noqa: A002 - the original's name
        """Standard normal like `input`."""
        return self.randn(input.shape, dtype=input.dtype, layout=input.layout, device=input.device)

    def randint(self, *args: Any, size: Sequence[int], **kwargs: Any) -> Tensor:
        """Integers (B, ...), as torch.randint."""
        return self._stack(partial(torch.randint, *args), size, **kwargs)

    def _stack(self, draw: Callable[..., Tensor], size: Sequence[int], **kwargs: Any) -> Tensor:
        if size[0] != len(self.generators):
            raise ValueError(f"size must begin with the {len(self.generators)} seeds, got {tuple(size)}")
        shape = tuple(size[1:])
        return torch.stack([draw(size=shape, generator=generator, **kwargs) for generator in self.generators])
