"""1,024 linear problems in the plane, of rates from 0.3 to 100 and sizes from 0.01 to 100, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import pfgm_fast as pf
from benchmarks.solvers import peers
from benchmarks.solvers.solve import TESTS, Array, Counted, Solve, answer
from pfgm_fast.bench.core import Answer, Case, Effort, Error, Operation, Provider
from pfgm_fast.bench.queries import of_rows
from pfgm_fast.bench.rows import Row, Table

NAME = "linear_odes"
CASE = "B=1024, rates 0.3 to 100"
CPU = torch.device("cpu")
OURS, OURS_SMALL = "pfgm_fast odeint", "pfgm_fast odeint, batch_size=256"
TOLERANCE, SETTING = 1e-5, "1e-05"
DAMPING = 0.1
TURN = torch.tensor([[-DAMPING, 1.0], [-1.0, -DAMPING]], dtype=torch.float64)  # dy/dt = rate * TURN y


class Linear(NamedTuple):
    """Rates (B,) and states (B, 2) at t = 0."""

    rates: Tensor
    y0: Tensor


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


def ours(inputs: Linear, batch_size: int | None) -> Answer:
    func = Counted(in_torch)
    solution = pf.odeint(
        func, inputs.y0, 0.0, 1.0, args=(inputs.rates,), rtol=TOLERANCE, atol=TOLERANCE, batch_size=batch_size
    )
    return answer(solution, func.calls)


def solve(name: str, inputs: Linear) -> Solve:
    """The call of a peer."""
    rates, y0, interval = inputs.rates, inputs.y0, (0.0, 1.0, TOLERANCE)
    if name == peers.SCIPY:
        return peers.scipy(in_numpy(rates), y0.numpy(), *interval)
    if name == peers.TORCHDIFFEQ:
        return peers.torchdiffeq(lambda t, y: in_torch(t, y, rates), y0, *interval)
    if name == peers.TORCHODE:
        return peers.torchode(lambda t, y: in_torch(t, y, rates), y0, *interval)
    return peers.diffrax(in_jax, y0.numpy(), rates.numpy(), *interval)


def error(inputs: Linear, states: Tensor, truth: Tensor) -> Error:
    """The RMS over a row of its errors in units of atol + rtol |y|."""
    ratio = (states - truth) / (TOLERANCE + TOLERANCE * truth.abs())
    return of_rows(None, ratio.square().mean(1).sqrt())


def best(block: Table) -> Row | None:
    """The faster one of ours."""
    mine = [one for one in block if one.provider in (OURS, OURS_SMALL) and one.median_ms is not None]
    return min(mine, key=lambda one: one.median_ms or 0, default=None)


def rival(block: Table, row: Row) -> Row | None:
    return None if row.provider in (OURS, OURS_SMALL) else best(block)


def _case(B: int, variant: str, device: torch.device) -> Linear:
    return Linear(*problems(B))


OPERATION = Operation(
    name=NAME,
    cases={CASE: Case(partial(_case, 1024), ("cpu",))},
    variants=(SETTING,),
    providers=(
        Provider(OURS, lambda inputs: partial(ours, inputs, None), ours=True),
        Provider(OURS_SMALL, lambda inputs: partial(ours, inputs, 256), ours=True),
        *(
            Provider(name, partial(solve, name), refuses=partial(lambda name, inputs: peers.refuses(name, CPU), name))
            for name in peers.NAMES
        ),
    ),
    truth=lambda inputs: exact(inputs.rates, inputs.y0),
    error=error,
    work=lambda inputs, answer: None,
    small=lambda inputs: Linear(inputs.rates[:4], inputs.y0[:4]),
    tests=TESTS,
    rival=rival,
    error_unit="tolerances",
    effort=Effort(2.0, 3, 25),
)
