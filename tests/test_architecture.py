"""Rules about the code as a whole: who imports whom, what an import loads, what a public name owes its user."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pfgm_fast

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pfgm_fast"

# A module imports only modules of rows above its own.
LAYERS = (
    ("_version", "_checks", "_extension", "solution", "multistep", "watching"),
    ("native_update",),
    ("philox", "schedule", "rowwise", "update", "student", "jacobian", "ode", "ode.tableau", "ode.controller"),
    ("reference", "native", "kernels", "churn", "denoiser", "adaptive", "ode.cohorts", "ode.native", "ode.capture"),
    ("operator", "fixed_step", "ode.cuda"),
    ("ode.solve",),
    ("streaming", "noise", "gradients"),
    ("field", "sampling", "integrate", "likelihood", "_info"),
    ("editing",),
    ("training", "training.perturbation", "training.prefetch", "training.targets"),
    ("training.losses",),
    ("compat._draws", "compat._install", "compat._steps", "compat._losses", "compat._poisson"),
    ("compat._noise_schedules",),
    ("compat._edm_samplers", "compat._preconditioning", "compat.poisson_flow"),
    ("compat.edm",),
    ("compat.stf",),
    ("compat.pfgmpp",),
    ("compat",),
    ("__init__",),
    ("bench", "bench.rows", "bench.cells", "bench.memory", "bench.machine", "bench.expressions"),
    ("bench.core", "bench.attention", "bench.packages"),
    ("bench.timing", "bench.queries", "bench.report"),
    ("bench.ceilings", "bench.posterior_mean"),
    ("bench.measure",),
    ("archive",),
    ("cli_bench",),
    ("cli_sample",),
    ("demo.style",),
    ("demo.digits", "demo.heart", "demo.hemisphere", "demo.timing"),
    ("demo",),
    ("cli",),
)
LAYER = {module: layer for layer, row in enumerate(LAYERS) for module in row}
SOLVERS = (
    "solution",
    "schedule",
    "multistep",
    "churn",
    "update",
    "fixed_step",
    "adaptive",
    "denoiser",
    "sampling",
    "integrate",
    "likelihood",
    "editing",
)
FREE_OF_FIELDS = (*SOLVERS, *(module for module in LAYER if module.startswith("ode")))


def imports_of(path: Path) -> Iterator[str]:
    """The modules of pfgm_fast that a file imports, at any depth of its code."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} line {node.lineno}: imports here are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "pfgm_fast":
                parents = [rest, *(rest.rsplit(".", n)[0] for n in range(1, rest.count(".") + 1))]
                yield next((module for module in parents if module in LAYER or module == "_C"), "__init__")


def modules() -> list[Path]:
    return sorted([*PACKAGE.rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])


def module_of(path: Path) -> str:
    """Its name within pfgm_fast; all of the kernels are one."""
    if not path.is_relative_to(PACKAGE):
        return "kernels"
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).replace(".__init__", "")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    module = module_of(path)
    assert module in LAYER, f"{path.name} has no place in LAYERS"
    for imported in imports_of(path):
        if imported == "_C":
            assert module in ("native", "native_update", "ode.native", "ode.cuda", "_info"), (
                f"{module} must not know the extension"
            )
        elif not (module == imported == "kernels"):
            assert LAYER[imported] < LAYER[module], f"{module} must not import {imported}"


@pytest.mark.parametrize("module", FREE_OF_FIELDS)
def test_solvers_know_no_field(module: str) -> None:
    path = PACKAGE / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    assert not {"operator", "field", "reference", "native"} & set(imports_of(path))


def test_import_loads_nothing_heavy() -> None:
    code = """
import sys, torch
before = set(sys.modules)
import pfgm_fast
heavy = {"triton", "pfgm_fast._C", "pfgm_fast.kernels", "matplotlib", "sklearn", "scipy"}
print(sorted((set(sys.modules) - before) & heavy))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def public_callables() -> dict[str, object]:
    found: dict[str, object] = {}
    for name in pfgm_fast.__all__:
        value = getattr(pfgm_fast, name)
        if not callable(value):
            continue
        found[name] = value
        if inspect.isclass(value) and value.__module__.startswith("pfgm_fast"):
            members = {key: member for key, member in vars(value).items() if inspect.isfunction(member)}
            generated = {key for key, member in members.items() if member.__code__.co_filename.startswith("<")}
            public = {key for key in members if not key.startswith("_") or key == "__call__"} - generated
            found.update({f"{name}.{key}": members[key] for key in public})
    return found


@pytest.mark.parametrize(("name", "value"), sorted(public_callables().items()))
def test_public_callables_are_documented_and_typed(name: str, value: object) -> None:
    doc = inspect.getdoc(value)
    assert doc, f"{name} has no docstring"
    assert not doc.startswith(f"{name}("), f"{name} has only the docstring that dataclass or NamedTuple generates"
    function = vars(value).get("__init__") if inspect.isclass(value) else value
    if not inspect.isfunction(function):
        return
    annotations = inspect.get_annotations(function)
    missing = [key for key in inspect.signature(function).parameters if key not in (*annotations, "self", "cls")]
    assert not missing, f"{name}: {missing} have no type"
    assert inspect.isclass(value) or "return" in annotations, f"{name} has no return type"


def test_version_stands_in_one_place() -> None:
    version = pfgm_fast.__version__
    assert f'"{version}"' in (PACKAGE / "_version.py").read_text()
    sources = [*modules(), ROOT / "setup.py", ROOT / "pyproject.toml", *(ROOT / "csrc").rglob("*.*pp")]
    repeated = [path.name for path in sources if version in path.read_text() and path.name != "_version.py"]
    assert repeated == []


@pytest.mark.parametrize("folder", ["pfgm_fast", "kernels", "csrc", "tests", "benchmarks"])
def test_files_stay_readable(folder: str) -> None:
    sources = [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".cpp", ".hpp", ".cu", ".cuh")]
    long = {path.name: lines for path in sources if (lines := len(path.read_text().splitlines())) > 400}
    assert long == {}
