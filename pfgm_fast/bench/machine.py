"""Where and from what a row was measured."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
from datetime import datetime, timezone
from typing import NamedTuple

import torch

import pfgm_fast as pf

PACKAGES = (
    "torch", "triton", "numpy", "scipy", "pykeops", "flash-sinkhorn", "torchdiffeq", "torchode", "jax", "diffrax"
)  # fmt: skip


class Origin(NamedTuple):
    """The last columns of a row.

    Attributes:
        versions: of the packages that are compared, as far as they are installed.
        commit: of the project's sources, where they are a checkout.
    """

    machine: str
    device: str
    versions: str
    pfgm_fast: str
    commit: str
    date: str


def origin(device: torch.device, commit: str = "") -> Origin:
    processor = pf.info().devices["cpu"].rsplit(", ", 1)[0]  # less the number of PyTorch's threads
    cuda = device.type == "cuda"
    return Origin(
        machine=processor,
        device=torch.cuda.get_device_name(device) if cuda else processor,
        versions=", ".join([*_packages(), *(_gpu() if cuda else ())]),
        pfgm_fast=pf.__version__,
        commit=commit,
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    )


def busy() -> str | None:
    """A warning, if other processes keep this machine so busy that no time means much."""
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    if load <= cores + 1:  # our own part of it is one core or few
        return None
    return f"Other processes keep this machine busy (load {load:.1f} on {cores} cores): read the times with care."


def file_name(device: str) -> str:
    """The name of a device's file of results."""
    plain = re.sub(r"\((r|tm)\)|logical|processor", " ", device.lower())
    return "-".join(re.findall(r"[a-z0-9.]+", plain)) + ".csv"


def _packages() -> list[str]:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _gpu() -> list[str]:
    """The CUDA of PyTorch, and the driver of the first GPU: one machine has one driver."""
    versions = [f"cuda {torch.version.cuda or torch.version.hip}"]
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (nobody's input)
        versions += [f"driver {line.strip()}" for line in done.stdout.splitlines()[:1] if done.returncode == 0]
    return versions
