"""Log-likelihood under any denoiser: the instantaneous change of variables along the probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pfgm_fast import _checks, philox, schedule, student
from pfgm_fast.adaptive import Accuracy, covered
from pfgm_fast.denoiser import RowDenoiser, checked, needed
from pfgm_fast.jacobian import pulled_back
from pfgm_fast.ode.solve import solve
from pfgm_fast.rowwise import answer_like
from pfgm_fast.solution import Record, Status, per_row, shown
from pfgm_fast.watching import SHARE_BAR, Monitor

PROBES = ("rademacher", "gaussian")


class LogLikelihood(NamedTuple):
    """What `log_likelihood` returns, one value for each row, on the device of x.

    Attributes:
        nats: (B,) log density at x of the data smoothed to sigma_min; NaN in a row that did not reach sigma_max.
        bits_per_dim: (B,) -nats/(N ln 2) + log2(levels_per_unit).
        nfe: (B,) int64, evaluations of the denoiser, each with its divergence.
    """

    nats: Tensor
    bits_per_dim: Tensor
    nfe: Tensor


def log_likelihood(
    denoiser: Callable[..., Tensor],
    x: Tensor,
    *,
    D: float | None = None,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    max_steps: int = 1000,
    exact: bool | None = None,
    probe: str = "rademacher",
    levels_per_unit: float = 1.0,
    batch_size: int | None = None,
    extra_args: dict[str, Any] | None = None,
    seeds: Sequence[int] | Tensor | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> LogLikelihood:
    """Log density of x under the model that `pfgm_fast.sample` draws from, by rk45 from sigma_min up to sigma_max.

    Along dx/dt = x - x_hat(x, e^t), t = ln sigma, the same for every D, the log density changes by minus the divergence
    (Chen et al. 2018, theorem 1; Song et al. 2021, appendix D.2):

        ln p(x, sigma_min) = ln prior(x(sigma_max)) + N ln(sigma_max/sigma_min) - integral of div x_hat dt

    with the Student-t of D degrees of freedom and scale sigma_max around 0, a normal for D = inf, as the prior. That is
    the density of the data smoothed by sigma_min, up to what the prior neglects of the data at sigma_max.

    The state is float64, whatever the dtype of x. The integral is one more of its columns and enters the norm of the
    error as one of N + 1 values: in a step its error stays below sqrt(N + 1) (atol + rtol |integral|). The default
    tolerances leave an error of some 1e-3 nats per dimension.

    Args:
        denoiser: as for `pfgm_fast.sample`. Where divergences are estimated, gradients with respect to x flow through
            it.
        x: (B, *data), the state at sigma_min, in data units.
        D: augmented dimension, > 0 or math.inf; None takes `denoiser.D` if that is a number.
        sigma_min, sigma_max: the ends of the path.
        rtol, atol, max_steps, batch_size, extra_args: as for `pfgm_fast.sample`.
        exact: True calls `denoiser.divergence(x, sigma, **extra_args)` -> (b,), the trace of the Jacobian; False
            estimates it by e.(J^T e) with one probe e a row, kept along the path (Hutchinson 1990; Grathwohl et al.
            2019), for one forward and one backward pass an evaluation. None: exact where the denoiser can.
        probe: law of e: "rademacher" (signs, the smaller variance) or "gaussian".
        levels_per_unit: discrete values in one unit of the data, for bits per dimension of quantised data: 127.5 for
            pixels (2u - 255)/255, 128 (7 bits) for those that PFGM dequantises to [-1, 1).
        seeds, generator: randomness of the probes, one seed for each row or a torch generator; by default torch's own
            generator. Nothing is drawn where divergences are exact.
        progress: show a bar: the share of ln sigma covered and the rows done.

    Returns:
        LogLikelihood: nats and bits_per_dim in the dtype of x, float32 at least.

    Raises:
        ValueError, TypeError: an argument is out of range, of another type, or at odds with another one.
    """
    D = needed(checked(denoiser, D))
    last, first = schedule.interval(sigma_min, sigma_max)
    accuracy = Accuracy.checked(rtol, atol, max_steps, "sample", batch_size)
    _checks.choice("probe", probe, PROBES)
    density = _checks.number("levels_per_unit", levels_per_unit, above=0)
    x = _checks.tensor("x", x).detach()
    if x.ndim < 2 or not math.prod(x.shape[1:]):
        raise ValueError(f"x must be (B, *data) with N >= 1, got shape {tuple(x.shape)}")
    _checks.finite("x", x)
    slope = _Slope(denoiser, extra_args, x, _exact(exact, denoiser), probe, seeds, generator)

    N, monitor = slope.N, Monitor(None, progress)
    start = torch.cat([x.reshape(len(x), N).double(), x.new_zeros(len(x), 1, dtype=torch.float64)], 1)
    record = Record.start(start, math.log(first))
    end = torch.full_like(record.t, math.log(last))
    level = schedule.log_level(last, first)

    share = partial(covered, record, math.log(first), end)

    def func(t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        return slope(level(t), y, rows)

    def watch(i: int, rows: Tensor, t: Tensor, y: Tensor, dy: Tensor) -> bool:
        monitor.reached(share, record.done)
        return False

    with torch.no_grad(), monitor.bar(desc="likelihood", **SHARE_BAR):
        solve(func, record, end, **accuracy.options, watch=watch if progress else None)
        monitor.reached(share, record.done)
    state, integral = record.x[:, :N], record.x[:, N]
    nats = student.log_density(state.square().sum(1), last, N, D) + N * math.log(last / first) - integral
    nats = nats.masked_fill(record.status != Status.SUCCESS, math.nan)
    bits = math.log2(density) - nats / (N * math.log(2))
    return LogLikelihood(nats.to(slope.work), bits.to(slope.work), record.nfe)


class _Slope:
    """d/dt of the state (b, N + 1): the point, flattened, and the integral of the divergence of x_hat."""

    def __init__(
        self,
        denoiser: Callable[..., Tensor],
        extra_args: dict[str, Any] | None,
        x: Tensor,
        exact: bool,
        probe: str,
        seeds: Sequence[int] | Tensor | None,
        generator: torch.Generator | None,
    ) -> None:
        B, self.shape = len(x), x.shape[1:]
        self.N = math.prod(self.shape)
        self.work = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.denoiser = RowDenoiser(denoiser, extra_args, x)
        self.dtype = x.dtype
        self.trace = getattr(denoiser, "divergence", None) if exact else None
        drawn = not exact or seeds is not None  # seeds are refused all the same where nothing is drawn
        keys = philox.row_seeds(B, seeds, generator, x.device) if drawn else None
        self.probes = torch.empty(B, 0, dtype=self.work, device=x.device)
        if not exact and keys is not None:
            normals = philox.normals(keys, self.N, self.work, stream=philox.PROBE)
            self.probes = normals.sign() if probe == "rademacher" else normals

    def __call__(self, sigma: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        x, good = shown(y[:, : self.N].to(self.work).reshape(len(y), *self.shape))
        if self.trace is None:
            probes = self.probes[rows]

            def denoise(x: Tensor) -> Tensor:
                return self.denoiser(x, sigma, rows)

            denoised, product = pulled_back("the denoiser", denoise, x, lambda _: probes.reshape(x.shape))
            divergence = (probes * product.reshape(probes.shape)).sum(1, dtype=y.dtype)
        else:
            seen, _ = shown(x.to(self.dtype))
            answer = self.trace(seen, sigma.to(self.work), **self.denoiser.arguments.of(rows))
            denoised, divergence = self.denoiser(x, sigma, rows), answer_like("denoiser.divergence", answer, sigma)
        drift = y[:, : self.N] - denoised.reshape(len(y), self.N)
        slope = torch.cat([drift, divergence.reshape(-1, 1).to(y.dtype)], 1)
        return slope.where(per_row(good, slope), math.nan)


def _exact(exact: bool | None, denoiser: object) -> bool:
    """Whether the denoiser's own divergence is used."""
    able = callable(getattr(denoiser, "divergence", None))
    if exact is None:
        return able
    if not isinstance(exact, bool):
        raise TypeError(f"exact must be True, False or None, got {type(exact).__name__}")
    if exact and not able:
        raise ValueError("exact=True needs a denoiser with a method divergence(x, sigma); use exact=False")
    return exact
