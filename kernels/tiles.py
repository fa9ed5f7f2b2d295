"""Tile choices of the Triton kernels, by target and kernel and shape class, in this one place.

Only what cannot change a bit of a result may be chosen here: how many query rows a program takes, its warps and its
pipeline stages. The blocks of data that sums run over are constants of the kernels. A choice comes, in this order, from
`trying`, from the cache that `pfgm_fast.kernels.tune` writes for a GPU, from DEFAULTS for its target, or from those for
an unknown one, which are small enough to run everywhere.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch

from pfgm_fast._version import __version__

Key = tuple[str, str]  # a kernel and a shape class; where that is "", the default of every other class

UNKNOWN = "unknown"
INTERPRETER = "interpreter"


@dataclass(frozen=True)
class Tile:
    """What is tunable in a launch: query rows per program, warps and pipeline stages.

    Launch with `kernel[grid](..., ROWS=tile.rows, **tile.options, enable_fp_fusion=False)`.
    """

    rows: int
    warps: int
    stages: int

    def __post_init__(self) -> None:
        for name, limits in (("rows", (16, 1024)), ("warps", (1, 16)), ("stages", (1, 8))):
            value = getattr(self, name)
            if type(value) is not int or not limits[0] <= value <= limits[1]:
                raise ValueError(f"{name} must be an integer from {limits[0]} to {limits[1]}, got {value!r}")
            if name != "stages" and value & (value - 1):
                raise ValueError(f"{name} must be a power of two, got {value}")

    @property
    def options(self) -> dict[str, int]:
        """The keyword arguments of a launch."""
        return {"num_warps": self.warps, "num_stages": self.stages}


# The interpreter pays per operation, except for integer products, which NumPy multiplies without BLAS.
DEFAULTS: dict[Key, dict[str, Tile]] = {
    ("wide.weigh", ""): {
        "sm_80": Tile(32, 8, 2),
        "sm_90": Tile(64, 8, 3),
        "sm_100": Tile(64, 8, 3),
        "gfx942": Tile(64, 8, 2),
        INTERPRETER: Tile(64, 1, 1),
        UNKNOWN: Tile(32, 4, 2),
    },
    ("wide.weigh", "deep floats"): {"gfx942": Tile(64, 8, 1)},
    ("fused", ""): {
        "sm_80": Tile(32, 8, 2),
        "sm_90": Tile(128, 8, 2),
        "sm_100": Tile(128, 8, 2),
        "gfx942": Tile(64, 4, 2),
        INTERPRETER: Tile(64, 1, 1),
        UNKNOWN: Tile(32, 8, 1),
    },
    ("fused", "floats 64"): {"sm_100": Tile(64, 8, 2)},
    ("fused", "floats 128"): {"sm_80": Tile(16, 4, 2), "sm_100": Tile(64, 8, 2)},
    ("fused", "rough floats 128"): {"sm_80": Tile(16, 4, 2)},
    ("wide.blend", "pixels 64"): {"sm_100": Tile(128, 8, 2)},
    ("wide.blend", ""): {
        "sm_80": Tile(32, 8, 2),
        "sm_90": Tile(128, 8, 3),
        "sm_100": Tile(64, 8, 2),
        "gfx942": Tile(128, 8, 2),
        INTERPRETER: Tile(256, 1, 1),
        UNKNOWN: Tile(32, 8, 1),
    },
}

_assumed: ContextVar[str] = ContextVar("assumed target", default=UNKNOWN)
_trial: ContextVar[Callable[[str, torch.device, str], Tile] | None] = ContextVar("tiles on trial", default=None)


def choose(kernel: str, device: torch.device, shape_class: str = "") -> Tile:
    """The tile of one launch.

    Args:
        kernel: a name in DEFAULTS: module and operation, as "wide.weigh".
        device: of the tensors of the launch.
        shape_class: what distinguishes cases worth tuning apart: words of the kernel's own, or `shape_class` of sizes.
    """
    trial = _trial.get()
    if trial is not None:
        return trial(kernel, device, shape_class)
    if device.type == "meta":  # what it stands for may change
        return default(kernel, shape_class, target(device))
    return _settled(kernel, device, shape_class)


def default(kernel: str, shape_class: str, target: str) -> Tile:
    """The tile for an untuned device."""
    general = DEFAULTS[kernel, ""]
    special = DEFAULTS.get((kernel, shape_class), {})
    return special.get(target) or general.get(target) or special.get(UNKNOWN) or general[UNKNOWN]


def shape_class(**sizes: int) -> str:
    """One name for all sizes between the same powers of two: "B128 N4096" for B=100, N=3072."""
    return " ".join(f"{name}{1 << max(0, size - 1).bit_length()}" for name, size in sizes.items())


def target(device: torch.device) -> str:
    """What kernels for a device are compiled for: "sm_90", "gfx942", "interpreter" (cpu) or "unknown".

    Meta tensors are "unknown" too, unless `assume` says otherwise.
    """
    if device.type == "meta":
        return _assumed.get()
    if device.type == "cpu":
        return INTERPRETER
    if device.type != "cuda":
        return UNKNOWN
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return str(properties.gcnArchName).partition(":")[0]
    return f"sm_{properties.major}{properties.minor}"


@contextmanager
def assume(target: str) -> Iterator[None]:
    """Within it, meta tensors count as tensors on that target: what is launched there can be recorded anywhere."""
    token = _assumed.set(target)
    try:
        yield
    finally:
        _assumed.reset(token)


@contextmanager
def trying(trial: Callable[[str, torch.device, str], Tile]) -> Iterator[None]:
    """Within it, `trial` answers in the place of `choose`."""
    token = _trial.set(trial)
    try:
        yield
    finally:
        _trial.reset(token)


def cache_file() -> Path:
    """Where tuned tiles are kept: $XDG_CACHE_HOME or ~/.cache, in pfgm_fast/tiles.json."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pfgm_fast" / "tiles.json"


