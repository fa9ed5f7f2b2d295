"""Newbeeer/stf: the stable target field on top of EDM, under its own names.

Written from the formulas of the papers (Xu et al. 2023, 2302.00670; Karras et al. 2022). The targets go through the
library's operator, in the dtype of the perturbed samples; with stf=True and without an augmentation the reference batch
may be of any size, where the original raises.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pfgm_fast.compat import edm
from pfgm_fast.compat._edm_samplers import ablation_sampler_with, edm_sampler_with
from pfgm_fast.compat._losses import AugmentPipe, refreshed, weight
from pfgm_fast.compat.edm import StackedRandomGenerator
from pfgm_fast.training.targets import stf_target

__all__ = ["EDMLoss", "StackedRandomGenerator", "ablation_sampler", "edm_sampler"]

edm_sampler = edm_sampler_with(0.0)
ablation_sampler = ablation_sampler_with(19.1)


class EDMLoss(edm.EDMLoss):
    """EDM's loss, which with stf=True takes the posterior mean over a reference batch for its target.

    Called as `loss(net, images, labels=None, augment_pipe=None, stf=False, ref_images=None)`. ref_images (M, ...) is
    written to: its first rows become the augmented images, the rest is augmented.
    """

    def __call__(
        self,
        net: Any,
        images: Tensor,
        labels: Tensor | None = None,
        augment_pipe: AugmentPipe | None = None,
        stf: bool = False,
        ref_images: Tensor | None = None,
    ) -> Tensor:
        """The weighted squared error, like images."""
        sigma = self._levels(images)
        y, x, answer = self._denoised(net, images, sigma, labels, augment_pipe)
        target = y
        if stf:
            reference = refreshed(required(ref_images), y, augment_pipe)
            target = self.stf_targets(sigma.flatten(), x, reference).view_as(y)
        return weight(sigma, self.sigma_data) * (answer - target) ** 2

    def stf_targets(self, sigmas: Tensor, perturbed_samples: Tensor, ref: Tensor) -> Tensor:
        """The posterior means (B, N) over ref (M, ...), at noise levels (B,), in the dtype of the samples (B, ...)."""
        return stf_target(perturbed_samples, sigmas.reshape(-1), ref).flatten(1)


def required(ref_images: Tensor | None) -> Tensor:
    if ref_images is None:
        raise ValueError("ref_images must be given with stf=True")
    return ref_images
