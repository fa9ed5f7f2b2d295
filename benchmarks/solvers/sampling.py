"""Samples by Heun's method from the exact field, beside the loop of EDM-style code with the field as users write it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

import pfgm_fast as pf
from benchmarks.solvers.solve import TESTS, answer, distances
from pfgm_fast.bench import posterior_mean as pm
from pfgm_fast.bench import queries
from pfgm_fast.bench.core import Answer, Case, Effort, Operation, Provider, Work, first_of
from pfgm_fast.bench.expressions import in_data_units, original, two_products
from pfgm_fast.bench.queries import SPREAD, Query, Shape, make
from pfgm_fast.schedule import rho_levels

NAME = "sampling"
OURS = "pfgm_fast heun"
OUR_FIELD = "EDM-style loop, pfgm_fast field"
PRODUCTS = "EDM-style loop, two products"
ORIGINAL = "EDM-style loop, original formula"
STEPS, LOW, HIGH = 18, 0.002, 80.0
SETTING = f"{STEPS} steps"

DIGITS = Shape(256, 1797, 64, 128)
CIFAR = Shape(16, 10_000, 3072, 2048, pixels=True)

Denoiser = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Prior:
    """Latents (B, N) at sigma = 80 in the field of a query's data."""

    query: Query
    latents: Tensor


def prior(shape: Shape, variant: str, device: torch.device) -> Prior:
    latents = pf.prior((shape.B, shape.N), HIGH, shape.D, seeds=range(shape.B)).to(device)
    return Prior(make(shape, SPREAD, device), latents)


def small(inputs: Prior) -> Prior:
    return Prior(queries.small(inputs.query), inputs.latents[:4])


def heun(denoiser: Denoiser, latents: Tensor) -> Tensor:
    """Algorithm 1 of EDM (arXiv 2206.00364) without churn: the state in float64, the denoiser in float32."""
    levels = rho_levels(STEPS, LOW, HIGH, 7.0)
    x = latents.double()

    def slope(x: Tensor, sigma: float) -> Tensor:
        level = torch.full((len(x),), sigma, device=x.device)
        return (x - denoiser(x.float(), level).double()) / sigma

    for here, there in pairwise(levels):
        first = slope(x, here)
        moved = x + (there - here) * first
        x = x + (there - here) * (first + slope(moved, there)) / 2 if there > 0 else moved
    return x.to(latents.dtype)


def ours(inputs: Prior, dtype: torch.dtype = torch.float32) -> Callable[[], Answer]:
    data = inputs.query.data if dtype == torch.float32 else in_data_units(inputs.query.data, dtype)
    field, latents = pf.EmpiricalField(data, inputs.query.D), inputs.latents.to(dtype)
    how = {"solver": "heun", "steps": STEPS, "sigma_min": LOW, "sigma_max": HIGH}
    return lambda: answer(pf.sample(field, latents=latents, **how))  # type: ignore[arg-type]


def loop(denoiser: Callable[[Prior], Denoiser], inputs: Prior) -> Callable[[], Answer]:
    calls = 2 * STEPS - 1
    function = denoiser(inputs)
    return lambda: Answer(heun(function, inputs.latents), calls, calls)


def our_field(inputs: Prior) -> Denoiser:
    return pf.EmpiricalField(inputs.query.data, inputs.query.D)


def by_products(inputs: Prior) -> Denoiser:
    query = inputs.query
    return lambda x, sigma: two_products(x, sigma, query.centred, query.D)


def by_original(inputs: Prior) -> Denoiser:
    query = inputs.query
    return lambda x, sigma: original(x, sigma, query.values, query.D, pm.ROOM[query.x.device.type])


def _too_long(inputs: Prior) -> str | None:
    shape = inputs.query.shape
    seconds = 2 * STEPS * shape.B * shape.M * shape.N / pm.NUMBERS_PER_SECOND[inputs.latents.device.type]
    return f"it would take some {seconds:.0f} s" if seconds > 30 else None


def work(inputs: Prior, answer: Answer) -> Work:
    """The field's, once an evaluation; data that are read each time."""
    once = queries.work(inputs.query, Answer(answer.values))
    return Work(*(answer.evaluations * quantity for quantity in once))


OPERATION = Operation(
    name=NAME,
    cases={
        f"{words}: {shape.name}": Case(partial(prior, shape))
        for words, shape in (("digits", DIGITS), ("CIFAR-10", CIFAR))
    },
    variants=("heun, sigma 80 to 0",),
    providers=(
        Provider(OURS, ours, SETTING, ours=True),
        Provider(OUR_FIELD, partial(loop, our_field), SETTING, ours=True),
        Provider(PRODUCTS, partial(loop, by_products), SETTING),
        Provider(ORIGINAL, partial(loop, by_original), SETTING, refuses=_too_long),
    ),
    truth=lambda inputs: ours(inputs, torch.float64)().values,
    error=distances,
    work=work,
    small=small,
    tests=TESTS,
    rival=first_of(OURS),
    error_unit="|x - x*|",
    effort=Effort(2.0, 2, 9),
)
