"""Products with the Jacobian of a user's function."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def pulled_back(
    who: str, function: Callable[[Tensor], Tensor], x: Tensor, direction: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """function(x) and J^T u with u = direction(function(x)), like x: one forward and one backward pass.

    Gradients are recorded for this alone, also under torch.no_grad; both results are without a graph.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = (x.clone() if x.is_inference() else x.detach()).requires_grad_()
        answer = function(x)
        if not answer.requires_grad:
            raise ValueError(
                f"{who} must be differentiable with respect to x, got a result without a gradient: it must neither "
                "detach x nor run under torch.no_grad"
            )
        (product,) = torch.autograd.grad(answer, x, direction(answer.detach()))
    return answer.detach(), product
