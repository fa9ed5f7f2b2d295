"""Samples from any denoiser: the probability-flow ODE from the prior down to the data, and back up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pfgm_fast import _checks, fixed_step, noise, philox, schedule
from pfgm_fast.adaptive import Accuracy, covered, interruptible
from pfgm_fast.churn import Churn
from pfgm_fast.denoiser import RowDenoiser, checked, device_of, needed
from pfgm_fast.multistep import METHODS
from pfgm_fast.ode import cuda
from pfgm_fast.ode.native import NativeSlots
from pfgm_fast.ode.solve import DEFAULT_CONTROLLER, choose, solve
from pfgm_fast.solution import Record, Solution
from pfgm_fast.watching import SHARE_BAR, Callback, Monitor

SOLVERS = (*METHODS, "rk45")


def sample(
    denoiser: Callable[..., Tensor],
    shape: Sequence[int] | None = None,
    *,
    D: float | None = None,
    latents: Tensor | None = None,
    solver: str = "heun",
    steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    sigmas: Sequence[float] | Tensor | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    max_steps: int = 1000,
    step_control: str = "sample",
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
    batch_size: int | None = None,
    extra_args: dict[str, Any] | None = None,
    cuda_graph: str = "auto",
    seeds: Sequence[int] | Tensor | None = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    trajectory: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Solution:
    """Integrates dx/dsigma = (x - denoiser(x, sigma))/sigma from the first noise level down to the last.

    The equation is the same for every D (PFGM++, Xu et al. 2023, section 4), D = inf included (Karras et al. 2022,
    equation 3). Runs under torch.no_grad. A row that becomes NaN or infinite ends alone, with its last good state and
    Status.NONFINITE.

    Args:
        denoiser: `denoiser(x (b, *data), sigma (b,), **extra_args)` -> posterior mean, like x, in any floating dtype.
            sigma is float64 if the state is, else float32. It may be called on some of the rows only, in any order,
            and must not change x. A class may define beside `__call__` a method `unchecked`, which is called instead:
            the same, but a row it cannot answer is NaN and raises nothing.
        shape: (B, *data) of samples to start from the prior. Exactly one of shape and latents is given.
        D: augmented dimension, > 0 or math.inf; None takes `denoiser.D` if that is a number. Needed for the prior and
            for churn.
        latents: (B, *data), the state at the first level in data units, as `pfgm_fast.prior` draws it; never scaled
            here.
        solver: "euler" and "heun" (Karras et al. 2022, algorithm 1), "dpmpp_2m" (Lu et al. 2022, 2211.01095), "unipc"
            (Zhao et al. 2023, 2302.04867: order 2 up to 20 evaluations, else 3) or "rk45" (Dormand-Prince 5(4) in
            log sigma, with error control and step size for each row).
        steps, sigma_min, sigma_max, rho: fixed-step solvers use `steps` levels from sigma_max to sigma_min, even in
            sigma^(1/rho), then 0. rk45 integrates from sigma_max to sigma_min. The denoiser is never called outside the
            levels, up to the rounding of sigma to its dtype, nor at 0.
        sigmas: decreasing levels to use as they are instead, with a 0 at the end only if it is there; rk45 integrates
            from the first to the last, both > 0.
        rtol, atol: rk45 keeps the RMS over a row of error/(atol + rtol*|x|) below 1 in each step.
        max_steps: rk45: steps tried in a row before it ends with Status.MAX_STEPS.
        step_control: rk45: "sample", a step size for each row, or "batch", one for all, by the error over the whole
            batch, as SciPy's RK45 on the flattened state: the same steps.
        churn, churn_min, churn_max, churn_noise: euler and heun: before a step from a level within
            [churn_min, churn_max], raise it by the factor 1 + min(churn/steps, sqrt(2) - 1), never above the first
            level, and the state by as much of the family's noise, times churn_noise: S_churn, S_min, S_max and S_noise
            of Karras et al. 2022, algorithm 2, for every D (`pfgm_fast.churn` says how, and where it is approximate).
            A finite D costs one more evaluation in each of these steps.
        batch_size: rows that the denoiser sees at a time; None: all. rk45 keeps such a batch full: a row that has
            ended makes place for the next. A row's result does not depend on it.
        extra_args: keyword arguments of the denoiser. Tensors have B rows, which travel with the rows of x; 0-d tensors
            and other values are passed as they are.
        cuda_graph: rk45 on a GPU, without callback and trajectory: "auto" captures one iteration in a CUDA graph and
            replays it, if the denoiser can be captured, else says so in a warning; "while" makes the whole solve one
            launch; "off" neither. A captured denoiser's Python code runs once.
        seeds, generator: randomness of the prior and of churn, one seed for each row or a torch generator; by default
            torch's own generator.
        callback: called in every step, before the state changes, with a dict: `x` (b, *data) and `sigma` (0-d; rk45:
            (b,)), where the rows stand; `denoised`, the denoiser's answer there (unipc: at the state predicted for this
            level); `i`, the step; `rows` (b,), their indices. `x` may be edited in place, as guidance does (a float16
            or bfloat16 state is kept in float32 and cannot); the rest are not to be edited. If it returns
            True, and nothing else, the solve ends with Status.STOPPED in the rows still running. Fixed-step solvers
            show rows that have ended too.
        progress: show a bar; for rk45 the share of log sigma covered and the rows done.
        trajectory: keep the state after each step, on the device.
        device: where the prior is drawn or the latents are moved; None is that of latents, else of the generator, else
            of the denoiser (`.device` or its first parameter), else the CPU.
        dtype: floating dtype of the state; None is that of latents, else torch.get_default_dtype().

    Raises:
        ValueError, TypeError: an argument is out of range, of another type, or at odds with another one.
        KeyboardInterrupt: on Ctrl-C, with the Solution so far in its attribute `solution`.
    """
    levels = _levels(solver, steps, sigma_min, sigma_max, rho, sigmas)
    accuracy = Accuracy.checked(rtol, atol, max_steps, step_control, batch_size, adaptive=solver == "rk45")
    monitor = Monitor(callback, progress)
    D = checked(denoiser, D)
    if (shape is None) == (latents is None):
        raise ValueError(
            f"exactly one of shape and latents must be given, got {'neither' if shape is None else 'both'}"
        )
    churns = _churns(solver, churn, churn_min, churn_max, churn_noise)
    if latents is not None:
        x = _given("latents", latents, device, dtype)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
        drawn = churns or seeds is not None  # seeds are refused as for the prior where nothing is drawn
        keys = philox.row_seeds(len(x), seeds, generator, x.device) if drawn else None
    else:
        device = torch.empty(0, device=device or _home(generator, denoiser)).device
        sizes = noise.sizes(shape)
        keys = philox.row_seeds(sizes[0], seeds, generator, device)
        x = noise.prior(sizes, levels[0], needed(D), seeds=keys, device=device, dtype=_dtype(dtype))
    law = Churn(churn, needed(D), keys, churn_min, churn_max, churn_noise) if churns and keys is not None else None
    return _Task(denoiser, extra_args, x, solver, levels, accuracy, trajectory, monitor, cuda_graph, law).run()


def encode(
    denoiser: Callable[..., Tensor],
    x: Tensor,
    *,
    D: float | None = None,
    solver: str = "rk45",
    steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    sigmas: Sequence[float] | Tensor | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    max_steps: int = 1000,
    step_control: str = "sample",
    batch_size: int | None = None,
    extra_args: dict[str, Any] | None = None,
    cuda_graph: str = "auto",
    callback: Callback | None = None,
    progress: bool = False,
    trajectory: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Solution:
    """The ODE of `sample` upwards, from the last noise level to the first: latents that `sample` takes back to x.

    Args:
        x: (B, *data), the state at sigma_min, in data units.
        solver: as in `sample`; the default here is the one that keeps an error.
        sigmas: the decreasing levels that `sample` would take, all > 0; they are climbed.
        All others: as in `sample`; steps levels lie between sigma_min and sigma_max, both included, for steps >= 2.

    Raises:
        As `sample`.
    """
    levels = _levels(solver, steps, sigma_min, sigma_max, rho, sigmas)
    if sigmas is None and solver != "rk45":
        levels = levels[:-1]
    if levels[-1] == 0:
        raise ValueError("sigmas must end above 0: no level can be reached from 0; leave the last 0 out")
    if len(levels) < 2:
        raise ValueError(f"steps must be at least 2 to climb from sigma_min to sigma_max, got {steps}")
    accuracy = Accuracy.checked(rtol, atol, max_steps, step_control, batch_size, adaptive=solver == "rk45")
    checked(denoiser, D)
    x = _given("x", x, device, dtype)
    monitor = Monitor(callback, progress)
    return _Task(denoiser, extra_args, x, solver, levels[::-1], accuracy, trajectory, monitor, cuda_graph).run()


class _Task:
    """One solve of dx/dsigma = (x - denoised)/sigma, with all that was checked."""

    def __init__(
        self,
        denoiser: Callable[..., Tensor],
        extra_args: dict[str, Any] | None,
        x: Tensor,
        solver: str,
        levels: list[float],
        accuracy: Accuracy,
        trajectory: bool,
        monitor: Monitor,
        cuda_graph: str,
        churn: Churn | None = None,
    ) -> None:
        self.denoiser = RowDenoiser(denoiser, extra_args, x)
        self.x = x
        self.solver = solver
        self.levels = levels
        self.accuracy = accuracy
        self.trajectory = trajectory
        self.monitor = monitor
        self.cuda_graph = _checks.choice("cuda_graph", cuda_graph, cuda.LAUNCHES)
        self.churn = churn

    def run(self) -> Solution:
        """The Solution, or as much of it as there was on Ctrl-C."""
        with torch.no_grad():
            return self._adaptive() if self.solver == "rk45" else self._fixed_steps()

    def _fixed_steps(self) -> Solution:
        method, steps = METHODS[self.solver], len(self.levels) - 1
        record = Record.start(self.x, self.levels[0], trajectory=self.trajectory)
        B = len(self.x)
        size = self.accuracy.slots or max(B, 1)
        parts = [slice(start, min(start + size, B)) for start in range(0, B, size)]
        with interruptible(record), self.monitor.bar(desc="sampling", total=steps * len(parts), unit="step"):
            for number, part in enumerate(parts):
                if not self._batch(method, record, part, number * steps):
                    break
        return record.solution()

    def _batch(self, method: Any, record: Record, part: slice, before: int) -> bool:
        """All steps for some of the rows; False if the callback ended them."""
        rows = torch.arange(part.start, part.stop, device=self.x.device)

        def denoise(x: Tensor, sigma: float) -> Tensor:
            return self.denoiser(x, torch.full((len(x),), sigma, dtype=torch.float64, device=x.device), rows)

        def watch(i: int, sigma: float, x: Tensor, denoised: Tensor) -> bool:
            self.monitor.reached(lambda: before + i)
            if self.monitor.callback is None:
                return False
            state = x.clone()  # x itself changes as the solve goes on
            level = torch.tensor(sigma, dtype=torch.float64)
            stops = self.monitor.stops(self._info(i, state, level, denoised, rows))
            x.copy_(state)
            return stops

        churn = self.churn and replace(self.churn, seeds=self.churn.seeds[part])
        went = fixed_step.solve(method, denoise, record.part(part), self.levels, watch, churn)
        if went:
            self.monitor.reached(lambda: before + len(self.levels) - 1)
        return went

    def _adaptive(self) -> Solution:
        """Dormand-Prince in t = log sigma, where the equation is dx/dt = x - denoised."""
        first, last = self.levels
        level = schedule.log_level(first, last)
        record = Record.start(self.x, math.log(first), trajectory=self.trajectory, level=level)
        end = torch.full_like(record.t, math.log(last))

        share = partial(covered, record, math.log(first), end)

        def slope(t: Tensor, x: Tensor, rows: Tensor) -> Tensor:
            version = None if x.is_inference() else x._version
            answer = self.denoiser(x, level(t), rows)
            if version not in (None, x._version):
                raise ValueError("the denoiser must not change x in place, as it did")
            return x - answer

        def denoised(sigma: Tensor, x: Tensor, rows: Tensor) -> Tensor:
            return self.denoiser(x, sigma, rows)

        def watch(i: int, rows: Tensor, t: Tensor, x: Tensor, dx: Tensor) -> bool:
            self.monitor.reached(share, record.done)
            return self.monitor.stops(self._info(i, x, level(t), x - dx, rows))

        def left(count: int) -> None:
            done = len(self.x) - count
            self.monitor.reached(lambda: 100 * done / len(self.x), lambda: f"{done}/{len(self.x)} rows")

        if len(self.x) == 0:
            return record.solution()
        every_step_seen = self.monitor.callback is not None or self.trajectory
        machine = choose(record.x.device)
        alone = not (every_step_seen or self.accuracy.together) and machine in (NativeSlots, cuda.CudaSlots)
        with interruptible(record), self.monitor.bar(desc="sampling", **SHARE_BAR):
            whole = self._whole(record, end) if alone else None
            if whole is not None:
                for _ in whole:
                    self.monitor.reached(share, record.done)
            elif alone and machine is cuda.CudaSlots:
                options = {**self._row_options(), "levels": (first, last), "cuda_graph": self.cuda_graph}
                cuda.solve(denoised, record, end, **options, reached=left)
            else:
                solve(slope, record, end, **self.accuracy.options, watch=None if self.monitor.idle else watch)
            self.monitor.reached(share, record.done)
        return record.solution()

    def _whole(self, record: Record, end: Tensor) -> Iterator[None] | None:
        """The solve by the denoiser's own means, if it has them."""
        extra, solve_all = self.denoiser.extra_args, self.denoiser.whole_solve
        if solve_all is None or set(extra) - {"labels"} or record.x.dtype != self.x.dtype:
            return None
        first, last = self.levels
        return solve_all(record, end, (first, last), extra.get("labels"), **self._row_options())

    def _row_options(self) -> dict[str, Any]:
        """As the compiled slots take them."""
        a = self.accuracy
        tolerance = {"rtol": a.rtol, "atol": a.atol, "max_steps": a.max_steps, "controller": DEFAULT_CONTROLLER}
        return {**tolerance, "slots": a.slots or len(self.x)}

    def _info(self, i: int, x: Tensor, sigma: Tensor, denoised: Tensor, rows: Tensor) -> dict[str, Any]:
        """What the callback gets; the solver writes to the rows that its own tensor names."""
        dtype = self.x.dtype
        return {"x": x.to(dtype), "i": i, "sigma": sigma, "denoised": denoised.to(dtype), "rows": rows.clone()}


