"""Denoisers: what the solvers call, and adapters that make one of a network."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pfgm_fast import _checks
from pfgm_fast.rowwise import RowArguments, answer_like, called_in
from pfgm_fast.solution import per_row

WholeSolve = Callable[..., Iterator[None] | None]
"""whole_solve(record, end, levels, labels, **options): see `pfgm_fast.EmpiricalField.whole_solve`."""


class RowDenoiser:
    """A user's denoiser as the solvers call it: on any rows, checked, with what belongs to the rows.

    Where a row of the user's dtype is not finite, as a long step may leave it in float16, the answer is NaN.
    """

    def __init__(self, denoiser: Callable[..., Tensor], extra_args: Any, x: Tensor) -> None:
        self.denoiser: Callable[..., Tensor] = beside_call(denoiser, "unchecked") or denoiser
        self.whole_solve: WholeSolve | None = beside_call(denoiser, "whole_solve")
        self.extra_args = keywords(extra_args)
        self.dtype = x.dtype
        self.arguments = RowArguments("extra_args", self.extra_args, len(x), x.device)

    def __call__(self, x: Tensor, sigma: Tensor, rows: Tensor | None = None) -> Tensor:
        """The posterior mean at finite x (b, *data) and sigma (b,) of the rows (b,) of the batch; None is all."""
        arguments, level = self.arguments.of(rows), sigma.to(x.dtype)
        return called_in(self.dtype, "the denoiser", lambda seen: self.denoiser(seen, level, **arguments), x)


def keywords(extra_args: Any) -> dict[str, Any]:
    """extra_args, if it is a dict; None is none."""
    if extra_args is not None and not isinstance(extra_args, dict):
        raise TypeError(f"extra_args must be a dict of keyword arguments, got {type(extra_args).__name__}")
    return extra_args or {}


def beside_call(denoiser: object, name: str) -> Any:
    """A method that stands in for `__call__`, if the class that defines the one defines the other; else None.

    A subclass or wrapper with a `__call__` of its own means that one.
    """
    caller = next((kind for kind in type(denoiser).__mro__ if "__call__" in vars(kind)), object)
    return getattr(denoiser, name) if name in vars(caller) else None


def checked(denoiser: Any, D: float | None) -> float | None:
    """Raises unless it can be called; D, or that of the denoiser."""
    if not callable(denoiser):
        raise TypeError(f"denoiser must be callable as denoiser(x, sigma), got {type(denoiser).__name__}")
    return augmented_dimension(D, denoiser)


def needed(D: float | None) -> float:
    """D, where one is needed."""
    if D is None:
        raise ValueError("D must be given for the prior and for noise, got None and a denoiser without a number as D")
    return D


def augmented_dimension(D: float | None, denoiser: object) -> float | None:
    """D, or that of the denoiser; the two may not differ.

    An attribute D that is no number, such as a network's submodule, means something else and is ignored.
    """
    attribute = getattr(denoiser, "D", None)
    real = isinstance(attribute, numbers.Real) and not isinstance(attribute, bool)
    own = _checks.augmented_dimension(attribute) if real else None
    if D is None:
        return own
    D = _checks.augmented_dimension(D)
    if own is not None and own != D:
        raise ValueError(f"D={D:g} conflicts with denoiser.D={own:g}; leave D out")
    return D


def device_of(denoiser: object) -> torch.device | str | None:
    """The device of a denoiser: its attribute `device`, else that of its first parameter, else None."""
    own = getattr(denoiser, "device", None)
    if isinstance(own, (torch.device, str)):
        return own
    parameter = next(denoiser.parameters(), None) if isinstance(denoiser, torch.nn.Module) else None
    return None if parameter is None else parameter.device


class PFGMDenoiser:
    """A PFGM network seen as a denoiser, of D = 1 with z = sigma; made by `as_denoiser`.

    Attributes:
        net: `net(x, z (B,), **extra) -> (v_x like x, v_z (B,))`, the predicted normalised field.
        D: 1.0.
    """

    D = 1.0

    def __init__(self, net: Callable[..., Any], gamma: float, z_exp: float) -> None:
        self.net = net
        self.gamma = gamma
        self.z_exp = z_exp

    @property
    def device(self) -> torch.device | str | None:
        """Where the network lies, if it says so."""
        return device_of(self.net)

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        """Posterior mean like x (B, *data) at z = sigma (B,): x - z v_x / v_z."""
        v_x, v_z = self.net(x, sigma, **extra_args)
        v_x, z = answer_like("net", v_x, x), sigma.to(x.dtype)
        v_z = answer_like("net's v_z", v_z.reshape(-1), z)
        if self.z_exp > 0:
            v_z = closed_form_below(self.z_exp, v_x.flatten(1), v_z, z, self.gamma)
        return x - per_row(z / v_z, x) * v_x


def closed_form_below(z_exp: float, v_x: Tensor, v_z: Tensor, z: Tensor, gamma: float) -> Tensor:
    """v_z (B,), where z < z_exp from |v_x| = q sqrt(N): -sqrt(N) z/(sqrt(n^2 + z^2) + gamma), n = gamma q/(1 - q).

    PFGM's appendix B.2.3, for v_x (B, N), z (B,) or 0-d and gamma > 0: singular at q = 1, and of no meaning above it.
    """
    low, level, root = z < z_exp, z.to(v_x.dtype), math.sqrt(v_x.shape[1])
    q = torch.where(low, torch.linalg.vector_norm(v_x, dim=1) / root, 0.0)  # nothing singular where it is not used
    length = torch.sqrt((gamma * q / (1 - q)) ** 2 + level**2)
    return torch.where(low, -root * level / (length + gamma), v_z)


def as_denoiser(net: Callable[..., Any], kind: str = "pfgm", gamma: float = 5.0, z_exp: float = 0.0) -> PFGMDenoiser:
    """Makes a denoiser of a PFGM network, so that every solver takes it: x_hat = x - z v_x / v_z (2209.11178, eq. 6).

    Args:
        net: `net(x (B, *data), z (B,), **extra_args)` -> v_x like x and v_z (B,), with the sign of the training target
            -sqrt(N) (x - y, z) / (|(x - y, z)| + gamma).
        kind: "pfgm", so far the only one.
        gamma: that of training, >= 0.
        z_exp: below this z, v_z is taken from the norm of v_x instead of the network, with q = |v_x|/sqrt(N) and
            n = gamma q/(1 - q) as -sqrt(N) z/(sqrt(n^2 + z^2) + gamma) (appendix B.2.3; singular at q = 1). 0: never.
    Raises:
        ValueError, TypeError: naming the argument; z_exp > 0 with gamma = 0, where that form is undefined.
    """
    if not callable(net):
        raise TypeError(f"net must be callable as net(x, z), got {type(net).__name__}")
    _checks.choice("kind", kind, ("pfgm",))
    gamma = _checks.number("gamma", gamma, at_least=0)
    z_exp = _checks.number("z_exp", z_exp, at_least=0)
    if z_exp > 0 and gamma == 0:
        raise ValueError("z_exp > 0 needs gamma > 0, got gamma=0: without it |v_x| does not tell v_z")
    return PFGMDenoiser(net, gamma, z_exp)
