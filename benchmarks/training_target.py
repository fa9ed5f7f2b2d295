"""The operation `training_target`: PFGM's and PFGM++'s targets of a training step, beside the original code's."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast.bench import expressions, queries
from pfgm_fast.bench.core import Answer, Case, Error, Operation, Provider, Work, first_of
from pfgm_fast.bench.expressions import in_data_units
from pfgm_fast.bench.queries import SPREAD, Query, Shape

ORIGINAL = "original formula"
KEPT = "original formula in chunks, memory kept"
BATCH = "pfgm_fast, float32 batch"
PREPARED = "pfgm_fast, prepared uint8 field"

CIFAR = Shape(128, 4096, 3072, 1)
FFHQ = Shape(32, 4096, 12288, 128)
PFGM, PFGMPP = f"PFGM, CIFAR-10: {CIFAR.name}", f"PFGM++, FFHQ-64: {FFHQ.name}"
NOISE = "of training"
CHUNK_BYTES = 5e8  # of one tensor of the formula in chunks


@dataclass(frozen=True)
class Step:
    """A batch of perturbed images, and the images that are the reference of its targets.

    Attributes:
        query: the batch with its noise levels (z, where D = 1) over the reference as float32.
        pixels: the reference as uint8.
        gamma: of PFGM's normalised field (B, N + 1); None: the target is PFGM++'s posterior mean (B, N).
        fitting: how many images of the reference the original formula gets.
    """

    query: Query
    pixels: Tensor
    gamma: float | None
    fitting: int


def make(shape: Shape, gamma: float | None, fitting: int, variant: str, device: torch.device) -> Step:
    """The data of `posterior_mean` in grey levels, the first B of them perturbed as the method does in training."""
    pixels = queries.make(replace(shape, pixels=True), SPREAD, device).data
    images = in_data_units(pixels, torch.float32)
    sets = tuple(_perturbed(images[: shape.B], shape, gamma, turn) for turn in range(queries.SETS))
    x, sigma = (t.clone() for t in sets[0])
    rows = torch.linspace(0, shape.B - 1, min(shape.B, queries.CHECKED), device=device).long()
    return Step(Query(x, sigma, images, shape.D, None, sets, rows), pixels, gamma, fitting)


def _perturbed(images: Tensor, shape: Shape, gamma: float | None, turn: int) -> tuple[Tensor, Tensor]:
    seeds = turn * shape.B + torch.arange(shape.B, device=images.device)
    if gamma is not None:
        return pf.pfgm_perturb(images, seeds=seeds)
    normal = torch.randn(shape.B, generator=torch.Generator().manual_seed(turn))
    sigma = torch.exp(1.2 * normal - 1.2).to(images.device)
    return pf.perturb(images, sigma, shape.D, seeds=seeds), sigma


def small(step: Step) -> Step:
    return replace(step, query=queries.small(step.query), pixels=step.pixels[:64])


def truth(step: Step) -> Tensor:
    """The target in float64, from the exact values of the pixels."""
    query = step.query
    mean = queries.truth(replace(query, data=step.pixels))
    if step.gamma is None:
        return mean
    x, sigma = (t[query.rows].double() for t in query.sets[0])
    vector = torch.cat([mean - x, -sigma[:, None]], 1)
    result: Tensor = math.sqrt(mean.shape[1]) * vector / (vector.norm(dim=1, keepdim=True) + step.gamma)
    return result


def error(step: Step, result: Tensor, exact: Tensor) -> Error:
    """In units of the posterior mean's bound, for PFGM of what that leaves of the target, and relative."""
    query = step.query
    if step.gamma is None:
        return queries.error(query, result, exact)
    off, length = (result[query.rows].double() - exact).norm(dim=1).nan_to_num(math.inf), exact.norm(dim=1)
    slope = (math.sqrt(step.pixels.shape[1]) - length) / step.gamma  # sqrt(N) / (|v| + gamma): how far the mean tells
    x = query.sets[0][0][query.rows].double()
    scale = x.norm(dim=1).clamp_min(query.data.norm(dim=1).max().double())
    bound = 1e-4 * exact[:, :-1].norm(dim=1) + slope * 4 * torch.finfo(query.x.dtype).eps * scale
    return queries.of_rows(off / bound, off / length)


def work(step: Step, answer: Answer) -> Work:
    return queries.work(step.query, answer)


def target(step: Step, reference: Tensor | pf.EmpiricalField) -> Tensor:
    query = step.query
    if step.gamma is None:
        return pf.pfgmpp_target(query.x, query.sigma, reference, query.D)
    return pf.pfgm_target(query.x, query.sigma, reference, step.gamma)


