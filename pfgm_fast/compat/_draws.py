"""What the originals share: where random numbers come from, and how they become noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Draws:
    """Random numbers as the originals take them: from the global generators of torch and NumPy.

    Every function here that draws takes them through these methods, in the order in which the original drew. Another
    object with them replays recorded numbers.
    """

    def rand(self, size: Sequence[int], device: torch.device | str | None = None) -> Tensor:
        """Uniform on [0, 1)."""
        return torch.rand(tuple(size), device=device)

    def randn(self, size: Sequence[int], device: torch.device | str | None = None) -> Tensor:
        """Standard normal."""
        return torch.randn(tuple(size), device=device)

    def randn_like(self, x: Tensor) -> Tensor:
        """Standard normal, of the shape, dtype and device of x."""
        return torch.randn_like(x)

    def signs_like(self, x: Tensor) -> Tensor:
        """-1 or 1, float32, of the shape and device of x."""
        return torch.randint_like(x, low=0, high=2).float() * 2 - 1

    def beta(self, a: float, b: float, size: int) -> NDArray[np.float64]:
        """Beta(a, b), by NumPy's legacy generator on the host."""
        return np.random.beta(a=a, b=b, size=size)  # noqa: NPY002 - the originals' generator


GLOBAL = Draws()


def directions(gauss: Tensor) -> Tensor:
    """Uniform unit vectors (B, N) of normals (B, N)."""
    unit: Tensor = gauss / torch.linalg.vector_norm(gauss, dim=1, keepdim=True)
    return unit


def beta_radius(b: Any, scale: Any, below: float = 0.0, inside: float = 0.0) -> Any:
    """scale sqrt(b/(1 - b + below) + inside), in the type of b and scale: tensors, arrays or numbers.

    For b ~ Beta(N/2, D/2) and scale = sigma sqrt(D) the radius of PFGM++'s noise (2302.04265, appendix B), but for
    the two constants.
    """
    return scale * (b / (1 - b + below) + inside) ** 0.5


def sphere_noise(gauss: Tensor, radius: Tensor) -> Tensor:
    """float32 noise (B, N) of radii (B,), in the directions of normals (B, N)."""
    return (directions(gauss) * radius[:, None]).float()
