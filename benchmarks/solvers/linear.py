"""1,024 linear problems in the plane, of rates from 0.3 to 100 and sizes from 0.01 to 100, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import pfgm_fast as pf
from benchmarks.solvers import peers
from benchmarks.solvers.core import Answer, Array, Block, Counted, Effort, Problem, Run

NAME = "linear"
OURS, OURS_SMALL = "pfgm_fast odeint", "pfgm_fast odeint, batch_size=256"
TOLERANCE, SETTING = 1e-5, "1e-05"
DAMPING = 0.1
TURN = torch.tensor([[-DAMPING, 1.0], [-1.0, -DAMPING]], dtype=torch.float64)  # dy/dt = rate * TURN y


def problems(B: int) -> tuple[Tensor, Tensor]:
    """Rates (B,) and states (B, 2) at t = 0, log-uniform in the rate and in the norm."""
    generator = torch.Generator().manual_seed(1)
    draw = partial(torch.rand, B, generator=generator, dtype=torch.float64)
    rates = 0.3 * (100 / 0.3) ** draw()
    sizes, angles = 0.01 * 1e4 ** draw(), 2 * math.pi * draw()
    return rates, sizes[:, None] * torch.stack([angles.cos(), angles.sin()], 1)


def exact(rates: Tensor, y0: Tensor) -> Tensor:
    """The states at t = 1."""
    c, s = rates.cos(), rates.sin()
    turned = torch.stack([c * y0[:, 0] + s * y0[:, 1], c * y0[:, 1] - s * y0[:, 0]], 1)
    return turned * torch.exp(-DAMPING * rates)[:, None]


def in_torch(t: Tensor, y: Tensor, rates: Tensor) -> Tensor:
    return (y @ TURN.T) * rates[:, None]


def in_numpy(rates: Tensor) -> Callable[[float, Array], Array]:
    rate, turn = rates.numpy()[:, None], TURN.numpy().T

    def func(t: float, y: Array) -> Array:
        result: Array = ((y.reshape(-1, 2) @ turn) * rate).ravel()
        return result

    return func


def in_jax(t: Any, y: Any, rate: Any) -> Any:
    import jax.numpy as jnp

    a, b = y
    return rate * jnp.stack([b - DAMPING * a, -a - DAMPING * b])


def ours(rates: Tensor, y0: Tensor, batch_size: int | None) -> Answer:
    func = Counted(in_torch)
    solution = pf.odeint(
        func, y0, 0.0, 1.0, args=(rates,), rtol=TOLERANCE, atol=TOLERANCE, batch_size=batch_size
    ).raise_for_status()
    return Answer(solution.samples, float(solution.nfe.double().mean()), func.calls)


def run(name: str, rates: Tensor, y0: Tensor) -> Run:
    """A provider by name."""
    interval = 0.0, 1.0, TOLERANCE
    solve: peers.Solve
    if name in (OURS, OURS_SMALL):
        solve = partial(ours, rates, y0, None if name == OURS else 256)
    elif name == peers.SCIPY:
        solve = peers.scipy(in_numpy(rates), y0.numpy(), *interval)
    elif name == peers.TORCHDIFFEQ:
        solve = peers.torchdiffeq(lambda t, y: in_torch(t, y, rates), y0, *interval)
    elif name == peers.TORCHODE:
        solve = peers.torchode(lambda t, y: in_torch(t, y, rates), y0, *interval)
    else:
        solve = peers.diffrax(in_jax, y0.numpy(), rates.numpy(), *interval)
    return Run(name, SETTING, solve)


def units(states: Tensor, truth: Tensor) -> Tensor:
    """(B,) the RMS over a row of its errors in units of atol + rtol |y|."""
    ratio = (states - truth) / (TOLERANCE + TOLERANCE * truth.abs())
    return ratio.square().mean(1).sqrt()


def blocks(effort: Effort) -> Iterator[Block]:
    rates, y0 = problems(1024)
    names = [OURS, OURS_SMALL, *peers.available()]
    errors = partial(units, truth=exact(rates, y0))
    yield Block("all", [run(name, rates, y0) for name in names], errors, 2.0, 3, 5 if effort.quick else 25)


PROBLEM = Problem(NAME, blocks)
