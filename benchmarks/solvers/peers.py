"""The adaptive Dormand-Prince solvers of others, called as their documentation does, from t0 to t1 for a whole batch.

Each returns the call that is timed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.solvers.solve import Array, Counted, Solve, tensor
from pfgm_fast.bench import packages
from pfgm_fast.bench.core import Answer

SCIPY = "SciPy RK45"
TORCHDIFFEQ = "torchdiffeq dopri5"
TORCHODE = "torchode Dopri5"
DIFFRAX = "diffrax Dopri5, jit"
NAMES = (SCIPY, TORCHDIFFEQ, TORCHODE, DIFFRAX)

_MODULES = {SCIPY: "scipy", TORCHDIFFEQ: "torchdiffeq", TORCHODE: "torchode", DIFFRAX: "diffrax"}


def refuses(name: str, device: torch.device) -> str | None:
    """Why a peer cannot run here, or None."""
    module = _MODULES[name]
    why = packages.missing(module, module)
    return why or (
        f"it is run on the CPU alone, not on {device.type}" if name == DIFFRAX and device.type != "cpu" else None
    )


def scipy(func: Callable[[float, Array], Array], y0: Array, t0: float, t1: float, tolerance: float) -> Solve:
    """`func(t, y (n,))` on the flattened batch; the state is in float64 whatever func computes in."""
    integrate = importlib.import_module("scipy.integrate")

    def solve() -> Answer:
        found = integrate.solve_ivp(func, (t0, t1), y0.ravel(), method="RK45", rtol=tolerance, atol=tolerance)
        return Answer(tensor(found.y[:, -1].reshape(y0.shape)), found.nfev, found.nfev)

    return solve


def torchdiffeq(func: Callable[[Tensor, Tensor], Tensor], y0: Tensor, t0: float, t1: float, tolerance: float) -> Solve:
    """`func(t, y (B, n))` with t 0-d: one step for the batch."""
    package = importlib.import_module("torchdiffeq")
    times = torch.tensor([t0, t1], dtype=y0.dtype, device=y0.device)

    def solve() -> Answer:
        counted = Counted(func)
        with torch.no_grad():
            y = package.odeint(counted, y0, times, rtol=tolerance, atol=tolerance, method="dopri5")
        return Answer(y[-1], counted.calls, counted.calls)

    return solve


def torchode(func: Callable[[Tensor, Tensor], Tensor], y0: Tensor, t0: float, t1: float, tolerance: float) -> Solve:
    """`func(t (B,), y (B, n))`: a step for each row, by the same controller as the others."""
    package = importlib.import_module("torchode")
    term = package.ODETerm(func)
    controller = package.IntegralController(atol=tolerance, rtol=tolerance, term=term)
    solver = package.AutoDiffAdjoint(package.Dopri5(term=term), controller)
    start, end = (torch.full((len(y0),), t, dtype=y0.dtype, device=y0.device) for t in (t0, t1))

    def solve() -> Answer:
        with torch.no_grad():
            found = solver.solve(package.InitialValueProblem(y0=y0, t_start=start, t_end=end))
        calls = int(found.stats["n_f_evals"].max())
        return Answer(found.ys[:, -1], calls, calls)

    return solve


def diffrax(
    func: Callable[[Any, Any, Any], Any], y0: Array, args: Array | None, t0: float, t1: float, tolerance: float
) -> Solve:
    """`func(t, y (n,), args)` in jax.numpy for one row, under vmap and jit: a step for each row.

    The precision is that of y0; the adjoint is the default, which is not slower than ForwardMode.
    """
    jax, package = importlib.import_module("jax"), importlib.import_module("diffrax")
    jax.config.update("jax_enable_x64", y0.dtype == np.float64)
    term, controller = package.ODETerm(func), package.PIDController(rtol=tolerance, atol=tolerance)

    def one(y: Any, row: Any) -> Any:
        found = package.diffeqsolve(
            term, package.Dopri5(), t0, t1, None, y, row, stepsize_controller=controller, max_steps=65536
        )
        return found.ys[-1], found.stats["num_steps"]

    batch = jax.jit(jax.vmap(one, in_axes=(0, None if args is None else 0)))
    states, rows = jax.numpy.asarray(y0), None if args is None else jax.numpy.asarray(args)

    def solve() -> Answer:
        y, steps = jax.block_until_ready(batch(states, rows))
        calls = 6 * np.asarray(steps)  # a lane that has ended is still computed
        return Answer(tensor(np.asarray(y)), float(calls.mean()), int(calls.max()))

    return solve
