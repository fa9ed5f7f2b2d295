"""What the losses of EDM, STF and PFGM++ share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

AugmentPipe = Callable[[Tensor], tuple[Tensor, Any]]
"""augment_pipe(images) -> images, what the network is told about them."""


def augmented(pipe: AugmentPipe | None, images: Tensor) -> tuple[Tensor, Any]:
    return (images, None) if pipe is None else pipe(images)


def log_normal(normal: Tensor, mean: float, std: float) -> Tensor:
    """Noise levels of standard normals."""
    return torch.exp(normal * std + mean)


def weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """EDM's weight of a squared error (2206.00364, section 5)."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def refreshed(reference: Tensor, y: Tensor, pipe: AugmentPipe | None) -> Tensor:
    """The reference batch, written to: its first rows become y, the rest is augmented.

    Without a pipe the rest stays as it is; the originals put the images there, which raises unless the sizes fit.
    """
    if pipe is not None:
        reference[len(y) :] = pipe(reference[len(y) :])[0]
    reference[: len(y)] = y
    return reference
