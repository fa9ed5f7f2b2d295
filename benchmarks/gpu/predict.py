"""The time of our own kernels by what they do, against given ceilings: `python -m benchmarks.gpu.predict`.

Counted are the products, instructions and bytes of the passes as they are written, not of an ideal algorithm. A pass
takes at least the time of its busiest unit. Launches, caches and the repair of log weights in doubt are not counted.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from benchmarks.shapes import ON_GPU
from pfgm_fast.bench.ceilings import Ceilings
from pfgm_fast.bench.cells import markdown, number
from pfgm_fast.bench.queries import Shape
from pfgm_fast.kernels import MIDDLING, NARROW

H200 = Ceilings(copy=4300, matrix=60e3, half=790e3, int8=1580e3)  # nominal

COLUMNS = 128  # of the mean in one program of the pass "mean", which reads all weights of its rows
DEPTH = 32  # of a product of digits: a multiple of this


class Kind(NamedTuple):
    """What the tensor-core kernels do for a kind of data at a precision.

    Instructions were counted in the code for sm_90: those of a thread, products and their loads aside, over its pairs.
    """

    digits: int  # bytes of a number cut into digits
    value: int  # bytes of a number
    weight: int  # bytes of a weight between two passes
    int8: int  # products of digits
    fp16: int  # products of halves
    weigh: float  # instructions for a pair: from its score to its weight, in a pass of its own
    blend: float  # for a pair and a block of columns: from the weight to its halves, and from the data to theirs
    fuse: float  # for a pair, where both happen in one pass


PIXELS = Kind(digits=1, value=1, weight=4, int8=3, fp16=2, weigh=125, blend=21, fuse=62)
FLOATS = Kind(digits=4, value=4, weight=4, int8=10, fp16=3, weigh=167, blend=29, fuse=73)
KINDS = {  # by precision, of 8-bit data and of others
    "highest": (PIXELS, FLOATS),
    "high": (
        Kind(digits=1, value=1, weight=2, int8=2, fp16=1, weigh=109, blend=13, fuse=28),
        Kind(digits=2, value=4, weight=2, int8=4, fp16=1, weigh=144, blend=17, fuse=34),
    ),
}


class Pass(NamedTuple):
    """What one pass over the data does: operations of products, instructions of single lanes, bytes from memory."""

    name: str
    int8: float
    fp16: float
    instructions: float
    bytes: float

    def bound(self, ceilings: Ceilings) -> tuple[str, float]:
        """The unit that is busy longest, and its seconds."""
        times = {
            "int8 products": self.int8 / (ceilings.int8 or math.nan),
            "fp16 products": self.fp16 / (ceilings.half or math.nan),
            "instructions": self.instructions / (ceilings.matrix / 2),  # a multiply-add is two operations
            "memory": self.bytes / ceilings.copy,
        }
        unit = max(times, key=lambda name: times[name])
        return unit, times[unit] / 1e9


def passes(shape: Shape, precision: str = "highest") -> tuple[Pass, ...]:
    if shape.N <= NARROW:
        return _direct(shape)
    pixels, floats = KINDS[precision]
    kind = pixels if shape.pixels else floats
    return _fused(shape, kind) if shape.N <= MIDDLING else _wide(shape, kind)


def seconds(shape: Shape, ceilings: Ceilings, precision: str = "highest") -> float:
    return sum(step.bound(ceilings)[1] for step in passes(shape, precision))


def _direct(shape: Shape) -> tuple[Pass, ...]:
    """Instructions alone: a block of data is read by all queries while it lies in a cache."""
    pairs, N = shape.B * shape.M, shape.N
    read = shape.M * N * (PIXELS if shape.pixels else FLOATS).value
    nearest = 2 * N + 1  # a difference and a square for each coordinate, a minimum
    twice = shape.N + shape.D
    if math.isinf(shape.D):
        weight = 3  # less the reference, times a factor, exp2
    elif twice < 128 and twice == int(twice):
        weight = 1 + int(twice).bit_length() - 1 + int(twice).bit_count() - 1  # rsqrt, squarings, products
    else:
        weight = 25  # log1p as log2 with a correction, exp2
    return (
        Pass("reference", 0, 0, pairs * nearest, read),
        Pass("accumulation", 0, 0, pairs * (3 * N + weight + 1), read),
    )


def _fused(shape: Shape, kind: Kind) -> tuple[Pass, ...]:
    pairs, columns = shape.B * shape.M, 1 << (shape.N - 1).bit_length()
    return (
        Pass(
            name="fused",
            int8=kind.int8 * 2 * pairs * columns,
            fp16=kind.fp16 * 2 * pairs * columns,
            instructions=pairs * kind.fuse,
            bytes=shape.M * (kind.digits * columns + kind.value * shape.N),
        ),
    )


def _wide(shape: Shape, kind: Kind) -> tuple[Pass, ...]:
    """The weights are written once, and read once for each block of columns of the mean."""
    pairs, blocks = shape.B * shape.M, math.ceil(shape.N / COLUMNS)
    return (
        Pass(
            name="weights",
            int8=kind.int8 * 2 * pairs * _depth(shape.N),
            fp16=0,
            instructions=pairs * kind.weigh,
            bytes=shape.M * kind.digits * _depth(shape.N) + kind.weight * pairs,
        ),
        Pass(
            name="mean",
            int8=0,
            fp16=kind.fp16 * 2 * pairs * blocks * COLUMNS,
            instructions=pairs * blocks * kind.blend,
            bytes=shape.M * shape.N * kind.value + kind.weight * pairs * blocks,
        ),
    )


def _depth(N: int) -> int:
    return math.ceil(N / DEPTH) * DEPTH


def text(ceilings: Ceilings = H200) -> str:
    """The table, and what it was computed from."""
    lines = []
    for shape in ON_GPU:
        for precision in ("highest", "high") if shape.N > NARROW else ("highest",):
            found = [(step.name, *step.bound(ceilings)) for step in passes(shape, precision)]
            least = sum(time for _, _, time in found)
            steps = "; ".join(f"{name} {number(1e3 * time)} ({unit})" for name, unit, time in found)
            rate = shape.B * shape.M / least / 1e9
            lines.append((shape.name, precision, steps, number(1e3 * least), number(rate)))
    assumed = (
        f"Against {ceilings.copy / 1e3:g} TB/s, {(ceilings.half or 0) / 1e3:g} TFLOP/s of bf16 and fp16 products, "
        f"{(ceilings.int8 or 0) / 1e3:g} TOP/s of int8 products and {ceilings.matrix / 2e3:g} thousand billion "
        "instructions of single lanes a second."
    )
    return f"{assumed}\n\n{markdown(('case', 'precision', 'passes, ms (by what)', 'all, ms', 'Gpairs/s'), lines)}"


if __name__ == "__main__":
    print(text())
