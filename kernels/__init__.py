"""The operator in Triton, on NVIDIA and AMD GPUs.

This folder installs as ``pfgm_fast.kernels`` and imports Triton only where a kernel is launched. A row's bits depend on
that row and the data alone: neither on its batch nor on how many programs share the work.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

if __name__ != "pfgm_fast.kernels":
    # On a path that starts at the project's root this folder would shadow any distribution that is called `kernels`.
    raise ImportError(
        f"this folder is the package pfgm_fast.kernels, but was imported as {__name__!r}: install pfgm_fast and import "
        "pfgm_fast.kernels; to reach another package of that name, take pfgm_fast's source tree off sys.path"
    )

NARROW = 16  # dimensions up to which distances are taken by differences,
MIDDLING = 128  # and up to which scores, softmax and mean are fused in one pass, if there are no log masses


@functools.cache
def unavailable() -> str | None:
    """Why the Triton backend of the operator cannot run."""
    import torch

    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (it comes with PyTorch for CUDA and ROCm, or by `pip install triton`)"
    if not torch.cuda.is_available() and not _interpreted():
        return "no GPU (TRITON_INTERPRET=1 runs the kernels in Triton's interpreter, slowly)"
    return None


def supports(device: torch.device) -> bool:
    return device.type == ("cpu" if _interpreted() else "cuda")


def pack(data: Tensor, center: Tensor, precision: str = "highest") -> list[Tensor]:
    """What the kernels keep beside the data (M, N): if narrow the transpose, if wide and not float64 the digits.

    These settle the precision of all that is computed with them: `digits.Digits.error` is left out for "high".
    """
    import torch

    from pfgm_fast.kernels import digits

    if data.shape[1] <= NARROW:
        return [data.t().clone(memory_format=torch.contiguous_format)]
    if data.element_size() == 8:
        return []
    rough = precision == "high"
    with torch.cuda.device_of(data):
        cut = digits.of_pixels(data, rough) if data.element_size() == 1 else digits.of_data(data, center, rough)
        return [tensor for tensor in cut if tensor is not None]


def empty_pack(data: Tensor, precision: str = "highest") -> list[Tensor]:
    """Tensors like those of `pack`."""
    from pfgm_fast.kernels import digits

    if data.shape[1] <= NARROW:
        return [data.new_empty(data.shape[1], len(data))]
    if data.element_size() == 8:
        return []
    rough = precision == "high"
    planes = 1 if data.element_size() == 1 else digits.ROUGH if rough else digits.FLOAT
    return [*digits.empty(*data.shape, planes, data.device)][: 3 if rough else 4]


def posterior(
    x: Tensor,
    scale: Tensor,
    data: list[Tensor],
    log_weights: Tensor | None,
    segments: Tensor | None,
    power: float,
) -> tuple[Tensor, Tensor]:
    """Posterior mean (B, N) and log-sum-exp (B,) float64; arguments as in `pfgm_fast.operator.posterior`."""
    import torch

    from pfgm_fast.kernels import direct, fused, wide

    x, N = x.contiguous(), x.shape[1]
    with torch.cuda.device_of(x):
        if N <= NARROW:
            mean, log_sum = direct.posterior(x, scale, data[2].t(), data[1], log_weights, segments, power)
        elif N <= MIDDLING and x.dtype == torch.float32 and log_weights is None:
            mean, log_sum = fused.posterior(x, scale, data, segments, power)
        else:
            mean, log_sum = wide.posterior(x, scale, data, log_weights, segments, power)
    return mean, log_sum


def top_weights(
    x: Tensor, scale: Tensor, data: list[Tensor], log_weights: Tensor | None, power: float, k: int
) -> tuple[Tensor, Tensor]:
    """The k largest normalised weights of each row, largest first, and their indices: (B, k) and (B, k) int64."""
    import torch

    from pfgm_fast.kernels import wide

    with torch.cuda.device_of(x):
        weights, indices = wide.top_weights(x.contiguous(), scale, data, log_weights, power, k)
    return weights, indices


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"
