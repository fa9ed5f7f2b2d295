"""What this installation can do, and on what."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from pfgm_fast import _extension
from pfgm_fast._version import __version__


@dataclass(frozen=True)
class Info:
    """The answer of `info`; str() is a short report.

    Attributes:
        backends: for each backend of the operator "ok", or the reason why it cannot run here. "auto" takes the first
            that serves the tensors it is given.
        devices: "cpu" and each CUDA device that PyTorch sees, described.
        versions: of pfgm_fast, python, torch, numpy, triton, and cuda (the one that PyTorch was built with).
        build: of the extension pfgm_fast._C: its compiler, the instruction sets it was built for, the one in use, its
            CUDA toolkit and what its own CUDA runtime finds; or, under "extension", why it is missing.
    """

    backends: dict[str, str]
    devices: dict[str, str]
    versions: dict[str, str]
    build: dict[str, str]

    def __str__(self) -> str:
        lines = [f"pfgm_fast {self.versions['pfgm_fast']}"]
        for title in ("backends", "devices", "versions", "build"):
            lines.append(f"{title}:")
            entries: dict[str, str] = getattr(self, title)
            width = max(map(len, entries), default=0)
            lines += [f"  {name:<{width}}  {text}" for name, text in entries.items()]
        return "\n".join(lines)


def info() -> Info:
    """What runs here: the backends, or why one cannot run; the devices; versions; how the extension was built.

    Loads the extension and asks the CUDA driver for its devices; nothing else in the library calls it.
    """
    from pfgm_fast.operator import BACKENDS

    return Info(
        backends={name: backend.unavailable() or "ok" for name, backend in BACKENDS.items()},
        devices=_devices(),
        versions=_versions(),
        build=_build(),
    )


def _devices() -> dict[str, str]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = {"cpu": f"{_cpu_name()}, {usable} logical cores, {torch.get_num_threads()} PyTorch threads"}
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        memory = found.total_memory / 2**30
        devices[f"cuda:{index}"] = f"{found.name}, sm_{found.major}{found.minor}, {memory:.1f} GiB"
    return devices


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    versions = {"pfgm_fast": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for name in ("numpy", "triton"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    versions["cuda"] = torch.version.cuda or "none (PyTorch was built without CUDA)"
    return versions


def _build() -> dict[str, str]:
    why = _extension.why_missing()
    if why is not None:
        return {"extension": why}
    from pfgm_fast import _C

    build = _C.build_info()
    build["isa in use"] = _C.instruction_set()
    count, reason, runtime, driver = _C.cuda_devices()
    if runtime:
        served = f"{driver // 1000}.{driver % 1000 // 10}" if driver else "no driver"
        build["cuda devices"] = f"{count} (driver serves CUDA {served})" if count else f"none ({reason})"
    return build
