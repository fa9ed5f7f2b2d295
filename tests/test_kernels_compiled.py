"""The Triton kernels compiled, without a GPU, for a target they are meant for: see offline.py and summation.py.

PFGM_COMPILE=all compiles every variant of every kernel for every target, which takes minutes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

SHARED_MEMORY = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}
# Those at full rate: a tile too small for them falls back to instructions of an older architecture.
TENSOR_INSTRUCTIONS = {
    "sm_80": "[HID]MMA",
    "sm_90": "[HI]GMMA|DMMA",
    "sm_100": "UTC[HI]MMA|DMMA",
    "gfx942": "v_mfma_.*",
}

ALL = os.environ.get("PFGM_COMPILE") == "all"
TARGETS = [*SHARED_MEMORY] if ALL else ["sm_90"]

Variant = dict[str, Any]


def report(path: Path, script: str, *options: str) -> list[dict[str, Any]]:
    """What a script finds, in a process of its own: interpreted kernels, as this one may have, do not compile."""
    command = [sys.executable, str(Path(__file__).with_name(script)), "--json", str(path), *options]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(path.read_text())
    return found


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> list[Variant]:
    path = tmp_path_factory.mktemp("offline") / "table.json"
    return report(path, "offline.py", "--targets", *TARGETS, *(["--all"] if ALL else []))


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def variants(table: list[Variant], target: str) -> list[Variant]:
    return [one for one in table if one["target"] == target]


def test_every_kernel_compiles(variants: list[Variant]) -> None:
    assert variants
    assert [(one["name"], one["error"]) for one in variants if one["error"] is not None] == []


def test_nothing_spills(variants: list[Variant]) -> None:
    """But for the few registers that float64 functions cost the repairs of a row, of which few need any."""
    allowed = {"recompute._recompute": 24, "mend._mend": 24}
    assert [(one["name"], one["spills"]) for one in variants if one["spills"] > allowed.get(one["kernel"], 0)] == []


def test_shared_memory_suffices(variants: list[Variant], target: str) -> None:
    assert [(one["name"], size) for one in variants if (size := one["shared_memory"]) > SHARED_MEMORY[target]] == []


def test_products_run_on_tensor_cores(variants: list[Variant], target: str) -> None:
    meant = [one for one in variants if one["products"]]
    missing = [
        (one["name"], one["tensor"])
        for one in meant
        if sum(one["tensor"].values()) < one["products"]
        or not all(re.fullmatch(TENSOR_INSTRUCTIONS[target], name) for name in one["tensor"])
    ]
    assert missing == []


def test_high_takes_fewer_products(variants: list[Variant]) -> None:
    """Of digits: 4 of floats and 2 of pixels in the place of 10 and 3; of halves: 1, and the sum of weights."""
    products = {(one["kernel"], call): one["products"] for one in variants for call in one["calls"]}
    highest, high = (products["fused._fused", call] for call in ("latents", "latents, high"))
    assert (highest, high) == (10 + 3, 4 + 1 + 1)
    highest, high = (products["weigh._weigh_digits", call] for call in ("images", "images, high"))
    assert (highest, high) == (3, 2)
    highest, high = (products["blend._blend", call] for call in ("images", "images, high"))
    assert highest == 2 * high
    assert not {("recompute._recompute", "latents, high"), ("mend._mend", "images, high")} & products.keys()


def test_no_operation_became_a_trap(variants: list[Variant]) -> None:
    assert [one["name"] for one in variants if one["traps"]] == []


def test_rounding_is_not_left_to_the_compiler(variants: list[Variant]) -> None:
    assert [one["name"] for one in variants if one["fused"]] == []


def test_tuning_changes_no_bit(tmp_path: Path) -> None:
    """Sums of floating numbers are taken in one order with every tile."""
    found: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for one in report(tmp_path / "orders.json", "summation.py", "--targets", *TARGETS):
        found.setdefault((one["target"], one["kernel"], one["call"]), set()).add(tuple(one["sums"]))
    assert found
    assert [key for key, orders in found.items() if len(orders) > 1] == []
