"""No speed-up is reported while the tests of an operation are red."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import torch

from benchmarks.checkout import ROOT
from pfgm_fast.bench.core import Operation

ON_GPU = ("tests/test_gpu.py", "tests/test_gpu_ode.py")


def tests_of(operations: Iterable[Operation[Any]], device: torch.device) -> list[str]:
    """Those of the operations, and for a GPU of its kernels."""
    own = dict.fromkeys(test for operation in operations for test in operation.tests)
    return [*own, *(ON_GPU if device.type == "cuda" else ())]


def passed(tests: list[str]) -> bool:
    """Runs them; what pytest says of failures goes to the terminal."""
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "--benchmark-disable"]
    return subprocess.run([*command, *tests], cwd=ROOT, check=False).returncode == 0
