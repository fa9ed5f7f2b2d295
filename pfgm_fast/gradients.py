"""Gradients of the posterior mean and of the log-sum-exp with respect to the queries, in closed form.

With u the gradient that arrives for x_hat, J its Jacobian, v the one for L, and c_j = (N + D)/(D sigma^2 + rho_j),

    J^T u + v grad L = sum_j w_j c_j (y_j - x) ((y_j - x_hat).u + v)

which is a second reduction over the data, by `pfgm_fast.reference.pullback`. It is registered as
torch.ops.pfgm_fast.pullback, so that torch.compile knows it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import FunctionCtx

from pfgm_fast import operator, reference


def wanted(x: Tensor) -> bool:
    """Whether operations on x are to be recorded for a backward pass; not so under forward-mode differentiation."""
    return x.requires_grad and torch.is_grad_enabled() and forward_ad.unpack_dual(x).tangent is None


def posterior(
    x: Tensor,
    scale: Tensor,
    data: list[Tensor],
    log_weights: Tensor | None,
    segments: Tensor | None,
    power: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """`pfgm_fast.operator.posterior`, the same bits, through which gradients flow back to x, once."""
    mean, log_sum = _Posterior.apply(  # type: ignore[no-untyped-call]  # by torch
        x, scale, log_weights, segments, power, backend, *data
    )
    return mean, log_sum


class _Posterior(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor,
        scale: Tensor,
        log_weights: Tensor | None,
        segments: Tensor | None,
        power: float,
        backend: str,
        *data: Tensor,
    ) -> tuple[Tensor, Tensor]:
        return operator.posterior(x, scale, list(data), log_weights, segments, power, backend)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, scale, log_weights, segments, power, _, points, center, *_ = inputs
        ctx.save_for_backward(x, scale, points, center, log_weights, segments)
        ctx.power = power  # type: ignore[attr-defined]  # an attribute of ours

    @staticmethod
    def backward(ctx: Any, mean_gradient: Tensor, log_sum_gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, points, center, log_weights, segments = ctx.saved_tensors
        gradient = _Pullback.apply(  # type: ignore[no-untyped-call]  # by torch
            x, scale, points, center, log_weights, segments, ctx.power, mean_gradient, log_sum_gradient
        )
        others = len(ctx.needs_input_grad) - 1
        return (gradient, *(None,) * others)


class _Pullback(torch.autograd.Function):
    """The operator, made to refuse a second derivative, which would otherwise be 0 without a word."""

    @staticmethod
    def forward(
        x: Tensor,
        scale: Tensor,
        points: Tensor,
        center: Tensor,
        log_weights: Tensor | None,
        segments: Tensor | None,
        power: float,
        mean_gradient: Tensor,
        log_sum_gradient: Tensor,
    ) -> Tensor:
        gradient: Tensor = torch.ops.pfgm_fast.pullback(
            x, scale, points, center, log_weights, segments, power, mean_gradient, log_sum_gradient
        )
        return gradient

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:
        raise RuntimeError(
            "second derivatives of the posterior mean and the log density are not defined; score() and divergence() "
            "give the first ones without a graph"
        )


_library = torch.library.Library("pfgm_fast", "FRAGMENT")
_library.define(
    "pullback(Tensor x, Tensor scale, Tensor points, Tensor center, Tensor? log_weights, Tensor? segments, float power,"
    " Tensor mean_gradient, Tensor log_sum_gradient) -> Tensor"
)


def _run(x: Tensor, scale: Tensor, points: Tensor, center: Tensor, *others: Any) -> Tensor:
    return reference.pullback(x, scale, [points, center], *others)


_library.impl("pullback", _run, "CompositeExplicitAutograd")


@torch.library.register_fake("pfgm_fast::pullback", lib=_library)
def _fake(x: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
