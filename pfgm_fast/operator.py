"""The one operator of the library: posterior mean and log-sum-exp of a data set, in one reduction.

PFGM's and PFGM++'s targets (arXiv 2209.11178, 2302.04265), the stable target and the ideal denoiser are all

    log weight  l_ij = a_j - power * log1p(rho_ij / scale_i)      (power finite)
                l_ij = a_j - rho_ij / scale_i                     (power = inf)
    x_hat_i = sum_j softmax_j(l_ij) y_j,     L_i = logsumexp_j l_ij,     rho_ij = |x_i - y_j|^2

with power = (N + D)/2 and scale = D sigma^2; for D = inf, power = inf and scale = 2 sigma^2. It is registered as
torch.ops.pfgm_fast.posterior, so that torch.compile and fake tensors know it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pfgm_fast import _checks, reference

PRECISIONS = ("highest", "high")


@dataclass(frozen=True)
class Backend:
    """An implementation of the operator: a module with unavailable, supports, pack, empty_pack and posterior.

    "auto" takes it for tensors on a device of the types `chosen_on`, or of any type if that is empty. Where it has
    several `precisions`, pack and empty_pack take one as their last argument; else it computes at "highest".
    """

    name: str
    chosen_on: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()

    def unavailable(self) -> str | None:
        """Why this backend cannot run here, or None if it can."""
        return importlib.import_module(self.name).unavailable()  # type: ignore[no-any-return]

    def refuses(self, device: torch.device) -> str | None:
        """Why this backend cannot serve tensors on `device`, or None if it can."""
        why = self.unavailable()
        if why is None and not importlib.import_module(self.name).supports(device):
            why = f"it does not serve {device.type} tensors"
        return why

    def packing(self, function: str, precision: str) -> Callable[..., list[Tensor]]:
        """Its `pack` or `empty_pack` at a precision."""
        pack: Callable[..., list[Tensor]] = getattr(importlib.import_module(self.name), function)
        return partial(pack, precision=precision) if self.precisions else pack


# Where a new backend joins; "auto" takes the first that can run.
BACKENDS: dict[str, Backend] = {
    "triton": Backend("pfgm_fast.kernels", chosen_on=("cuda",), precisions=PRECISIONS),
    "native": Backend("pfgm_fast.native", chosen_on=("cpu",)),
    "torch": Backend("pfgm_fast.reference"),
}


def choose(backend: str, device: torch.device) -> str:
    """The name of the backend that will run: `backend` itself, or for "auto" the first that can."""
    if backend == "auto":
        fit = ((n, b) for n, b in BACKENDS.items() if not b.chosen_on or device.type in b.chosen_on)
        return next(name for name, candidate in fit if candidate.refuses(device) is None)
    _checks.choice("backend", backend, ("auto", *BACKENDS))
    why = BACKENDS[backend].refuses(device)
    if why is not None:
        raise ValueError(f"backend {backend!r} cannot run: {why}")
    return backend


# torch.compile need not look into it. The decorator that says so imports the compiler; this is all it does.
choose._dynamo_marked_constant = True  # type: ignore[attr-defined]


def posterior(
    x: Tensor,
    scale: Tensor,
    data: list[Tensor],
    log_weights: Tensor | None,
    segments: Tensor | None,
    power: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The registered operator; nothing is checked here.

    Args:
        x: queries (B, N), float32 or float64, contiguous.
        scale: (B,) float64, D sigma^2 or 2 sigma^2.
        data: the M data as `prepare` makes them for this backend.
        log_weights: (M,) float64, the a_j, or None for 0.
        segments: (B, 2) int64, the half-open range of data that each row sees, or None for all.
        power: (N + D)/2 or inf.
        backend: a name in BACKENDS.
    Returns:
        x_hat (B, N) in the dtype of x, and L (B,) in float64. A row with NaN, scale <= 0 or an empty segment is NaN.
    """
    mean, log_sum = torch.ops.pfgm_fast.posterior(x, scale, data, log_weights, segments, power, backend)
    return mean, log_sum


def top_weights(
    x: Tensor, scale: Tensor, data: list[Tensor], log_weights: Tensor | None, power: float, backend: str, k: int
) -> tuple[Tensor, Tensor]:
    """The k largest weights (B, k) and their data; arguments as of `posterior`. By PyTorch if a backend has none."""
    module = importlib.import_module(BACKENDS[backend].name)
    find = getattr(module, "top_weights", reference.top_weights)
    found: tuple[Tensor, Tensor] = find(x, scale, data, log_weights, power, k)
    return found


def prepare(data: Tensor, backend: str, precision: str = "highest") -> list[Tensor]:
    """The data (M, N) as `posterior` takes them: the data, their centre, and what the backend makes of them once.

    What it makes settles the precision of all that is computed with them.
    """
    center = center_of(data)
    return [data, center, *torch.ops.pfgm_fast.pack(data, center, backend, precision)]


def center_of(data: Tensor) -> Tensor:
    """A point amid the data (N,) float64, from some hundred evenly spaced rows; for 8-bit data in whole units of 1/255.

    Distances do not depend on it, only their rounding does: the nearer to the mean, the better.
    """
    wide = _checks.wide(data.device)
    mean = data[:: max(1, len(data) // 256)].mean(0, dtype=wide)
    if data.dtype == torch.uint8:
        return torch.round(2 * mean - 255)
    return mean.to(data.dtype).to(wide)


_library = torch.library.Library("pfgm_fast", "DEF")
_library.define(
    "posterior(Tensor x, Tensor scale, Tensor[] data, Tensor? log_weights, Tensor? segments, float power, str backend)"
    " -> (Tensor, Tensor)"
)
_library.define("pack(Tensor data, Tensor center, str backend, str precision) -> Tensor[]")


def _run(*arguments: Any) -> tuple[Tensor, Tensor]:
    *inputs, backend = arguments
    return importlib.import_module(BACKENDS[backend].name).posterior(*inputs)  # type: ignore[no-any-return]


def _pack(data: Tensor, center: Tensor, backend: str, precision: str) -> list[Tensor]:
    return BACKENDS[backend].packing("pack", precision)(data, center)


_library.impl("posterior", _run, "CompositeExplicitAutograd")
_library.impl("pack", _pack, "CompositeExplicitAutograd")


@torch.library.register_fake("pfgm_fast::posterior", lib=_library)
def _fake(
    x: Tensor,
    scale: Tensor,
    data: list[Tensor],
    log_weights: Tensor | None,
    segments: Tensor | None,
    power: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(scale)


@torch.library.register_fake("pfgm_fast::pack", lib=_library)
def _fake_pack(data: Tensor, center: Tensor, backend: str, precision: str) -> list[Tensor]:
    return BACKENDS[backend].packing("empty_pack", precision)(data)
