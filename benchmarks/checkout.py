"""The checkout that is measured."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"


def results() -> Path:
    """Where results go: $OUT, else the folder that is committed."""
    return Path(os.environ.get("OUT") or RESULTS)


def commit() -> str:
    """The commit of the working tree, with -dirty where sources differ from it; outside of git, PFGM_COMMIT.

    Results are no sources: writing them makes no tree dirty.
    """
    command = ["git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results"]
    try:
        changed = _output(command)
        name = _output(["git", "rev-parse", "--short", "HEAD"]).strip()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("PFGM_COMMIT", "unknown")
    return f"{name}-dirty" if changed.strip() else name


def _output(command: list[str]) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
