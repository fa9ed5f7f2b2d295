"""The slots' CUDA kernels run by the host (tests/shim), behind the interface of pfgm_fast._C.CudaSlots.

A pytest plugin: its fixtures put them in the place of the device.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pfgm_fast import _extension
from pfgm_fast.ode import cuda

ROOT = Path(__file__).parent.parent
OPTIONS = (
    *("-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-U_FORTIFY_SOURCE"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
)
COUNTERS: dict[str, tuple[int, Any]] = {  # offsets in csrc/ode/machine.hpp
    "running": (4, ctypes.c_int32),
    "iterations": (16, ctypes.c_int64),
    "cap": (24, ctypes.c_int64),
}


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels compiled by the host's compiler."""
    compiler = shutil.which("g++")
    if compiler is None:
        (pytest.fail if os.environ.get("PFGM_EXT") == "on" else pytest.skip)("no g++ found")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests' / 'shim'}"]
    source = str(ROOT / "tests" / "shim" / "shim.cpp")
    command = [compiler, *OPTIONS, *includes, source, "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = ctypes.CDLL(str(library))
    found.slot_bytes.restype = found.counter_bytes.restype = ctypes.c_int64
    return found


@pytest.fixture
def on_host(shim: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`pfgm_fast.ode.cuda` over the kernels on the host; what it takes for the extension."""
    shim.shuffle(0)
    sizes = {"slot_bytes": shim.slot_bytes(), "counter_bytes": shim.counter_bytes()}
    slots = type("Slots", (HostSlots,), {"library": shim, **sizes})
    extension = SimpleNamespace(CudaSlots=slots, cuda_devices=lambda: (1, "", 13000, 13000))
    monkeypatch.setattr(cuda, "_native", lambda: extension)
    monkeypatch.setattr(cuda, "_stream", lambda device: 0)
    return extension


@pytest.fixture
def compiled_slots() -> Any:
    """The slots in C++ on the CPU."""
    why = _extension.why_missing()
    if why is not None:
        (pytest.fail if os.environ.get("PFGM_EXT") == "on" else pytest.skip)(why)
    from pfgm_fast.ode.native import NativeSlots

    return NativeSlots


class HostSlots:
    """Its `finished` learns as late as the device's may."""

    library: ctypes.CDLL
    slot_bytes: int
    counter_bytes: int
    ahead = 3

    def __init__(
        self,
        wide: bool,
        addresses: Sequence[int],
        sizes: Sequence[int],
        numbers: Sequence[float],
        device: int,
        flags: int,
    ) -> None:
        self.wide = wide
        self.counters = addresses[-1]
        self.description = (
            (ctypes.c_size_t * 16)(*addresses),
            (ctypes.c_int64 * 5)(*sizes),
            (ctypes.c_double * 9)(*numbers),
        )
        self.left = sizes[0]
        self.awaited: deque[int] = deque()

    def _launch(self, what: int, answers: int = 0) -> None:
        self.library.launch(ctypes.c_int(self.wide), *self.description, ctypes.c_int(what), ctypes.c_void_p(answers))

    def start(self, stream: int) -> None:
        self._launch(0)
        self.ask(stream)

    def stage_in(self, stream: int) -> None:
        self._launch(1)

    def stage_out(self, answers: int, stream: int) -> None:
        self._launch(2, answers)

    def solve_field(self, M: int, data: int, log_weights: int, segments: int, *rest: Any) -> None:
        power, spread, answers, _stream = rest
        places = (ctypes.c_void_p(place or None) for place in (data, log_weights, segments))
        self.library.launch_field(
            *self.description,
            ctypes.c_int64(M),
            *places,
            ctypes.c_double(power),
            ctypes.c_double(spread),
            ctypes.c_void_p(answers),
        )

    def _counter(self, name: str) -> Any:
        offset, kind = COUNTERS[name]
        return kind.from_address(self.counters + offset)

    def counter(self, name: str) -> int:
        return int(self._counter(name).value)

    def set_counter(self, name: str, value: int) -> None:
        self._counter(name).value = value

    def ask(self, stream: int) -> None:
        self.finished()  # room for one more
        self.awaited.append(self.counter("running"))

    def finished(self) -> bool:
        if len(self.awaited) == self.ahead and self.left > 0:
            self.left = self.awaited.popleft()
        return self.left <= 0
