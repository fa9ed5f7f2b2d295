"""What a fixed-step solver does to its rows, in PyTorch: linear combinations, and the rows that stop being finite.

`pfgm_fast.native_update` holds the same two functions for CPUs and `pfgm_fast.kernels.update` for GPUs, with the same
bits: every product and every sum is rounded, in the order of the terms.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from pfgm_fast import native_update
from pfgm_fast.native_update import Terms
from pfgm_fast.solution import Status, all_finite, finite_rows, per_row


def implementation(x: Tensor) -> Any:
    """The module with `attempt` and `advance` for states like x: compiled where that can be had, else this one."""
    if x.device.type == "cuda":
        kernels = importlib.import_module("pfgm_fast.kernels")
        if kernels.unavailable() is None and kernels.supports(x.device):
            return importlib.import_module("pfgm_fast.kernels.update")
    if native_update.supports(x):
        return native_update
    return importlib.import_module(__name__)


def attempt(out: Tensor, x: Tensor, status: Tensor, a: float, terms: Terms, work: Tensor) -> None:
    """out (B, ...) = a x + the terms, to be shown to a denoiser: zeros in the rows where that is not finite.

    Such rows end with NONFINITE if they were running. `work` (2, B, ...) is overwritten; `out` and it overlap nothing.
    """
    _combine(out, x, a, terms, work[0])
    good = _finite(out)
    if good is not None:
        out.masked_fill_(~per_row(good, out), 0)
        _retire(status, ~good)


def advance(
    x: Tensor,
    t: Tensor,
    accepted: Tensor,
    status: Tensor,
    a: float,
    terms: Terms,
    t_next: float,
    count: int,
    work: Tensor,
) -> None:
    """x (B, ...) becomes a x + the terms, t becomes t_next and accepted grows by count, in place.

    Only in rows that run and stay finite; a running row that does not ends with NONFINITE and keeps what it was.
    `work` (2, B, ...) is overwritten.
    """
    new = work[1]
    _combine(new, x, a, terms, work[0])
    running, finite = status == Status.STOPPED, _finite(new)
    good = running if finite is None else running & finite
    if finite is None and x.device.type == "cpu" and bool(running.all()):
        x.copy_(new)
    else:
        torch.where(per_row(good, x), new, x, out=x)
    t.masked_fill_(good, t_next)
    accepted.add_(good, alpha=count)
    if finite is not None:
        _retire(status, ~finite)


def _combine(out: Tensor, x: Tensor, a: float, terms: Terms, product: Tensor) -> None:
    if a == 1 and not terms:
        out.copy_(x)
        return
    torch.mul(x, a, out=out)
    for factor, tensor in terms:
        out.add_(torch.mul(tensor, factor, out=product))  # never add_(tensor, alpha=factor), which may be fused or not


def _finite(x: Tensor) -> Tensor | None:
    """Which rows (B,) are finite; None if it costs little to know that all are."""
    return None if all_finite(x) else finite_rows(x)


def _retire(status: Tensor, bad: Tensor) -> None:
    status.masked_fill_(bad & (status == Status.STOPPED), Status.NONFINITE)