def original(step: Step) -> Tensor:
    """The target as the published code computes it, on the first `fitting` images of the reference."""
    return original_on(step, step.query.x, step.query.sigma, charges(step, step.fitting))


def in_chunks(step: Step) -> Tensor:
    """The same on the whole reference, some rows at a time."""
    query, rows = step.query, chunk_rows(step)
    data = charges(step, len(step.pixels))
    result = query.x.new_empty(len(query.x), query.x.shape[1] + (step.gamma is not None))  # what remains, made first
    for part, x, sigma in zip(result.split(rows), query.x.split(rows), query.sigma.split(rows), strict=True):
        part.copy_(original_on(step, x, sigma, data))
    return result


def chunk_rows(step: Step) -> int:
    return max(1, int(CHUNK_BYTES // (step.pixels.numel() * (8 if step.gamma is None else 4))))


def charges(step: Step, count: int) -> Tensor:
    """The first images of the reference as the formula takes them: for PFGM with z = 0 (M, N + 1), else in float64."""
    data = step.query.data[:count]
    return data.double() if step.gamma is None else torch.cat([data, data.new_zeros(len(data), 1)], 1)


def original_on(step: Step, x: Tensor, sigma: Tensor, data: Tensor) -> Tensor:
    """With c and E as in `expressions.original`, for rows x: sum_j c_j y_j, or for PFGM sqrt(N) E / (|E| + gamma)."""
    if step.gamma is not None:
        field = expressions.original_field(torch.cat([x, sigma[:, None]], 1), data, 1.0)
        result: Tensor = math.sqrt(x.shape[1]) * field / (field.norm(dim=1, keepdim=True) + step.gamma)
        return result
    D = step.query.D
    square = (x.double()[:, None] - data[None]).pow(2).sum(-1) + D * sigma.double()[:, None] ** 2
    weights = expressions.original_weights(square.sqrt(), x.shape[1] + D)
    return (weights[..., None] * data[None]).sum(1).to(x.dtype)


def share(step: Step) -> float:
    return min(1.0, step.fitting / len(step.pixels))


def _dtype(step: Step) -> str:
    return "float64" if step.gamma is None else "float32"


def _remark(step: Step) -> str:
    if share(step) == 1:
        return _dtype(step)
    times = f"{1 / share(step):g}"
    return f"{_dtype(step)}; on {step.fitting} of the {len(step.pixels)} images, time and memory × {times}"


@contextmanager
def _memory_kept() -> Iterator[None]:
    """Two chunks' memory is with the process and stays there: the system need not zero new pages for every tensor."""
    library = ctypes.CDLL(None)
    trim_threshold, mmap_max = -1, -4  # of mallopt(3)
    library.mallopt(trim_threshold, -1)
    library.mallopt(mmap_max, 0)
    torch.ones(int(2.2 * CHUNK_BYTES), dtype=torch.uint8)
    try:
        yield
    finally:
        library.mallopt(trim_threshold, 128 << 10)
        library.mallopt(mmap_max, 1 << 16)
        library.malloc_trim(0)


def _memory_not_kept() -> str | None:
    return None if hasattr(ctypes.CDLL(None), "mallopt") else "memory cannot be kept without the GNU C library"


def _prepared(step: Step) -> Callable[[], Tensor]:
    field = pf.EmpiricalField(step.pixels, step.query.D)
    return lambda: target(step, field)


OPERATION = Operation(
    name="training_target",
    cases={
        PFGM: Case(partial(make, CIFAR, 5.0, 4096)),
        PFGMPP: Case(partial(make, FFHQ, None, 1024)),
    },
    variants=(NOISE,),
    providers=(
        Provider(BATCH, lambda s: lambda: target(s, s.query.data), ours=True),
        Provider(PREPARED, _prepared, ours=True),
        Provider(ORIGINAL, lambda s: lambda: original(s), share=share, remark=_remark),
        Provider(
            KEPT,
            lambda s: lambda: in_chunks(s),
            devices=("cpu",),
            refuses=lambda s: _memory_not_kept(),
            within=_memory_kept,
            remark=lambda s: f"{_dtype(s)}; rows at a time: {chunk_rows(s)}",
        ),
    ),
    truth=truth,
    error=error,
    work=work,
    small=small,
    turn=lambda step: step.query.turn(),
    tests=("tests/test_training.py", "tests/test_golden_field.py"),
    rival=first_of(BATCH),
    alone=True,  # the C library's settings of memory cannot all be taken back
    error_unit="of |x - x_hat|, for PFGM of the target",
)
