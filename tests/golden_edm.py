"""The recorded outputs of pfgmpp, stf and edm against their modules in pfgm_fast.compat: one generator a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from replay import Array, Deviation, Golden, Replay, absolute, pixels, relative, scaled, tensor
from torch import Tensor

from pfgm_fast.compat import edm, pfgmpp, stf

LOSS, PERTURBED, PRIOR, MEAN, HEUN, HEUN32 = 1e-5, 5e-5, 1e-6, 1e-6, 1e-9, 1e-5
NO_OPTIONS = SimpleNamespace(lsun=False)


class FieldNet:
    """The exact denoiser of some data as a network of EDM's convention."""

    sigma_min, sigma_max = 0.0, math.inf

    def __init__(self, data: Tensor, D: float, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> None:
        self.data, self.D, self.dtype = data.double(), D, dtype
        self.img_channels, self.img_resolution = shape[0], shape[1]
        self.asked: list[float] = []

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Any = None, **extra: Any) -> Tensor:
        self.asked.append(float(sigma.flatten()[0]))
        flat, s = x.to(self.dtype).double().flatten(1), sigma.to(self.dtype).double().reshape(-1, 1)
        rho = (flat[:, None] - self.data).square().sum(2)
        nearest = rho.amin(1, keepdim=True)
        energy = (rho - nearest) / (2 * s**2)
        if math.isfinite(self.D):
            energy = (flat.shape[1] + self.D) / 2 * torch.log1p((rho - nearest) / (nearest + self.D * s**2))
        return (torch.softmax(-energy, 1) @ self.data).reshape(x.shape).to(self.dtype)

    def round_sigma(self, sigma: Any) -> Tensor:
        return torch.as_tensor(sigma)


class ToyNet:
    """The loss files' network; remembers what it was shown."""

    def __call__(self, x: Tensor, sigma: Tensor, labels: Any, augment_labels: Any = None) -> Tensor:
        self.x, self.sigma = x, sigma
        v = sigma**2 + 0.25
        return 0.25 / v * x + 0.5 * sigma / v.sqrt() * torch.sin(2 * x / v.sqrt() + 0.3)


def identity(images: Tensor) -> tuple[Tensor, None]:
    return images, None


def shown(net: ToyNet, loss: Tensor, g: Golden, key: str) -> Iterator[Deviation]:
    """What the network saw and the loss, against the record of a case."""
    yield Deviation(f"{key}sigma", relative(net.sigma, g[f"{key}sigma"]), LOSS)
    yield Deviation(f"{key}xhat", relative(net.x, g[f"{key}xhat"]), PERTURBED)
    yield Deviation(f"{key}loss", relative(loss, g[f"{key}loss"]), LOSS)


def pfgmpp_losses(g: Golden) -> Iterator[Deviation]:
    for space, names in {
        "n2": ("D1", "D2", "D128", "Dinf"),
        "n64": ("D1", "D2", "D128", "D128_lsun", "D2048", "D131072", "Dinf"),
        "n3072": ("D128", "D2048"),
    }.items():
        for name in names:
            key = f"{space}_{name}_"
            y = images(g, space, key)
            D, N = float(name.split("_")[0][1:]), y[:1].numel()
            loss, net = pfgmpp.EDMLoss(D=D, N=N, opts=SimpleNamespace(lsun="lsun" in name)), ToyNet()
            finite = math.isfinite(D)
            noise = [("beta", g[f"{key}beta"]), ("randn", g[f"{key}gauss"])] if finite else diffusion_noise(g, key)
            loss.draws = Replay(("randn", g[f"{key}randn"]), *noise)
            yield from shown(net, loss(net, y, pfgmpp=finite), g, key)
    y, loss_ve, net = images(g, "n64", "VE_n64_D128_"), pfgmpp.VELoss(D=128, N=64), ToyNet()
    draws = [("rand", "rand"), ("beta", "beta"), ("randn", "gauss")]
    loss_ve.draws = Replay(*((kind, g[f"VE_n64_D128_{name}"]) for kind, name in draws))
    yield from shown(net, loss_ve(net, y, None, pfgmpp=True), g, "VE_n64_D128_")


