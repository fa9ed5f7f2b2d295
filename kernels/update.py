"""The half steps of the fixed-step solvers on GPUs: a linear combination, and what becomes of its rows, in one launch.

The bits are those of pfgm_fast.update. A short row is held in registers by one program; a long one is shared by many,
and a second kernel acts when all of it is known. The host reads nothing, so that a CUDA graph can hold a solve.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pfgm_fast.native_update import Terms
from pfgm_fast.solution import Status

MOST_TERMS = 5
_SHORT = 8192  # numbers of a row that one program holds
_TILE = 1024  # numbers of a program whose rows are short,
_ROWS = 64  # and at most this many of them
_CHUNK = 2048  # numbers of a program that shares a long row
_FLAGS = 1024  # chunks whose outcome is read at a time
_OPTIONS = {"num_stages": 1, "enable_fp_fusion": False}

_STOPPED, _NONFINITE = tl.constexpr(int(Status.STOPPED)), tl.constexpr(int(Status.NONFINITE))


def attempt(out: Tensor, x: Tensor, status: Tensor, a: float, terms: Terms, work: Tensor) -> None:
    """As pfgm_fast.update.attempt: out (B, ...) contiguous, at most MOST_TERMS terms."""
    _half_step(out, x, out, status, a, terms, (None, None, 0.0, 0))


def advance(
    x: Tensor,
    t: Tensor,
    accepted: Tensor,
    status: Tensor,
    a: float,
    terms: Terms,
    t_next: float,
    count: int,
    work: Tensor,
) -> None:
    """As pfgm_fast.update.advance: x (B, ...) contiguous, at most MOST_TERMS terms."""
    _half_step(x, x, work[1], status, a, terms, (t, accepted, t_next, count))


def _half_step(
    out: Tensor,
    x: Tensor,
    new: Tensor,
    status: Tensor,
    a: float,
    terms: Terms,
    progress: tuple[Tensor | None, Tensor | None, float, int],
) -> None:
    if len(terms) > MOST_TERMS:
        raise ValueError(f"a half step takes at most {MOST_TERMS} terms, got {len(terms)}")
    if not (x.is_contiguous() and out.is_contiguous()):
        raise ValueError("the state must be contiguous")
    if not x.numel():
        return
    B, N = len(x), x.numel() // len(x)
    spare = [None] * (MOST_TERMS - len(terms))
    tensors = [*(tensor.contiguous() for _, tensor in terms), *spare]
    factors = [a, *(factor for factor, _ in terms), *[0.0] * len(spare)]
    with torch.cuda.device_of(x):
        if N <= _SHORT:
            columns = triton.next_power_of_2(N)
            rows = max(1, min(_TILE // columns, _ROWS))
            warps = min(max(columns * rows // 256, 1), 16)
            grid = (triton.cdiv(B, rows),)
            _short[grid](
                out, x, *tensors, *factors, status, *progress, B, N, ROWS=rows, COLUMNS=columns, num_warps=warps,
                **_OPTIONS,
            )  # fmt: skip
            return
        chunks = triton.cdiv(N, _CHUNK)
        good = torch.empty(B, chunks, dtype=torch.int8, device=x.device)
        grid = (B * chunks,)
        _chunk[grid](new, x, *tensors, *factors, good, N, chunks, CHUNK=_CHUNK, num_warps=4, **_OPTIONS)
        _settle[grid](
            out, new, good, status, *progress, N, chunks, CHUNK=_CHUNK, FLAGS=_FLAGS, num_warps=4, **_OPTIONS
        )  # fmt: skip


@triton.jit
def _short(
    out, x, d0, d1, d2, d3, d4,
    a: tl.float64, b0: tl.float64, b1: tl.float64, b2: tl.float64, b3: tl.float64, b4: tl.float64,
    status, t, accepted, t_next: tl.float64, count, B, N, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Whole rows: tl.constexpr None for t means that of `attempt`, else that of `advance`."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n = tl.arange(0, COLUMNS)
    inside = row < B
    place = row[:, None] * N + n[None, :]
    mask = inside[:, None] & (n < N)[None, :]
    value = _combined(place, mask, x, d0, d1, d2, d3, d4, a, b0, b1, b2, b3, b4)
    finite = tl.min((tl.abs(value) < float("inf")).to(tl.int32), 1) > 0
    good = _concluded(finite, status, t, accepted, t_next, count, row, inside, inside)
    if t is None:
        tl.store(out + place, tl.where(finite[:, None], value, 0.0), mask=mask)
    else:
        tl.store(out + place, value, mask=mask & good[:, None])


@triton.jit
def _chunk(
    out, x, d0, d1, d2, d3, d4,
    a: tl.float64, b0: tl.float64, b1: tl.float64, b2: tl.float64, b3: tl.float64, b4: tl.float64,
    good, N, chunks, CHUNK: tl.constexpr,
):  # fmt: skip
    """A part of a row, and whether it is finite."""
    program = tl.program_id(0)
    n = (program % chunks).to(tl.int64) * CHUNK + tl.arange(0, CHUNK)
    place, mask = (program // chunks).to(tl.int64) * N + n, n < N
    value = _combined(place, mask, x, d0, d1, d2, d3, d4, a, b0, b1, b2, b3, b4)
    tl.store(out + place, value, mask=mask)
    tl.store(good + program, tl.min((tl.abs(value) < float("inf")).to(tl.int8), 0))


@triton.jit
def _settle(
    out, new, good, status, t, accepted, t_next: tl.float64, count, N, chunks, CHUNK: tl.constexpr, FLAGS: tl.constexpr
):
    """A part of a row, now that all of it is known to be finite or not; the first one writes what becomes of it."""
    program = tl.program_id(0)
    zero = tl.zeros((1,), tl.int64)
    row, mine = zero + program // chunks, zero + program % chunks
    each = tl.arange(0, FLAGS)
    worst = tl.full((FLAGS,), 1, tl.int8)
    for first in range(0, chunks, FLAGS):
        worst = tl.minimum(worst, tl.load(good + row * chunks + first + each, mask=first + each < chunks, other=1))
    finite = tl.min(worst.to(tl.int32), 0, keep_dims=True) > 0
    # A part may find the row already ended by the first one; then it is not finite and both come to the same.
    advances = _concluded(finite, status, t, accepted, t_next, count, row, row >= 0, mine == 0)
    n = mine * CHUNK + tl.arange(0, CHUNK)
    place, mask = row * N + n, n < N
    if t is None:
        tl.store(out + place, tl.zeros((CHUNK,), out.dtype.element_ty), mask=mask & (finite == 0))
    else:
        value = tl.load(new + place, mask=mask & advances, other=0.0)
        tl.store(out + place, value, mask=mask & advances)


@triton.jit
def _combined(place, mask, x, d0, d1, d2, d3, d4, a, b0, b1, b2, b3, b4):
    """a x + b0 d0 + ..., each product and each sum rounded; 0 beyond the mask."""
    value = tl.load(x + place, mask=mask, other=0.0)
    value = value * tl.full(value.shape, a, value.dtype)
    value = _plus(value, d0, b0, place, mask)
    value = _plus(value, d1, b1, place, mask)
    value = _plus(value, d2, b2, place, mask)
    value = _plus(value, d3, b3, place, mask)
    return _plus(value, d4, b4, place, mask)


@triton.jit
def _plus(value, tensor, factor, place, mask):
    if tensor is not None:
        value += tl.load(tensor + place, mask=mask, other=0.0) * tl.full(value.shape, factor, value.dtype)
    return value


@triton.jit
def _concluded(finite, status, t, accepted, t_next, count, row, inside, writes):
    """Which rows advance; writes what becomes of them where `writes` holds."""
    running = tl.load(status + row, mask=inside, other=_NONFINITE) == _STOPPED
    good = running & finite
    tl.store(status + row, _NONFINITE, mask=writes & running & (finite == 0))
    if t is not None:
        steps = tl.load(accepted + row, mask=writes & good, other=0)
        tl.store(accepted + row, steps + count, mask=writes & good)
        tl.store(t + row, tl.full(row.shape, t_next, tl.float64), mask=writes & good)
    return good
