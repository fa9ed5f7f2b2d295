"""The family's noise: the multivariate Student-t kernel of PFGM++ (Xu et al. 2023) around data, and around 0."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pfgm_fast import _checks, philox


def perturb(
    y: Tensor,
    sigma: float | Tensor,
    D: float,
    *,
    seeds: Sequence[int] | Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws x from the perturbation kernel p(x | y), the Student-t with D degrees of freedom, location y, scale sigma:

        x = y + sigma * g * sqrt(D / X),  g ~ N(0, I_N),  X ~ chi-squared(D)         (D = inf: x = y + sigma g)

    which is r**2 * beta / (1 - beta), beta ~ Beta(N/2, D/2), for the squared radius, in a uniform direction (PFGM++,
    section 3.1 and appendix B). X is one number a row. Gradients flow to y.

    Args:
        y: (B, *data), float16, bfloat16, float32 or float64, in data units.
        sigma: noise level > 0: a number, 0-d, (B,) or (B, 1, ..., 1).
        D: augmented dimension > 0, or math.inf.
        seeds: one 64-bit integer a row, or an int64 tensor (B,): a row depends on its own seed, never on the batch.
        generator: draws the seeds instead; without either, torch's default generator of y's device does.

    Returns:
        x like y, computed in float64 if y is float64, else in float32. Where a small D throws x beyond the range of the
        dtype the value is infinite.

    Raises:
        TypeError: y not a floating tensor; seeds not integers.
        ValueError: y not finite or not (B, *data); sigma, D out of range; seeds of another length or with a generator.
    """
    check_data(y)
    return _student_t(y, y.shape, y.device, y.dtype, _checks.noise_level(sigma, y), D, seeds, generator)


def prior(
    shape: Sequence[int],
    sigma_max: float | Tensor,
    D: float,
    *,
    seeds: Sequence[int] | Tensor | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draws the state at sigma_max, in data units: the kernel of `perturb` with y = 0, and the same numbers.

    Args:
        shape: (B, *data).
        sigma_max: noise level > 0: a number, 0-d, (B,) or (B, 1, ..., 1).
        D: augmented dimension > 0, or math.inf.
        seeds, generator: as for `perturb`.
        device: where to draw; by default that of the generator, else of seeds, else the CPU.
        dtype: floating dtype of the result; by default torch.get_default_dtype().

    Returns:
        x of the shape, device and dtype asked for.

    Raises:
        TypeError, ValueError: as `perturb`; ValueError for a shape without data dimensions or with a negative one.
    """
    full = sizes(shape)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if dtype not in _checks.FLOATING:
        raise TypeError(f"dtype must be {' or '.join(map(_checks.short, _checks.FLOATING))}, got {dtype}")
    if device is None:
        source = seeds if generator is None else generator
        device = source.device if isinstance(source, (torch.Generator, Tensor)) else "cpu"
    place = torch.empty(full[0], 0, device=device)
    levels = _checks.noise_level(sigma_max, place, "sigma_max")
    return _student_t(None, full, place.device, dtype, levels, D, seeds, generator)


def sizes(shape: Any) -> torch.Size:
    """The shape (B, *data) of samples, checked."""
    if isinstance(shape, (str, bytes)) or not isinstance(shape, Sequence):
        raise TypeError(f"shape must be a sequence of integers (B, *data), got {type(shape).__name__}")
    checked = torch.Size([_checks.integer(f"shape[{i}]", size, at_least=0) for i, size in enumerate(shape)])
    if len(checked) < 2:
        raise ValueError(f"shape must be (B, *data), got {tuple(checked)}")
    return checked


def check_data(y: Any) -> None:
    """Raises unless y is (B, *data), floating and finite."""
    if isinstance(y, Tensor) and y.dtype == torch.uint8:
        raise TypeError("y must be floating, got uint8: convert images by (2 * y.float() - 255) / 255")
    _checks.tensor("y", y)
    if y.ndim < 2:
        raise ValueError(f"y must be (B, *data), got shape {tuple(y.shape)}")
    _checks.finite("y", y)


def _student_t(
    y: Tensor | None,
    shape: torch.Size,
    device: torch.device,
    dtype: torch.dtype,
    sigma: Tensor,
    D: Any,
    seeds: Any,
    generator: torch.Generator | None,
) -> Tensor:
    """y (None: 0) + sigma * g * sqrt(D / X) of the given shape and dtype."""
    degrees = _checks.augmented_dimension(D)
    keys = philox.row_seeds(shape[0], seeds, generator, device)
    N = math.prod(shape[1:])
    fused = _fused(device)
    draw = torch.ops.pfgm_fast.student_t if fused else _plain
    if y is None:
        return draw(None, sigma, keys, degrees, N, dtype).view(shape)
    if fused and not _tracked(y):
        return draw(y.reshape(shape[0], N), sigma, keys, degrees, N, dtype).view(shape)
    # The addition is PyTorch's, and with it every kind of derivative; the bits are the same.
    noise = draw(None, sigma, keys, degrees, N, _compute(dtype)).view(shape)
    return (y + noise).to(dtype)


def _fused(device: torch.device) -> bool:
    """Whether the registered operator draws: one kernel, if the backend "triton" is "ok" in pf.info()."""
    return device.type == "cuda"


def _tracked(y: Tensor) -> bool:
    """Whether a derivative with respect to y may be asked for."""
    forward = forward_ad.unpack_dual(y).tangent is not None
    return forward or (y.requires_grad and torch.is_grad_enabled())


def _compute(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _plain(y: Tensor | None, sigma: Tensor, seeds: Tensor, D: float, N: int, dtype: torch.dtype) -> Tensor:
    """y (B, N), or 0, + noise, by PyTorch on any device; arguments as in `pfgm_fast.kernels.noise.student_t`."""
    compute = _compute(dtype)
    noise = philox.normals(seeds, N, compute)
    scale = sigma
    if math.isfinite(D):
        scale = sigma * (-0.5 * philox.log_chi2_over_D(seeds, D)).exp()
    noise.mul_(scale.to(compute)[:, None])
    return (noise if y is None else y + noise).to(dtype)


_library = torch.library.Library("pfgm_fast", "FRAGMENT")
_library.define("student_t(Tensor? y, Tensor sigma, Tensor seeds, float D, SymInt N, ScalarType dtype) -> Tensor")


def _run(y: Tensor | None, sigma: Tensor, seeds: Tensor, D: float, N: int, dtype: torch.dtype) -> Tensor:
    kernels = importlib.import_module("pfgm_fast.kernels")
    fits = kernels.unavailable() is None and kernels.supports(seeds.device)
    draw = importlib.import_module("pfgm_fast.kernels.noise").student_t if fits else _plain
    return draw(y, sigma, seeds, D, N, dtype)


_library.impl("student_t", _run, "CompositeExplicitAutograd")


@torch.library.register_fake("pfgm_fast::student_t", lib=_library)
def _fake(y: Tensor | None, sigma: Tensor, seeds: Tensor, D: float, N: int, dtype: torch.dtype) -> Tensor:
    return seeds.new_empty((seeds.shape[0], N), dtype=dtype)
