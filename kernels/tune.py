"""Finds the fastest tiles for the GPU at hand and keeps them where `tiles.choose` looks.

Calls of the operator are timed as users make them, while `tiles.trying` gives one kernel another tile at a time. What
is found is written after each kernel and shape class, and what the cache has already is not timed again, so that an
interrupted search goes on where it was. Results never depend on it: see `tiles`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from tqdm.auto import tqdm
from triton.errors import TritonError
from triton.testing import do_bench

from pfgm_fast.kernels import tiles
from pfgm_fast.kernels.tiles import Key, Tile

# Not below 64 rows, where the tensor cores of some GPUs take another instruction, which may round otherwise.
CANDIDATES = tuple(Tile(rows, warps, stages) for rows, warps, stages in itertools.product((64, 128), (4, 8), (2, 3, 4)))
CLEARLY = 0.98  # the share of the default's time that a tile must stay below to replace it: less is noise

Call = Callable[[], object]


def tune(
    calls: Iterable[Call],
    device: torch.device,
    *,
    candidates: Iterable[Tile] = CANDIDATES,
    again: bool = False,
    path: Path | None = None,
    time: Callable[[Call], float] | None = None,
    progress: bool = True,
) -> dict[Key, Tile]:
    """Times the candidates for every kernel and shape class that the calls launch and keeps the fastest.

    Args:
        calls: the operator on tensors of `device`, say, of all sizes that matter.
        device: a GPU; tiles are kept under its name.
        candidates: tiles to try besides the default one; those that a kernel cannot have on this GPU are passed over.
        again: times also what the cache holds already.
        path: the cache, `tiles.cache_file()` if None.
        time: the time of a call in any unit; the median by CUDA events if None.
        progress: shows a bar.
    Returns:
        {(kernel, shape class): tile}, found now or before.
    """
    path = path or tiles.cache_file()
    time = time or _median
    name = torch.cuda.get_device_name(device)
    known = {} if again else tiles.read(path).get(name, {})
    users: dict[Key, list[Call]] = {}
    for call in calls:
        for key in asked(call):
            users.setdefault(key, []).append(call)
    found = {key: known[key] for key in users if key in known}
    pending = [key for key in users if key not in known]
    candidates = tuple(candidates)
    with tqdm(total=len(pending) * len(candidates), desc="tuning", unit="tile", disable=not progress) as bar:
        for key in pending:
            bar.set_postfix_str(" ".join(key))
            found[key] = _fastest(users[key], key, device, candidates, time, bar.update)
            tiles.write(path, name, {key: found[key]})
    return found


def asked(call: Call) -> list[Key]:
    """What a call asks `tiles.choose` for."""
    keys: dict[Key, None] = {}

    def answer(kernel: str, device: torch.device, shape_class: str) -> Tile:
        keys[kernel, shape_class] = None
        return tiles.default(kernel, shape_class, tiles.target(device))

    with tiles.trying(answer):
        call()
    return list(keys)


def _fastest(
    calls: Sequence[Call],
    key: Key,
    device: torch.device,
    candidates: Iterable[Tile],
    time: Callable[[Call], float],
    step: Callable[[], object],
) -> Tile:
    """The tile with the least time over all calls, each in shares of the default's; the default if none is faster."""
    best = tiles.default(*key, tiles.target(device))
    default_times = [_time(call, key, best, time) for call in calls]
    least = CLEARLY * len(calls)
    for tile in candidates:
        try:
            taken = sum(_time(call, key, tile, time) / base for call, base in zip(calls, default_times, strict=True))
        except TritonError:  # it needs more shared memory or registers than there are
            taken = float("inf")
        if taken < least:
            best, least = tile, taken
        step()
    return best


def _time(call: Call, key: Key, tile: Tile, time: Callable[[Call], float]) -> float:
    def answer(kernel: str, device: torch.device, shape_class: str) -> Tile:
        return tile if (kernel, shape_class) == key else tiles.default(kernel, shape_class, tiles.target(device))

    with tiles.trying(answer):
        return time(call)


def _median(call: Call) -> float:
    return float(do_bench(call, return_mode="median"))
