"""The recorded outputs of Poisson_flow against pfgm_fast.compat.poisson_flow: one generator of deviations a file."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from replay import Array, Deviation, Golden, Replay, absolute, pixels, read, relative, scaled, tensor
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast.compat import poisson_flow
from pfgm_fast.compat._draws import Draws
from pfgm_fast.editing import interpolate, rescale

TARGET, PERTURBED, LOSS, PRIOR, EULER, RK45, NFE, BPD = 2e-5, 5e-5, 1e-5, 1e-6, 1e-4, 1e-2, 12, 5e-3


def config(shape: Sequence[int], **changes: Any) -> SimpleNamespace:
    """A configuration as the original's, for images (C, H, W); changes are named `part_name`."""
    channels, size = int(shape[0]), int(shape[1])
    if int(np.prod(shape)) != channels * size * size:
        raise ValueError(f"images must be square, got {tuple(shape)}")
    parts: dict[str, dict[str, Any]] = {
        "data": {"channels": channels, "num_channels": channels, "image_size": size},
        "model": {"sigma_end": 0.01},
        "training": {"sde": "poisson", "M": 291, "tau": 0.03, "gamma": 5, "restrict_M": True, "small_batch_size": 128},
        "sampling": {"N": 100, "z_max": 40.0, "z_exp": 5, "upper_norm": 3000.0, "vs": False, "ode_solver": "rk45"},
    }
    for name, value in changes.items():
        part, _, key = name.partition("_")
        parts[part][key] = value
    spaces = {part: SimpleNamespace(**values) for part, values in parts.items()}
    return SimpleNamespace(**spaces, device=torch.device("cpu"))


class StartingAt(poisson_flow.Poisson):
    """A PFGM whose prior is one recorded draw."""

    def __init__(self, settings: Any, x: Tensor) -> None:
        super().__init__(settings)
        self.x = x

    def prior_sampling(self, shape: Sequence[int], draws: Draws | None = None) -> Tensor:
        return self.x


class FieldNet(torch.nn.Module):
    """The exact field of some data as a network of PFGM: float64 inside, differentiable."""

    def __init__(self, data: Tensor, gamma: float) -> None:
        super().__init__()
        self.data = data.double()
        self.gamma = gamma

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        flat, N = x.double().flatten(1), self.data.shape[1]
        z = z.double()
        rho = (flat[:, None] - self.data).square().sum(2) + z[:, None] ** 2
        e = torch.softmax(-(N + 1) / 2 * torch.log(rho), 1) @ self.data - flat
        scale = math.sqrt(N) / ((e.square().sum(1) + z**2).sqrt() + self.gamma)
        return (e * scale[:, None]).reshape(x.shape).to(x.dtype), (-z * scale).to(x.dtype)


class ToyNet(torch.nn.Module):
    """v_x = sin(x)/10, v_z = -z/(2 (1 + z))."""

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return 0.1 * torch.sin(x), -0.5 * z / (1 + z)


def step_draws(g: Golden, restricted: bool) -> Replay:
    """The draws of a training step in the original's order."""
    again = [("rand", g["draw_rand_restrict"])] if restricted else []
    normals = [("randn_like", g["draw_randn_noise"]), ("randn", g["draw_randn_angle"])]
    return Replay(("rand", g["draw_rand_m"]), ("randn", g["draw_randn_z"]), *again, *normals)


def target(perturbed: Array, data: Tensor, gamma: float, dtype: torch.dtype = torch.float32) -> Tensor:
    x, z = tensor(perturbed[:, :-1].copy()).to(dtype), tensor(perturbed[:, -1].copy()).float()
    return pf.pfgm_target(x, z, data, gamma)


def beyond_rounding(perturbed: Array, data: Tensor, gamma: float, recorded: Array) -> float:
    """The largest relative error of a float32 target, less what the rounding of x_hat to float32 may turn it.

    x_hat is promised to 4 eps of the longest vector, which counts for the more the shorter (x - x_hat, z) is.
    """
    x, wanted = tensor(perturbed[:, :-1]).double(), tensor(recorded).double()
    length = (math.sqrt(x.shape[1]) / target(perturbed, data, 1.0, torch.float64).norm(dim=1) - 1).reciprocal()
    longest = x.norm(dim=1).clamp(min=float(data.norm(dim=1).max()))
    error = (target(perturbed, data, gamma).double() - wanted).norm(dim=1) / wanted.norm(dim=1)
    return float((error - 4 * torch.finfo(torch.float32).eps * longest / length).clamp(min=0).max())


