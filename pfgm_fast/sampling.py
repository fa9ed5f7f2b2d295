"""Samples from any denoiser: the probability-flow ODE from the prior down to the data."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from pfgm_fast import _checks, fixed_step, noise, philox, runge_kutta, schedule
from pfgm_fast.solution import Record, Solution, Status, finite_rows, per_row

Callback = Callable[[dict[str, Any]], object]


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
    extra_args: dict[str, Any] | None = None,
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
            sigma is float64 if the state is, else float32. It may be called on some of the rows only. If it has a
            method `unchecked`, that is called instead: the same, but a row it cannot answer is NaN and raises nothing.
        shape: (B, *data) of samples to start from the prior. Exactly one of shape and latents is given.
        D: augmented dimension, > 0 or math.inf; None takes `denoiser.D` if that is a number. Needed for the prior only.
        latents: (B, *data), the state at the first level in data units, as `pfgm_fast.prior` draws it; never scaled
            here.
        solver: "euler", "heun" (order 2, Euler to 0; Karras et al. 2022, algorithm 1) or "rk45" (Dormand-Prince 5(4) in
            log sigma, with error control and step size for each row).
        steps, sigma_min, sigma_max, rho: fixed-step solvers use `steps` levels from sigma_max to sigma_min, even in
            sigma^(1/rho), then 0. rk45 integrates from sigma_max to sigma_min. The denoiser is never called outside the
            levels, nor at 0.
        sigmas: decreasing levels to use as they are instead, with a 0 at the end only if it is there; rk45 integrates
            from the first to the last, both > 0.
        rtol, atol: rk45 keeps the RMS over a row of error/(atol + rtol*|x|) below 1 in each step.
        max_steps: rk45: steps tried in a row before it ends with Status.MAX_STEPS.
        extra_args: keyword arguments of the denoiser. Tensors have B rows, which travel with the rows of x; 0-d tensors
            and other values are passed as they are.
        seeds, generator: randomness of the prior, one seed for each row or a torch generator; by default torch's own
            generator.
        callback: called in every step, before the state changes, with a dict: `x` (b, *data) and `sigma` (0-d; rk45:
            (b,)), where the rows stand; `denoised`, the denoiser's answer there; `i`, the step; `rows` (b,), their
            indices. `x` is the live state and may be edited in place, as guidance does (a float16 or bfloat16 state is
            kept in float32, so that its `x` is a copy); the rest are not to be edited. If it returns True the solve
            ends with Status.STOPPED in the rows still running.
        progress: show a bar; for rk45 the share of log sigma covered.
        trajectory: keep the state after each step, on the device.
        device: where the prior is drawn or the latents are moved; None is that of latents, else of the generator, else
            of the denoiser (`.device` or its first parameter), else the CPU.
        dtype: floating dtype of the state; None is that of latents, else torch.get_default_dtype().

    Raises:
        ValueError, TypeError: an argument is out of range, of another type, or at odds with another one.
        KeyboardInterrupt: on Ctrl-C, with the Solution so far in its attribute `solution`.
    """
    solve = SOLVERS[_checks.choice("solver", solver, SOLVERS)]
    if not callable(denoiser):
        raise TypeError(f"denoiser must be callable as denoiser(x, sigma), got {type(denoiser).__name__}")
    levels = _levels(solver, steps, sigma_min, sigma_max, rho, sigmas)
    accuracy = _Accuracy.checked(rtol, atol, max_steps)
    D = _augmented_dimension(D, denoiser)
    if (shape is None) == (latents is None):
        raise ValueError(
            f"exactly one of shape and latents must be given, got {'neither' if shape is None else 'both'}"
        )
    if shape is None:
        x = _given(latents, device, dtype)
        if seeds is not None:
            philox.row_seeds(len(x), seeds, generator, x.device)  # unused here, but refused as for the prior
    else:
        device = _device(device, generator, denoiser)
        x = noise.prior(
            shape, levels[0], _needed(D), seeds=seeds, generator=generator, device=device, dtype=_dtype(dtype)
        )
    network = _Network(getattr(denoiser, "unchecked", denoiser), _extra_args(extra_args, x), x.dtype)
    with torch.no_grad():
        return solve(_Problem(network, x, levels, accuracy, trajectory, _Monitor(callback, progress, x.dtype)))


