"""Where and from what a row was measured."""

from __future__ import annotations

import os
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import torch

import pfgm_fast as pf

ROOT = Path(__file__).parent.parent


class Origin(NamedTuple):
    """The last columns of a row."""

    machine: str
    torch: str
    pfgm_fast: str
    commit: str
    date: str


def origin() -> Origin:
    info = pf.info()
    processor = info.devices["cpu"].rsplit(", ", 1)[0]  # less the number of PyTorch's threads
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    return Origin(processor, torch.__version__, pf.__version__, commit(), date)


def commit() -> str:
    """The commit of the working tree, with -dirty where sources differ from it; outside of git, PFGM_COMMIT."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("PFGM_COMMIT", "unknown")
    return done.stdout.strip()


def file_name(machine: str) -> str:
    """The name of a machine's file of results."""
    plain = re.sub(r"\((r|tm)\)|logical|processor", " ", machine.lower())
    return "-".join(re.findall(r"[a-z0-9.]+", plain)) + ".csv"
