"""What reaches a wheel, an sdist and an installation, with and without a compiler; offline, in copies of the tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXTENSION = f"pfgm_fast/_C{sysconfig.get_config_var('EXT_SUFFIX')}"
BUILD_HOOK = "from setuptools import build_meta; import sys; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"

# The finder of an editable install would complete another copy of the package with the modules that it lacks.
FORGET_EDITABLE = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if not getattr(finder, "__module__", "").startswith("__editable__")]
"""


def build(tree: Path, out: Path, kind: str = "wheel", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the build of a tree as a front end without build isolation does."""
    return subprocess.run(
        [sys.executable, "-c", BUILD_HOOK, f"build_{kind}", str(out)],
        cwd=tree,
        env={**os.environ, "PFGM_EXT": "auto", "PFGM_CUDA": "off", "PFGM_SANITIZE": "0", **environment},
        capture_output=True,
        text=True,
    )


def copy_of_tree(target: Path) -> Path:
    ignored = shutil.ignore_patterns(
        ".*", "build", "dist", "*.egg-info", "__pycache__", "*.so", "_build.txt", "data", "demo-output"
    )
    shutil.copytree(ROOT, target, ignore=ignored)
    return target


def unpack(folder: Path, target: Path) -> Path:
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def run_python(code: str, path: Path, cwd: Path) -> str:
    """The output of `code` in a new interpreter that sees the pfgm_fast at `path` and no other."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    code = f"{FORGET_EDITABLE}\n{code}"
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def pure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree in which an extension was built in place and a sub-package of kernels exists, built with PFGM_EXT=off."""
    base = tmp_path_factory.mktemp("pure")
    tree = copy_of_tree(base / "tree")
    (tree / EXTENSION).write_text("a stale build")
    (tree / "kernels/deep/er").mkdir(parents=True)
    (tree / "kernels/deep/__init__.py").touch()
    (tree / "kernels/deep/er/__init__.py").touch()
    # What an earlier build left behind, of a module that is gone since.
    (tree / "build/lib/pfgm_fast").mkdir(parents=True)
    (tree / "build/lib/pfgm_fast/removed.py").touch()
    done = build(tree, base, PFGM_EXT="off")
    assert done.returncode == 0, done.stderr
    return base


def test_wheel_holds_both_trees_and_nothing_else(pure: Path) -> None:
    [wheel] = pure.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {f"pfgm_fast/{path.relative_to(ROOT / 'pfgm_fast')}" for path in (ROOT / "pfgm_fast").rglob("*.py*")}
    expected |= {f"pfgm_fast/kernels/{path.relative_to(ROOT / 'kernels')}" for path in (ROOT / "kernels").rglob("*.py")}
    expected |= {"pfgm_fast/kernels/deep/__init__.py", "pfgm_fast/kernels/deep/er/__init__.py", "pfgm_fast/py.typed"}
    expected |= {"pfgm_fast/_build.txt"}
    assert names == {name for name in expected if "__pycache__" not in name}


def test_wheel_works_from_elsewhere_and_tells_why_the_extension_is_missing(pure: Path, tmp_path: Path) -> None:
    site = unpack(pure, tmp_path / "site")
    code = """
import torch, pfgm_fast, pfgm_fast.kernels.deep.er
from pfgm_fast import _extension
print(pfgm_fast.__file__)
print(_extension.why_missing())
mean = pfgm_fast.posterior_mean(torch.zeros(1, 2), 1.0, torch.ones(3, 2), 1)
assert torch.allclose(mean, torch.ones(1, 2)), mean
"""
    output = run_python(code, site, tmp_path)
    assert output.splitlines() == [
        str(site / "pfgm_fast/__init__.py"),
        "pfgm_fast._C was not built: PFGM_EXT=off",
    ]


def test_sdist_holds_everything_that_a_build_needs(pure: Path, tmp_path: Path) -> None:
    done = build(pure / "tree", tmp_path, "sdist", PFGM_EXT="off")
    assert done.returncode == 0, done.stderr
    [sdist] = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    csrc = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert csrc <= names
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md", "kernels/__init__.py", "constraints.txt"} <= names
    assert not [name for name in names if name.endswith((".so", ".o"))]


@pytest.mark.skipif(shutil.which("g++") is None and "CXX" not in os.environ, reason="needs a C++ compiler")
def test_native_wheel_loads_from_elsewhere(tmp_path: Path) -> None:
    tree = copy_of_tree(tmp_path / "tree")
    # One translation unit shows what the packaging does; the field's take a minute.
    shutil.rmtree(tree / "csrc")
    (tree / "csrc").mkdir()
    source = '#include <pybind11/pybind11.h>\n#include "pfgm_build.hpp"\n'
    source += 'PYBIND11_MODULE(_C, m) { m.attr("isas") = PFGM_BUILD_ISAS; }\n'
    (tree / "csrc/bindings.cpp").write_text(source)
    done = build(tree, tmp_path, PFGM_EXT="on")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^pfgm_fast: extension built with .+ for base.*; CUDA off", done.stdout, re.MULTILINE)
    site = unpack(tmp_path, tmp_path / "site")
    assert not (site / "pfgm_fast/_build.txt").exists()
    code = "import pfgm_fast._C as c; print(c.__file__); print(c.isas)"
    file, isas = run_python(code, site, tmp_path).splitlines()
    assert file == str(site / EXTENSION)
    assert isas.startswith("base")
    # The same tree once more, now with an error in it: the good build must not be packaged again.
    (tree / "csrc/bindings.cpp").write_text("#include <no_such_header>\n")
    done = build(tree, tmp_path)
    assert done.returncode == 0, done.stderr
    broken = unpack(tmp_path, tmp_path / "broken")
    assert not (broken / EXTENSION).exists()
    assert "no_such_header" in (broken / "pfgm_fast/_build.txt").read_text()


@pytest.mark.parametrize("compiler", ["/nowhere/c++", "false"])
def test_without_a_working_compiler_the_install_is_pure_and_says_why(tmp_path: Path, compiler: str) -> None:
    tree = copy_of_tree(tmp_path / "tree")
    done = build(tree, tmp_path, PFGM_EXT="auto", CXX=compiler)
    assert done.returncode == 0, done.stderr
    site = unpack(tmp_path, tmp_path / "site")
    assert not list(site.glob("pfgm_fast/*.so"))
    output = run_python("import pfgm_fast._info as i; print(i.info().build['extension'])", site, tmp_path)
    assert output.startswith("pfgm_fast._C was not built: ")
    assert compiler in output
    done = build(tree, tmp_path, PFGM_EXT="on", CXX=compiler)
    assert done.returncode != 0
    assert re.search(r"extension not built \(PFGM_EXT=on\): \w+Error: .*" + compiler, done.stderr)


def test_an_unknown_switch_is_named(tmp_path: Path) -> None:
    done = build(copy_of_tree(tmp_path / "tree"), tmp_path, PFGM_EXT="maybe")
    assert done.returncode != 0
    assert "PFGM_EXT is 'maybe', expected auto, on or off" in done.stderr


def test_kernels_refuses_to_be_a_top_level_package(tmp_path: Path) -> None:
    code = """
try:
    import kernels
except ImportError as error:
    print(error)
"""
    assert "pfgm_fast.kernels" in run_python(code, ROOT, tmp_path)


def test_installed_kernels_are_those_of_this_tree(tmp_path: Path) -> None:
    code = "import pfgm_fast.kernels; print(pfgm_fast.kernels.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == ROOT / "kernels/__init__.py"


def test_instruction_sets_share_no_function() -> None:
    """A weak symbol is kept once by the linker: from an AVX-512 object, it would end a process on an AVX2 machine."""
    objects = sorted((ROOT / "build" / f"ninja-{sys.implementation.cache_tag}").rglob("*.isa.cpp.*.o"))
    if not objects or shutil.which("nm") is None:
        pytest.skip("needs the build folder of an editable install, and nm")
    listing = subprocess.run(
        ["nm", "--defined-only", "--extern-only", *objects], capture_output=True, text=True, check=True
    )
    symbols = [line.split() for line in listing.stdout.splitlines() if len(line.split()) == 3]
    assert symbols
    assert [name for _, kind, name in symbols if kind in "WVuiw"] == []
    names = [name for _, _, name in symbols]
    assert len(names) == len(set(names))
