"""Compiles, without a GPU, the kernels that the host code launches, and reads what became of them.

    python tests/offline.py [--all] [--json FILE] [--markdown] [--targets sm_90 ...] [--calls WORD ...]
                            [--tile ROWS WARPS STAGES]

The library's own host functions run on meta tensors, once for each target, under a driver for a GPU that is not there.
Triton itself works out signature, specialisation, constants and options of every launch and hands them to a hook in the
place of its compiler; that list, without repetitions, is then compiled. So there is no second list of signatures that
could differ from what users get.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.cache import triton_key
from triton.runtime.driver import driver

from pfgm_fast import kernels
from pfgm_fast.kernels import noise, tiles

PROCESSES = 2
PIXELS, FLOATS, DOUBLES = torch.uint8, torch.float32, torch.float64


def posterior(
    B: int,
    M: int,
    N: int,
    kind: torch.dtype,
    D: float,
    compute: torch.dtype = FLOATS,
    prior: bool = False,
    segments: bool = False,
    precision: str = "highest",
) -> None:
    """The operator with B queries in `compute` over M data of a kind, as EmpiricalField calls it."""
    points, center = torch.empty(M, N, dtype=kind), torch.empty(N, dtype=DOUBLES)
    kernels.posterior(
        torch.empty(B, N, dtype=compute),
        torch.empty(B, dtype=DOUBLES),
        [points, center, *kernels.pack(points, center, precision)],
        torch.empty(M, dtype=DOUBLES) if prior else None,
        torch.empty(B, 2, dtype=torch.int64) if segments else None,
        (N + D) / 2,
    )


def student_t(B: int, N: int, D: float, dtype: torch.dtype, around: bool = True) -> None:
    """The noise of B rows: of `perturb`, or, around nothing, of `prior`."""
    y = torch.empty(B, N, dtype=dtype) if around else None
    noise.student_t(y, torch.empty(B, dtype=dtype), torch.empty(B, dtype=torch.int64), D, N, dtype)


# What is compiled: calls that between them launch every kernel, on tensors without memory ...
CALLS: dict[str, Callable[[], None]] = {
    "16 dimensions, D = 2048": lambda: posterior(1024, 50_000, 16, FLOATS, 2048.0),
    "latents": lambda: posterior(16_384, 1_000_000, 64, FLOATS, 128.0),
    "latents, high": lambda: posterior(16_384, 1_000_000, 64, FLOATS, 128.0, precision="high"),
    "images": lambda: posterior(128, 50_000, 3072, PIXELS, 2048.0),
    "images, high": lambda: posterior(128, 50_000, 3072, PIXELS, 2048.0, precision="high"),
    "images, D = inf, labels, log masses": lambda: posterior(
        4096, 50_000, 3072, PIXELS, math.inf, prior=True, segments=True
    ),
    "floats, 200000 a row": lambda: posterior(128, 50_000, 200_000, FLOATS, 1.0),
    "doubles": lambda: posterior(1024, 50_000, 64, DOUBLES, 128.0, DOUBLES),
    "noise": lambda: student_t(512, 3072, 2048.0, FLOATS),
}
# ... calls with arguments that are 1: Triton makes them constants in its front end, so that one target is enough ...
ONES: dict[str, Callable[[], None]] = {
    "one number": lambda: posterior(1, 1, 1, FLOATS, 1.0, prior=True),
    "one image of 17 numbers": lambda: posterior(1, 1, 17, PIXELS, 128.0),
    "one row of 300 numbers, labels": lambda: posterior(1, 1, 300, FLOATS, 128.0, segments=True),
    "one row of 17 doubles": lambda: posterior(1, 1, 17, DOUBLES, 128.0, DOUBLES),
    "noise, one number, D = inf": lambda: student_t(1, 1, math.inf, FLOATS),
}
# ... and, for --all, the other variants.
MORE: dict[str, Callable[[], None]] = {
    "plane, D = 1": lambda: posterior(65_536, 100_000, 2, FLOATS, 1.0),
    "plane, D = 128": lambda: posterior(65_536, 100_000, 2, FLOATS, 128.0),
    "5 pixels, D = inf, labels": lambda: posterior(1024, 50_000, 5, PIXELS, math.inf, segments=True),
    "2 doubles, D = inf, log masses": lambda: posterior(1024, 50_000, 2, DOUBLES, math.inf, DOUBLES, prior=True),
    "latents, D = inf, labels, log masses": lambda: posterior(
        16_384, 1_000_000, 64, FLOATS, math.inf, prior=True, segments=True
    ),
    "latents of 128 numbers, labels": lambda: posterior(16_384, 1_000_000, 128, FLOATS, 128.0, segments=True),
    "latents of 128 numbers, high": lambda: posterior(16_384, 1_000_000, 128, FLOATS, 128.0, precision="high"),
    "small images": lambda: posterior(16_384, 1_000_000, 64, PIXELS, 1.0),
    "small images, high": lambda: posterior(16_384, 1_000_000, 64, PIXELS, 1.0, precision="high"),
    "floats, 200000 a row, high": lambda: posterior(128, 50_000, 200_000, FLOATS, 1.0, precision="high"),
    "images of 200000 numbers": lambda: posterior(128, 50_000, 200_000, PIXELS, 1.0),
    "images for doubles, D = inf, labels, log masses": lambda: posterior(
        128, 50_000, 3072, PIXELS, math.inf, DOUBLES, prior=True, segments=True
    ),
    "noise in bfloat16, D = 1": lambda: student_t(512, 3072, 1.0, torch.bfloat16),
    "prior in float64, D = 2": lambda: student_t(100, 7, 2.0, DOUBLES, around=False),
}
ALL = CALLS | ONES | MORE

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


@dataclass
class Variant:
    """One kernel as compiled for one target.

    Attributes:
        kernel: module and function.
        constants: the values of its constexpr parameters, and the number of warps and stages.
        calls: which calls launch it.
        registers, spills, stack: per thread, count of instructions (AMD: of registers), bytes.
        shared_memory: bytes per program.
        tensor: tensor-core instructions by opcode.
        products: how many tl.dot of the source should become such instructions: all but float32 at "ieee".
        traps: instructions that abort the program; the compiler puts them where it cannot lower an operation.
        fused: whether the compiler may contract a multiplication and an addition as it sees fit.
        error: why it did not compile.
    """

    target: str
    kernel: str
    constants: dict[str, Any]
    calls: list[str] = field(default_factory=list)
    registers: int = 0
    spills: int = 0
    stack: int = 0
    shared_memory: int = 0
    tensor: dict[str, int] = field(default_factory=dict)
    products: int = 0
    traps: int = 0
    fused: bool = False
    error: str | None = None
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.kernel}({', '.join(f'{key}={value}' for key, value in self.constants.items())})"


@dataclass(frozen=True)
class Launch:
    """What Triton would compile: the function, and its own record of signature, constants, attributes and options."""

    target: str
    kernel: triton.JITFunction
    specialization: str

    def variant(self) -> Variant:
        record = json.loads(self.specialization)
        names = [self.kernel.arg_names[path[0]] for path in record["constant_keys"] if len(path) == 1]
        constants = dict(zip(names, record["constant_vals"], strict=False))
        options = record["options"]
        constants |= {"warps": options["num_warps"], "stages": options["num_stages"]}
        name = f"{self.kernel.module.rpartition('.')[2]}.{self.kernel.__name__}"
        return Variant(self.target, name, constants, fused=options["enable_fp_fusion"])


class AbsentGPU:
    """As much of a Triton driver as a launch needs before its kernel is compiled."""

    def __init__(self, target: str) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.target]

    def get_current_device(self) -> str:
        return self.target  # compiled kernels are kept by device

    def get_current_stream(self, device: str) -> int:
        return 0


@contextlib.contextmanager
def absent_gpu(target: str, hook: Callable[..., bool] | None = None) -> Iterator[None]:
    """Kernels are launched on an absent GPU; a hook that returns True is called in the place of the compiler."""
    driver.set_active(AbsentGPU(target))
    triton.knobs.runtime.jit_cache_hook = hook
    try:
        yield
    finally:
        driver._active = None  # reset_active() would look for a real one
        triton.knobs.runtime.jit_cache_hook = None


def record(calls: Sequence[str], targets: Sequence[str]) -> dict[Launch, list[str]]:
    """The different launches of the calls, and by which calls they are made."""
    found: dict[Launch, list[str]] = {}
    for target in targets:
        for name in calls:

            def hook(*, fn: Any, compile: dict[str, Any], target: str = target, name: str = name, **_: Any) -> bool:  # noqa: A002
                launch = Launch(target, fn.jit_function, compile["specialization_data"])
                if name not in found.setdefault(launch, []):
                    found[launch].append(name)
                return True

            with absent_gpu(target, hook), tiles.assume(target), torch.device("meta"):
                ALL[name]()
    return found


def inspect(launch: Launch) -> Variant:
    """Compiles one launch and reads the result."""
    variant = launch.variant()
    started = time.perf_counter()
    try:
        with absent_gpu(launch.target):
            compiled = launch.kernel.preload(launch.specialization)
    except Exception as error:  # noqa: BLE001 (whatever the compiler raises belongs into the table, for this kernel alone)
        variant.error = reason(error)
        return variant
    variant.shared_memory = compiled.metadata.shared
    variant.products = meant_for_tensor_cores(compiled.asm["ttir"])
    (read_cubin if "cubin" in compiled.asm else read_amdgcn)(variant, compiled.asm)
    variant.seconds = time.perf_counter() - started
    return variant


def reason(error: BaseException) -> str:
    """Why a compilation failed: errors are nested as the functions of the kernel are."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