def targets(g: Golden) -> Iterator[Deviation]:
    """pfgm_target_*: perturbation and losses from the recorded draws, targets at the recorded points."""
    N, _, _, M, tau, sigma_end, restrict = (float(v) for v in g["cfg"])
    data, shape = pixels(g["data"], int(N)), g["draw_randn_noise"].shape[1:]
    changes: dict[str, Any] = {"training_M": int(M), "training_tau": tau, "model_sigma_end": sigma_end}
    changes |= {"training_restrict_M": bool(restrict), "training_small_batch_size": len(g["perturbed"])}
    settings = config(shape, **changes)
    sde = poisson_flow.Poisson(settings)
    batch = data.reshape(-1, *shape)
    draws = step_draws(g, bool(restrict))
    m = draws.rand((len(g["perturbed"]),)) * sde.M
    perturbed = poisson_flow.forward_pz(sde, settings, batch[: len(m)], m, draws)
    yield Deviation("perturbed", relative(perturbed, g["perturbed"]), PERTURBED)
    for gamma in (5, 0):
        if f"target_g{gamma}" not in g:
            continue
        for kind, recorded in (("shipped", g[f"target_g{gamma}"]), ("exact", g.get(f"exact64_g{gamma}"))):
            if recorded is not None:
                ours = target(g["perturbed"], data, gamma, torch.float64)
                yield Deviation(f"{kind} target, gamma {gamma}", relative(ours, recorded), TARGET)
                beyond = beyond_rounding(g["perturbed"], data, gamma, recorded)
                yield Deviation(f"{kind} target, gamma {gamma}, float32 beyond rounding", beyond, TARGET)
        for kind in ("sum", "mean"):
            settings.training.gamma = gamma
            draws = step_draws(g, bool(restrict))
            loss_fn = poisson_flow.get_loss_fn(sde, True, kind == "mean", method_name="poisson", draws=draws)
            loss = loss_fn(ToyNet(), batch)
            yield Deviation(f"loss_{kind}, gamma {gamma}", relative(loss, g[f"loss_{kind}_g{gamma}"]), LOSS)


def big_targets(g: Golden) -> Iterator[Deviation]:
    """pfgm_target_bigN: N = 12288 and 196608, data and draws made anew."""
    for N in (12288, 196608):
        key, seed = f"n{N}", int(g["seed"])
        _, R, B, M, largest, tau, sigma_end, gamma = (float(v) for v in g[f"{key}_cfg"])
        B, M, shape = int(B), int(M), (3, int(R), int(R))
        u = np.random.default_rng([seed, 5, N]).integers(0, 256, (M, N), dtype=np.uint8)
        generator = np.random.default_rng([seed, 6, N])
        noise, angle = (generator.standard_normal((B, N), dtype=np.float32) for _ in range(2))
        changes = {"training_M": largest, "training_tau": tau, "model_sigma_end": sigma_end}
        settings = config(shape, training_restrict_M=False, **changes)
        normals = [("randn_like", noise.reshape(B, *shape)), ("randn", angle)]
        draws = Replay(("randn", g[f"{key}_z"].reshape(B, 1, 1, 1)), *normals)
        data, m = pixels(u, N), tensor(g[f"{key}_m"]).float() * largest
        images = data[:B].reshape(B, *shape)
        perturbed = poisson_flow.forward_pz(poisson_flow.Poisson(settings), settings, images, m, draws)
        ours = target(perturbed.numpy(), data, gamma)
        yield Deviation(f"N {N}: shipped head", relative(ours[:, :256], g[f"{key}_target_head"]), TARGET)
        yield Deviation(f"N {N}: float64 head", relative(ours[:, :256], g[f"{key}_f64_target_head"]), TARGET)
        yield Deviation(f"N {N}: z", relative(ours[:, -1:], g[f"{key}_target_z"][:, None]), PERTURBED)
        yield Deviation(f"N {N}: squares", relative(ours.double().square().sum(1), g[f"{key}_target_sq"]), TARGET)


def edge(g: Golden) -> Iterator[Deviation]:
    """pfgm_target_edge: a hair off the data. Where the original's 1e-7 decides, the exact field stands instead."""
    data, perturbed = tensor(g["data"]), g["perturbed"].copy()
    perturbed[:, -1] = perturbed[:, -1].clip(poisson_flow.LOWEST_Z)
    for gamma in (5, 0):
        ours = target(perturbed, data, gamma)
        yield Deviation(f"z > 0, gamma {gamma}", relative(ours[[5, 7]], g[f"target_g{gamma}"][[5, 7]]), TARGET)
    yield Deviation("beside a datum, gamma 5", relative(ours_at(perturbed, data, 4), g["target_f64_g5"][4:5]), 1e-3)
    on_data = target(perturbed, data, 5)[[0, 1]]
    yield Deviation("on a datum, gamma 5", absolute(on_data, g["target_g5"][[0, 1]]), 1e-8)


