"""Validation of arguments: every error names the argument, what came and what was expected."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def wide(device: torch.device) -> torch.dtype:
    """The dtype for a row's constants: float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def readable(t: Tensor) -> bool:
    """Whether the values of `t` may be read: on the CPU and outside tracing, where it costs no synchronisation."""
    return t.device.type == "cpu" and not torch.compiler.is_compiling() and not torch._C._is_tracing()


def tensor(name: str, value: Any, dtypes: tuple[torch.dtype, ...] = FLOATING) -> Tensor:
    """`value` if it is a strided tensor of one of `dtypes`."""
    if not isinstance(value, Tensor):
        hint = ": use torch.from_numpy" if type(value).__module__ == "numpy" else ""
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}{hint}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {value.layout}: call .to_dense()")
    if value.dtype not in dtypes:
        raise TypeError(f"{name} must have dtype {' or '.join(map(short, dtypes))}, got {short(value.dtype)}")
    return value


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def finite(name: str, t: Tensor) -> None:
    """Raises if a readable floating tensor holds NaN or infinity."""
    if not t.is_floating_point() or not t.numel() or not readable(t):
        return
    least, most = torch.aminmax(t.detach())  # one pass; NaN comes through
    if not math.isfinite(least.item()) or not math.isfinite(most.item()):
        bad = int(t.numel() - torch.isfinite(t).sum())
        raise ValueError(f"{name} must be finite, got {bad} NaN or infinite of {t.numel()} values")


def no_grad_needed(name: str, t: Tensor) -> None:
    """Raises if a gradient would be expected to flow through `t`."""
    forward = forward_ad.unpack_dual(t).tangent is not None
    if forward or (t.requires_grad and torch.is_grad_enabled()):
        raise ValueError(
            f"{name} requires a gradient, which is not defined here: call under torch.no_grad() or detach it"
        )


def number(
    name: str, value: Any, *, above: float | None = None, at_least: float | None = None, finite: bool = True
) -> float:
    """`value` as a float within the bounds; bool, str and tensors are refused."""
    scalar = isinstance(value, (int, float)) or (hasattr(value, "__float__") and getattr(value, "shape", ()) == ())
    if isinstance(value, (bool, str, Tensor)) or not scalar:
        hint = ": use torch.from_numpy" if type(value).__module__ == "numpy" else ""
        raise TypeError(f"{name} must be a number, got {type(value).__name__}{hint}")
    result = float(value)
    bounds = ["finite"] if finite else []
    bad = result != result or (finite and abs(result) == math.inf)  # as torch.compile can trace it
    if above is not None:
        bounds.append(f"> {above:g}")
        bad = bad or result <= above
    if at_least is not None:
        bounds.append(f">= {at_least:g}")
        bad = bad or result < at_least
    if bad:
        raise ValueError(f"{name} must be {' and '.join(bounds) or 'a number'}, got {value}")
    return result


def integer(name: str, value: Any, *, at_least: int) -> int:
    """`value` as an int of at least `at_least`."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value.__index__() < at_least:
        raise ValueError(f"{name} must be an integer >= {at_least}, got {value}")
    return int(value.__index__())


def augmented_dimension(D: Any) -> float:
    """D as a float: > 0 or math.inf."""
    return number("D", D, above=0, finite=False)


def choice(name: str, value: Any, known: Iterable[str]) -> str:
    """`value` if it is one of `known`."""
    known = tuple(known)
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}; known: {', '.join(map(repr, known))}")
    return str(value)


def noise_level(sigma: Any, x: Tensor, name: str = "sigma") -> Tensor:
    """sigma as a `wide` tensor (B,) on the device of x, one level for each row of x.

    Takes a number, a 0-d tensor, (B,) or (B, 1, ..., 1). Values are checked where they can be read.
    """
    B = x.shape[0]
    if not isinstance(sigma, Tensor):
        return torch.full((B,), number(name, sigma, above=0), dtype=wide(x.device), device=x.device)
    tensor(name, sigma)
    if sigma.ndim and sigma.device != x.device:
        raise ValueError(f"{name} must be on {x.device} like x, got {sigma.device}")
    if sigma.ndim and tuple(sigma.shape) != (B,) + (1,) * (sigma.ndim - 1):
        raise ValueError(f"{name} must be a number, 0-d, ({B},) or ({B}, 1, ..., 1), got {tuple(sigma.shape)}")
    no_grad_needed(name, sigma)
    if readable(sigma) and sigma.numel() and not bool(((sigma > 0) & torch.isfinite(sigma)).all()):
        bad = sigma.flatten()[~((sigma > 0) & torch.isfinite(sigma)).flatten()][0]
        raise ValueError(f"{name} must be finite and > 0 in every row, got {bad.item():g}")
    return sigma.detach().to(device=x.device, dtype=wide(x.device)).reshape(-1).expand(B).contiguous()
