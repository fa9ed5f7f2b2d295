"""What a solver costs beside the network: 64 images of 3 x 32 x 32 in float32 with the denoiser of one Gaussian."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

import pfgm_fast as pf
from benchmarks.solvers import peers
from benchmarks.solvers.core import Answer, Array, Block, Effort, Problem, Run
from pfgm_fast.ode.cohorts import TorchSlots
from pfgm_fast.ode.solve import solve
from pfgm_fast.solution import Record

NAME = "overhead"
SHAPE = (64, 3, 32, 32)
FIXED = ("euler", "heun", "dpmpp_2m", "unipc")
RK45, RK45_TORCH = "pfgm_fast rk45", "pfgm_fast rk45, slots in PyTorch"
HIGH, LOW, TOLERANCE, STEPS = 80.0, 0.002, 1e-5, 40


def fixed(solver: str) -> str:
    return f"pfgm_fast {solver}"


OURS = (*map(fixed, FIXED), RK45, RK45_TORCH)


def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """The exact one of normal data for D = inf, x/(1 + sigma^2)."""
    return x / (1 + sigma**2).reshape(-1, 1, 1, 1)


def drift(t: Tensor, x: Tensor) -> Tensor:
    """dx/dlog sigma for rows (B, n); t is 0-d or (B,)."""
    return x - x / (1 + torch.exp(2 * t)[..., None])


def by_steps(solver: str, x: Tensor) -> Answer:
    solution = pf.sample(denoiser, latents=x, solver=solver, steps=STEPS, D=math.inf)
    nfe = int(solution.nfe.max())
    return Answer(solution.samples, nfe, nfe)


def adaptive(x: Tensor) -> Answer:
    solution = pf.sample(denoiser, latents=x, solver="rk45", rtol=TOLERANCE, atol=TOLERANCE, D=math.inf)
    return Answer(solution.samples, float(solution.nfe.double().mean()), int(solution.nfe.max()))


def in_torch_slots(x: Tensor) -> Answer:
    """The solve that `pf.sample` makes where there is no extension."""
    record = Record.start(x, math.log(HIGH))
    end = torch.full_like(record.t, math.log(LOW))

    def slope(t: Tensor, x: Tensor, rows: Tensor) -> Tensor:
        return x - denoiser(x, t.exp().to(x.dtype))

    with torch.no_grad():
        solve(slope, record, end, rtol=TOLERANCE, atol=TOLERANCE, max_steps=1000, machine=TorchSlots)
    return Answer(record.x, float(record.nfe.double().mean()), int(record.nfe.max()))


def scipy(x: Tensor) -> peers.Solve:
    """The denoiser in PyTorch on the float64 state of SciPy cast to float32, as Poisson_flow does."""

    def func(t: float, y: Array) -> Array:
        state = torch.from_numpy(y).float().reshape(len(x), -1)
        result: Array = drift(torch.tensor(t, dtype=torch.float32), state).numpy().ravel()
        return result

    return peers.scipy(func, x.double().numpy().ravel(), math.log(HIGH), math.log(LOW), TOLERANCE)


def blocks(effort: Effort) -> Iterator[Block]:
    x = pf.prior(SHAPE, HIGH, math.inf, seeds=range(SHAPE[0]))
    interval = math.log(HIGH), math.log(LOW), TOLERANCE
    makers: dict[str, Callable[[], peers.Solve]] = {
        **{fixed(solver): partial(partial, by_steps, solver, x) for solver in FIXED},
        RK45: lambda: partial(adaptive, x),
        RK45_TORCH: lambda: partial(in_torch_slots, x),
        peers.SCIPY: lambda: scipy(x),
        peers.TORCHDIFFEQ: lambda: peers.torchdiffeq(drift, x.flatten(1), *interval),
        peers.TORCHODE: lambda: peers.torchode(drift, x.flatten(1), *interval),
    }
    runs = [Run(name, "", make()) for name, make in makers.items() if name in OURS or peers.missing(name) is None]
    yield Block("all", runs, None, 1.0, 3, 3 if effort.quick else 9)


PROBLEM = Problem(NAME, blocks)