def ours_at(perturbed: Array, data: Tensor, row: int) -> Tensor:
    return target(perturbed[row : row + 1], data, 5)


def prior(g: Golden) -> Iterator[Deviation]:
    for space in ("n2", "n64", "n3072"):
        x, (_, z_max, upper_norm) = g[f"{space}_x"], g[f"{space}_cfg"]
        limits = {"sampling_z_max": float(z_max), "sampling_upper_norm": float(upper_norm)}
        draws = Replay(("beta", g[f"{space}_beta"]), ("randn", g[f"{space}_gauss"]))
        ours = poisson_flow.prior_sampling(poisson_flow.Poisson(config(x.shape[1:], **limits)), x.shape, draws)
        yield Deviation(space, relative(ours, x), PRIOR)


def drift(g: Golden) -> Iterator[Deviation]:
    for space in ("n2", "n64"):
        x, v_x, v_z = (tensor(g[f"{space}_{name}"]) for name in ("x", "net_x", "net_z"))
        for z in ("0.001", "0.5", "4.9", "5", "37"):
            for gamma in (5, 0):
                sde = poisson_flow.Poisson(config(x.shape[1:], training_gamma=gamma))
                t = torch.full((len(x),), math.log(float(z)))
                ours = sde.ode(lambda *_, v=(v_x, v_z): v, x, t)
                yield Deviation(f"{space}, z {z}, gamma {gamma}", relative(ours, g[f"{space}_z{z}_g{gamma}"]), TARGET)


def euler(sde: Any, shape: Sequence[int], net: Any, solver: str, steps: int, eps: float) -> tuple[Tensor, int]:
    sde.N, sde.config.sampling.ode_solver = steps, solver
    sampler = poisson_flow.get_ode_sampler(sde, shape, solver, lambda x: x, eps=eps, device="cpu")
    return sampler(net)


def samplers(g: Golden) -> Iterator[Deviation]:
    """pfgm_samplers_*: RK45 in four variants, forward and improved Euler."""
    x, data = tensor(g["x0"]), pixels(g["data"])
    limits = {"sampling_z_max": float(g["cfg"][1]), "sampling_upper_norm": float(g["cfg"][2])}
    for case in ("g5_zexp5_zmin0.001", "g5_zexp0_zmin0.001", "g0_zexp0_zmin0.001", "g5_zexp5_zmin0.3"):
        gamma, z_exp, z_min = (float(part.lstrip("gzexpmin")) for part in case.split("_"))
        sde = StartingAt(config(x.shape[1:], training_gamma=gamma, sampling_z_exp=z_exp, **limits), x)
        sampler = poisson_flow.get_rk45_sampler_pfgm(sde, x.shape, lambda x: x, eps=z_min, device="cpu")
        ends, nfe = sampler(FieldNet(data, gamma))
        stable = g[f"rk45_{case}_stable"]
        yield Deviation(f"rk45 {case}", scaled(ends[stable], g[f"rk45_{case}_x"][stable]), RK45)
        yield Deviation(f"rk45 {case}: nfe", abs(nfe - int(g[f"rk45_{case}_nfe"])), NFE)
    for name, solver in (("fe", "forward_euler"), ("ie", "improved_euler")):
        for steps in (int(found[1]) for found in map(re.compile(f"{name}(\\d+)_x").fullmatch, g) if found):
            sde = StartingAt(config(x.shape[1:], **limits), x)
            ends, nfe = euler(sde, x.shape, FieldNet(data, 5), solver, steps, 1e-3)
            yield Deviation(f"{solver} {steps}", absolute(ends, g[f"{name}{steps}_x"]), EULER)
            yield Deviation(f"{solver} {steps}: nfe", abs(nfe - int(g[f"{name}{steps}_nfe"])), 0.5)


def predictor_corrector(g: Golden) -> Iterator[Deviation]:
    """pfgm_pc_euler_maruyama_n2 has no diffusion: it is forward Euler."""
    x = tensor(g["x0"])
    limits = {"sampling_z_max": float(read("pfgm_samplers_n2")["cfg"][1])}
    ends, nfe = euler(StartingAt(config(x.shape[1:], **limits), x), x.shape, FieldNet(tensor(g["data"]), 5), *FIFTY)
    yield Deviation("forward_euler 50", absolute(ends, g["x"]), EULER)
    yield Deviation("nfe", abs(nfe - int(g["nfe"])), 0.5)


FIFTY = ("forward_euler", 50, 1e-3)