def diffusion_noise(g: Golden, key: str) -> list[tuple[str, Array]]:
    return [("randn_like", g[f"{key}noise"])]


def images(g: Golden, space: str, key: str) -> Tensor:
    """The mini-batch of a case: the first rows of the space's data."""
    shape = g[f"{key}xhat"].shape
    return pixels(g[f"{space}_data"], int(space[1:]))[: shape[0]].reshape(shape)


def pfgmpp_stf_losses(g: Golden) -> Iterator[Deviation]:
    for kind in ("pfgmpp", "diffusion"):
        reference = pixels(g["ref"]).reshape(-1, 1, 8, 8)
        loss, net, key = pfgmpp.EDMLoss(D=128, N=64, opts=NO_OPTIONS), ToyNet(), f"{kind}_"
        names = {"pfgmpp": ("randn", "beta", "randn"), "diffusion": ("randn", "randn_like")}[kind]
        loss.draws = Replay(*((name, g[f"{key}draw{i}_{name}"]) for i, name in enumerate(names)))
        options: dict[str, Any] = {"stf": True, "pfgmpp": kind == "pfgmpp", "ref_images": reference}
        yield from shown(net, loss(net, reference[:8].clone(), augment_pipe=identity, **options), g, key)


def stf_losses(g: Golden) -> Iterator[Deviation]:
    for kind in ("stf", "dsm"):
        reference = pixels(g["ref"]).reshape(-1, 1, 8, 8)
        loss, net, key = stf.EDMLoss(), ToyNet(), f"{kind}_"
        loss.draws = Replay(("randn", g[f"{key}randn"]), ("randn_like", g[f"{key}noise"]))
        options: dict[str, Any] = {"stf": kind == "stf", "ref_images": reference}
        yield from shown(net, loss(net, reference[:8].clone(), augment_pipe=identity, **options), g, key)


def perturbations(g: Golden) -> Iterator[Deviation]:
    for key in sorted({name.rpartition("_")[0] for name in g}):
        D, x = float(key.partition("_D")[2]), g[f"{key}_xhat"]
        loss = pfgmpp.EDMLoss(D=D, N=x[0].size)
        loss.draws = Replay(("beta", g[f"{key}_beta"]), ("randn", g[f"{key}_gauss"]))
        y = pixels(g[f"{key}_y"]).reshape(x.shape)
        yield Deviation(key, relative(loss.pfgm_perturation(y, tensor(g[f"{key}_r"])), x), PERTURBED)


def targets(g: Golden) -> Iterator[Deviation]:
    """pfgmpp_targets: posterior means and fields over a reference batch."""
    for space, names in {"n2": ALL, "n64": ALL, "n3072": ("128", "2048", "inf")}.items():
        x, sigma = tensor(g[f"{space}_xhat"]), tensor(g[f"{space}_sigma"])
        reference = pixels(g[f"{space}_ref"], int(space[1:])).reshape(-1, *x.shape[1:])
        for name in names:
            D, key = float(name), f"{space}_D{name}"
            loss = pfgmpp.EDMLoss(D=D, N=x[0].numel())
            if name == "inf":
                ours = loss.stf_scores(sigma.double(), x.double(), reference)
                yield Deviation(f"{key} f64", absolute(ours, g[f"{key}_target_f64"]), MEAN)
                continue
            r = sigma.double() * math.sqrt(D)
            yield Deviation(key, absolute(loss.pfgmpp_target(r, x, reference), g[f"{key}_target"]), MEAN)
            if f"{key}_pfgm_target_f64" in g:
                field = loss.pfgm_target(torch.cat([x.flatten(1).double(), r[:, None]], 1), reference)
                yield Deviation(f"{key} field", relative(field, g[f"{key}_pfgm_target_f64"]), 2e-5)


ALL = ("1", "2", "128", "2048", "131072", "inf")


