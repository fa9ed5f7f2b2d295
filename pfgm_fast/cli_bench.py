"""`pfgm-fast bench`: one evaluation of the field beside what others write, on this machine, for the user's data."""

from __future__ import annotations

import argparse
import itertools
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfgm_fast import _checks
from pfgm_fast.archive import digest
from pfgm_fast.bench import cells, machine, measure, posterior_mean, report, rows
from pfgm_fast.bench.core import Effort, Operation
from pfgm_fast.bench.machine import Origin
from pfgm_fast.bench.measure import Block, Setup
from pfgm_fast.bench.queries import SPREAD, Query, Shape
from pfgm_fast.bench.rows import OWN_CHECK, PART, SKIPPED, Key, RefusedError, Row, Table, speed_up

QUICK = Effort(budget=0.2, least=1, most=7)
M, N = 10000, 64  # where neither a file nor a size is given
IN_THE_CSV_ALONE = ("repeats", "median error", "p99 error", "GFLOP/s", "bound by")

Say = Callable[[str], object]


class Subject(NamedTuple):
    """What is measured, and a line about it."""

    block: Block
    about: str


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of the command."""
    command.add_argument(
        "file", nargs="?", type=Path, metavar="DATA.npy", help="(M, *data) floating, computed as float32, or uint8"
    )
    command.add_argument("--data", type=int, metavar="M", help=f"without a file: how many random data (default: {M})")
    command.add_argument("--dimension", type=int, metavar="N", help=f"numbers in such a datum (default: {N})")
    command.add_argument("--pixels", action="store_true", help="such data are of 8 bits (default: float32)")
    command.add_argument("--batch", type=int, default=256, metavar="B", help="queries at a time (default: 256)")
    command.add_argument("--D", type=float, default=128.0, help="1 is PFGM, inf is diffusion (default: 128)")
    command.add_argument("--threads", type=int, nargs="+", metavar="T", help="of the CPU, one table each (default: 1)")
    command.add_argument("--device", default="cpu", help="cpu or such as cuda (default: cpu)")
    command.add_argument("--provider", nargs="+", metavar="PART", help="only those whose name holds a PART, as native")
    command.add_argument("--quick", action="store_true", help="fewer repeats: a first look")
    command.add_argument("--out", type=Path, metavar="CSV", help="keeps the rows; run again after Ctrl-C, it goes on")


def run(options: argparse.Namespace, say: Say) -> None:
    """Measures and tells. Raises ValueError, TypeError or OSError for bad options."""
    device = _device(options.device)
    counts = _threads(options.threads, device)
    names = _providers(options.provider, device)
    subject = _of_file(options) if options.file else _synthetic(options, device)
    if options.out:
        rows.update(options.out, ())  # refuses a file that is something else, or cannot be written, before the work
    origin = machine.origin(device)
    say(_head(origin, subject))
    effort = QUICK if options.quick else None
    for threads in counts:
        title, warning = _where(device, threads), None
        found = _kept(options.out, subject.block, threads, names, origin)
        if found is not None:
            title += f", measured before ({options.out}, {next(iter(found)).date}; remove the file to measure again)"
        else:
            found = _measured(subject.block, Setup(device, threads, origin, OWN_CHECK, effort), names)
            warning = machine.busy()
            if options.out:
                rows.update(options.out, found)
        lines = (f"\n{title}", *_table(subject.block.operation, found), *filter(None, [warning]))
        say("\n".join((*lines, "", verdict(subject.block.operation, found))))


def _measured(block: Block, setup: Setup, names: Sequence[str]) -> Table:
    from tqdm.auto import tqdm

    steps = itertools.chain((0,), itertools.repeat(1))  # each is shown before it is done; the last is the timing
    with tqdm(total=len(names) + 1, desc=_where(setup.device, setup.threads), leave=False, unit="") as bar:

        def show(what: str) -> None:
            bar.set_postfix_str(what, refresh=False)
            bar.update(next(steps))
            bar.refresh()

        try:
            return Table(measure.measure(block, replace(setup, show=show), names.__contains__))
        except (MemoryError, torch.OutOfMemoryError) as error:
            why = (str(error).splitlines() or [""])[0]
            raise ValueError(f"the data do not fit into the memory of {setup.device}: {why}") from error


def _kept(path: Path | None, block: Block, threads: int, names: Sequence[str], origin: Origin) -> Table | None:
    """The rows of a file, if it has all of them from the same machine and versions."""
    if path is None:
        return None
    table, operation = rows.read(path), block.operation
    keys = (Key(operation.name, block.case, block.variant, p.name, p.setting, threads)
            for p in operation.providers if p.name in names)  # fmt: skip
    found = [table.rows.get(key) for key in keys]
    same = [row for row in found if row is not None and row.tests == OWN_CHECK and _origin(row) == origin[:4]]
    return Table(same) if len(same) == len(found) else None


def _origin(row: Row) -> tuple[str, str, str, str]:
    return row.machine, row.device, row.versions, row.pfgm_fast


# ---- what is measured


def _synthetic(options: argparse.Namespace, device: torch.device) -> Subject:
    size = _checks.integer("--data", M if options.data is None else options.data, at_least=2)
    dimension = _checks.integer("--dimension", N if options.dimension is None else options.dimension, at_least=1)
    shape = Shape(_batch(options), size, dimension, _D(options), options.pixels)
    try:
        torch.empty(size, dimension, dtype=torch.uint8 if shape.pixels else torch.float32, device=device)
    except RuntimeError as error:  # PyTorch's, for what cannot be allocated
        raise ValueError(f"--data {size} and --dimension {dimension} do not fit into the memory of {device}") from error
    name = _case(shape.name, options)
    return Subject(Block(partial(of_shape, shape, name), name, SPREAD), f"{name}, random")


def of_shape(shape: Shape, name: str) -> Operation[Query]:
    """The operation on random data, whose only variant has all noise levels."""
    made = posterior_mean.operation({name: posterior_mean.case(shape)})
    return replace(made, variants=(SPREAD,))


def _of_file(options: argparse.Namespace) -> Subject:
    if options.pixels or not options.data is options.dimension is None:
        raise ValueError("got DATA.npy and a size of random data (--data, --dimension, --pixels), expected one of both")
    path, B, D = options.file.resolve(), _batch(options), _D(options)
    data, dtype = load(path), _opened(path).dtype
    _checks.finite(f"{path.name} as float32", data)
    shape = Shape(B, len(data), data.shape[1], D, data.dtype == torch.uint8)
    name = _case(f"{shape.name}, {path.name} {digest(path)[:12]}", options)
    find = partial(posterior_mean.of_data, partial(load, path), name, D, B)
    computed = "" if dtype in (np.float32, np.uint8) else f"; its {dtype} is computed as float32"
    return Subject(Block(find, name, SPREAD), f"{name}{computed}")


def load(path: Path) -> Tensor:
    """The data (M, N) of a .npy file: float32, or uint8 as they are."""
    array = _opened(path)
    with np.errstate(over="ignore"):  # found by the check that they are finite
        copy = np.array(array.reshape(len(array), -1), dtype=np.uint8 if array.dtype == np.uint8 else np.float32)
    return torch.from_numpy(copy)


def _opened(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r")
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} must be a .npy file, but could not be read as one: {error}") from error
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{path} must be a .npy file with one array, got an archive of several")
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"{path} must hold floating numbers or uint8, got {array.dtype}")
    if array.ndim < 2 or array.size == 0:
        raise ValueError(f"{path} must be (M, *data) with M >= 1 and N >= 1, got shape {array.shape}")
    return array


def _case(name: str, options: argparse.Namespace) -> str:
    return f"{name}, quick" if options.quick else name  # a file keeps it apart from a full measurement


def _batch(options: argparse.Namespace) -> int:
    return _checks.integer("--batch", options.batch, at_least=1)


def _D(options: argparse.Namespace) -> float:
    return _checks.number("--D", options.D, above=0, finite=False)


def _device(name: str) -> torch.device:
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # PyTorch's, for a device that is not there
        raise ValueError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    if device.type not in posterior_mean.PATIENCE:
        raise ValueError(f"--device must be of {' or '.join(posterior_mean.PATIENCE)}, got {name}")
    if device.type == "cuda":
        torch.cuda.set_device(device)  # on which the clock's events are
    return device


def _threads(counts: Sequence[int] | None, device: torch.device) -> list[int]:
    if device.type == "cuda" and counts:
        raise ValueError(f"--threads is for a CPU, got it with --device {device}")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for count in counts or ():
        if _checks.integer("--threads", count, at_least=1) > usable:
            raise ValueError(f"--threads must be at most {usable}, the cores that this process may use, got {count}")
    return list(dict.fromkeys(counts or [1]))


def _providers(parts: Sequence[str] | None, device: torch.device) -> list[str]:
    """The names, of those that are for the device, that hold one of the parts; or all."""
    names = [provider.name for provider in posterior_mean.PROVIDERS if device.type in provider.devices]
    for part in parts or ():
        if not any(part.lower() in name.lower() for name in names):
            raise ValueError(f"--provider must be part of a name, got {part!r}; known: {'; '.join(names)}")
    return [name for name in names if not parts or any(part.lower() in name.lower() for part in parts)]


# ---- what is told


def _head(origin: Origin, subject: Subject) -> str:
    lines = (
        f"machine:   {origin.machine}",
        f"device:    {'CPU' if origin.device == origin.machine else origin.device}",
        f"versions:  pfgm_fast {origin.pfgm_fast}, {origin.versions}",
        f"data:      {subject.about}",
        f"queries:   perturbed from the data, {SPREAD}; results are checked against float64 in this run",
    )
    return "\n".join(lines)


def _where(device: torch.device, threads: int) -> str:
    return str(device) if device.type == "cuda" else f"{threads} thread{'s' * (threads > 1)}"


def _table(operation: Operation[Query], table: Table) -> list[str]:
    """What was measured, what was not and why, and the machine's ceilings."""
    measured = [row for row in table if row.median_ms is not None]
    lines = []
    if measured:
        header, body = report.block(operation, Table(measured))
        kept = [i for i, name in enumerate(header) if name not in IN_THE_CSV_ALONE]
        lines += [cells.aligned(cells.pick(header, kept), [cells.pick(line, kept) for line in body])]
    lines += [f"skipped: {row.label}: {row.remark}" for row in table if row.status == SKIPPED]
    return lines + [_ceilings(row) for row in measured[:1]]