def meant_for_tensor_cores(ttir: str) -> int:
    """The matrix products of a kernel without those of exact float32, which have no tensor-core instruction."""
    products = [line for line in ttir.splitlines() if "tt.dot" in line]
    return sum("inputPrecision" in line or not re.search(r": tensor<\d+x\d+xf32>", line) for line in products)


def read_cubin(variant: Variant, asm: Any) -> None:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        usage = dict(re.findall(r"\b(REG|STACK):(\d+)", tool("cuobjdump", "-res-usage", file.name)))
        variant.registers, variant.stack = int(usage["REG"]), int(usage["STACK"])
        # disassembly takes longer than many a compilation; spilled registers lie on the stack
        code = tool("nvdisasm", "-c", "-ndf", file.name) if variant.products or variant.stack else ""
    opcodes = Counter(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ +)?([A-Z0-9]+)", code, re.MULTILINE))
    variant.spills = opcodes["STL"] + opcodes["LDL"]
    variant.tensor = {name: count for name, count in sorted(opcodes.items()) if name.endswith("MMA")}
    variant.traps = len(re.findall(r"\btrap;", asm["ptx"]))  # the assembler's own, for tensor memory, are never reached


def tool(name: str, *arguments: str) -> str:
    command = [getattr(triton.knobs.nvidia, name).path, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def read_amdgcn(variant: Variant, asm: Any) -> None:
    text = asm["amdgcn"]

    def entry(name: str) -> int:
        found = re.search(rf"^\s+\.{name}:\s+(\d+)", text, re.MULTILINE)
        assert found, f".{name} is missing"
        return int(found[1])

    opcodes = Counter(re.findall(r"^\s+(v_s?mfmac?_\w+|s_trap)\b", text, re.MULTILINE))
    variant.registers, variant.stack = entry("vgpr_count"), entry("private_segment_fixed_size")
    variant.spills = entry("vgpr_spill_count")
    variant.traps = opcodes.pop("s_trap", 0)
    variant.tensor = dict(sorted(opcodes.items()))


def check(calls: Sequence[str], targets: Sequence[str]) -> list[Variant]:
    """Compiles everything that the calls launch on the targets, from nothing: no earlier compilation is reused."""
    recorded = record([name for name in calls if name not in ONES], targets)
    recorded |= record([name for name in calls if name in ONES], targets[:1])
    with tempfile.TemporaryDirectory() as cache:
        triton.knobs.cache.dir = cache
        variants = dict(in_processes(list(recorded), Path(cache)))
    for launch, variant in variants.items():
        variant.calls = recorded[launch]
    return [variants[launch] for launch in recorded]


def in_processes(launches: list[Launch], folder: Path) -> Iterator[tuple[Launch, Variant]]:
    """`inspect` of each launch in a process of its own, since a failed assertion in the compiler ends its process."""
    fork = multiprocessing.get_context("fork")  # so that the launches need not be pickled,
    triton_key()  # and this digest of all of Triton, a second's work, is made once
    running: dict[Any, tuple[Launch, BaseProcess]] = {}
    while launches or running:
        while launches and len(running) < PROCESSES:
            launch = launches.pop()
            receiver, sender = fork.Pipe(duplex=False)
            process: BaseProcess = fork.Process(target=_inspect, args=(launch, sender, folder))
            process.start()
            sender.close()
            running[receiver] = launch, process
        ready: list[Any] = connection.wait(list(running))
        for receiver in ready:
            launch, process = running.pop(receiver)
            try:
                variant: Variant = receiver.recv()
            except EOFError:
                process.join()
                said = (folder / f"{process.pid}.txt").read_text(errors="replace").splitlines()
                variant = launch.variant()
                variant.error = f"the compiler crashed: {next(iter(said), process.exitcode)}"
            yield launch, variant
            process.join()


def _inspect(launch: Launch, sender: Connection, folder: Path) -> None:
    with (folder / f"{os.getpid()}.txt").open("w") as said:
        os.dup2(said.fileno(), sys.stderr.fileno())  # a crash prints the whole kernel
        sender.send(inspect(launch))


def table(variants: Sequence[Variant]) -> str:
    head = ("target", "regs", "spills", "stack", "shared", "tensor instructions", "variant", "launched by")
    rows: list[tuple[str, ...]] = [head]
    for one in sorted(variants, key=lambda one: (one.name, list(TARGETS).index(one.target))):
        tensor = "TRAP" if one.traps else " ".join(f"{name}:{count}" for name, count in one.tensor.items()) or "-"
        numbers = (one.registers, one.spills, one.stack, one.shared_memory)
        outcome = (*map(str, numbers), tensor)
        if one.error is not None:
            outcome = ("failed", "", "", "", one.error.splitlines()[-1])
        rows.append((one.target, *outcome, one.name, "; ".join(one.calls)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def markdown(variants: Sequence[Variant]) -> str:
    """The table of docs/kernels.md: of several variants that a call launches, the one of most registers."""
    targets = [name for name in TARGETS if any(one.target == name for one in variants)]
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for one in sorted(variants, key=lambda one: one.registers):
        tensor: Counter[str] = Counter()
        for name, count in one.tensor.items():
            tensor[name.removeprefix("v_mfma_").partition("_")[0]] += count
        sizes = f"{one.registers} / {one.spills} / {math.ceil(one.shared_memory / 1024)}"
        for call in CALLS.keys() & one.calls:
            text = one.error or " ".join((sizes, *(f"{name}:{count}" for name, count in tensor.items())))
            cells.setdefault((one.kernel.replace("._", "."), call), {})[one.target] = text
    rows: dict[tuple[str, ...], list[str]] = {}
    for (kernel, call), cell in sorted(cells.items()):
        outcome = [cell.get(target, "") for target in targets]
        rows.setdefault((kernel, *outcome), [kernel, call, *outcome])
    head = (["kernel", "call", *targets], ["---"] * (2 + len(targets)))
    return "\n".join(f"| {' | '.join(row)} |" for row in (*head, *rows.values()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there as JSON")
    parser.add_argument("--markdown", action="store_true", help="print the table as docs/kernels.md has it")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--all", action="store_true", help="more calls: every variant of every kernel")
    parser.add_argument("--calls", nargs="+", metavar="WORD", help="only those that have a word in their names, of all")
    parser.add_argument(
        "--tile", nargs=3, type=int, metavar=("ROWS", "WARPS", "STAGES"), help="for every tunable kernel"
    )
    options = parser.parse_args()
    calls = list(ALL if options.all else CALLS | ONES)
    if options.calls is not None:
        calls = [name for name in ALL if any(word in name for word in options.calls)]
    tile = None if options.tile is None else tiles.Tile(*options.tile)
    started = time.perf_counter()
    with contextlib.nullcontext() if tile is None else tiles.trying(lambda *_: tile):
        variants = check(calls, options.targets)
    seconds = time.perf_counter() - started
    summary = f"{len(variants)} variants of {len(calls)} calls in {seconds:.0f} s by Triton {triton.__version__}"
    sys.stdout.write(f"{(markdown if options.markdown else table)(variants)}\n{summary}\n")
    if options.json is not None:
        options.json.write_text(json.dumps([{"name": one.name} | asdict(one) for one in variants], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
