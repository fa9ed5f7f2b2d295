"""Editing on the path between data and latents: interpolation, temperature, and completion of what is known in part."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pfgm_fast import _checks, noise, philox, schedule
from pfgm_fast.denoiser import beside_call, checked, keywords, needed
from pfgm_fast.jacobian import pulled_back
from pfgm_fast.rowwise import answer_like
from pfgm_fast.sampling import sample
from pfgm_fast.solution import Solution, per_row

_KNOWN, _MASK = "_inpaint_known", "_inpaint_mask"  # what travels with the rows beside the user's extra_args


def interpolate(a: Tensor, b: Tensor, n: int) -> Tensor:
    """n latents on the great circle from a to b, both included, as PFGM (2209.11178) decodes between two images.

    Directions go by even angles (slerp, Shoemake 1985), norms by even steps. A straight line would pass through norms
    that the prior hardly ever draws.

    Args:
        a, b: (*data) floating, of one shape, dtype and device.
        n: how many, >= 1; n = 1 gives a.
    Returns:
        (n, *data), like a.
    Raises:
        TypeError, ValueError: naming the argument; where values can be read, also a latent that is 0 or not finite, and
            latents in opposite directions, between which no great circle is the shortest. On a GPU these give NaN.
    """
    _checks.tensor("a", a)
    _checks.tensor("b", b, (a.dtype,))
    if a.ndim < 1 or a.shape != b.shape or a.device != b.device:
        got = f"a {tuple(a.shape)} on {a.device} and b {tuple(b.shape)} on {b.device}"
        raise ValueError(f"a and b must be (*data) of one shape on one device, got {got}")
    n = _checks.integer("n", n, at_least=1)
    (u, length_a), (v, length_b) = _polar("a", a), _polar("b", b)
    share = torch.linspace(0, 1, n, dtype=u.dtype, device=u.device)[:, None]
    apart, opposed = torch.linalg.vector_norm(u - v), torch.linalg.vector_norm(u + v)
    lost = opposed < 16 * torch.finfo(a.dtype).eps
    if _checks.readable(a) and bool(lost):
        raise ValueError("a and b must not lie in opposite directions: no great circle between them is the shortest")
    angle = 2 * torch.atan2(apart, opposed)  # accurate for small angles too
    turned = torch.sin(angle)
    near = turned < torch.finfo(u.dtype).eps  # of one direction
    weight_a = torch.where(near, 1 - share, torch.sin((1 - share) * angle) / turned)
    weight_b = torch.where(near, share, torch.sin(share * angle) / turned)
    length = (1 - share) * length_a + share * length_b
    result = length * (weight_a * u + weight_b * v)
    return result.masked_fill(lost, math.nan).to(a.dtype).reshape(n, *a.shape)


def rescale(latents: Tensor, *, factor: float | Tensor | None = None, norm: float | Tensor | None = None) -> Tensor:
    """Latents of the same directions and other norms: the temperature of PFGM (2209.11178).

    Args:
        latents: (B, *data) floating.
        factor: > 0, what to multiply the norm of each row by: a number, 0-d, (B,) or (B, 1, ..., 1).
        norm: the norm itself instead; exactly one of the two is given.
    Returns:
        Like latents.
    Raises:
        TypeError, ValueError: naming the argument; for a norm also a row of zeros, where values can be read; on a GPU
            it gives NaN.
    """
    _checks.tensor("latents", latents)
    if latents.ndim < 2:
        raise ValueError(f"latents must be (B, *data), got shape {tuple(latents.shape)}")
    if factor is not None and norm is None:
        scale = _checks.noise_level(factor, latents, "factor")
    elif norm is not None and factor is None:
        scale = _checks.noise_level(norm, latents, "norm")
        size = torch.linalg.vector_norm(latents.reshape(len(latents), -1), dim=1, dtype=scale.dtype)
        if _checks.readable(latents) and not bool((size > 0).all()):
            raise ValueError("latents must not be 0 in any row, where a norm is asked for")
        scale = torch.where(size > 0, scale / size, math.nan)
    else:
        raise ValueError(f"exactly one of factor and norm must be given, got {'neither' if norm is None else 'both'}")
    return (latents * per_row(scale, latents)).to(latents.dtype)


def inpaint(
    denoiser: Callable[..., Tensor],
    x: Tensor,
    mask: Tensor,
    *,
    D: float | None = None,
    latents: Tensor | None = None,
    sigma_data: float | None = None,
    sigma_max: float = 80.0,
    sigmas: Sequence[float] | Tensor | None = None,
    extra_args: dict[str, Any] | None = None,
    seeds: Sequence[int] | Tensor | None = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Solution:
    """Samples that agree with x where it is known.

    At every level the known part is that of x, perturbed to the level by one noise, the row's latents: x + (sigma/
    sigma_max) latents. Projecting the state onto that path again and again (Song et al. 2021, section 5; here for the
    ODE) is the same as answering x for the known part of the denoised state, since dx/dsigma = (x - x_hat)/sigma then
    has this straight line as its solution, and every solver keeps to it. So all solvers serve, and the result is a
    function of the latents.

    Alone, that leaves much of the choice to the noise: far up, where it is made, the known part is under noise too.
    With sigma_data the unknown part is also steered by the gradient of the misfit, for one backward pass an evaluation:
    to x_hat is added (1 + s^2/sigma_data^2) J^T u, with J the Jacobian of x_hat and u the known part of x less x_hat.
    At D = inf, where s = sigma, this is pseudoinverse guidance (Song et al. 2023); for any D, s^2 = (D sigma^2 +
    |x - x_hat|^2)/(N + D) is the variance of the kernel as it looks from x. Either way samples are near to the
    conditional law, not of it.

    Args:
        denoiser: as for `pfgm_fast.sample`; with sigma_data, gradients with respect to x must flow through it.
        x: (B, *data) in data units; its values count where mask is True alone.
        mask: bool, True where x is known: (B, *data), or a shape that broadcasts to it.
        D: augmented dimension, for the prior and for steering; None takes `denoiser.D` if that is a number.
        latents: (B, *data), in the dtype of x, the noise at the first level; None draws it, as `pfgm_fast.prior` does.
        sigma_data: steer, for data of this standard deviation (EDM: 0.5); less is stronger, and takes more steps.
        sigma_max, sigmas, extra_args, seeds, generator: as for `pfgm_fast.sample`.
        **options: further arguments of `pfgm_fast.sample`, but for shape, device and dtype.
    Returns:
        Solution: its samples equal x in the known part where the last level is 0, as by default; else they keep noise
        of the last level there.
    Raises:
        As `pfgm_fast.sample`.
    """
    x = _checks.tensor("x", x).detach()
    if x.ndim < 2:
        raise ValueError(f"x must be (B, *data), got shape {tuple(x.shape)}")
    known = _checks.tensor("mask", mask, (torch.bool,))
    if known.device != x.device:
        raise ValueError(f"mask must be on {x.device} like x, got {known.device}")
    try:
        known = known.expand(x.shape)
    except RuntimeError:
        raise ValueError(f"mask must broadcast to {tuple(x.shape)} like x, got shape {tuple(mask.shape)}") from None
    x = x.where(known, 0)
    _checks.finite("x", x)
    fixed = {"shape", "device", "dtype"} & set(options)
    if fixed:
        raise TypeError(f"{', '.join(sorted(fixed))} cannot be given: they are those of x")
    D = checked(denoiser, D)
    keys = philox.row_seeds(len(x), seeds, generator, x.device)
    if latents is None:
        first = sigma_max if sigmas is None else schedule.given_levels(sigmas)[0]
        latents = noise.prior(x.shape, first, needed(D), seeds=keys, device=x.device, dtype=x.dtype)
    elif _checks.tensor("latents", latents, (x.dtype,)).shape != x.shape:
        raise ValueError(f"latents must be like x, of shape {tuple(x.shape)}, got shape {tuple(latents.shape)}")
    start = torch.where(known, x + latents, latents)
    extra = {**keywords(extra_args), _KNOWN: x, _MASK: known}
    options |= {"sigma_max": sigma_max, "sigmas": sigmas}
    return sample(_Completing(denoiser, sigma_data, D), latents=start, extra_args=extra, seeds=keys, **options)


class _Completing:
    """A denoiser that knows a part of the answer."""

    def __init__(self, denoiser: Callable[..., Tensor], sigma_data: float | None, D: float | None) -> None:
        self.denoiser = beside_call(denoiser, "unchecked") or denoiser
        self.sigma_data = None if sigma_data is None else _checks.number("sigma_data", sigma_data, above=0)
        self.D = D if sigma_data is None else needed(D)

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        known, mask = extra_args.pop(_KNOWN), extra_args.pop(_MASK)

        def denoise(x: Tensor) -> Tensor:
            return answer_like("the denoiser", self.denoiser(x, sigma, **extra_args), x)

        def misfit(denoised: Tensor) -> Tensor:
            return torch.where(mask, known - denoised, 0)

        if self.sigma_data is None:
            denoised = denoise(x)
        else:
            denoised, product = pulled_back("the denoiser", denoise, x, misfit)
            weight = 1 + self._variance(x - denoised, sigma) / self.sigma_data**2
            denoised = denoised + per_row(weight, x).to(x.dtype) * product
        return torch.where(mask, known, denoised)

    def _variance(self, residual: Tensor, sigma: Tensor) -> Tensor:
        """That of the noise (b,): sigma^2 for D = inf, else by how far x is from its posterior mean."""
        if self.D is None or math.isinf(self.D):
            return sigma**2
        flat = residual.reshape(len(residual), -1)
        distance: Tensor = torch.linalg.vector_norm(flat, dim=1, dtype=sigma.dtype)
        return (self.D * sigma**2 + distance**2) / (flat.shape[1] + self.D)


def _polar(name: str, latent: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vector (N,) and norm of a latent, float64."""
    flat = latent.reshape(-1).to(_checks.wide(latent.device))
    _checks.finite(name, flat)
    norm = torch.linalg.vector_norm(flat)
    if _checks.readable(latent) and not bool(norm > 0):
        raise ValueError(f"{name} must not be 0: it has no direction")
    return flat / norm, norm
