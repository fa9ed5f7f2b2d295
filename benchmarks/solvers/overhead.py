"""What a solver costs beside the network: 64 images of 3 x 32 x 32 in float32 with the denoiser of one Gaussian."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import pfgm_fast as pf
from benchmarks.solvers import peers
from benchmarks.solvers.solve import TESTS, Array, Solve, answer, distances
from pfgm_fast.bench.core import Answer, Case, Effort, Operation, Provider
from pfgm_fast.bench.rows import Row
from pfgm_fast.ode.cohorts import TorchSlots
from pfgm_fast.ode.solve import solve
from pfgm_fast.solution import Record

NAME = "host_time"
CASE = "64 images of 3 x 32 x 32"
VARIANT = "one Gaussian, sigma 80 to 0.002"
SHAPE = (64, 3, 32, 32)
FIXED = ("euler", "heun", "dpmpp_2m", "unipc")
RK45, RK45_TORCH = "pfgm_fast rk45", "pfgm_fast rk45, slots in PyTorch"
HIGH, LOW, TOLERANCE, STEPS = 80.0, 0.002, 1e-5, 40
INTERVAL = math.log(HIGH), math.log(LOW), TOLERANCE


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
    return answer(pf.sample(denoiser, latents=x, solver=solver, steps=STEPS, D=math.inf))


def adaptive(x: Tensor) -> Answer:
    return answer(pf.sample(denoiser, latents=x, solver="rk45", rtol=TOLERANCE, atol=TOLERANCE, D=math.inf))


def in_torch_slots(x: Tensor) -> Answer:
    """The solve that `pf.sample` makes where there is no extension."""
    record = Record.start(x, math.log(HIGH))
    end = torch.full_like(record.t, math.log(LOW))

    def slope(t: Tensor, x: Tensor, rows: Tensor) -> Tensor:
        return x - denoiser(x, t.exp().to(x.dtype))

    with torch.no_grad():
        solve(slope, record, end, rtol=TOLERANCE, atol=TOLERANCE, max_steps=1000, machine=TorchSlots)
    return Answer(record.x, float(record.nfe.double().mean()), int(record.nfe.max()))


def scipy(x: Tensor) -> Solve:
    """The denoiser in PyTorch on the float64 state of SciPy cast to float32, as Poisson_flow does."""

    def func(t: float, y: Array) -> Array:
        state = torch.from_numpy(y).to(x.device, torch.float32).reshape(len(x), -1)
        result: Array = drift(torch.tensor(t, dtype=torch.float32), state).cpu().numpy().ravel()
        return result

    return peers.scipy(func, x.double().cpu().numpy().ravel(), *INTERVAL)


def per_call(row: Row) -> float | None:
    """ms"""
    return row.median_ms / row.calls if row.median_ms and row.calls else None


PEERS: dict[str, Callable[[Tensor], Solve]] = {
    peers.SCIPY: scipy,
    peers.TORCHDIFFEQ: lambda x: peers.torchdiffeq(drift, x.flatten(1), *INTERVAL),
    peers.TORCHODE: lambda x: peers.torchode(drift, x.flatten(1), *INTERVAL),
}


def make(variant: str, device: torch.device) -> Tensor:
    return pf.prior(SHAPE, HIGH, math.inf, seeds=range(SHAPE[0])).to(device)


OPERATION = Operation(
    name=NAME,
    cases={CASE: Case(make)},
    variants=(VARIANT,),
    providers=(
        *(Provider(fixed(name), partial(partial, by_steps, name), ours=True) for name in FIXED),
        Provider(RK45, lambda x: partial(adaptive, x), ours=True),
        Provider(RK45_TORCH, lambda x: partial(in_torch_slots, x), ours=True),
        *(
            Provider(name, prepare, refuses=partial(lambda name, x: peers.refuses(name, x.device), name))
            for name, prepare in PEERS.items()
        ),
    ),
    truth=lambda x: None,
    error=distances,
    work=lambda x, answer: None,
    small=lambda x: x[:1],
    tests=TESTS,
    effort=Effort(1.0, 3, 9),
)