class _Network:
    """The denoiser as the solvers see it: for any rows, in the solver's dtype, and NaN where a row's state is not
    finite.

    Such rows are shown to the user's denoiser as zeros: it is neither asked about NaN nor does one row's NaN reach
    another's.
    """

    def __init__(self, denoiser: Callable[..., Tensor], extra_args: dict[str, Any], dtype: torch.dtype) -> None:
        self.denoiser = denoiser
        self.extra_args = extra_args
        self.dtype = dtype
        self._rows: Tensor | None = None
        self._selected = extra_args

    def __call__(self, x: Tensor, sigma: Tensor, rows: Tensor | None = None) -> Tensor:
        """The denoiser at x (b, *data) and sigma (b,) of the rows (b,) of the batch; None is all of them."""
        shown = x.to(self.dtype)
        good = per_row(finite_rows(shown), x)
        answer = self.denoiser(shown.where(good, 0), sigma.to(x.dtype), **self._arguments(rows))
        _checks.tensor("the denoiser's result", answer)
        if answer.shape != x.shape:
            raise ValueError(
                f"the denoiser must return a tensor like x, of shape {tuple(x.shape)}, got shape {tuple(answer.shape)}"
            )
        if answer.device != x.device:
            raise ValueError(f"the denoiser must return a tensor on {x.device} like x, got one on {answer.device}")
        return answer.to(x.dtype).where(good, math.nan)

    def _arguments(self, rows: Tensor | None) -> dict[str, Any]:
        """The extra arguments of these rows, gathered again only when the rows have changed."""
        if rows is None:
            return self.extra_args
        if rows is not self._rows:
            self._rows = rows
            self._selected = {k: v[rows] if _has_rows(v) else v for k, v in self.extra_args.items()}
        return self._selected


class _Monitor:
    """What the user sees of a running solve: the callback and the progress bar."""

    def __init__(self, callback: Callback | None, progress: bool, dtype: torch.dtype) -> None:
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be callable, got {type(callback).__name__}")
        self.callback = callback
        self.progress = progress
        self.dtype = dtype
        self._bar: Any = None

    @contextmanager
    def bar(self, **style: Any) -> Iterator[None]:
        """Shows a bar, if one was asked for, until the block is left."""
        if not self.progress:
            yield
            return
        from tqdm.auto import tqdm  # only those who ask for a bar pay for its import

        with tqdm(desc="sampling", **style) as self._bar:
            yield

    def reached(self, position: Callable[[], float]) -> None:
        """Moves the bar; the position is asked for only if there is one."""
        if self._bar is not None:
            self._bar.update(position() - self._bar.n)

    def stops(self, i: int, rows: Tensor, x: Tensor, sigma: Tensor, denoised: Tensor) -> bool:
        """Calls the callback; whether it asks to stop."""
        if self.callback is None:
            return False
        info = {
            "x": x.to(self.dtype),
            "i": i,
            "sigma": sigma,
            "denoised": denoised.to(self.dtype),
            "rows": rows.clone(),  # the solver writes to the rows that its own names
        }
        return bool(self.callback(info))


@dataclass(frozen=True)
class _Accuracy:
    """When an adaptive solver is content, and when it gives up."""

    rtol: float
    atol: float
    max_steps: int

    @classmethod
    def checked(cls, rtol: float, atol: float, max_steps: int) -> _Accuracy:
        rtol = _checks.number("rtol", rtol, at_least=0)
        atol = _checks.number("atol", atol, at_least=0)
        if rtol == atol == 0:
            raise ValueError("rtol and atol must not both be 0, got rtol=0 and atol=0")
        return cls(rtol, atol, _checks.integer("max_steps", max_steps, at_least=1))


@dataclass(frozen=True)
class _Problem:
    """What a solver needs to know."""

    network: _Network
    x: Tensor
    levels: list[float]
    accuracy: _Accuracy
    trajectory: bool
    monitor: _Monitor

    def run(self, solve: Callable[[], None], record: Record, **bar: Any) -> Solution:
        """Runs a solve on its record under a bar; Ctrl-C passes through with the Solution so far."""
        if len(self.x) == 0:
            return record.solution()
        try:
            with self.monitor.bar(**bar):
                solve()
        except KeyboardInterrupt as interrupt:
            interrupt.solution = record.solution()  # type: ignore[attr-defined]  # an attribute of ours
            raise
        return record.solution()


def _fixed_step(step: fixed_step.Step) -> Callable[[_Problem], Solution]:
    """A solver that takes `step` from each level to the next."""

    def solver(problem: _Problem) -> Solution:
        B, device, steps = len(problem.x), problem.x.device, len(problem.levels) - 1
        record = Record.start(problem.x, problem.levels[0], trajectory=problem.trajectory)
        monitor = problem.monitor
        rows = torch.arange(B, device=device)

        def denoise(x: Tensor, sigma: float) -> Tensor:
            return problem.network(x, torch.full((B,), sigma, dtype=torch.float64, device=device))

        def watch(i: int, sigma: float, x: Tensor, denoised: Tensor) -> bool:
            monitor.reached(lambda: i)
            return monitor.stops(i, rows, x, torch.tensor(sigma, dtype=torch.float64), denoised)

        def solve() -> None:
            if fixed_step.solve(step, denoise, record, problem.levels, watch):
                monitor.reached(lambda: steps)

        return problem.run(solve, record, total=steps, unit="step")

    return solver


