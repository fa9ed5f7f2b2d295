"""No speed-up is reported while the tests of an operation are red."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from benchmarks.checkout import ROOT
from pfgm_fast.bench.core import Operation


def tests_of(operations: Iterable[Operation[Any]]) -> list[str]:
    return list(dict.fromkeys(test for operation in operations for test in operation.tests))


def passed(tests: list[str]) -> bool:
    """Runs them; what pytest says of failures goes to the terminal."""
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "--benchmark-disable"]
    return subprocess.run([*command, *tests], cwd=ROOT, check=False).returncode == 0