def _ceilings(row: Row) -> str:
    rates = (
        ("copy", row.copy_gb_per_s, "GB/s"),
        ("matrix products", row.matrix_gflop_per_s, "GFLOP/s"),
        ("in bfloat16", row.half_gflop_per_s, "GFLOP/s"),
        ("in int8", row.int8_gop_per_s, "Gop/s"),
        ("log and exp", row.log_exp_g_per_s, "G/s"),
    )
    measured = ", ".join(f"{name} {cells.number(rate)} {unit}" for name, rate, unit in rates if rate is not None)
    least = (row.bound_share or 0) * (row.median_ms or 0)
    return f"ceilings: {measured}; of these, {row.bound} bounds this work: {cells.number(least)} ms at least"


def verdict(operation: Operation[Query], table: Table) -> str:
    """In plain words, what the table says of this library; nothing good of a wrong result."""
    measured = [row for row in table if row.median_ms is not None]
    ours = operation.rival(table, measured[0]) if measured else None
    if ours is None:
        return "No backend of pfgm_fast was measured."
    try:
        speed_up(ours, ours)
    except RefusedError:
        return (
            f"The result of {ours.label} is WRONG here: {cells.number(ours.error_bounds)} times the error that is "
            "allowed, so its speed means nothing. Please report it with this output."
        )
    rivals = [row for row in measured if row.status != PART and not operation.provider(row.provider, row.setting).ours]
    fastest = min(rivals, key=lambda row: row.median_ms or 0.0, default=None)
    against = "no alternative was measured" if fastest is None else _compared(ours, fastest)
    return f"{ours.label} {_reached(ours)}; {against}."


def _reached(ours: Row) -> str:
    share = ours.bound_share or 0
    reached = f"reaches {cells.percent(share)} of the speed that {ours.bound} would allow on this machine"
    return f"{reached} (it need not do all that this counts)" if share > 1 else reached


def _compared(ours: Row, other: Row) -> str:
    times = speed_up(ours, other) or 1.0
    wrong = other.status == rows.WRONG
    if times >= 1.01:
        whose = ", whose result is outside the accuracy contract" if wrong else ""
        return f"it is {report.faster(times)} than the fastest alternative, {other.label}{whose}"
    against = "as fast as it" if times > 0.99 else f"{cells.number(1 / times)}× faster than it"
    but = ", but its result is outside the accuracy contract" if wrong else ""
    return f"the fastest alternative, {other.label}, is {against}{but}"
