"""Peak memory of providers, each in a process of its own: `python -m benchmarks.memory OPERATION CASE PROVIDER ...`."""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.core import Operation, Provider
from benchmarks.machine import ROOT
from benchmarks.registry import OPERATIONS

STATUS = Path("/proc/self/status")


def unavailable() -> str | None:
    return None if STATUS.exists() else "peak memory is read from /proc, which this system lacks"


def measure(operation: str, case: str, providers: Sequence[str]) -> dict[str, float]:
    """By provider, MB (1e6 bytes) above the inputs: what its preparation keeps, and the call's peak, on one thread."""
    command = [sys.executable, "-m", "benchmarks.memory", operation, case, *providers]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    peaks: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return peaks


def peaks(operation: Operation[Any], case: str, providers: Sequence[str]) -> dict[str, float]:
    """As `measure`, in this process, which must not have run threads: each provider runs in a fork of it."""
    torch.set_num_threads(1)
    inputs = operation.cases[case](next(iter(operation.variants)))
    return {name: _in_fork(operation, operation.provider(name), inputs) for name in providers}


def _in_fork(operation: Operation[Any], provider: Provider[Any], inputs: Any) -> float:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(_peak(operation, provider, inputs)))
    child.start()
    sender.close()  # so that recv ends, with EOFError, when the child dies
    value: float = receiver.recv()
    child.join()
    return value


def _peak(operation: Operation[Any], provider: Provider[Any], inputs: Any) -> float:
    with provider.within():
        provider.prepare(operation.small(inputs))()  # loads and compiles what the first call loads and compiles
        _release()
        before = _status("VmRSS")
        call = provider.prepare(inputs)
        _release()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark of memory starts anew: proc(5)
        call()
        return (_status("VmHWM") - before) / 1e6


def _status(field: str) -> int:
    """Bytes. Not resource.getrusage: its maximum includes that of the process this one was started from."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{STATUS} has no {field}")
    return 1024 * int(found[1])


def _release() -> None:
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU C library
    if trim is not None:
        trim(0)


if __name__ == "__main__":
    print(json.dumps(peaks(OPERATIONS[sys.argv[1]], sys.argv[2], sys.argv[3:])))
