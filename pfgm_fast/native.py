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


def pack(data: Tensor, center: Tensor) -> list[Tensor]:
    return []


def empty_pack(data: Tensor) -> list[Tensor]:
    return []


def posterior(
    x: Tensor,
    scale: Tensor,
    data: list[Tensor],
    log_weights: Tensor | None,
    segments: Tensor | None,
    power: float,
) -> tuple[Tensor, Tensor]:
    """Posterior mean (B, N) and log-sum-exp (B,) float64; arguments as in `pfgm_fast.operator.posterior`."""
    points, center = data[:2]
    _demand(
        x.dtype in (torch.float32, torch.float64) and points.dtype in (*_ELEMENTS,),
        "float32 or float64 x, and data or uint8",
    )
    doubles = [t for t in (scale, center, log_weights) if t is not None]
    _demand(all(t.dtype == torch.float64 for t in doubles), "float64 scale, center and log_weights")
    _demand(segments is None or segments.dtype == torch.int64, "int64 segments")
    inputs = [None if t is None else t.contiguous() for t in (x, scale, points, center, log_weights, segments)]
    mean, log_sum = torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(scale)
    address = [0 if t is None else t.data_ptr() for t in inputs]
    importlib.import_module("pfgm_fast._C").posterior(
        x.dtype == torch.float64,
        *(len(x), *points.shape),
        *address[:3],
        str(points.dtype).removeprefix("torch."),
        *address[3:],
        power,
        mean.data_ptr(),
        log_sum.data_ptr(),
        torch.get_num_threads(),
    )
    return mean, log_sum


_ELEMENTS = (torch.float32, torch.float64, torch.uint8)


def _demand(holds: bool, what: str) -> None:
    if not holds:
        raise TypeError(f"torch.ops.pfgm_fast.posterior takes {what}")
