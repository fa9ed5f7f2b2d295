"""Build of pfgm_fast: its packages, and the extension ``pfgm_fast._C`` through a build.ninja written here.

Per-source instruction sets, CUDA sources beside C++ ones and an install that survives a missing compiler are what
setuptools' own build of extensions cannot express. Environment variables (README, "Installation"):

    PFGM_EXT          auto (default): if the build fails, the install is pure Python and pfgm_fast.info() says why;
                      on: a failed build is an error; off: no extension
    PFGM_CUDA         auto (default): csrc/**/*.cu join when an nvcc >= 12.4 is found that builds them;
                      on: without them the build fails; off: they are left out
    PFGM_CUDA_ARCHS   such as "80;90;100+PTX"
    PFGM_SANITIZE     1: address and undefined-behaviour sanitizers, without CUDA
    PFGM_JOBS         parallel compiler processes
    CXX, CUDA_HOME    which compiler, which CUDA toolkit
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
CSRC = ROOT / "csrc"
MINIMAL_CUDA = (12, 4)  # conditional graph nodes
DEFAULT_ARCHS = (80, 90, 100)

# One *.isa.cpp is compiled once for each of these: its name, the float32 lanes of a vector, the compiler's flags.
ISAS = {
    "base": (4, ""),
    "avx2": (8, "-mavx2 -mfma -mf16c"),
    "avx512": (16, "-mavx512f -mavx512dq -mavx512vl -mavx512bw -mfma -mf16c -mprefer-vector-width=512"),
}
# The silenced warnings come from GCC's own intrinsics headers and from vectors as template arguments and parameters.
ISA_FLAGS = (
    "-ffp-contract=fast -fno-math-errno -fno-trapping-math -Wno-maybe-uninitialized -Wno-ignored-attributes -Wno-psabi"
)
BASE_FLAGS = "-std=c++17 -fPIC -fvisibility=hidden -fopenmp -ffp-contract=off -Wall -Wextra"
SANITIZE_FLAGS = (
    "-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined -DPFGM_SANITIZED"
)


class BuildError(RuntimeError):
    """The extension cannot be built, and why."""


class Compiler(NamedTuple):
    command: str
    executable: str
    name: str
    isas: list[str]


class Cuda(NamedTuple):
    nvcc: str
    release: str
    archs: str


def switch(name: str) -> str:
    """The value of an environment variable that is auto, on or off."""
    value = os.environ.get(name, "auto").lower()
    if value not in ("auto", "on", "off"):
        raise SystemExit(f"pfgm_fast: {name} is {value!r}, expected auto, on or off")
    return value


def sanitized() -> bool:
    return os.environ.get("PFGM_SANITIZE", "0") not in ("", "0")


def output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def find_compiler() -> Compiler:
    if os.environ.get("CXX"):
        words = shlex.split(os.environ["CXX"])
    else:
        words = [next(filter(shutil.which, ("g++", "clang++", "c++")), "")]
    if not words[0] or not shutil.which(words[0]):
        wanted = f"CXX={os.environ['CXX']!r} is not on PATH" if os.environ.get("CXX") else "install g++ or set CXX"
        raise BuildError(f"no C++ compiler found ({wanted})")
    # CXX may begin with a launcher such as ccache and end with options; nvcc wants the compiler alone.
    executable = next(word for word in reversed(words) if not word.startswith("-"))
    version = re.findall(r"\d+\.\d+(?:\.\d+)*", output_of(*words, "--version").splitlines()[0])
    x86 = output_of(*words, "-dumpmachine").startswith("x86_64")
    name = " ".join([Path(executable).name, *version[-1:]])
    return Compiler(shlex.join(words), executable, name, list(ISAS) if x86 else ["base"])


def cuda_archs(nvcc: str) -> str:
    """The architectures to build for: PFGM_CUDA_ARCHS, or those of the default list that this nvcc knows."""
    if os.environ.get("PFGM_CUDA_ARCHS"):
        return os.environ["PFGM_CUDA_ARCHS"].replace(",", ";").replace(".", "")
    known = {int(arch) for arch in re.findall(r"compute_(\d+)\b", output_of(nvcc, "--list-gpu-arch"))}
    return ";".join(str(arch) for arch in DEFAULT_ARCHS if arch in known) + "+PTX"


def find_cuda() -> Cuda | str:
    """A usable nvcc, or why there is none. It may be a wrapper script: no other path is derived from its place."""
    if switch("PFGM_CUDA") == "off":
        return "off (PFGM_CUDA=off)"
    if sanitized():
        return "off (PFGM_SANITIZE)"
    if not list(CSRC.rglob("*.cu")):
        return "off (no CUDA sources)"
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    candidates = [*(f"{home}/bin/nvcc" for home in homes), shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    reason = "off (no nvcc found; CUDA_HOME tells where)"
    for nvcc in filter(None, candidates):
        if not os.access(nvcc, os.X_OK):
            continue
        try:
            release = re.search(r"release (\d+)\.(\d+)", output_of(nvcc, "--version"))
            if release is None:
                raise BuildError("--version names no release")
            if (int(release[1]), int(release[2])) >= MINIMAL_CUDA:
                return Cuda(nvcc, f"{release[1]}.{release[2]}", cuda_archs(nvcc))
            reason = f"off (nvcc {release[1]}.{release[2]} is older than {MINIMAL_CUDA[0]}.{MINIMAL_CUDA[1]})"
        except (OSError, subprocess.CalledProcessError, BuildError) as error:
            reason = f"off ({nvcc} does not run: {error})"
    return reason


def gencode(archs: str) -> str:
    flags = []
    for arch in archs.split(";"):
        number = arch.removesuffix("+PTX")
        flags.append(f"-gencode arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode arch=compute_{number},code=compute_{number}")
    return " ".join(flags)


def describe(cuda: Cuda | str) -> str:
    if isinstance(cuda, str):
        return cuda
    return f"{cuda.release} for " + ", ".join(f"sm_{arch}" for arch in cuda.archs.split(";"))


def compile_steps(compiler: Compiler, folder: Path) -> list[tuple[Path, str, str]]:
    """(source, object file relative to the build folder, extra flags) of every C++ translation unit."""
    import pybind11

    steps = []
    for source in sorted(CSRC.rglob("*.cpp")):
        relative = source.relative_to(CSRC).as_posix()
        if relative.endswith(".isa.cpp"):
            for isa in compiler.isas:
                lanes, flags = ISAS[isa]
                flags = f"-DPFGM_ISA={isa} -DPFGM_LANES={lanes} {flags} {ISA_FLAGS}"
                steps.append((source, f"{relative}.{isa}.o", flags))
        elif relative == "bindings.cpp":
            # pybind11's templates take long and gain nothing from -O3. Its path, which changes with every isolated
            # build, stays out of the other commands, or they would all run again.
            includes = [pybind11.get_include(), sysconfig.get_paths()["include"], str(folder)]
            flags = "-O1 " + " ".join(f"-isystem {shlex.quote(path)}" for path in includes)
            steps.append((source, f"{relative}.o", flags))
        else:
            steps.append((source, f"{relative}.o", ""))
    return steps


def ninja_text(folder: Path, compiler: Compiler, cuda: Cuda | str) -> str:
    def path(value: Path | str) -> str:
        return str(value).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    include = f"-I{shlex.quote(str(CSRC))}"
    flags = f"{BASE_FLAGS} {SANITIZE_FLAGS if sanitized() else '-O3 -g0'} {include}"
    if compiler.isas == ["base"]:
        flags += " -DPFGM_BASE_ONLY"
    link_flags = "-shared -fopenmp -Wl,--exclude-libs,ALL"
    link_flags += " -fsanitize=address,undefined" if sanitized() else " -s"
    link = f"{compiler.command} $in {link_flags} -o $out"
    rules = []
    sources = []
    if isinstance(cuda, Cuda):
        flags += " -DPFGM_WITH_CUDA"
        ccbin = f"-ccbin {shlex.quote(compiler.executable)}"
        nvcc = f"{shlex.quote(cuda.nvcc)} {ccbin}"
        # -fmad=false mirrors -ffp-contract=off: code shared with the CPU says fma where it means it.
        nvcc_flags = f"-std=c++17 -O3 -fmad=false -Xcompiler -fPIC,-fvisibility=hidden {gencode(cuda.archs)} {include}"
        rules += ["rule nvcc", f"  command = {nvcc} -MD -MF $out.d {nvcc_flags} -c $in -o $out"]
        rules += ["  depfile = $out.d", "  deps = gcc"]
        sources += sorted(CSRC.rglob("*.cu"))
        # nvcc alone knows where its runtime lies, so it links; the static runtime needs no driver until it is called.
        link = f"{nvcc} -shared -cudart static --no-device-link $in -Xcompiler -fopenmp"
        link += " -Xlinker --exclude-libs,ALL,-s -o $out"
    rules += ["rule cxx", f"  command = {compiler.command} -MD -MF $out.d {flags} $flags -c $in -o $out"]
    rules += ["  depfile = $out.d", "  deps = gcc", "rule link", f"  command = {link}"]
    builds, objects = [], []
    for source, target, extra in compile_steps(compiler, folder):
        builds += [f"build {path(target)}: cxx {path(source)}", f"  flags = {extra}"]
        objects.append(path(target))
    for source in sources:
        target = f"{source.relative_to(CSRC).as_posix()}.o"
        builds.append(f"build {path(target)}: nvcc {path(source)}")
        objects.append(path(target))
    return "\n".join([*rules, *builds, f"build _C.so: link {' '.join(objects)}", "default _C.so", ""])


def write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def run_ninja(folder: Path) -> None:
    ninja = shutil.which("ninja")
    command = [ninja] if ninja else [sys.executable, "-m", "ninja"]
    if os.environ.get("PFGM_JOBS"):
        command += ["-j", os.environ["PFGM_JOBS"]]
    run = subprocess.run([*command, "-C", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(run.stdout, end="", flush=True)
    if run.returncode:
        lines = [line.strip() for line in run.stdout.splitlines()]
        errors = [line for line in lines if re.search(r"\b(error|fatal)\b", line)]
        raise BuildError([*errors, *lines[-1:], f"ninja ended with status {run.returncode}"][0])


def build_library(folder: Path) -> tuple[Path, str]:
    """Build the extension in a folder that later builds reuse; its file and the line that says what was built."""
    compiler = find_compiler()
    cuda = find_cuda()
    if isinstance(cuda, str) and switch("PFGM_CUDA") == "on":
        raise BuildError(f"PFGM_CUDA=on, but CUDA is {cuda}")
    folder.mkdir(parents=True, exist_ok=True)

    def build(cuda: Cuda | str) -> None:
        facts = {"COMPILER": compiler.name, "ISAS": ", ".join(compiler.isas), "CUDA": describe(cuda)}
        text = "".join(f'#define PFGM_BUILD_{key} R"({value})"\n' for key, value in facts.items())
        write_if_changed(folder / "pfgm_build.hpp", text)
        write_if_changed(folder / "build.ninja", ninja_text(folder, compiler, cuda))
        run_ninja(folder)

    try:
        build(cuda)
    except BuildError as error:
        if isinstance(cuda, str) or switch("PFGM_CUDA") == "on":
            raise
        # Perhaps only nvcc failed: it may not know this host compiler, or one of the architectures.
        cuda = f"off (nvcc {cuda.release}: {error})"
        build(cuda)
    report = f"extension built with {compiler.name} for {', '.join(compiler.isas)}; CUDA {describe(cuda)}"
    return folder / "_C.so", report


def leave_out(package: Path, filename: str, reason: str) -> None:
    """Take an older extension away, and leave the reason where pfgm_fast.info() finds it."""
    package.mkdir(parents=True, exist_ok=True)
    (package / filename).unlink(missing_ok=True)
    (package / "_build.txt").write_text(f"{reason}\n")
    print(f"pfgm_fast: extension not built: {reason}", flush=True)


class BuildExtension(build_ext):
    def run(self) -> None:
        package = ROOT / "pfgm_fast" if self.inplace or self.editable_mode else Path(self.build_lib) / "pfgm_fast"
        filename = Path(self.get_ext_filename("pfgm_fast._C")).name
        # Outside of the temporary folders of an editable build: what was compiled once serves every later build.
        name = "-".join(["ninja", str(sys.implementation.cache_tag)] + ["sanitize"] * sanitized())
        folder = Path(self.get_finalized_command("build").build_base).resolve() / name
        try:
            library, report = build_library(folder)
        except (BuildError, ImportError, OSError, subprocess.CalledProcessError) as error:
            reason = f"{type(error).__name__}: {error}"
            if switch("PFGM_EXT") == "on":
                raise SystemExit(f"pfgm_fast: extension not built (PFGM_EXT=on): {reason}") from error
            leave_out(package, filename, reason)
            return
        package.mkdir(parents=True, exist_ok=True)
        # A running process may have the old file mapped: replace it, never write into it.
        temporary = package / f"{filename}.new"
        shutil.copyfile(library, temporary)
        temporary.replace(package / filename)
        (package / "_build.txt").unlink(missing_ok=True)
        print(f"pfgm_fast: {report}", flush=True)


class BuildPython(build_py):
    def run(self) -> None:
        if not self.editable_mode:
            # setuptools copies into this folder but never removes: modules deleted since would reach the wheel.
            shutil.rmtree(Path(self.build_lib) / "pfgm_fast", ignore_errors=True)
        super().run()
        if switch("PFGM_EXT") == "off":
            package = ROOT / "pfgm_fast" if self.editable_mode else Path(self.build_lib) / "pfgm_fast"
            leave_out(package, f"_C{sysconfig.get_config_var('EXT_SUFFIX')}", "PFGM_EXT=off")


setup(
    packages=[
        *find_packages(include=["pfgm_fast", "pfgm_fast.*"]),
        "pfgm_fast.kernels",
        *(f"pfgm_fast.kernels.{name}" for name in find_packages("kernels")),
    ],
    package_dir={"pfgm_fast": "pfgm_fast", "pfgm_fast.kernels": "kernels"},
    package_data={"pfgm_fast": ["py.typed", "*.pyi"]},
    include_package_data=False,
    ext_modules=[] if switch("PFGM_EXT") == "off" else [Extension("pfgm_fast._C", sources=[])],
    cmdclass={"build_ext": BuildExtension, "build_py": BuildPython},
)
