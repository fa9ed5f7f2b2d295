"""Capture of PyTorch's CUDA work in graphs, for solves that repeat one evaluation."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

SYNCHRONIZED = "synchronizing CUDA operation"  # PyTorch's words for it


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all solves: PyTorch keeps freed memory apart for each stream."""
    return torch.cuda.Stream(device)


@contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """Works on another stream, since the default one cannot be captured, in its turn with the caller's."""
    outer, inner = torch.cuda.current_stream(device), _side_stream(device)
    inner.wait_stream(outer)
    try:
        with torch.cuda.stream(inner):
            yield
    finally:
        outer.wait_stream(inner)


@contextmanager
def noticing_waits() -> Iterator[list[str]]:
    """Collects where the work of the block makes the host wait for the device, which no capture survives.

    Known before a capture is tried: a failed one leaves older versions of PyTorch with memory they cannot free.
    """
    before, places = torch.cuda.get_sync_debug_mode(), list[str]()
    if before == 2:  # such an operation raises already
        yield places
        return
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for one in seen:
        if SYNCHRONIZED in str(one.message):
            places.append(f"{one.filename}:{one.lineno}")
        elif "debug mode" not in str(one.message):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def capture(work: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A graph of the work on the current stream, kept for C++ too where PyTorch can, and what it returned.

    Unlike `torch.cuda.graph` it neither stops the device nor empties PyTorch's cache of memory. The graph owns the
    memory it works in; what is outside of it must be kept alive by the caller.
    """
    graph = torch.cuda.CUDAGraph(keep_graph=True) if keeps_graphs() else torch.cuda.CUDAGraph()
    graph.capture_begin(capture_error_mode="thread_local")
    try:
        result = work()
    except BaseException:
        with suppress(RuntimeError):  # the capture is broken, as the first exception says
            graph.capture_end()
        raise
    graph.capture_end()
    return graph, result


def keeps_graphs() -> bool:
    return hasattr(torch.cuda.CUDAGraph, "raw_cuda_graph")


def random_position(device: torch.device) -> int:
    """How far PyTorch's generator of the device has come."""
    generator = torch.cuda.default_generators[device.index or 0]
    return int(generator.get_offset())