def big_targets(g: Golden) -> Iterator[Deviation]:
    """pfgmpp_target_bigN: N = 12288 and 196608, made anew."""
    for N in (12288, 196608):
        (B, M), seed, sigma = g[f"n{N}_BM"], int(g["seed"]), g[f"n{N}_sigma"]
        u = np.random.default_rng([seed, 5, N]).integers(0, 256, (M, N), dtype=np.uint8)
        noise = np.random.default_rng([seed, 7, N]).standard_normal((B, N), dtype=np.float32)
        data = pixels(u, N)
        x = data[:B] + tensor(sigma[:, None] * noise)
        for D in (128, 2048, 1000000):
            means = pfgmpp.EDMLoss(D=D, N=N).pfgmpp_target(tensor(sigma).double() * math.sqrt(D), x, data)
            yield Deviation(f"N {N}, D {D}", absolute(means[:, :256], g[f"n{N}_D{D}_head"]), MEAN)
        means = stf.EDMLoss().stf_targets(tensor(sigma).double(), x.double(), data)
        yield Deviation(f"N {N}, D inf", absolute(means[:, :256], g[f"n{N}_Dinf_f64_head"]), MEAN)


def stable_targets(g: Golden) -> Iterator[Deviation]:
    for space in ("n2", "n64", "n3072"):
        x, sigma = tensor(g[f"{space}_xhat"]), tensor(g[f"{space}_sigma"])
        reference, exact = pixels(g[f"{space}_ref"], int(space[1:])), g[f"{space}_target_f64"]
        yield Deviation(f"{space} f64", absolute(stf.EDMLoss().stf_targets(sigma, x.double(), reference), exact), MEAN)
        shipped = absolute(tensor(g[f"{space}_target"]), exact)
        ours = absolute(stf.EDMLoss().stf_targets(sigma, x, reference), exact)
        yield Deviation(f"{space} f32, the shipped f32 being off by {shipped:.1g}", ours, max(shipped, MEAN))


def priors(g: Golden) -> Iterator[Deviation]:
    """pfgmpp_prior: from the seeds alone, which needs the recording's version of torch."""
    for key in sorted(name.removesuffix("_seeds") for name in g if name.endswith("_seeds")):
        recorded, D = g[f"{key}_latents"], float(key.partition("_D")[2])
        generator = pfgmpp.StackedRandomGenerator("cpu", g[f"{key}_seeds"].tolist())
        options: dict[str, Any] = {"device": "cpu", "sigma_max": 80}
        ours = generator.rand_beta_prime(recorded.shape, N=recorded[0].size, D=D, **options)
        yield Deviation(key, relative(ours, recorded), PRIOR)
    recorded = g["n64_Dinf_latents"]
    generator = pfgmpp.StackedRandomGenerator("cpu", g["n64_D1_seeds"].tolist())
    latents = generator.randn(recorded.shape, device="cpu")
    yield Deviation("randn", absolute(latents, recorded), PRIOR)
    yield Deviation("randn_like", absolute(generator.randn_like(latents.double()), g[SECOND]), PRIOR)


SECOND = "n64_Dinf_second_randn_like_f64"


def heun(g: Golden) -> Iterator[Deviation]:
    for key in sorted(name.removesuffix("_latents") for name in g if name.endswith("_latents")):
        space, D = key.split("_D")
        latents, data = tensor(g[f"{key}_latents"]), pixels(g[f"{space}_data"], int(space[1:]))
        finite = D != "inf"
        net = FieldNet(data, float(D), latents.shape[1:])
        x, path = pfgmpp.edm_sampler(net, latents, pfgmpp=finite)
        yield Deviation(f"{key}: path", absolute(path.flatten(2), g[f"{key}_traj64"]), HEUN)
        yield Deviation(f"{key}: end", absolute(x, g[f"{key}_x64"]), HEUN)
        yield Deviation(f"{key}: levels", relative(tensor(np.array(net.asked)), g["sigmas"]), 1e-12)
        for steps in (8, 35):
            x, path = pfgmpp.edm_sampler(net, latents, pfgmpp=finite, num_steps=steps)
            yield Deviation(f"{key}: {steps} steps", absolute(x, g[f"{key}_s{steps}_x64"]), HEUN)
            yield Deviation(f"{key}: {steps} steps, path", absolute(path[3], g[f"{key}_s{steps}_traj3"]), HEUN)
        narrow = FieldNet(data, float(D), latents.shape[1:], torch.float32)
        x, _ = pfgmpp.edm_sampler(narrow, latents, pfgmpp=finite)
        yield Deviation(f"{key}: float32 network", absolute(x, g[f"{key}_x32"]), HEUN32)


