"""`pfgm-fast sample`: samples of the exact field of a data set, into a file, from where the last run stopped."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pfgm_fast import EmpiricalField, Solution, Status, _checks, sample
from pfgm_fast._version import __version__
from pfgm_fast.archive import Archive, digest
from pfgm_fast.sampling import SOLVERS

CHUNK = 8  # batches between two notes of what is done


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of the command."""
    command.add_argument("data", type=Path, metavar="DATA.npy", help="(M, *data) floating, or uint8 for images")
    command.add_argument("--D", type=float, required=True, help="augmented dimension: 1 is PFGM, inf is diffusion")
    command.add_argument("--n", type=int, required=True, help="how many samples")
    command.add_argument("--out", type=Path, required=True, metavar="FILE.npy", help="where they go, as (n, *data)")
    command.add_argument("--solver", choices=SOLVERS, default="rk45", help="(default: %(default)s)")
    command.add_argument("--steps", type=int, default=18, help="of the fixed-step solvers (default: %(default)s)")
    command.add_argument("--sigma-min", type=float, default=0.002, help="last noise level (default: %(default)s)")
    command.add_argument("--sigma-max", type=float, default=80.0, help="first noise level (default: %(default)s)")
    command.add_argument("--tolerance", type=float, default=1e-4, help="rtol and atol of rk45 (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="sample i is drawn with seed + i (default: 0)")
    command.add_argument("--batch", type=int, default=256, help="samples at a time (default: %(default)s)")
    command.add_argument("--device", default="cpu", help="such as cuda (default: cpu)")


def run(options: argparse.Namespace) -> Path:
    """Draws what is missing and says where all of them are. Raises ValueError, TypeError or OSError for bad options."""
    from tqdm.auto import tqdm

    n, batch = _checks.integer("--n", options.n, at_least=1), _checks.integer("--batch", options.batch, at_least=1)
    seed = _checks.integer("--seed", options.seed, at_least=0)
    if seed + n > 2**63:
        raise ValueError(f"--seed must be below 2**63 - n, got {seed}")
    data = torch.from_numpy(np.load(options.data))
    try:
        field = EmpiricalField(data, options.D, device=options.device)
    except (RuntimeError, AssertionError) as error:  # PyTorch's, for a device that is not there
        raise ValueError(f"--device {options.device} cannot be used: {str(error).splitlines()[0]}") from error
    dtype = torch.float64 if data.dtype == torch.float64 else torch.float32
    how = {
        "solver": options.solver,
        "steps": options.steps,
        "sigma_min": options.sigma_min,
        "sigma_max": options.sigma_max,
        "rtol": options.tolerance,
        "atol": options.tolerance,
        "batch_size": batch,
        "dtype": dtype,
    }
    sample(field, (0, *data.shape[1:]), **how)  # refuses what is wrong before a file is begun
    archive = Archive(options.out, (n, *data.shape[1:]), dtype, _settings(options))
    missing = archive.missing()
    with tqdm(total=n, initial=n - len(missing), desc="samples", unit="") as bar:
        for rows in missing.split(CHUNK * batch):
            try:
                solution = sample(field, (len(rows), *data.shape[1:]), seeds=rows + seed, **how)
            except KeyboardInterrupt as stop:
                if hasattr(stop, "solution"):
                    _keep(archive, rows, stop.solution)
                raise
            _keep(archive, rows, solution)
            bar.update(int((solution.status == Status.SUCCESS).sum()))
    left = len(archive.missing())
    if left:
        raise ValueError(
            f"{left} of {n} samples did not reach the end; the others are kept: run again with a looser --tolerance "
            "and another --out, or look into them with pfgm_fast.sample"
        )
    archive.finish()
    return archive.path


def _keep(archive: Archive, rows: torch.Tensor, solution: Solution) -> None:
    """Writes those of the rows that reached the end."""
    done = (solution.status == Status.SUCCESS).cpu()
    archive.keep(rows[done], solution.samples.cpu()[done])


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the samples depend on."""
    names = ("D", "n", "solver", "steps", "sigma_min", "sigma_max", "tolerance", "seed")
    chosen = {name: getattr(options, name) for name in names}
    chosen["D"] = "inf" if math.isinf(options.D) else options.D
    return {"data": digest(options.data), **chosen, "version": __version__}
