"""In which order the kernels add up floating numbers, whatever tile tuning chose: read from half compiled kernels.

    python tests/summation.py [--json FILE] [--targets sm_90 ...]

A sum along a tile is taken by each thread over its elements, then over the lanes of a warp, then over warps. How the
elements are dealt out follows from the shape of the tile and the number of warps; so does the instruction of a product.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from offline import TARGETS, Launch, absent_gpu, record
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend

from pfgm_fast.kernels import tiles

# Labels and log masses are added up likewise.
CALLS = ("images", "images, high", "latents", "latents, high", "floats, 200000 a row", "doubles")
# What tuning may choose in the place of the default.
OTHERS = (tiles.Tile(64, 8, 3), tiles.Tile(128, 8, 2))


@dataclass(frozen=True)
class Order:
    """How a kernel with a choice of tiles adds up floating numbers, launched by a call for a target."""

    target: str
    kernel: str
    call: str
    tile: str
    sums: tuple[str, ...]


def orders(calls: Sequence[str], targets: Sequence[str]) -> list[Order]:
    """Of all kernels that are launched otherwise if tiles are, with the default tiles and with the OTHERS."""
    usual = record(calls, targets)
    launches = {"default": usual}
    for tile in OTHERS:
        with tiles.trying(lambda *_, tile=tile: tile):
            launches[str(tile)] = record(calls, targets)
    changed = {launch for recorded in launches.values() for launch in recorded.keys() - usual.keys()}
    tunable = {launch.kernel for launch in changed}
    return [
        Order(launch.target, launch.variant().kernel, by[0], tile, sums(lowered(launch)))
        for tile, recorded in launches.items()
        for launch, by in recorded.items()
        if launch.kernel in tunable
    ]


def lowered(launch: Launch) -> str:
    """A launch after the front half of the compiler, which settles how tiles lie in registers."""

    def front_half(source: Any, target: GPUTarget, options: dict[str, Any]) -> str:
        backend, context = make_backend(target), ir.context()
        stages: dict[str, Any] = {}
        metadata: dict[str, Any] = {}
        parsed = backend.parse_options(options)
        ir.load_dialects(context)
        backend.load_dialects(context)
        backend.add_stages(stages, parsed, source.language)
        helpers = backend.get_codegen_implementation(parsed), backend.get_module_map()
        module = source.make_ir(target, parsed, *helpers, context)
        for stage in ("ttir", "ttgir"):
            module = stages[stage](module, metadata)
        return str(module)

    with absent_gpu(launch.target):
        launch.kernel.device_caches[launch.target]  # which brings the compiler with it
        whole, launch.kernel.compile = launch.kernel.compile, front_half
        try:
            return str(launch.kernel.preload(launch.specialization))
        finally:
            launch.kernel.compile = whole


def sums(ttgir: str) -> tuple[str, ...]:
    """What decides: for reductions by addition the layout along their axis, for products the instruction."""
    layouts = dict(re.findall(r"^(#\w+) = (#.*)$", ttgir, re.MULTILINE))
    found = []
    reduction = r'"tt\.reduce"\(.*?<\{axis = (\d) : i32\}> \(\{(.*?)\}\) : \(tensor<\w+, (.*?)>\) ->'
    for axis, body, layout in re.findall(reduction, ttgir, re.DOTALL):
        if "arith.addf" in body:
            whole = re.sub(r"#\w+\b(?![.<])", lambda name: layouts.get(name[0], name[0]), layout)
            found.append("sum " + re.sub(r"\[(\d+), (\d+)\]", rf"\{1 + int(axis)}", whole))
    product = r"= (tt\.dot|ttng\.\w*(?:dot|mma)) (.*) -> tensor<\d+x\d+xf\d+, (#\w+)>"
    for name, operands, layout in re.findall(product, ttgir):
        depth = re.findall(r"instrShape = \[\d+, \d+, (\d+)\]", layouts[layout])
        widths = re.findall(r"kWidth = \d+", operands) if "mfma" in layouts[layout] else []
        found.append(" ".join((name, *re.findall(r"versionMajor = \d+", layouts[layout]), *depth, *widths)))
    return tuple(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the list there as JSON")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=["sm_90", "gfx942"])
    options = parser.parse_args()
    found = orders(CALLS, options.targets)
    for one in found:
        sys.stdout.write(f"{one.target:<7} {one.kernel:<22} {one.tile:<34} {one.call}\n")
        sys.stdout.writelines(f"        {line}\n" for line in one.sums)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(one) for one in found], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
