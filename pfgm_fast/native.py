"""The operator in C++ on the CPU (csrc/field), in one pass over the data.

The bits of a row depend on that row and the data alone: neither on its batch nor on the threads.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from pfgm_fast import _extension


def unavailable() -> str | None:
    return _extension.why_missing()


def supports(device: torch.device) -> bool:
    return device.type == "cpu"


def posterior(
    x: Tensor,
    scale: Tensor,
    data: Tensor,
    center: Tensor,
    log_weights: Tensor | None,
    segments: Tensor | None,
    power: float,
) -> tuple[Tensor, Tensor]:
    """Posterior mean (B, N) and log-sum-exp (B,) float64; arguments as in `pfgm_fast.operator.posterior`."""
    inputs = [None if t is None else t.contiguous() for t in (x, scale, data, center, log_weights, segments)]
    mean, log_sum = torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(scale)
    address = [0 if t is None else t.data_ptr() for t in inputs]
    importlib.import_module("pfgm_fast._C").posterior(
        x.dtype == torch.float64,
        *(len(x), *data.shape),
        *address[:3],
        str(data.dtype).removeprefix("torch."),
        *address[3:],
        power,
        mean.data_ptr(),
        log_sum.data_ptr(),
        torch.get_num_threads(),
    )
    return mean, log_sum
