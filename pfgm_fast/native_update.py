"""The half steps of the fixed-step solvers in C++ on the CPU (csrc/ode/update.cpp): one pass over the state.

The bits are those of `pfgm_fast.update`.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pfgm_fast import _extension

Terms = Sequence[tuple[float, Tensor]]
"""Factors and tensors like the state; a factor is rounded to the dtype of the state."""


def supports(x: Tensor) -> bool:
    """Whether a state like x is served here."""
    fits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and x.is_contiguous()
    return fits and _extension.why_missing() is None


def attempt(out: Tensor, x: Tensor, status: Tensor, a: float, terms: Terms, work: Tensor) -> None:
    """As `pfgm_fast.update.attempt`."""
    call, arguments, _kept = _call("attempt", x, a, terms)
    call(*arguments, status.data_ptr(), out.data_ptr())


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
    """As `pfgm_fast.update.advance`."""
    call, arguments, _kept = _call("advance", x, a, terms)
    call(*arguments, status.data_ptr(), t.data_ptr(), accepted.data_ptr(), t_next, count)


def _call(name: str, x: Tensor, a: float, terms: Terms) -> tuple[Any, tuple[Any, ...], list[Tensor]]:
    """The function, its first arguments, and what must live as long as it runs."""
    kept = [tensor.to(x.dtype).contiguous() for _, tensor in terms]
    if any(tensor.shape != x.shape or tensor.device != x.device for tensor in kept):
        raise ValueError(f"the terms must be like the state {tuple(x.shape)}, got {[tuple(t.shape) for t in kept]}")
    function = getattr(
        importlib.import_module("pfgm_fast._C"), f"{name}_{'double' if x.element_size() == 8 else 'float'}"
    )
    factors, addresses = [factor for factor, _ in terms], [tensor.data_ptr() for tensor in kept]
    sizes = len(x), math.prod(x.shape[1:])
    return function, (*sizes, x.data_ptr(), a, factors, addresses, torch.get_num_threads()), kept
