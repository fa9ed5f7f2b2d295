"""The posterior mean by other packages: PyKeOps, FlashSinkhorn. x is read again at each call."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable

import torch
from torch import Tensor

from pfgm_fast.bench.expressions import Centred


def missing(module: str, package: str) -> str | None:
    """That it is not installed, and how it would be, or None."""
    return None if importlib.util.find_spec(module) else f"{package} is not installed (pip install {package})"


def keops(x: Tensor, sigma: Tensor, centred: Centred, D: float) -> Callable[[], Tensor]:
    """PyKeOps' symbolic reduction. Its first call compiles the formula, for some seconds."""
    import pykeops
    from pykeops.torch import Vi, Vj

    pykeops.set_verbose(False)
    y = Vj(centred.data)

    def call() -> Tensor:
        a = x - centred.center
        if math.isinf(D):
            logits = -Vi(a).sqdist(y) / Vi(2 * sigma[:, None] ** 2)
        else:
            logits = (Vi(a).sqdist(y) + Vi(D * sigma[:, None] ** 2)).log() * (-(a.shape[1] + D) / 2)
        mean: Tensor = logits.sumsoftmaxweight(y, axis=1)
        return mean + centred.center

    return call


def sinkhorn(x: Tensor, sigma: float, centred: Centred) -> Callable[[], Tensor]:
    """FlashSinkhorn's transport plan times a matrix: the posterior mean for D = inf, one sigma for all rows.

    The plan is exp(-|x_i - y_j|^2 / eps) with eps = 2 sigma^2 and not normalised, so a column of ones, beside which x
    and y get a zero, brings its row sums.
    """
    kernels = importlib.import_module("flash_sinkhorn.kernels.apply_flash")

    pad, M = torch.nn.functional.pad, len(centred.data)
    y, values = pad(centred.data, (0, 1)), pad(centred.data, (0, 1), value=1.0)
    even, none = -centred.norms, centred.norms.new_zeros(M)

    def call() -> Tensor:
        a = x - centred.center
        plan: Tensor = kernels.apply_plan_mat_flashstyle(
            pad(a, (0, 1)), y, -(a * a).sum(1), even, a.new_zeros(len(a)), none, values, eps=2 * sigma**2, axis=1
        )
        return plan[:, :-1] / plan[:, -1:] + centred.center

    return call
