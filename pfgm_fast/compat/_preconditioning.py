"""EDM's preconditioners (2206.00364, table 1): x_hat = c_skip x + c_out F(c_in x, c_noise) around a raw network F."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pfgm_fast.compat._noise_schedules import iddpm_grid

Coefficients = tuple[Any, Any, Any, Tensor]


class Preconditioner(torch.nn.Module):
    """What the four have in common; float32 but for the inner network, which runs in float16 on a GPU if asked to.

    Args:
        img_resolution, img_channels: of the images (B, C, H, W).
        label_dim: length of the class labels, 0 for none.
        use_fp16: whether the inner network runs in float16 where it can.
        model_type: makes the inner network, from img_resolution, in_channels, out_channels, label_dim and model_kwargs;
            called with (x, c_noise (B,), class_labels=...).
    """

    outputs = 1  # channels of F for each channel of the image

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        *,
        sigma_min: float,
        sigma_max: float,
        model_type: Callable[..., Any],
        **model_kwargs: Any,
    ) -> None:
        super().__init__()
        if not callable(model_type):
            raise TypeError(f"model_type must be a class or function that makes the network, got {model_type!r}")
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.label_dim = label_dim
        self.use_fp16 = use_fp16
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        channels = {"in_channels": img_channels, "out_channels": img_channels * self.outputs}
        self.model = model_type(img_resolution=img_resolution, label_dim=label_dim, **channels, **model_kwargs)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """c_skip, c_out, c_in and c_noise at sigma (B, 1, 1, 1)."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        class_labels: Tensor | None = None,
        force_fp32: bool = False,
        **model_kwargs: Any,
    ) -> Tensor:
        """x_hat (B, C, H, W) float32 at sigma, a tensor of B levels or of one."""
        x = x.float()
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma.float().reshape(-1, 1, 1, 1))
        labels = None
        if self.label_dim:
            given = torch.zeros(1, self.label_dim, device=x.device) if class_labels is None else class_labels
            labels = given.float().reshape(-1, self.label_dim)
        half = self.use_fp16 and not force_fp32 and x.device.type == "cuda"
        seen = (c_in * x).to(torch.float16 if half else torch.float32)
        answer = self.model(seen, c_noise.flatten(), class_labels=labels, **model_kwargs)
        result: Tensor = c_skip * x + c_out * answer[:, : self.img_channels].float()
        return result

    def round_sigma(self, sigma: Any) -> Tensor:
        """The nearest level that the network knows."""
        return torch.as_tensor(sigma)


class EDMPrecond(Preconditioner):
    """EDM's own; `sigma_data` is the standard deviation of the data."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: float = 0,
        sigma_max: float = math.inf,
        sigma_data: float = 0.5,
        **rest: Any,
    ) -> None:
        super().__init__(
            img_resolution, img_channels, label_dim, use_fp16, sigma_min=sigma_min, sigma_max=sigma_max, **rest
        )
        self.sigma_data = sigma_data

    def coefficients(self, sigma: Tensor) -> Coefficients:
        total = sigma**2 + self.sigma_data**2
        return self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt(), 1 / total.sqrt(), sigma.log() / 4


class VEPrecond(Preconditioner):
    """Of the variance-exploding process."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: float = 0.02,
        sigma_max: float = 100,
        **rest: Any,
    ) -> None:
        super().__init__(
            img_resolution, img_channels, label_dim, use_fp16, sigma_min=sigma_min, sigma_max=sigma_max, **rest
        )

    def coefficients(self, sigma: Tensor) -> Coefficients:
        return 1, sigma, 1, (sigma / 2).log()


class VPPrecond(Preconditioner):
    """Of the variance-preserving process with M times, sigma^2 + 1 = exp(beta_d t^2/2 + beta_min t)."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        beta_d: float = 19.9,
        beta_min: float = 0.1,
        M: int = 1000,
        epsilon_t: float = 1e-5,
        **rest: Any,
    ) -> None:
        self.beta_d, self.beta_min, self.M, self.epsilon_t = beta_d, beta_min, M, epsilon_t
        ends: dict[str, Any] = {"sigma_min": float(self.sigma(epsilon_t)), "sigma_max": float(self.sigma(1))}
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, **ends, **rest)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        return 1, -sigma, 1 / (sigma**2 + 1).sqrt(), (self.M - 1) * self.sigma_inv(sigma)

    def sigma(self, t: Any) -> Tensor:
        """The noise level at time t, a number or tensor."""
        t = torch.as_tensor(t)
        level: Tensor = ((self.beta_d * t**2 / 2 + self.beta_min * t).exp() - 1).sqrt()
        return level

    def sigma_inv(self, sigma: Any) -> Tensor:
        """The time of a noise level."""
        grown = self.beta_min**2 + 2 * self.beta_d * (1 + torch.as_tensor(sigma) ** 2).log()
        return (grown.sqrt() - self.beta_min) / self.beta_d


class iDDPMPrecond(Preconditioner):  # noqa: N801 - the original's name
    """Of improved DDPM: M + 1 levels, and a network whose second half of channels is not used."""

    outputs = 2

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        C_1: float = 0.001,
        C_2: float = 0.008,
        M: int = 1000,
        **rest: Any,
    ) -> None:
        u = torch.tensor(iddpm_grid(M, C_1, C_2))
        ends: dict[str, Any] = {"sigma_min": float(u[M - 1]), "sigma_max": float(u[0])}
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, **ends, **rest)
        self.C_1, self.C_2, self.M = C_1, C_2, M
        self.u: Tensor
        self.register_buffer("u", u)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        c_noise = self.M - 1 - self._index(sigma).float()
        return 1, -sigma, 1 / (sigma**2 + 1).sqrt(), c_noise

    def round_sigma(self, sigma: Any, return_index: bool = False) -> Tensor:
        """The nearest level, like sigma; or its index."""
        sigma = torch.as_tensor(sigma)
        index = self._index(sigma)
        return (index if return_index else self.u[index].to(sigma.dtype)).to(sigma.device)

    def _index(self, sigma: Tensor) -> Tensor:
        distance = (sigma.to(self.u.device).float().reshape(-1, 1) - self.u).abs()
        return distance.argmin(1).reshape(sigma.shape)
