"""Fixtures: the backends, and memory that is poison until written. Without a GPU, Triton's kernels are interpreted."""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

from pfgm_fast import operator

CPU_BACKENDS = ("torch", "native")
# Interpreted, the kernels would take hours for tests that are meant for every backend: those have tests of their own.
BACKENDS = (*CPU_BACKENDS, "triton") if torch.cuda.is_available() else CPU_BACKENDS
KNOWN = dict(operator.BACKENDS)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The problems are small: more threads would mostly wait for each other, and on a busy machine very long.

    That nothing depends on their number is tested where they are set.
    """
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def patched_once() -> None:
    """The interpreter patches Triton's language at each call of a device function, which takes half of its time.

    Once for each module that such functions come from is enough: a launch does it again.
    """
    if os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None:
        return
    interpreter = importlib.import_module("triton.runtime.interpreter")
    patching, patched = interpreter.InterpretedFunction.__call__, set[str]()

    def call(function: Any, *arguments: Any, **options: Any) -> Any:
        if function.fn.__module__ in patched:
            return function.rewrite()(*arguments, **options)
        patched.add(function.fn.__module__)
        return patching(function, *arguments, **options)

    interpreter.InterpretedFunction.__call__ = call


@pytest.fixture(autouse=True)
def backends_as_they_are() -> Iterator[None]:
    """What `available` changes lasts for one test."""
    yield
    operator.BACKENDS.update(KNOWN)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend in turn; one that cannot run is skipped, or fails where PFGM_EXT=on asked for it."""
    return available(request.param)


@pytest.fixture
def interpreted() -> str:
    """The backend "triton" for tensors on the CPU: interpreted, or by way of a GPU."""
    return available("triton")


@pytest.fixture
def native() -> str:
    return available("native")


def available(name: str) -> str:
    """The name, if that backend serves tensors on the CPU; with a GPU, "triton" is made to."""
    if name == "triton" and torch.cuda.is_available():
        operator.BACKENDS[name] = replace(KNOWN[name], name="by_gpu")
    why = operator.BACKENDS[name].refuses(torch.device("cpu"))
    if why is not None:
        (pytest.fail if os.environ.get("PFGM_EXT") == "on" else pytest.skip)(f"backend {name!r} cannot run: {why}")
    return name


@pytest.fixture
def freed() -> Iterator[None]:
    """Leaves no memory to the next test's allocator statistics, nor to other processes."""
    yield
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@pytest.fixture
def golden() -> Callable[[str], dict[str, NDArray[Any]]]:
    """Reads a file of outputs of the original systems by name."""

    def read(name: str) -> dict[str, NDArray[Any]]:
        with np.load(Path(__file__).parent / "data" / f"{name}.npz") as archive:
            return dict(archive)

    return read


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninitialised tensors hold NaN, or the largest integer, so that reading one before writing it shows."""

    def poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def wrapper(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = make(*args, **kwargs)
            if tensor.is_floating_point() or tensor.is_complex():
                return tensor.fill_(float("nan"))
            return tensor.fill_(True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max)

        return wrapper

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))
