"""Any batched ODE on the engine of the samplers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pfgm_fast import _checks
from pfgm_fast.adaptive import Accuracy, covered, interruptible
from pfgm_fast.ode.solve import solve
from pfgm_fast.rowwise import RowArguments, called_in
from pfgm_fast.solution import Record, Solution
from pfgm_fast.watching import SHARE_BAR, Callback, Monitor


def odeint(
    func: Callable[..., Tensor],
    y0: Tensor,
    t0: float | Tensor,
    t1: float | Tensor,
    *,
    args: Sequence[Any] = (),
    rtol: float = 1e-4,
    atol: float = 1e-6,
    max_steps: int = 10000,
    step_control: str = "sample",
    batch_size: int | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    trajectory: bool = False,
) -> Solution:
    """Integrates dy/dt = func(t, y, *args) for each row from t0 to t1, in either direction, by Dormand-Prince 5(4).

    Every row has its own step size and, if need be, its own interval; see `pfgm_fast.sample` for what becomes of a row
    that fails. Runs under torch.no_grad.

    Args:
        func: `func(t (b,), y (b, ...), *args)` -> dy/dt, like y. It may be called on some of the rows only, in any
            order, and never outside of a row's interval, up to the rounding of t to the dtype of y, which it has: for
            large t and short intervals take float64. It must not change y in place.
        y0: (B, ...) floating, the states at t0; never written to.
        t0, t1: numbers, or (B,) tensors: one for each row.
        args: further arguments of func. Tensors have B rows, which travel with those of y; 0-d tensors and other values
            are passed as they are.
        rtol, atol: the RMS over a row of error/(atol + rtol*|y|) is kept below 1 in each step.
        max_steps: steps tried in a row before it ends with Status.MAX_STEPS.
        step_control: "sample", a step size for each row, or "batch", one for all, as SciPy's RK45 on the flattened
            state; t0 and t1 are numbers then.
        batch_size: rows that func sees at a time; None: all. A row's result does not depend on it.
        callback: called before rows attempt a step, with a dict: their `t` (m,), `y` (m, ...), which may be edited in
            place, `slope`, dy/dt there, and `rows` (m,), their indices; `i` counts the calls. If it returns True the
            solve ends with Status.STOPPED in the rows still running.
        progress: show a bar: the share of the intervals covered and the rows done.
        trajectory: keep the state after each step, on the device of y0.

    Returns:
        Solution: `samples` holds the states at t1, `trajectory_sigma` the times of the trajectory.

    Raises:
        ValueError, TypeError: an argument is out of range, of another type, or at odds with another one.
        KeyboardInterrupt: on Ctrl-C, with the Solution so far in its attribute `solution`.
    """
    if not callable(func):
        raise TypeError(f"func must be callable as func(t, y, *args), got {type(func).__name__}")
    y = _checks.tensor("y0", y0).detach()
    if y.ndim < 1:
        raise ValueError("y0 must be (B, ...), got a 0-d tensor")
    _checks.finite("y0", y)
    if isinstance(args, (str, bytes, Tensor)) or not isinstance(args, Sequence):
        raise TypeError(f"args must be a tuple of arguments, got {type(args).__name__}")
    accuracy = Accuracy.checked(rtol, atol, max_steps, step_control, batch_size)
    start, end = _times("t0", t0, y), _times("t1", t1, y)
    if accuracy.together and (isinstance(t0, Tensor) or isinstance(t1, Tensor)):
        raise ValueError('t0 and t1 must be numbers for step_control="batch", which has one time for all rows')
    arguments = RowArguments("args", dict(enumerate(args)), len(y), y.device)
    monitor = Monitor(callback, progress)
    record = Record.start(y, 0.0, trajectory=trajectory)
    record.t.copy_(start)

    def slope(t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        values = arguments.of(rows).values()
        return called_in(y0.dtype, "func", lambda seen: func(t.to(seen.dtype), seen, *values), y)

    share = partial(covered, record, start, end)

    def watch(i: int, rows: Tensor, t: Tensor, y: Tensor, dy: Tensor) -> bool:
        monitor.reached(share, record.done)
        return monitor.stops({"t": t, "y": y, "slope": dy, "i": i, "rows": rows.clone()})

    with torch.no_grad(), interruptible(record), monitor.bar(desc="integrating", **SHARE_BAR):
        solve(slope, record, end, **accuracy.options, watch=None if monitor.idle else watch)
        monitor.reached(share, record.done)
    return record.solution()


def _times(name: str, value: float | Tensor, y: Tensor) -> Tensor:
    """(B,) float64 on the device of y."""
    B = len(y)
    if not isinstance(value, Tensor):
        return torch.full((B,), _checks.number(name, value), dtype=torch.float64, device=y.device)
    _checks.tensor(name, value)
    if tuple(value.shape) not in ((), (B,)):
        raise ValueError(f"{name} must be a number or ({B},), one for each row, got shape {tuple(value.shape)}")
    if value.ndim and value.device != y.device:
        raise ValueError(f"{name} must be on {y.device} like y0, got {value.device}")
    _checks.finite(name, value)
    return value.detach().to(device=y.device, dtype=torch.float64).expand(B).contiguous()