def _rk45(problem: _Problem) -> Solution:
    """Dormand-Prince in t = log sigma, where the equation is dx/dt = x - denoised."""
    first, last = problem.levels
    level = schedule.log_level(first, last)
    record = Record.start(problem.x, math.log(first), trajectory=problem.trajectory, level=level)
    end = torch.full_like(record.t, math.log(last))
    monitor = problem.monitor

    def share() -> float:
        covered = (math.log(first) - record.t) / math.log(first / last)
        return 100 * float(covered.where(record.status == Status.STOPPED, 1.0).mean())

    def slope(t: Tensor, x: Tensor, rows: Tensor) -> Tensor:
        return x - problem.network(x, level(t), rows)

    def watch(i: int, rows: Tensor, t: Tensor, x: Tensor, dx: Tensor) -> bool:
        monitor.reached(share)
        return monitor.stops(i, rows, x, level(t), x - dx)

    def solve() -> None:
        a = problem.accuracy
        runge_kutta.solve(slope, record, end, rtol=a.rtol, atol=a.atol, max_steps=a.max_steps, watch=watch)
        monitor.reached(share)

    return problem.run(solve, record, total=100, bar_format="{l_bar}{bar}| {elapsed}<{remaining}")


SOLVERS = MappingProxyType({**{name: _fixed_step(step) for name, step in fixed_step.STEPS.items()}, "rk45": _rk45})


def _levels(
    solver: str, steps: int, sigma_min: float, sigma_max: float, rho: float, sigmas: Sequence[float] | Tensor | None
) -> list[float]:
    """The noise levels of a solver; first and last alone for rk45."""
    if sigmas is None:
        levels = schedule.rho_levels(steps, sigma_min, sigma_max, rho)
        return list(schedule.interval(sigma_min, sigma_max)) if solver == "rk45" else levels
    levels = schedule.given_levels(sigmas)
    if solver != "rk45":
        return levels
    if levels[-1] == 0:
        raise ValueError("sigmas must end above 0 for 'rk45', which integrates in log sigma; leave the last 0 out")
    return [levels[0], levels[-1]]


def _augmented_dimension(D: float | None, denoiser: object) -> float | None:
    """D, or that of the denoiser; the two may not differ.

    An attribute D that is no number, such as a network's submodule, means something else and is ignored.
    """
    attribute = getattr(denoiser, "D", None)
    real = isinstance(attribute, numbers.Real) and not isinstance(attribute, bool)
    own = _checks.augmented_dimension(attribute) if real else None
    if D is None:
        return own
    D = _checks.augmented_dimension(D)
    if own is not None and own != D:
        raise ValueError(f"D={D:g} conflicts with denoiser.D={own:g}; leave D out")
    return D


def _needed(D: float | None) -> float:
    if D is None:
        raise ValueError("D must be given to draw the prior, got None and a denoiser without a number as attribute D")
    return D


def _given(latents: Tensor | None, device: torch.device | str | None, dtype: torch.dtype | None) -> Tensor:
    """The latents, checked, in the dtype and on the device of the state."""
    latents = _checks.tensor("latents", latents).detach()
    if latents.ndim < 2:
        raise ValueError(f"latents must be (B, *data), got shape {tuple(latents.shape)}")
    _checks.finite("latents", latents)
    return latents.to(device=device or latents.device, dtype=_dtype(dtype or latents.dtype))


def _dtype(dtype: torch.dtype | None) -> torch.dtype:
    dtype = dtype or torch.get_default_dtype()
    if dtype not in _checks.FLOATING:
        raise TypeError(f"dtype must be one of {', '.join(map(str, _checks.FLOATING))}, got {dtype}")
    return dtype


def _device(
    device: torch.device | str | None, generator: torch.Generator | None, denoiser: object
) -> torch.device | str:
    """The device of the prior: asked for, else of the generator, else of the denoiser, else the CPU."""
    if device is not None:
        return device
    if generator is not None:
        return generator.device
    own = getattr(denoiser, "device", None)
    if isinstance(own, (torch.device, str)):
        return own
    parameter = next(denoiser.parameters(), None) if isinstance(denoiser, torch.nn.Module) else None
    return "cpu" if parameter is None else parameter.device


def _has_rows(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _extra_args(extra_args: dict[str, Any] | None, x: Tensor) -> dict[str, Any]:
    """The extra arguments, their tensors checked to have a row for each row of x."""
    if extra_args is None:
        return {}
    if not isinstance(extra_args, dict):
        raise TypeError(f"extra_args must be a dict of keyword arguments, got {type(extra_args).__name__}")
    for name, value in extra_args.items():
        if not _has_rows(value):
            continue
        if len(value) != len(x):
            got = tuple(value.shape)
            raise ValueError(f"extra_args[{name!r}] must have a row for each of the {len(x)} samples, got shape {got}")
        if value.device != x.device:
            raise ValueError(f"extra_args[{name!r}] must be on {x.device} like the state, got {value.device}")
    return dict(extra_args)
