"""Rows of measurements on GPUs: the columns of benchmarks/results/gpu-*.csv."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import NamedTuple

import torch

import pfgm_fast as pf
from benchmarks import machine

Key = tuple[str, str, str, str]

PREFIX = "gpu-"  # of the names of files


@dataclass(frozen=True)
class Row:
    """One provider on one case. The columns are explained in docs/benchmarks.md."""

    operation: str
    case: str
    variant: str
    provider: str
    status: str  # ok, wrong or skipped
    median_ms: float | None
    p10_ms: float | None
    p90_ms: float | None
    repeats: int
    memory_mb: float | None
    error_bounds: float | None
    error_relative: float | None
    rows_checked: int
    gpairs_per_s: float | None
    tflop_per_s: float | None
    bound: str
    bound_share: float | None
    predicted_ms: float | None
    copy_tb_per_s: float
    bf16_tflop_per_s: float
    int8_top_per_s: float
    fp32_tflop_per_s: float
    remark: str
    device: str
    driver: str
    torch: str
    triton: str
    cuda: str
    pfgm_fast: str
    commit: str
    date: str

    @property
    def key(self) -> Key:
        return self.operation, self.case, self.variant, self.provider


class Origin(NamedTuple):
    """The last columns of a row."""

    device: str
    driver: str
    torch: str
    triton: str
    cuda: str
    pfgm_fast: str
    commit: str
    date: str


def origin(device: torch.device) -> Origin:
    cuda = device.type == "cuda"
    return Origin(
        device=torch.cuda.get_device_name(device) if cuda else machine.origin().machine,
        driver=_driver() if cuda else "none",
        torch=torch.__version__,
        triton=_version("triton"),
        cuda=torch.version.cuda or torch.version.hip or "none",
        pfgm_fast=pf.__version__,
        commit=machine.commit(),
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    )


def file_name(device: str) -> str:
    return PREFIX + machine.file_name(device)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _driver() -> str:
    """Of the first GPU: one machine has one driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout else "unknown"