Tuned = dict[str, dict[Key, Tile]]


def read(path: Path) -> Tuned:
    """Tiles of a cache file, {device name: {(kernel, shape class): tile}}; a broken one warns and counts as empty."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        return _ignored(path, str(error))
    try:
        content = json.loads(text)
        if content["version"] != __version__:
            return _ignored(path, f"it belongs to pfgm_fast {content['version']}, this is {__version__}")
        return {
            device: {(kernel, shape): Tile(*tile) for kernel, shape, *tile in rows}
            for device, rows in content["tiles"].items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return _ignored(path, f"it is not a file of tiles ({type(error).__name__}: {error})")


def write(path: Path, device_name: str, tuned: Mapping[Key, Tile]) -> None:
    """Adds tiles of one device to a cache file; whoever reads it meanwhile finds the old file or the new one, whole."""
    known = read(path)
    known[device_name] = {**known.get(device_name, {}), **tuned}
    content: dict[str, Any] = {
        "version": __version__,
        "tiles": {device: [[*key, *astuple(tile)] for key, tile in tiles.items()] for device, tiles in known.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(content, file, indent=1)
        Path(part).replace(path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
    forget()


def forget() -> None:
    """Makes this process read the cache file again."""
    _tuned.cache_clear()
    _settled.cache_clear()


def _ignored(path: Path, why: str) -> Tuned:
    advice = "run `pfgm-fast tune` to write a new one, or delete it"
    warnings.warn(f"the tile cache {path} is ignored and default tiles are used: {why}; {advice}", stacklevel=3)
    return {}


@functools.cache
def _settled(kernel: str, device: torch.device, shape_class: str) -> Tile:
    """Settled once per process: a launch must not wait for files."""
    tuned = _tuned().get(torch.cuda.get_device_name(device), {}) if device.type == "cuda" else {}
    return tuned.get((kernel, shape_class)) or default(kernel, shape_class, target(device))


@functools.cache
def _tuned() -> Tuned:
    return read(cache_file())
