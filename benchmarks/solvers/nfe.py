"""Error against evaluations: the exact denoiser of 2,000 points on a spiral for D = 128, sigma from 80 to 0.05."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

import pfgm_fast as pf
from benchmarks.solvers.core import Answer, Block, Effort, Problem, Run
from benchmarks.solvers.poisson import setting
from pfgm_fast.schedule import rho_levels

NAME = "nfe"
D, HIGH, LOW, B = 128, 80.0, 0.05, 512
FIXED = {"euler": 1, "heun": 2, "dpmpp_2m": 1, "unipc": 1}  # evaluations of a step
CORRECTED = "unipc"  # evaluates at the last level too, to correct the last step
EVALUATIONS = (10, 20, 40, 80)
ADAPTIVE = "rk45"
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
SOLVERS = (*FIXED, ADAPTIVE)


def spiral(M: int) -> Tensor:
    """(M, 2) float64: one and a half turns out to the radius 1, even in the area, with noise of 0.02."""
    generator = torch.Generator().manual_seed(0)
    angle = 3 * math.pi * torch.rand(M, generator=generator).sqrt()
    points = torch.stack([angle * angle.cos(), angle * angle.sin()], 1) / (3 * math.pi)
    return (points + 0.02 * torch.randn(M, 2, generator=generator)).double()


def by_steps(solver: str, evaluations: int, field: pf.EmpiricalField, x: Tensor) -> Answer:
    """Karras's levels (rho = 7), which end at 0.05, not at 0: the order of a method shows only where sigma > 0."""
    steps = evaluations // FIXED[solver] - (solver == CORRECTED)
    levels = rho_levels(steps + 1, LOW, HIGH, 7.0)[:-1]
    solution = pf.sample(field, latents=x, solver=solver, sigmas=levels).raise_for_status()
    nfe = int(solution.nfe.max())
    return Answer(solution.samples, nfe, nfe)


def adaptive(tolerance: float, field: pf.EmpiricalField, x: Tensor) -> Answer:
    solution = pf.sample(
        field, latents=x, solver=ADAPTIVE, sigmas=[HIGH, LOW], rtol=tolerance, atol=tolerance, max_steps=10**6
    ).raise_for_status()
    return Answer(solution.samples, float(solution.nfe.double().mean()), int(solution.nfe.max()))


def blocks(effort: Effort) -> Iterator[Block]:
    if effort.threads > 1:
        return
    field = pf.EmpiricalField(spiral(2000), D)
    x = pf.prior((B, 2), HIGH, D, seeds=range(B), dtype=torch.float64)
    truth = torch.as_tensor(adaptive(1e-10, field, x).states)
    runs = [Run(solver, str(n), partial(by_steps, solver, n, field, x)) for solver in FIXED for n in EVALUATIONS]
    runs += [Run(ADAPTIVE, setting(tolerance), partial(adaptive, tolerance, field, x)) for tolerance in TOLERANCES]
    yield Block("all", runs, lambda states: (states - truth).norm(dim=1), 0.1, 1, 1)


PROBLEM = Problem(NAME, blocks)
