"""Peak memory of calls on the CPU, each in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import math
import multiprocessing
import re
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch

STATUS = Path("/proc/self/status")


class Task(NamedTuple):
    """What is measured: a preparation and the call that it returns, after a small call that loads what stays loaded."""

    prepare: Callable[[], Callable[[], object]]
    first: Callable[[], object]


class CrashedError(RuntimeError):
    """The process of a measurement died: of too little memory, most likely."""


def unavailable() -> str | None:
    """Why memory cannot be measured on this system, or None."""
    return None if STATUS.exists() else "peak memory is read from /proc, which this system lacks"


def available() -> float:
    """Bytes that this system could still give, inf where it does not tell."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return 1024.0 * int(found[1]) if found else math.inf


def peak(make: Callable[[], Task]) -> float:
    """MB (1e6 bytes) above the inputs: what the preparation keeps and the peak of the call, on one thread.

    `make` is sent to a process that is forked from a server, which has imported PyTorch but never started a thread.

    Raises:
        CrashedError: the process died.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is for this process alone
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, handler)
    process = context.Process(target=_report, args=(sender, make), daemon=True)
    process.start()
    sender.close()  # so that recv ends, with EOFError, when the process dies
    try:
        value: float = receiver.recv()
    except EOFError:
        process.join()
        raise CrashedError(f"the process that measured the memory ended with {process.exitcode}") from None
    except KeyboardInterrupt:
        process.kill()
        raise
    process.join()
    return value


def _report(sender: Connection, make: Callable[[], Task]) -> None:
    with suppress(BrokenPipeError):  # the parent was interrupted meanwhile
        sender.send(of(make()))


def of(task: Task) -> float:
    """As `peak`, in this process."""
    torch.set_num_threads(1)
    task.first()
    _release()
    before = _status("VmRSS")
    call = task.prepare()
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
