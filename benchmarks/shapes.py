"""The sizes of the field at which it is measured, with what they stand for; on two cores scaled down."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from pfgm_fast.bench import posterior_mean as pm
from pfgm_fast.bench.core import Case
from pfgm_fast.bench.queries import Shape

# PFGM's target against a reference batch of CIFAR-10; whole on both.
PFGM = Shape(128, 4096, 3072, 1)
DIGITS = Shape(1797, 1797, 64, 128)

# On a GPU, by priority.
CIFAR = Shape(128, 50_000, 3072, 2048, pixels=True)
CIFAR_MANY = replace(CIFAR, B=4096)
IMAGENET = Shape(128, 1_281_167, 12_288, 2048, pixels=True)
TOY = Shape(65_536, 100_000, 2, 1)
TOY_GAUSSIAN = replace(TOY, D=math.inf)
LATENTS = Shape(16_384, 1_000_000, 64, 128)
ACTIONS = Shape(4096, 200_000, 16, 128)
FFHQ = Shape(32, 70_000, 12_288, 128, pixels=True)
ON_GPU = (PFGM, CIFAR, CIFAR_MANY, IMAGENET, TOY, TOY_GAUSSIAN, LATENTS, ACTIONS, FFHQ, DIGITS)

# On two cores.
SMALL_TOY = Shape(1024, 10_000, 2, 1)
SMALL_TOY_GAUSSIAN = replace(SMALL_TOY, D=math.inf)
SMALL_ACTIONS = Shape(256, 20_000, 16, 128)
SMALL_LATENTS = Shape(256, 20_000, 64, 128)
MNIST = Shape(64, 10_000, 784, 128)
SMALL_CIFAR = Shape(32, 10_000, 3072, 2048, pixels=True)
PFGMPP = Shape(32, 4096, 3072, 2048)
SMALL_FFHQ = Shape(8, 4096, 12_288, 128, pixels=True)
ON_CPU = (
    SMALL_TOY, SMALL_TOY_GAUSSIAN, SMALL_ACTIONS, SMALL_LATENTS, DIGITS, MNIST, PFGMPP, PFGM, SMALL_CIFAR, SMALL_FFHQ
)  # fmt: skip

WORDS = {
    PFGM: "PFGM's target on CIFAR-10",
    DIGITS: "digits of 8 x 8",
    CIFAR: "all of CIFAR-10",
    CIFAR_MANY: "all of CIFAR-10",
    IMAGENET: "all of ImageNet-64",
    TOY: "toy data in the plane",
    TOY_GAUSSIAN: "the same for diffusion",
    LATENTS: "latents",
    ACTIONS: "robot actions",
    FFHQ: "all of FFHQ-64",
    SMALL_TOY: "toy data in the plane",
    SMALL_TOY_GAUSSIAN: "the same for diffusion",
    SMALL_ACTIONS: "robot actions, part",
    SMALL_LATENTS: "latents, part",
    MNIST: "MNIST, part",
    PFGMPP: "PFGM++'s target on CIFAR-10",
    SMALL_CIFAR: "CIFAR-10, part",
    SMALL_FFHQ: "FFHQ-64 or ImageNet-64, part",
}


def cases() -> dict[str, Case[Any]]:
    """By name, each on the devices where its size belongs."""
    shapes = dict.fromkeys((*ON_GPU, *ON_CPU))
    return {shape.name: pm.case(shape, *_devices(shape)) for shape in shapes}


def _devices(shape: Shape) -> tuple[str, ...]:
    return ("cpu",) * (shape in ON_CPU) + ("cuda",) * (shape in ON_GPU)
