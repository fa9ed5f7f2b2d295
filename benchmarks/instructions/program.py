"""The program that runs one case, built with the flags of the extension, and its instructions counted by Callgrind."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from benchmarks.checkout import ROOT

SOURCES = Path(__file__).parent
FOLDER = ROOT / "build" / "instructions"
NOT_EMULATED = "avx512"  # by Valgrind's processor


class Tools(NamedTuple):
    """What decides about a count beside our own sources."""

    compiler: str
    libc: str
    valgrind: str


class NotCountedError(RuntimeError):
    """Instructions cannot be counted here, and why."""


def tools() -> Tools:
    """What this machine would count with.

    Raises:
        NotCountedError: something is missing.
    """
    if not shutil.which("valgrind"):
        raise NotCountedError("valgrind is not installed")
    script = _setup_script()
    if script["sanitized"]():
        raise NotCountedError("PFGM_SANITIZE is set")
    try:
        words = shlex.split(script["find_compiler"]().command)
    except script["BuildError"] as error:
        raise NotCountedError(str(error)) from error
    # The whole line: distributions build the same release with different defaults.
    release, options = _output(*words, "--version").splitlines()[0], [word for word in words if word.startswith("-")]
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION") or "unknown"
    except ValueError:
        libc = "unknown"
    return Tools(" ".join([release, *options]), libc, _output("valgrind", "--version").strip())


def build() -> Path:
    """The program, up to date.

    Raises:
        NotCountedError: it does not compile here.
    """
    script = _setup_script()
    found = script["find_compiler"]()
    compiler = found._replace(isas=[isa for isa in found.isas if isa != NOT_EMULATED])
    try:
        text = script["ninja_text"](FOLDER, compiler, "off")
    except ImportError as error:
        raise NotCountedError(f"the driver was not built: {error}") from error
    objects = [target for _, target, _ in script["compile_steps"](compiler, FOLDER) if target != "bindings.cpp.o"]
    # Without libraries to load, Valgrind starts three times faster, and no others can be found at run time.
    rules = ["rule program", f"  command = {compiler.command} -fopenmp -static $in -o $out"]
    for source in sorted(SOURCES.glob("*.cpp")):
        objects.append(f"{source.stem}.o")
        rules.append(f"build {objects[-1]}: cxx {os.path.relpath(source, FOLDER)}")
    rules += [f"build driver: program {' '.join(objects)}", "default driver", ""]
    said = io.StringIO()
    with _alone(), contextlib.redirect_stdout(said):
        script["write_if_changed"](FOLDER / "build.ninja", text.removesuffix("default _C.so\n") + "\n".join(rules))
        try:
            script["run_ninja"](FOLDER)
        except script["BuildError"] as error:
            raise NotCountedError(f"the driver was not built: {error}\n{said.getvalue()}") from error
    return FOLDER / "driver"


def cases(driver: Path) -> list[tuple[str, str]]:
    """Names and instruction sets."""
    return [(case, isa) for case, isa in (line.split() for line in _output(str(driver)).splitlines())]


def count(driver: Path, case: str, isa: str, environment: Mapping[str, str] | None = None) -> int:
    """The instructions of one case, run in little more than the given environment.

    Raises:
        NotCountedError: Valgrind's processor, which has what the real one has, lacks the instruction set.
        RuntimeError: the case failed.
    """
    # Neither OMP_NUM_THREADS nor VALGRIND_OPTS nor ~/.valgrindrc nor GLIBC_TUNABLES is to have a say.
    kept = {name: os.environ[name] for name in ("PATH", "VALGRIND_LIB") if name in os.environ}
    callgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    callgrind += ["--collect-atstart=no", "--toggle-collect=measured"]
    done = subprocess.run(
        [*callgrind, f"./{driver.name}", case, isa],
        cwd=driver.parent,
        env={**kept, **(environment or {})},
        capture_output=True,
        text=True,
    )
    said = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("=="))
    if done.returncode == 3:
        raise NotCountedError(said)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or found is None:
        raise RuntimeError(f"{case} {isa} ended with status {done.returncode}: {said or done.stderr}")
    return int(found[1])


def _setup_script() -> dict[str, Any]:
    """The names of setup.py, which builds when it is imported."""
    with mock.patch("setuptools.setup"):
        return runpy.run_path(str(ROOT / "setup.py"))


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Two builds at once, as of two runs of the tests, would write the same files."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
