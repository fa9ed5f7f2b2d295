"""The operation `training_target`: PFGM's and PFGM++'s targets of a training step, beside the original code's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

import pfgm_fast as pf
from benchmarks import peers
from benchmarks import posterior_mean as pm
from benchmarks.core import Bar, Error, Operation, Provider, Work

ORIGINAL = "original formula"
BATCH = "pfgm_fast, float32 batch"
PREPARED = "pfgm_fast, prepared uint8 field"

CIFAR = pm.Shape(128, 4096, 3072, 1)
FFHQ = pm.Shape(32, 4096, 12288, 128)
PFGM, PFGMPP = f"PFGM, CIFAR-10: {CIFAR.name}", f"PFGM++, FFHQ-64: {FFHQ.name}"
NOISE = "of training"


@dataclass(frozen=True)
class Step:
    """A batch of perturbed images, and the images that are the reference of its targets.

    Attributes:
        query: the batch with its noise levels (z, where D = 1) over the reference as float32.
        pixels: the reference as uint8.
        gamma: of PFGM's normalised field (B, N + 1); None: the target is PFGM++'s posterior mean (B, N).
        fitting: how many images of the reference the original formula gets.
    """

    query: pm.Query
    pixels: Tensor
    gamma: float | None
    fitting: int


def make(shape: pm.Shape, gamma: float | None, fitting: int, variant: str) -> Step:
    """The data of `posterior_mean` in grey levels, the first B of them perturbed as the method does in training."""
    drawn = pm.make(shape, variant)
    pixels = (127.5 * drawn.data + 127.5).round().clamp(0, 255).to(torch.uint8)
    images, seeds = in_data_units(pixels, torch.float32), range(shape.B)
    if gamma is not None:
        x, sigma = pf.pfgm_perturb(images[: shape.B], seeds=seeds)
    else:
        sigma = torch.exp(1.2 * torch.randn(shape.B, generator=torch.Generator().manual_seed(shape.N)) - 1.2)
        x = pf.perturb(images[: shape.B], sigma, shape.D, seeds=seeds)
    return Step(pm.Query(x, sigma, images, shape.D), pixels, gamma, fitting)


def in_data_units(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    return (2 * pixels.to(dtype) - 255) / 255


def small(step: Step) -> Step:
    return replace(step, query=pm.small(step.query), pixels=step.pixels[:64])


def truth(step: Step) -> Tensor:
    """The target in float64, from the exact values of the pixels."""
    query = step.query
    mean = pm.truth(replace(query, data=in_data_units(step.pixels, torch.float64)))
    if step.gamma is None:
        return mean
    vector = torch.cat([mean - query.x.double(), -query.sigma.double()[:, None]], 1)
    return mean.shape[1] ** 0.5 * vector / (vector.norm(dim=1, keepdim=True) + step.gamma)


def error(step: Step, result: Tensor, exact: Tensor) -> Error:
    """In units of the posterior mean's bound, for PFGM of what that leaves of the target, and relative."""
    if step.gamma is None:
        return pm.error(step.query, result, exact)
    off, length = (result.double() - exact).norm(dim=1).nan_to_num(torch.inf), exact.norm(dim=1)
    slope = (result[:, 1:].shape[1] ** 0.5 - length) / step.gamma  # sqrt(N) / (|v| + gamma), by which the mean counts
    x = step.query.x.double()
    scale = x.norm(dim=1).clamp_min(step.query.data.double().norm(dim=1).max())
    bound = 1e-4 * exact[:, :-1].norm(dim=1) + slope * 4 * torch.finfo(step.query.x.dtype).eps * scale
    return Error((off / bound).max().item(), (off / length).max().item())


def work(step: Step) -> Work:
    return pm.work(step.query)


def target(step: Step, reference: Tensor | pf.EmpiricalField) -> Tensor:
    query = step.query
    if step.gamma is None:
        return pf.pfgmpp_target(query.x, query.sigma, reference, query.D)
    return pf.pfgm_target(query.x, query.sigma, reference, step.gamma)


def original(step: Step) -> Tensor:
    """The target as the published code computes it, on the first `fitting` images of the reference."""
    query, data = step.query, step.query.data[: step.fitting]
    if step.gamma is None:
        return original_pfgmpp(query.x, query.sigma, data, query.D)
    return original_pfgm(query.x, query.sigma, data, step.gamma)


def original_pfgm(x: Tensor, z: Tensor, data: Tensor, gamma: float) -> Tensor:
    """sqrt(N) E / (|E| + gamma) with E as in `peers.original`, in float32: B x M x (N + 1) numbers at a time."""
    charges = torch.cat([data, data.new_zeros(len(data), 1)], 1)
    field = peers.original_field(torch.cat([x, z[:, None]], 1), charges, 1.0)
    return data.shape[1] ** 0.5 * field / (field.norm(dim=1, keepdim=True) + gamma)


def original_pfgmpp(x: Tensor, sigma: Tensor, data: Tensor, D: float) -> Tensor:
    """sum_j c_j y_j with c as in `peers.original`, in float64: B x M x N numbers at a time."""
    points, charges, r = x.double(), data.double(), sigma.double() * D**0.5
    distance = ((points[:, None] - charges[None]).pow(2).sum(-1) + r[:, None] ** 2).sqrt()
    weights = peers.original_weights(distance, data.shape[1] + D)
    return (weights[..., None] * charges[None]).sum(1).to(x.dtype)


def share(step: Step) -> float:
    return min(1.0, step.fitting / len(step.pixels))


def _remark(step: Step) -> str:
    kind = "float64" if step.gamma is None else "float32"
    if share(step) == 1:
        return kind
    times = f"{1 / share(step):g}"
    return f"{kind}; on {step.fitting} of the {len(step.pixels)} images, time and memory × {times}"


def _prepared(step: Step) -> Callable[[], Tensor]:
    field = pf.EmpiricalField(step.pixels, step.query.D)
    return lambda: target(step, field)


_native_unavailable = pm.OPERATION.provider(pm.NATIVE).unavailable

OPERATION = Operation(
    name="training_target",
    cases={PFGM: partial(make, CIFAR, 5.0, 4096), PFGMPP: partial(make, FFHQ, None, 1024)},
    variants={NOISE: 1.0},
    providers=(
        Provider(BATCH, lambda s: lambda: target(s, s.query.data), ours=True, unavailable=_native_unavailable),
        Provider(PREPARED, _prepared, ours=True, unavailable=_native_unavailable),
        Provider(ORIGINAL, lambda s: lambda: original(s), share=share, remark=_remark),
    ),
    bars=(
        Bar(PFGM, BATCH, ORIGINAL, 80),
        Bar(PFGMPP, BATCH, ORIGINAL, 40),
        *(Bar(case, BATCH, ORIGINAL, 20, quantity="memory") for case in (PFGM, PFGMPP)),
    ),
    small=small,
    truth=truth,
    error=error,
    work=work,
)