def noises(recorded: Array) -> Callable[[Tensor], Tensor]:
    """randn_like of a sampler, from recorded draws (steps, B, ...)."""
    rest = iter(recorded)
    return lambda x: tensor(next(rest)).to(x.dtype)


def stochastic(g: Golden) -> Iterator[Deviation]:
    data = pixels(g["data"])
    options: dict[str, Any] = {"pfgmpp": True}

    def net() -> FieldNet:
        return FieldNet(data, 128, (1, 8, 8))

    churn: dict[str, Any] = {"S_churn": 40, "S_min": 0.05, "S_max": 50, "S_noise": 1.003}
    asked = net()
    latents = tensor(g["latents"])
    x, path = pfgmpp.edm_sampler(asked, latents, randn_like=noises(g["churn_noise"]), **churn, **options)
    yield Deviation("churn", absolute(x, g["churn_x"]), HEUN)
    yield Deviation("churn: path", absolute(path, g["churn_traj"]), HEUN)
    yield Deviation("churn: levels", relative(tensor(np.array(asked.asked)), g["churn_sigmas"]), 1e-12)

    unused = np.zeros((len(latents), 64), np.float32)
    steps = [(("randn", unused), ("randn_like", noise)) for noise in g["alpha_noise"]]
    draws, mutable = Replay(*(draw for pair in steps for draw in pair)), latents.clone()
    x = pfgmpp.edm_sampler_alpha(net(), mutable, alpha=0.1, D=128, draws=draws, **options)
    yield Deviation("alpha", absolute(x, g["alpha_x"]), HEUN)
    changed = bool((mutable != latents).any())
    yield Deviation("alpha: latents changed in place", float(changed != bool(g["alpha_latents_mutated"])), 0.5)

    for name, change in (("align", {"align": True}), ("steps12", {"num_steps": 12})):
        asked = net()
        x = pfgmpp.edm_sampler_alpha(asked, latents.clone(), D=128, **change, **options)
        yield Deviation(name, absolute(x, g[f"{name}_x"]), HEUN)
        yield Deviation(f"{name}: levels", relative(tensor(np.array(asked.asked)), g[f"{name}_sigmas"]), 1e-12)


