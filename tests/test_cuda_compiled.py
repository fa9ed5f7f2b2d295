"""The CUDA sources compiled, without a GPU, for the devices they are meant for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

CSRC = Path(__file__).parent.parent / "csrc"
ARCHITECTURES = (80, 90, 100)
REGISTERS = 65_536  # of a multiprocessor
THREADS = {"stage_in": 512}  # the largest block; else 256: csrc/ode/machine.hpp, small_field.hpp
KERNELS = {"reset", "start", "stage_in", "stage_out", "solve_field"}


class Kernel(NamedTuple):
    name: str
    architecture: int
    registers: int
    spilled: int


def nvcc() -> str:
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for candidate in (*(f"{home}/bin/nvcc" for home in homes), shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"):
        if candidate and os.access(candidate, os.X_OK):
            return candidate
    pytest.skip("no nvcc found: the CUDA sources were not compiled")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> list[Kernel]:
    """What the assembler says of every kernel; with the flags of setup.py, but without the host's half."""
    compiler, folder = nvcc(), tmp_path_factory.mktemp("cuda")
    known = subprocess.run([compiler, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    codes = [f"arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES if f"compute_{a}" in known.split()]
    assert codes
    options = ["-std=c++17", "-O3", "-fmad=false", f"-I{CSRC}", "-fatbin", "-Xptxas", "-v", "--threads", "2"]
    options += [word for code in codes for word in ("-gencode", code)]
    running = [
        subprocess.Popen(
            [compiler, *options, str(source), "-o", str(folder / f"{source.stem}.fatbin")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for source in sorted(CSRC.rglob("*.cu"))
    ]
    said = [process.communicate()[0] for process in running]
    assert [text for process, text in zip(running, said, strict=True) if process.returncode] == []
    return [kernel for text in said for kernel in kernels(text)]


def kernels(text: str) -> list[Kernel]:
    pattern = (
        r"Compiling entry function '(\w+)' for 'sm_(\d+)\w*'.*?bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers"
    )
    found = []
    for name, architecture, stores, loads, registers in re.findall(pattern, text, re.DOTALL):
        plain = next(kernel for kernel in sorted(KERNELS, key=len, reverse=True) if re.search(rf"\d{kernel}I", name))
        found.append(Kernel(plain, int(architecture), int(registers), int(stores) + int(loads)))
    return found


def test_every_kernel_compiles_for_every_device(report: list[Kernel]) -> None:
    compiled = {kernel.architecture for kernel in report}
    assert compiled
    for architecture in compiled:
        assert {k.name for k in report if k.architecture == architecture} == KERNELS


def test_nothing_spills(report: list[Kernel]) -> None:
    assert [k for k in report if k.spilled] == []


def test_every_block_has_the_registers_it_needs(report: list[Kernel]) -> None:
    assert [k for k in report if k.registers * THREADS.get(k.name, 256) > REGISTERS] == []
