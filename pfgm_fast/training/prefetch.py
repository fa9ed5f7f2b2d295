"""The next step's target while the network is busy with this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch")
Made = TypeVar("Made")


class TargetPrefetcher(Generic[Batch, Made]):
    """Iterates over `target_fn(batch)` for the batches of a loader, one ahead.

    On a GPU the target of the next batch is computed on a stream of its own, so that it overlaps with what the caller
    does with this one; the caller's stream waits for it on the device, the host never does. Elsewhere it is computed
    when it is asked for.

    Args:
        loader: any iterable of batches; iterated anew by every `iter`.
        target_fn: from a batch to what the training step needs, as `lambda y: (x, z, pf.pfgm_target(x, z, field))`.
            Its tensors on the GPU may be in tuples, lists and dicts.
        device: whose stream; None: the current GPU, or none if there is none.
    """

    def __init__(
        self,
        loader: Iterable[Batch],
        target_fn: Callable[[Batch], Made],
        device: torch.device | str | None = None,
    ) -> None:
        if not callable(target_fn):
            raise TypeError(f"target_fn must be callable, got {type(target_fn).__name__}")
        self.loader = loader
        self.target_fn = target_fn
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def __len__(self) -> int:
        """The number of batches, if the loader knows it."""
        return len(self.loader)  # type: ignore[arg-type]  # a TypeError of its own otherwise

    def __iter__(self) -> Iterator[Made]:
        if self.device.type != "cuda":
            yield from map(self.target_fn, self.loader)
            return
        stream = torch.cuda.Stream(self.device)
        batches = iter(self.loader)
        ahead = self._start(batches, stream)
        while ahead is not None:
            (made,) = ahead
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(stream)
            for tensor in tensors_of(made):
                tensor.record_stream(current)  # or the allocator would give its memory back to the other stream
            ahead = self._start(batches, stream)
            yield made

    def _start(self, batches: Iterator[Batch], stream: Any) -> tuple[Made] | None:
        """Puts the next target on the stream."""
        try:
            batch = next(batches)
        except StopIteration:
            return None
        stream.wait_stream(torch.cuda.current_stream(self.device))  # the batch may have been made there
        with torch.cuda.stream(stream):
            return (self.target_fn(batch),)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors on a GPU in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        if value.is_cuda:
            yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_of(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_of(item)