def odd(g: Golden) -> Iterator[Deviation]:
    """pfgmpp_odd: odd N, B, M and numbers of steps, other ranges and rho."""
    N, _, _, steps, sigma_min, sigma_max, rho = (float(v) for v in g["cfg"])
    data, x, sigma = tensor(g["data"]), tensor(g["xhat"]), tensor(g["sigma"])
    levels: dict[str, Any] = {"num_steps": int(steps), "sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho}
    for name in ("7", "300", "50000", "inf"):
        D, key = float(name), f"D{name}"
        loss = pfgmpp.EDMLoss(D=D, N=int(N))
        if name == "inf":
            yield Deviation(f"{key}: target", absolute(loss.stf_scores(sigma, x, data), g[f"{key}_target"]), 1e-5)
        else:
            r = sigma.double() * math.sqrt(D)
            yield Deviation(f"{key}: target", absolute(loss.pfgmpp_target(r, x, data), g[f"{key}_target"]), MEAN)
            loss.draws = Replay(("beta", g[f"{key}_beta"]), ("randn", g[f"{key}_gauss"]))
            images = data[: len(x)].reshape(x.shape)
            yield Deviation(f"{key}: noise", relative(loss.pfgm_perturation(images, r), g[f"{key}_pert"]), PERTURBED)
        net = FieldNet(data, D, x.shape[1:])
        end, path = pfgmpp.edm_sampler(net, tensor(g[f"{key}_latents"]), pfgmpp=name != "inf", **levels)
        yield Deviation(f"{key}: end", absolute(end, g[f"{key}_x"]), HEUN)
        yield Deviation(f"{key}: path", absolute(path[int(steps) // 2], g[f"{key}_traj_mid"]), HEUN)
        yield Deviation(f"{key}: late path", absolute(path[int(steps) - 3], g[f"{key}_traj_late"]), HEUN)


def ablations(g: Golden, module: Any) -> Iterator[Deviation]:
    """The cases `solver_discretization_schedule_scaling`, 10 steps without noise."""
    data, latents = pixels(g["data"]), tensor(g["latents"])
    for name in (key.removesuffix("_x") for key in g if key.startswith(("euler_", "heun_")) and key.endswith("_x")):
        net, options = FieldNet(data, math.inf, (1, 8, 8)), {"num_steps": 10, "S_noise": 0}
        if "alpha" in name:
            x = module.ablation_sampler(net, latents, alpha=float(name.partition("alpha")[2]), **options)
        else:
            kinds = dict(zip(("solver", "discretization", "schedule", "scaling"), name.split("_"), strict=True))
            x = module.ablation_sampler(net, latents, **kinds, **options)
            yield Deviation(f"{name}: levels", relative(tensor(np.array(net.asked)), g[f"{name}_sigmas"]), 1e-9)
        yield Deviation(name, absolute(x, g[f"{name}_x"]), HEUN)


def edm_samplers(g: Golden) -> Iterator[Deviation]:
    """edm_sampler_loss: the sampler with and without churn, its ablations, and the loss."""
    data, latents = pixels(g["data"]), tensor(g["latents"])
    churn = {"S_churn": 30, "S_min": 0.01, "S_max": 1, "S_noise": 1.007, "randn_like": noises(g["churn_noise"])}
    for name, options in (("edm", {}), ("churn", churn)):
        net = FieldNet(data, math.inf, (1, 8, 8))
        yield Deviation(name, absolute(edm.edm_sampler(net, latents, **options), g[f"{name}_x"]), HEUN)
        yield Deviation(f"{name}: levels", relative(tensor(np.array(net.asked)), g[f"{name}_sigmas"]), 1e-12)
    yield from ablations(g, edm)
    loss, toy = edm.EDMLoss(), ToyNet()
    loss.draws = Replay(("randn", g["loss_randn"]), ("randn_like", g["loss_noise"]))
    error = loss(toy, data[:8].reshape(8, 1, 8, 8))
    yield from shown(toy, error, {**g, "loss_loss": g["loss"]}, "loss_")


def preconditioners(g: Golden) -> Iterator[Deviation]:
    x, sigma = tensor(g["x"]), tensor(g["sigma"])

    def inner(out_channels: int, **ignored: Any) -> Any:
        def network(x: Tensor, noise: Tensor, class_labels: Any = None) -> Tensor:
            return torch.sin(x + noise.reshape(-1, 1, 1, 1)).repeat(1, out_channels, 1, 1)

        return network

    for name in ("EDMPrecond", "VEPrecond", "VPPrecond", "iDDPMPrecond"):
        net = getattr(edm, name)(8, 1, model_type=inner)
        yield Deviation(name, relative(net(x, sigma), g[name]), LOSS)
        yield Deviation(f"{name}: rounded levels", scaled(net.round_sigma(sigma), g[f"{name}_round_sigma"]), LOSS)
        ends = tensor(np.array([net.sigma_min, net.sigma_max]))
        finite = np.isfinite(g[f"{name}_sigma_range"])
        yield Deviation(f"{name}: range", scaled(ends[finite], g[f"{name}_sigma_range"][finite]), LOSS)


FILES: dict[str, Callable[[Golden], Iterator[Deviation]]] = {
    "pfgmpp_targets": targets,
    "pfgmpp_target_bigN": big_targets,
    "pfgmpp_perturb": perturbations,
    "pfgmpp_loss": pfgmpp_losses,
    "pfgmpp_loss_stf": pfgmpp_stf_losses,
    "pfgmpp_prior": priors,
    "pfgmpp_heun": heun,
    "pfgmpp_stochastic": stochastic,
    "pfgmpp_odd": odd,
    "ablation_sampler": lambda g: ablations(g, pfgmpp),
    "stf_targets": stable_targets,
    "stf_loss": stf_losses,
    "edm_sampler_loss": edm_samplers,
    "edm_precond": preconditioners,
}
