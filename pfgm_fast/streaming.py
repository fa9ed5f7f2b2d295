"""Data that stay in host memory and stream through a device: the operator on one chunk at a time, and their merger.

Results over parts of the data form a monoid. With L_c the log-sum-exp over chunk c and s_c = softmax_c(L_c) its share,

    L = logsumexp_c L_c,    x_hat = sum_c s_c x_hat_c,    weight = s_c weight_c

and the trace of the Jacobian, a covariance of the data with their scores g, merges as covariances do: two parts with
shares s and t make s div_1 + t div_2 + s t (g_1 - g_2).(x_hat_1 - x_hat_2). All of it runs in float64, and the chunks
are a fixed function of the data's size and dtype, so that a row's bits do not depend on its batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pfgm_fast import _checks, operator, reference

CHUNK = 1 << 28  # bytes of data in one chunk; two lie on the device
SHARE = 0.5  # of a device's free memory that prepared data may fill: preparing them may take as much again


def free_memory(source: torch.device, target: torch.device) -> int | None:
    """Bytes free on `target` for data that lie on `source`; None if they need none there, or it cannot say."""
    if source.type != "cpu" or target.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(target)
    return free + torch.cuda.memory_reserved(target) - torch.cuda.memory_allocated(target)


def needed(data: Tensor, device: torch.device, backend: str, precision: str) -> bool:
    """Whether data (M, *data), as the backend prepares them, would fill more than `SHARE` of what `device` has free."""
    free = free_memory(data.device, device)
    if free is None:
        return False
    like = torch.empty(len(data), data[0].numel(), dtype=computed(data.dtype), device="meta")
    return sum(t.nbytes for t in operator.prepare(like, backend, precision)) > SHARE * free


def computed(dtype: torch.dtype) -> torch.dtype:
    """The dtype that data of `dtype` have for the operator."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def moments(
    x: Tensor, scale: Tensor, power: float, posterior: Callable[[float], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Posterior mean (B, N), log-sum-exp (B,) and score (B, N) from the operator as a function of its power alone."""
    mean, log_sum = posterior(power)
    if math.isinf(power):
        return mean, log_sum, (2 / scale)[:, None] * (mean - x)
    tilted, raised = posterior(power + 1)  # w_j c_j is the weight of the same kernel with its power raised by one
    factor = 2 * power / scale * torch.exp(raised - log_sum)
    return mean, log_sum, factor[:, None] * (tilted - x)


class HostData:
    """A data set in host memory, pinned, pageable or memory-mapped, that `device` sees one chunk at a time.

    Chunk k + 1 is copied on a stream of its own while the device works on chunk k. The host waits for the device only
    where data that are not pinned, or not in order, go through pinned memory that is still being read.

    Args:
        data: (M, *data) on the CPU; floating values are checked here, chunk by chunk.
        order: (M,) int64, the permutation in which the operator is to see them, or None. Rows are then gathered one by
            one, which a spinning disk will not like: such a file is better sorted beforehand.
        device: where they are evaluated; on the CPU the same chunks are evaluated in place.
        backend: a name in operator.BACKENDS.
        precision: a name in operator.PRECISIONS.
    Raises:
        ValueError: data that are not finite.
    """

    def __init__(
        self, data: Tensor, order: Tensor | None, device: torch.device, backend: str, precision: str = "highest"
    ) -> None:
        self._host = data.detach()
        order = None if order is None else order.cpu()
        self._order = None if order is None or bool((order[1:] > order[:-1]).all()) else order
        self._device, self._backend, self._precision = device, backend, precision
        M = len(data)
        chunks = -(-M // max(1, CHUNK // (data[0].numel() * data.element_size())))
        rows = -(-M // chunks)
        self._parts = [slice(start, min(start + rows, M)) for start in range(0, M, rows)]
        for part in self._parts:
            _checks.finite(f"data[{part.start}:{part.stop}]", self._host[part])

    def posterior(
        self, x: Tensor, scale: Tensor, log_weights: Tensor | None, segments: Tensor | None, power: float
    ) -> tuple[Tensor, Tensor]:
        """Posterior mean (B, N) and log-sum-exp (B,) float64; arguments as in `pfgm_fast.operator.posterior`."""
        mixture, mean = _Mixture(scale), torch.zeros_like(x, dtype=scale.dtype)
        for part, data in self._chunks():
            within = None if segments is None else (segments - part.start).clamp(0, part.stop - part.start)
            result, log_sum = operator.posterior(x, scale, data, _of(log_weights, part), within, power, self._backend)
            if within is not None:  # a row that sees nothing of this chunk is NaN here, but not bad
                log_sum = torch.where(within[:, 0] < within[:, 1], log_sum, -math.inf)
            _blend(mean, result, *mixture.shares(log_sum))
        log_sum = mixture.log_sum
        return mean.masked_fill_(log_sum.isnan()[:, None], math.nan).to(x.dtype), log_sum

    def divergence(self, x: Tensor, scale: Tensor, log_weights: Tensor | None, power: float) -> Tensor:
        """Trace (B,) of the Jacobian of the posterior mean, as `pfgm_fast.reference.divergence`."""
        x = x.to(scale.dtype)
        mixture, mean, score = _Mixture(scale), torch.zeros_like(x), torch.zeros_like(x)
        total = torch.zeros_like(scale)
        for part, data in self._chunks():
            masses = _of(log_weights, part)
            posterior = partial(operator.posterior, x, scale, data, masses, None, backend=self._backend)
            chunk_mean, log_sum, chunk_score = moments(x, scale, power, posterior)
            kept, added = mixture.shares(log_sum)
            between = kept * ((chunk_score - score) * (chunk_mean - mean)).sum(1)
            trace = reference.divergence(x, scale, data, masses, power)
            _blend(total, trace + between, kept, added)
            _blend(mean, chunk_mean, kept, added)
            _blend(score, chunk_score, kept, added)
        return torch.where(mixture.log_sum.isnan(), math.nan, total)

    def top_weights(
        self, x: Tensor, scale: Tensor, log_weights: Tensor | None, power: float, k: int
    ) -> tuple[Tensor, Tensor]:
        """The k largest weights (B, k), largest first, and their indices, as `pfgm_fast.reference.top_weights`."""
        mixture = _Mixture(scale)
        best = scale.new_empty(len(x), 0)  # logs of the largest weights so far, before they are normalised
        indices = torch.empty(len(x), 0, dtype=torch.int64, device=x.device)
        for part, data in self._chunks():
            masses, rows = _of(log_weights, part), part.stop - part.start
            _, log_sum = operator.posterior(x, scale, data, masses, None, power, self._backend)
            mixture.shares(log_sum)
            weights, places = operator.top_weights(x, scale, data, masses, power, self._backend, min(k, rows))
            logs = torch.cat([best, weights.to(scale.dtype).log() + log_sum[:, None]], 1)
            best, chosen = logs.topk(min(k, logs.shape[1]), 1)
            indices = torch.cat([indices, places + part.start], 1).gather(1, chosen)
        return torch.exp(best - mixture.log_sum[:, None]).to(x.dtype), indices

    def _chunks(self) -> Iterator[tuple[slice, list[Tensor]]]:
        """The data in order, as the operator takes them, and which they are."""
        if torch.compiler.is_compiling():
            raise RuntimeError("a field whose data stream from host memory cannot be compiled with fullgraph=True")
        chunks = map(self._rows, self._parts) if self._device.type == "cpu" else self._copied()
        for part, rows in zip(self._parts, chunks, strict=True):
            flat = rows.reshape(len(rows), -1)
            yield part, operator.prepare(flat.to(computed(flat.dtype)), self._backend, self._precision)

    def _rows(self, part: slice, out: Tensor | None = None) -> Tensor:
        """The rows of a part, on the host, written to `out` if that is given."""
        if self._order is not None:
            return torch.index_select(self._host, 0, self._order[part], out=out)
        return self._host[part] if out is None else out.copy_(self._host[part])

    def _copied(self) -> Iterator[Tensor]:
        """The rows of each part on the device, in one of two buffers.

        What the caller does with a chunk must be on the stream that is current, and under way when it asks for the
        next: that is copied into the other buffer meanwhile.
        """
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a field whose data stream from host memory cannot be captured in a CUDA graph")
        work, copies = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)
        direct = self._order is None and self._host.is_contiguous() and self._host.is_pinned()
        slots = [self._slot(staged=not direct) for _ in range(min(2, len(self._parts)))]
        copies.wait_stream(work)  # the buffers may be memory that work under way still reads
        for number, part in enumerate(self._parts):
            slot, rows = slots[number % len(slots)], part.stop - part.start
            if slot.staging is None:
                source = self._rows(part)
            else:
                slot.arrived.synchronize()
                source = self._rows(part, slot.staging[:rows])
            with torch.cuda.stream(copies):
                copies.wait_event(slot.read)
                slot.buffer[:rows].copy_(source, non_blocking=True)
                slot.buffer.record_stream(copies)  # should the caller stop here
                slot.arrived.record(copies)
            work.wait_event(slot.arrived)
            yield slot.buffer[:rows]
            slot.read.record(work)

    def _slot(self, staged: bool) -> _Slot:
        part = self._parts[0]
        shape = (part.stop, *self._host.shape[1:])
        staging = torch.empty(shape, dtype=self._host.dtype, pin_memory=True) if staged else None
        buffer = torch.empty(shape, dtype=self._host.dtype, device=self._device)
        return _Slot(buffer, staging, torch.cuda.Event(), torch.cuda.Event())


class _Slot(NamedTuple):
    """One of the two places that chunks take turns in."""

    buffer: Tensor  # on the device
    staging: Tensor | None  # pinned memory of the host, where the data cannot be copied from where they are
    arrived: torch.cuda.Event  # the buffer is written, the staging read
    read: torch.cuda.Event  # the buffer is read


class _Mixture:
    """The mass (B,) of the chunks so far: total * exp(top).

    Of exp and log alone, whose bits, unlike those of logaddexp, do not depend on a row's place in a tensor.
    """

    def __init__(self, like: Tensor) -> None:
        self._top = torch.full_like(like, torch.finfo(like.dtype).min)
        self._total = torch.zeros_like(like)

    def shares(self, log_sum: Tensor) -> tuple[Tensor, Tensor]:
        """Adds a chunk by its log mass (B,), -inf for none; returns what came before and the chunk as shares of all."""
        top = torch.maximum(self._top, log_sum)
        kept, added = self._total * torch.exp(self._top - top), torch.exp(log_sum - top)
        self._top, self._total = top, kept + added
        some = self._total != 0
        return torch.where(some, kept / self._total, 1.0), torch.where(some, added / self._total, 0.0)

    @property
    def log_sum(self) -> Tensor:
        """The log of the mass (B,), NaN where there is none."""
        return torch.where(self._total > 0, self._top + self._total.log(), math.nan)


def _blend(running: Tensor, new: Tensor, kept: Tensor, added: Tensor) -> None:
    """Makes means (B, ...) over what came before those over `new` too; a share of 0 tells nothing of `new`.

    A sum, not a step from one mean to the other, which would lose the nearer one's digits to the farther one.
    """
    kept, added = (share.reshape(-1, *(1,) * (new.ndim - 1)) for share in (kept, added))
    running.mul_(kept).add_((added * new).masked_fill_(added == 0, 0))


def _of(log_weights: Tensor | None, part: slice) -> Tensor | None:
    return None if log_weights is None else log_weights[part]
