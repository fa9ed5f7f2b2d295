"""The compiled extension pfgm_fast._C, or why it is missing."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path


def why_missing() -> str | None:
    """Why pfgm_fast._C cannot be imported, or None if it can (it is imported then)."""
    if importlib.util.find_spec("pfgm_fast._C") is None:
        record = Path(__file__).with_name("_build.txt")  # setup.py leaves it where it leaves the extension out
        reason = record.read_text().strip() if record.exists() else "not for this Python; run pip install again"
        return f"pfgm_fast._C was not built: {reason}"
    try:
        importlib.import_module("pfgm_fast._C")
    except ImportError as error:
        return f"pfgm_fast._C was built but cannot be loaded: {error}"
    return None
