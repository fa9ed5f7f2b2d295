"""PFGM's drift as the original integrates it, with its substitutions and small constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pfgm_fast.denoiser import closed_form_below
from pfgm_fast.solution import per_row

NetFn = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""net_fn(x (B, C, H, W), z (B,)) -> v_x like x, v_z (B,)."""

IN_V_Z = 1e-5  # added to v_z, which is negative, before anything is divided by it
IN_NORM = 1e-7  # added to |v| by the likelihood


def data_dim(config: Any) -> int:
    """N = C H W of the configuration."""
    return int(config.data.channels * config.data.image_size * config.data.image_size)


def image_shape(config: Any, B: int) -> tuple[int, int, int, int]:
    return (B, config.data.num_channels, config.data.image_size, config.data.image_size)


def predictor(model: Any, *, train: bool) -> NetFn:
    """The network in training or evaluation mode, which it is put in at each call."""

    def net_fn(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        model.train(train)
        v_x, v_z = model(x, z)
        return v_x, v_z

    return net_fn


def dx_dz(net_fn: NetFn, x: Tensor, z: Tensor, *, gamma: float, z_exp: float, unit: bool = False) -> Tensor:
    """v_x / (v_z + 1e-5), like x (B, *data), at one z (0-d) for all rows.

    Where z < z_exp and gamma > 0, v_z is that of `closed_form_below`, unguarded at its singularity. With `unit`, v is
    divided by |v| + 1e-7 first.
    """
    v_x, v_z = net_fn(x, z.to(x.dtype).repeat(len(x)))
    v_x, v_z = v_x.reshape(len(x), -1), v_z.reshape(-1)
    if gamma > 0:
        v_z = closed_form_below(z_exp, v_x, v_z, z, gamma)
    if unit:
        norm = torch.linalg.vector_norm(torch.cat([v_x, v_z[:, None]], 1), dim=1) + IN_NORM
        v_x, v_z = v_x / norm[:, None], v_z / norm
    return v_x.reshape(x.shape) * per_row(1 / (v_z + IN_V_Z), x)
