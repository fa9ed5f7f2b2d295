"""The backend "triton" for tensors on the CPU by way of a GPU, which takes the place of the interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pfgm_fast import kernels

GPU = torch.device("cuda")
unavailable = kernels.unavailable
empty_pack = kernels.empty_pack


def supports(device: torch.device) -> bool:
    return device.type in ("cpu", "cuda")


def there_and_back(function: Callable[..., Any], *arguments: Any) -> Any:
    """Only for tensors on the CPU; the first of them tells."""
    if arguments[0].device.type != "cpu":
        return function(*arguments)
    result = function(*tree_map_only(Tensor, lambda tensor: tensor.to(GPU), arguments))
    return tree_map_only(Tensor, Tensor.cpu, result)


def pack(data: Tensor, center: Tensor, precision: str = "highest") -> list[Tensor]:
    packed: list[Tensor] = there_and_back(kernels.pack, data, center, precision)
    return packed


def posterior(x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    mean, log_sum = there_and_back(kernels.posterior, x, *others)
    return mean, log_sum


def top_weights(x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    weights, indices = there_and_back(kernels.top_weights, x, *others)
    return weights, indices