def odd(g: Golden) -> Iterator[Deviation]:
    """pfgm_odd: odd N, B and M, other settings throughout."""
    _, B, _, M, tau, sigma_end, gamma, z_max, upper_norm, z_min, steps, z_exp, rtol = (float(v) for v in g["cfg"])
    changes: dict[str, Any] = {"training_M": int(M), "training_tau": tau, "training_gamma": gamma}
    changes |= {"model_sigma_end": sigma_end, "sampling_z_max": z_max, "sampling_z_exp": z_exp}
    x, data = tensor(g["x0"]), tensor(g["data"])
    shape = x.shape[1:]
    settings = config(shape, training_small_batch_size=int(B), sampling_upper_norm=upper_norm, **changes)
    sde = StartingAt(settings, x)
    draws = step_draws(g, restricted=True)
    m = draws.rand((int(B),)) * sde.M
    batch = data.reshape(-1, *shape)
    perturbed = poisson_flow.forward_pz(sde, settings, batch[: int(B)], m, draws)
    yield Deviation("perturbed", relative(perturbed, g["perturbed"]), PERTURBED)
    yield Deviation("target", relative(target(g["perturbed"], data, gamma), g["target"]), TARGET)
    loss_fn = poisson_flow.get_loss_fn(sde, True, False, method_name="poisson", draws=step_draws(g, restricted=True))
    yield Deviation("loss_sum", relative(loss_fn(ToyNet(), batch), g["loss_sum"]), LOSS)
    net = FieldNet(data, gamma)
    for solver in ("forward_euler", "improved_euler"):
        ends, nfe = euler(sde, x.shape, net, solver, int(steps), z_min)
        yield Deviation(solver, absolute(ends, g[f"{solver}_x"]), EULER)
        yield Deviation(f"{solver}: nfe", abs(nfe - int(g[f"{solver}_nfe"])), 0.5)
    options: dict[str, Any] = {"rtol": rtol, "atol": rtol, "eps": z_min, "device": "cpu"}
    ends, nfe = poisson_flow.get_rk45_sampler_pfgm(sde, x.shape, lambda x: x, **options)(net)
    yield Deviation("rk45", scaled(ends, g["rk45_x"]), RK45)
    yield Deviation("rk45: nfe", abs(nfe - int(g["rk45_nfe"])), NFE)


def likelihood(g: Golden) -> Iterator[Deviation]:
    for space in ("n12", "n48"):
        x = tensor(g[f"{space}_x"])
        for kind, draw in (("Rademacher", "signs_like"), ("Gaussian", "randn_like")):
            key = f"{space}_{kind}"
            sde = poisson_flow.Poisson(config(x.shape[1:], sampling_z_exp=0))
            draws = Replay((draw, g[f"{key}_eps"]))
            net = FieldNet(tensor(g[f"{space}_data"]), 5)
            bpd, nfe = poisson_flow.get_likelihood_fn_pfgm(sde, kind, draws=draws)(net, x)
            yield Deviation(f"{key}: bpd", absolute(bpd, g[f"{key}_bpd"]), BPD)
            yield Deviation(f"{key}: nfe", abs(nfe - int(g[f"{key}_nfe"])), NFE)


def latents(g: Golden) -> Iterator[Deviation]:
    """pfgm_interp_latents: directions between two and norms along one, as run_lib.py makes them."""
    directions = torch.nn.functional.normalize(tensor(g["gauss"]).double(), dim=1)
    between = interpolate(3000 * directions[0], 3000 * directions[1], 10)
    yield Deviation("between two", relative(between, g["slerp"]), PRIOR)
    along = rescale(directions[:1].repeat(10, 1), norm=torch.linspace(1000, 6000, 10))
    yield Deviation("along one", relative(along, g["rescale"]), PRIOR)


def hyperparameters(g: Golden) -> Iterator[Deviation]:
    ours = torch.tensor([pf.hyperparameters(norm, int(N)) for norm, N in g["inputs"]], dtype=torch.float64)
    yield Deviation("M, z_max, upper_norm", scaled(ours, g["outputs"]), 1e-12)


FILES: dict[str, Callable[[Golden], Iterator[Deviation]]] = {
    "pfgm_hyperparameters": hyperparameters,
    "pfgm_target_n2_m128": targets,
    "pfgm_target_n2_m128_norestrict": targets,
    "pfgm_target_n64_m512": targets,
    "pfgm_target_n64_m32_b32": targets,
    "pfgm_target_n3072_m160": targets,
    "pfgm_target_bigN": big_targets,
    "pfgm_target_edge": edge,
    "pfgm_prior": prior,
    "pfgm_drift": drift,
    "pfgm_samplers_n2": samplers,
    "pfgm_samplers_n64": samplers,
    "pfgm_pc_euler_maruyama_n2": predictor_corrector,
    "pfgm_odd": odd,
    "pfgm_likelihood": likelihood,
    "pfgm_interp_latents": latents,
}