def _levels(
    solver: str, steps: int, sigma_min: float, sigma_max: float, rho: float, sigmas: Sequence[float] | Tensor | None
) -> list[float]:
    """The noise levels of a solver; first and last alone for rk45."""
    adaptive = _checks.choice("solver", solver, SOLVERS) == "rk45"
    if sigmas is None:
        levels = schedule.rho_levels(steps, sigma_min, sigma_max, rho)
        return list(schedule.interval(sigma_min, sigma_max)) if adaptive else levels
    levels = schedule.given_levels(sigmas)
    if not adaptive:
        return levels
    if levels[-1] == 0:
        raise ValueError("sigmas must end above 0 for 'rk45', which integrates in log sigma; leave the last 0 out")
    return [levels[0], levels[-1]]


def _churns(solver: str, churn: float, churn_min: float, churn_max: float, churn_noise: float) -> bool:
    """Whether there is churn, its numbers checked."""
    amount = _checks.number("churn", churn, at_least=0)
    lowest = _checks.number("churn_min", churn_min, at_least=0)
    _checks.number("churn_max", churn_max, at_least=lowest, finite=False)
    _checks.number("churn_noise", churn_noise, at_least=0)
    fit = [name for name, method in METHODS.items() if method.single_step]
    if amount and solver not in fit:
        raise ValueError(f"churn must be 0 for solver {solver!r}, got {churn}; it goes with {', '.join(fit)}")
    return amount > 0


def _home(generator: torch.Generator | None, denoiser: object) -> torch.device | str:
    """Where the prior is drawn unless a device is named: with the generator, else the denoiser, else on the CPU."""
    return device_of(denoiser) or "cpu" if generator is None else generator.device


def _given(name: str, x: Tensor | None, device: torch.device | str | None, dtype: torch.dtype | None) -> Tensor:
    """A state, checked, in the dtype and on the device asked for."""
    x = _checks.tensor(name, x).detach()
    if x.ndim < 2:
        raise ValueError(f"{name} must be (B, *data), got shape {tuple(x.shape)}")
    _checks.finite(name, x)
    return x.to(device=device or x.device, dtype=_dtype(dtype or x.dtype))


def _dtype(dtype: torch.dtype | None) -> torch.dtype:
    dtype = dtype or torch.get_default_dtype()
    if dtype not in _checks.FLOATING:
        raise TypeError(f"dtype must be one of {', '.join(map(str, _checks.FLOATING))}, got {dtype}")
    return dtype
