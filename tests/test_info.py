from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

from pfgm_fast import __version__, _extension
from pfgm_fast._info import info
from pfgm_fast.operator import BACKENDS


def test_lists_every_backend_with_ok_or_a_reason() -> None:
    found = info().backends
    assert set(found) == set(BACKENDS)
    assert found["torch"] == "ok"
    for name, state in found.items():
        assert state == (BACKENDS[name].unavailable() or "ok")


def test_versions_are_those_of_the_running_packages() -> None:
    versions = info().versions
    assert versions["pfgm_fast"] == __version__
    assert versions["torch"] == torch.__version__
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))


def test_devices_are_those_of_torch() -> None:
    assert set(info().devices) == {"cpu"} | {f"cuda:{i}" for i in range(torch.cuda.device_count())}


def test_str_shows_every_entry() -> None:
    found = info()
    text = str(found)
    for part in (found.backends, found.devices, found.versions, found.build):
        for name, value in part.items():
            assert name in text
            assert value in text


def test_native_build_is_described() -> None:
    if os.environ.get("PFGM_EXT") != "on" and _extension.why_missing():
        pytest.skip(str(_extension.why_missing()))
    from pfgm_fast import _C

    build = info().build
    assert build["isas"].split(", ")[0] == "base"
    assert build["isa in use"] in build["isas"].split(", ")
    assert "extension" not in build
    count, reason, runtime, _ = _C.cuda_devices()
    assert bool(reason) == (count == 0)
    assert (runtime == 0) == build["cuda"].startswith("off")
    if torch.cuda.is_available() and runtime:
        assert count == torch.cuda.device_count()


def test_native_stub_names_what_the_extension_offers() -> None:
    if _extension.why_missing():
        pytest.skip(str(_extension.why_missing()))
    from pfgm_fast import _C

    stub = ast.parse((Path(__file__).parent.parent / "pfgm_fast/_C.pyi").read_text())
    declared = {node.name for node in stub.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    declared |= {target.id for node in stub.body if isinstance(node, ast.Assign) for target in ast_names(node)}
    built_with_cuda = {"CudaSlots", "WhileGraph"} if hasattr(_C, "CudaSlots") else set()
    offered = {name for name in vars(_C) if not name.startswith("_")}
    assert declared - {"CudaSlots", "WhileGraph"} == offered - built_with_cuda
    assert built_with_cuda <= offered


def ast_names(node: ast.Assign) -> list[ast.Name]:
    return [target for target in node.targets if isinstance(target, ast.Name)]


def test_a_missing_extension_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(_extension, "__file__", str(tmp_path / "_extension.py"))
    assert "pip install" in info().build["extension"]
    (tmp_path / "_build.txt").write_text("BuildError: no C++ compiler found\n")
    assert info().build == {"extension": "pfgm_fast._C was not built: BuildError: no C++ compiler found"}


def test_an_extension_that_does_not_load_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib, "import_module", broken)
    assert "libgomp.so.1" in str(_extension.why_missing())
