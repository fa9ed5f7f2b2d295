"""Newbeeer/Poisson_flow: the parts of its modules that this library does faster, under their own names.

`install()` puts them into a checkout. Where they differ from the originals:

- The training target is the exact field, through the library's operator: without the 1e-7 that the original adds to
  every distance and to the sum of the weights. They show only where a row is nearer to a datum than about
  (N + 1) 1e-8, which no perturbation of the original reaches; exactly on a datum with z = 0 the original's target is 0
  (gamma > 0) or NaN (gamma = 0), and here z counts as 1e-10, the bound under which the original hides z from the
  network.
- RK45 runs on the device, with the same steps, and gives up after 10000 of them; `method` must be "RK45".
- The likelihood evaluates the network once for drift and divergence, and takes images of any number of channels.
- Nothing is printed and no progress bar is shown: `config.sampling.vs` is not read.
- Where the original says `.cuda()`, the device of the data is used, or `config.device`.

The classes and functions read the original's configuration objects. `draws` replays recorded random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pfgm_fast.compat._draws import GLOBAL, Draws, beta_radius, directions
from pfgm_fast.compat._install import Installation, replace
from pfgm_fast.compat._poisson import data_dim, dx_dz, image_shape, predictor
from pfgm_fast.compat._steps import integrate
from pfgm_fast.integrate import odeint
from pfgm_fast.training.perturbation import RESTRICTED, SMALL_Z
from pfgm_fast.training.targets import pfgm_target

LOWEST_Z = 1e-10  # what the network, and here the target, sees of a smaller z
LOWEST_NORM = 1.0  # of the prior
Sampler = Callable[..., tuple[Tensor, int]]
EULER = {
    "forward_euler": "euler",
    "ForwardEulerPredictor": "euler",
    "improved_euler": "heun",
    "ImprovedEulerPredictor": "heun",
}


def install() -> Installation:
    """Puts the functions of this module into the checkout of Poisson_flow that is on sys.path.

    Its modules `losses`, `models.utils_poisson`, `methods`, `sampling` and `likelihood` are imported, and their globals
    replaced; its functions look them up when they are called, so that run_lib.py uses them unchanged. What is not
    PFGM's, as the losses and samplers of score models, still goes to the original.

    Returns:
        Installation, whose undo() puts the originals back; as a context manager it does so at the end.
    Raises:
        ImportError: no checkout is on sys.path, or it lacks a package that it needs.
    """
    return replace(
        [
            ("models.utils_poisson", "forward_pz", lambda _: forward_pz),
            ("losses", "get_loss_fn", _or_original(get_loss_fn, _trains_poisson)),
            ("methods", "Poisson.prior_sampling", lambda _: prior_sampling),
            ("methods", "Poisson.ode", lambda _: ode),
            ("sampling", "get_rk45_sampler_pfgm", lambda _: get_rk45_sampler_pfgm),
            ("sampling", "get_ode_sampler", _or_original(get_ode_sampler, _samples_poisson)),
            ("likelihood", "get_likelihood_fn_pfgm", lambda _: get_likelihood_fn_pfgm),
        ]
    )


def forward_pz(sde: Any, config: Any, samples_batch: Tensor, m: Tensor, draws: Draws = GLOBAL) -> Tensor:
    """The perturbed and augmented data (B, N + 1), z last (2209.11178, algorithm 2).

    Args:
        sde: has M, the largest exponent.
        config: the original's, of which training.tau, training.restrict_M and model.sigma_end are read.
        samples_batch: (B, C, H, W).
        m: (B,) exponents of 1 + tau. In rows with sigma_end |e| < 0.005 it is drawn anew, in place, if restrict_M.
    """
    B, device = len(samples_batch), samples_batch.device
    sigma = config.model.sigma_end
    z = (draws.randn((B, 1, 1, 1)).to(device) * sigma).abs().reshape(B)
    if config.training.restrict_M:
        small = z < SMALL_Z
        m[small] = draws.rand((int(small.sum()),), device) * int(sde.M * RESTRICTED)
    growth = (1 + config.training.tau) ** m
    noise = draws.randn_like(samples_batch).reshape(B, -1) * sigma
    radius = torch.linalg.vector_norm(noise, dim=1) * growth
    direction = directions(draws.randn((B, data_dim(config))).to(device))
    x = samples_batch + (direction * radius[:, None]).view_as(samples_batch)
    return torch.cat([x.reshape(B, -1), (z * growth)[:, None]], 1)


def get_loss_fn(
    sde: Any,
    train: bool,
    reduce_mean: bool = True,
    continuous: bool = True,
    eps: float = 1e-5,
    method_name: str | None = None,
    draws: Draws = GLOBAL,
) -> Callable[[Any, Tensor], Tensor]:
    """PFGM's loss: `loss_fn(model, batch (M, C, H, W))` -> 0-d, the mean over the rows.

    The first training.small_batch_size rows are perturbed; the whole batch is the reference of their targets.

    Args:
        train: puts the network in training mode, else in evaluation mode.
        reduce_mean: a row is the mean of its squared errors, else half of their sum.
        continuous, eps: of score models, not read here.
        method_name: "poisson". (`install` leaves all others to the original.)
    """
    if method_name != "poisson":
        raise ValueError(f"method_name must be 'poisson' here, got {method_name!r}: score models keep the original's")

    def loss_fn(model: Any, batch: Tensor) -> Tensor:
        config = sde.config
        images = batch[: config.training.small_batch_size]
        m = draws.rand((len(images),), images.device) * sde.M
        perturbed = forward_pz(sde, config, images, m, draws)
        x = perturbed[:, :-1].reshape(images.shape)
        z = perturbed[:, -1].clamp(min=LOWEST_Z)
        target = pfgm_target(x, z, batch, float(config.training.gamma))
        v_x, v_z = predictor(model, train=train)(x, z)
        error = (torch.cat([v_x.reshape(len(x), -1), v_z[:, None]], 1) - target).square()
        rows = error.mean(1) if reduce_mean else 0.5 * error.sum(1)
        return rows.mean()

    return loss_fn


def prior_sampling(sde: Any, shape: Sequence[int], draws: Draws = GLOBAL) -> Tensor:
    """The prior on the plane z = z_max (B, C, H, W), float32 (2209.11178, section 3.3); method of `Poisson`.

    The norm is z_max sqrt(b/(1 - b)), b ~ Beta(N/2, 1/2), but clipped to [1, upper_norm]: with the published settings
    more than half of the samples have norm upper_norm.
    """
    config, N = sde.config, data_dim(sde.config)
    b = torch.from_numpy(draws.beta(N / 2, 0.5, shape[0]))
    radius = beta_radius(b, config.sampling.z_max).clamp(LOWEST_NORM, config.sampling.upper_norm)
    gauss = draws.randn((shape[0], N))
    device = getattr(config, "device", None) or ("cuda" if torch.cuda.is_available() else "cpu")
    noise: Tensor = directions(gauss.to(device)) * radius.to(device)[:, None]
    return noise.float().view(image_shape(config, shape[0]))


def ode(sde: Any, net_fn: Any, x: Tensor, t: Tensor) -> Tensor:
    """dx/dt (B, C, H, W) with z = exp(t), t the mean of (B,): z dx/dz; method of `Poisson`."""
    z = t.mean().exp()
    drift: Tensor = z * dx_dz(net_fn, x, z, **_settings(sde.config))
    return drift


class Poisson:
    """PFGM as the original's methods.Poisson: a configuration, its prior and its ODE.

    Args:
        config: the original's configuration.
    """

    def __init__(self, config: Any) -> None:
        self.config = config
        self.N = config.sampling.N

    @property
    def M(self) -> Any:
        """The largest exponent of training."""
        return self.config.training.M

    prior_sampling = prior_sampling
    ode = ode


def get_ode_sampler(
    sde: Any,
    shape: Sequence[int],
    ode_solver: Any,
    inverse_scaler: Callable[[Tensor], Tensor],
    eps: float = 1e-3,
    device: torch.device | str = "cuda",
) -> Sampler:
    """PFGM by Euler's or Heun's method: `ode_sampler(model)` -> samples (B, C, H, W) float32, evaluations.

    sde.N steps in z, even in log z from z_max to eps; the last is Euler's.

    Args:
        ode_solver: the original's ForwardEulerPredictor or ImprovedEulerPredictor, or their registered names.
    """
    name = ode_solver if isinstance(ode_solver, str) else ode_solver.__name__
    if name not in EULER:
        raise ValueError(f"ode_solver must be one of {', '.join(EULER)}, got {name}")

    def ode_sampler(model: Any) -> tuple[Tensor, int]:
        config, net_fn = sde.config, predictor(model, train=False)
        with torch.no_grad():
            x = sde.prior_sampling(shape).to(device).float()
            grid = torch.linspace(math.log(config.sampling.z_max), math.log(eps), sde.N + 1, dtype=torch.float64)

            def slope(x: Tensor, z: float) -> Tensor:
                return dx_dz(net_fn, x, torch.full((), z, dtype=torch.float64, device=x.device), **_settings(config))

            x = integrate(slope, x, grid.exp().tolist(), EULER[name])
        evaluations = 2 * sde.N - 1 if config.sampling.ode_solver == "improved_euler" else sde.N
        return inverse_scaler(x), evaluations

    return ode_sampler


def get_rk45_sampler_pfgm(
    sde: Any,
    shape: Sequence[int],
    inverse_scaler: Callable[[Tensor], Tensor],
    rtol: float = 1e-4,
    atol: float = 1e-4,
    method: str = "RK45",
    eps: float = 1e-3,
    device: torch.device | str = "cuda",
) -> Sampler:
    """PFGM by Dormand-Prince 5(4) in log z: `ode_sampler(model, x=None)` -> samples (B, C, H, W) float32, evaluations.

    One step size for the whole batch, with z as one more channel of the state: SciPy's steps. x, of `shape` up to its
    arrangement, is where to start instead of the prior.
    """
    _only_rk45(method)

    def ode_sampler(model: Any, x: Tensor | None = None) -> tuple[Tensor, int]:
        config, net_fn = sde.config, predictor(model, train=False)
        with torch.no_grad():
            x = (sde.prior_sampling(shape) if x is None else x).to(device).view(tuple(shape)).float()
            plane = torch.full_like(x[:, :1], config.sampling.z_max)

        def drift(t: Tensor, state: Tensor) -> Tensor:
            z = t[0].exp()
            dx = z.float() * dx_dz(net_fn, state[:, :-1].float(), z, **_settings(config))
            return torch.cat([dx, torch.ones_like(dx[:, :1]) * z.float()], 1)

        span = math.log(config.sampling.z_max), math.log(eps)
        state = torch.cat([x, plane], 1).double()
        solution = odeint(drift, state, *span, rtol=rtol, atol=atol, step_control="batch")
        return inverse_scaler(solution.samples[:, :-1].float()), int(solution.nfe.max())

    return ode_sampler


def get_likelihood_fn_pfgm(
    sde: Any,
    hutchinson_type: str = "Rademacher",
    rtol: float = 1e-4,
    atol: float = 1e-4,
    method: str = "RK45",
    eps: float = 1e-3,
    draws: Draws = GLOBAL,
) -> Callable[[Any, Tensor], tuple[Tensor, int]]:
    """PFGM's likelihood: `likelihood_fn(model, data (B, C, H, W))` -> bits per dimension (B,), evaluations.

    The ODE runs in z from eps to z_max with one fixed Hutchinson probe, "Rademacher" or "Gaussian". As in the original
    v_z is substituted below z = 5 whatever z_exp says, the prior's constant has the area of the (N - 1)-sphere where
    the N-sphere's belongs, with the factorial of the integer part of N/2 - 1, the clipping of the prior is ignored,
    and 7 bits are added for 8-bit data in [-1, 1].
    """
    _only_rk45(method)
    if hutchinson_type not in ("Rademacher", "Gaussian"):
        raise NotImplementedError(f"Hutchinson type {hutchinson_type} unknown.")

    def likelihood_fn(model: Any, data: Tensor) -> tuple[Tensor, int]:
        config, net_fn = sde.config, predictor(model, train=False)
        settings = {"gamma": config.training.gamma, "z_exp": 5, "unit": True}
        probe = draws.randn_like(data) if hutchinson_type == "Gaussian" else draws.signs_like(data)

        def drift(z: Tensor, state: Tensor, probe: Tensor) -> Tensor:
            with torch.enable_grad():
                x = state[:, :-1].float().reshape(probe.shape).requires_grad_()
                dx = dx_dz(net_fn, x, z[0], **settings)
                (product,) = torch.autograd.grad((dx * probe).sum(), x)
            divergence = (product * probe).flatten(1).sum(1, keepdim=True)
            return torch.cat([dx.detach().flatten(1), divergence], 1)

        state = torch.cat([data.flatten(1), torch.zeros_like(data.flatten(1)[:, :1])], 1).double()
        span = eps, config.sampling.z_max
        solution = odeint(drift, state, *span, args=(probe,), rtol=rtol, atol=atol, step_control="batch")
        x, delta = solution.samples[:, :-1].float(), solution.samples[:, -1].float()
        return _bits_per_dim(x, delta, config.sampling.z_max), int(solution.nfe.max())

    return likelihood_fn


def _bits_per_dim(x: Tensor, delta: Tensor, z_max: float) -> Tensor:
    """Of encoded states (B, N) at z_max and integrals of the divergence (B,), with the original's constant."""
    N = x.shape[1]
    density = -(N + 1) / 2 * torch.log(x.square().sum(1) + z_max**2) + math.log(2 * z_max)
    log_area = math.log(2) + N / 2 * math.log(math.pi) - math.lgamma(max(int(N / 2 - 1), 0) + 1)
    return -(density + delta - log_area) / (N * math.log(2)) + 7


def _settings(config: Any) -> dict[str, Any]:
    return {"gamma": config.training.gamma, "z_exp": config.sampling.z_exp}


def _only_rk45(method: str) -> None:
    if method != "RK45":
        raise ValueError(f"method must be 'RK45', got {method!r}")


def _trains_poisson(*args: Any, **kwargs: Any) -> bool:
    return "poisson" in (*args[5:6], kwargs.get("method_name"))


def _samples_poisson(*args: Any, **kwargs: Any) -> bool:
    sde = args[0] if args else kwargs["sde"]
    return bool(sde.config.training.sde == "poisson")


def _or_original(function: Any, concerns: Callable[..., bool]) -> Callable[[Any], Any]:
    """From the original to a function that leaves to it what does not concern PFGM."""

    def chosen(original: Any) -> Any:
        def either(*args: Any, **kwargs: Any) -> Any:
            return (function if concerns(*args, **kwargs) else original)(*args, **kwargs)

        return either

    return chosen
