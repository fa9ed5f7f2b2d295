"""Error against evaluations: the exact denoiser of 2,000 points on a spiral for D = 128, sigma from 80 to 0.05."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

import pfgm_fast as pf
from benchmarks.solvers.solve import TESTS, answer, distances, plane_work, setting
from pfgm_fast.bench.core import Answer, Case, Effort, Operation, Provider
from pfgm_fast.schedule import rho_levels

NAME = "error_by_evaluations"
CASE = "spiral of 2,000 points"
D, HIGH, LOW, B = 128, 80.0, 0.05, 512
FIXED = {"euler": 1, "heun": 2, "dpmpp_2m": 1, "unipc": 1}  # evaluations of a step
CORRECTED = "unipc"  # evaluates at the last level too, to correct the last step
EVALUATIONS = (10, 20, 40, 80)
ADAPTIVE = "rk45"
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
VARIANT = f"D = {D}, sigma {HIGH:g} to {LOW:g}"
SOLVERS = (*FIXED, ADAPTIVE)


def spiral(M: int) -> Tensor:
    """(M, 2) float64: one and a half turns out to the radius 1, even in the area, with noise of 0.02."""
    generator = torch.Generator().manual_seed(0)
    angle = 3 * math.pi * torch.rand(M, generator=generator).sqrt()
    points = torch.stack([angle * angle.cos(), angle * angle.sin()], 1) / (3 * math.pi)
    return (points + 0.02 * torch.randn(M, 2, generator=generator)).double()


@dataclass(frozen=True)
class Spiral:
    """States x (B, 2) at the highest level, in the field of data (M, 2), float64."""

    data: Tensor
    x: Tensor

    @cached_property
    def field(self) -> pf.EmpiricalField:
        return pf.EmpiricalField(self.data, D)


def make(variant: str, device: torch.device) -> Spiral:
    x = pf.prior((B, 2), HIGH, D, seeds=range(B), dtype=torch.float64)
    return Spiral(spiral(2000).to(device), x.to(device))


def by_steps(solver: str, evaluations: int, inputs: Spiral) -> Answer:
    """Karras's levels (rho = 7), which end at 0.05, not at 0: the order of a method shows only where sigma > 0."""
    steps = evaluations // FIXED[solver] - (solver == CORRECTED)
    levels = rho_levels(steps + 1, LOW, HIGH, 7.0)[:-1]
    return answer(pf.sample(inputs.field, latents=inputs.x, solver=solver, sigmas=levels))


def adaptive(tolerance: float, inputs: Spiral) -> Answer:
    return answer(
        pf.sample(
            inputs.field, latents=inputs.x, solver=ADAPTIVE, sigmas=[HIGH, LOW], rtol=tolerance, atol=tolerance,
            max_steps=10**6,
        )
    )  # fmt: skip


def _provider(solver: str, setting: str, solve: Callable[[Spiral], Answer]) -> Provider[Spiral]:
    return Provider(solver, lambda inputs: partial(solve, inputs), setting, ours=True)


OPERATION = Operation(
    name=NAME,
    cases={CASE: Case(make, threads=(1,))},
    variants=(VARIANT,),
    providers=(
        *(_provider(solver, str(n), partial(by_steps, solver, n)) for solver in FIXED for n in EVALUATIONS),
        *(_provider(ADAPTIVE, setting(tolerance), partial(adaptive, tolerance)) for tolerance in TOLERANCES),
    ),
    truth=lambda inputs: adaptive(1e-10, inputs).values,
    error=distances,
    work=plane_work,
    small=lambda inputs: Spiral(inputs.data[:64], inputs.x[:4]),
    tests=(*TESTS, "tests/test_solver_orders.py"),
    error_unit="|x - x*|",
    effort=Effort(0.1, 1, 1),
)
