"""The error of one evaluation against the noise level, by precision: on a CPU with the GPU's kernels interpreted."""

from __future__ import annotations

from dataclasses import replace

from pfgm_fast.bench import posterior_mean as pm
from pfgm_fast.bench.core import Effort, Operation
from pfgm_fast.bench.queries import Query, Shape

NAME = "error_by_sigma"
LEVELS = (0.002, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 80.0)
SHAPES = (Shape(16, 400, 64, 128), Shape(16, 400, 192, 128, pixels=True))  # small: they are interpreted
PROVIDERS = (pm.NATIVE, pm.TRITON, pm.TRITON_HIGH, pm.PRODUCTS, pm.PRODUCTS_TF32, pm.CDIST, pm.ORIGINAL)


def variant(level: float) -> str:
    return f"sigma {level:g}"


def _devices(provider: str) -> tuple[str, ...]:
    """The Triton kernels join on a CPU, interpreted."""
    return pm.GPU if provider == pm.PRODUCTS_TF32 else pm.CPU if provider == pm.NATIVE else (*pm.CPU, *pm.GPU)


def _operation() -> Operation[Query]:
    made = pm.operation({shape.name: pm.case(shape, threads=(1,)) for shape in SHAPES}, name=NAME)
    kept = tuple(replace(p, devices=_devices(p.name)) for p in made.providers if p.name in PROVIDERS)
    tests = (*made.tests, "tests/test_kernels_wide.py")
    return replace(
        made,
        rival=lambda block, row: None,  # not of speed
        variants=tuple(map(variant, LEVELS)),
        providers=kept,
        tests=tests,
        effort=Effort(0, 1, 1),
        interpreted=True,
    )


OPERATION = _operation()
