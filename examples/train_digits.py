"""Trains PFGM (D = 1), PFGM++ (D = 128) and diffusion (D = inf) on handwritten digits and draws samples from each.

    python examples/train_digits.py                    # about four minutes on two cores; Ctrl-C and again: it goes on
    python examples/train_digits.py --steps 400        # a first look

Writes to --out: a checkpoint for each D (safetensors), figures of samples, and a table of their quality: the energy
distance to digits that no model saw, and the accuracy with which the nearest neighbour tells samples from these (0.5 is
best). Needs scikit-learn, matplotlib, safetensors: pip install '.[examples]'.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor
from tqdm import tqdm

import pfgm_fast as pf

DIMENSIONS = (1.0, 128.0, math.inf)
SOLVERS: dict[str, dict[str, Any]] = {"unipc": {"steps": 20}, "heun": {"steps": 18}, "rk45": {}}
HELD_BACK, BATCH = 600, 128
SIGMA_MAX = 40.0  # where the samples of PFGM++ and diffusion begin


class Digits(NamedTuple):
    """8 x 8 images in [-1, 1], in an order of their own."""

    train: Tensor  # (1197, 1, 8, 8)
    held_back: Tensor  # (600, 1, 8, 8)


def digits() -> Digits:
    images = torch.from_numpy(load_digits().images).float()[:, None] / 8 - 1
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    return Digits(images[HELD_BACK:], images[:HELD_BACK])


class Residual(torch.nn.Module):
    """A perceptron block whose gain and shift follow the noise level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(width)
        self.scale = torch.nn.Linear(64, 2 * width)
        self.inner = torch.nn.Linear(width, 2 * width)
        self.outer = torch.nn.Linear(2 * width, width)
        torch.nn.init.zeros_(self.outer.weight)

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        gain, shift = self.scale(level).chunk(2, 1)
        result: Tensor = h + self.outer(torch.nn.functional.silu(self.inner(self.norm(h) * (1 + gain) + shift)))
        return result


class Network(torch.nn.Module):
    """A residual perceptron in EDM's preconditioning; for D = 1 it predicts PFGM's field instead of the image."""

    def __init__(self, D: float, width: int = 256, depth: int = 3, sigma_data: float = 0.6) -> None:
        super().__init__()
        self.D, self.sigma_data = D, sigma_data
        self.enter = torch.nn.Linear(64, width)
        self.blocks = torch.nn.ModuleList(Residual(width) for _ in range(depth))
        self.leave = torch.nn.Linear(width, 64 + (D == 1))
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.exp(torch.linspace(math.log(0.1), math.log(20.0), 32)))

    def raw(self, x: Tensor, sigma: Tensor) -> Tensor:
        scaled = x.flatten(1) / (sigma**2 + self.sigma_data**2).sqrt()[:, None]
        angles = sigma.log()[:, None] / 4 * self.frequencies
        level = torch.cat([angles.sin(), angles.cos()], 1)
        h = self.enter(scaled)
        for block in self.blocks:
            h = block(h, level)
        result: Tensor = self.leave(torch.nn.functional.silu(h))
        return result

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        sigma = sigma.reshape(-1)
        out = self.raw(x, sigma)
        if self.D == 1:
            return out[:, :64].reshape(x.shape), out[:, 64]
        s, d = sigma[:, None, None, None], self.sigma_data
        return d**2 / (s**2 + d**2) * x + s * d / (s**2 + d**2).sqrt() * out.reshape(x.shape)

    def denoiser(self) -> Callable[..., Tensor]:
        return pf.as_denoiser(self) if self.D == 1 else self


def train(D: float, data: Tensor, steps: int, folder: Path) -> tuple[Network, float, float]:
    """The averaged network after so many steps; seconds of a step for perturbation and target, and for the rest."""
    torch.manual_seed(0)
    net, average = Network(D), Network(D)
    average.load_state_dict(net.state_dict())
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    path, begun = folder / f"D={D:g}.safetensors", 0
    if path.exists():
        begun = load(path, net, average, optimizer)
    reference = pf.EmpiricalField(data, D)
    loss = pf.PFGMLoss(M=pfgm_settings(data).M) if D == 1 else pf.PFGMPPLoss(D, reference=reference)
    spent = {"all": 0.0, "target": 0.0}
    for step in tqdm(range(begun, steps), desc=f"D={D:g}", initial=begun, total=steps):
        torch.manual_seed(step)  # so that an interrupted run goes on as if it had not been
        start = time.perf_counter()
        batch = data[torch.randint(len(data), (BATCH,))]
        error = loss_of(loss, net, batch, reference, spent)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, step / 100) * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), net.parameters(), strict=True):
                slow.lerp_(fast, max(0.005, 1 / (step + 1)))
        spent["all"] += time.perf_counter() - start
        if (step + 1) % 500 == 0 or step + 1 == steps:
            save(path, step + 1, net, average, optimizer)
    done = max(steps - begun, 1)
    return average.eval(), spent["target"] / done, (spent["all"] - spent["target"]) / done


def loss_of(
    loss: pf.PFGMLoss | pf.PFGMPPLoss,
    net: Network,
    batch: Tensor,
    reference: pf.EmpiricalField,
    spent: dict[str, float],
) -> Tensor:
    """The mean loss, with the whole data set as reference; the time until the network is called is the target's."""
    start = time.perf_counter()

    def timed(*arguments: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        spent["target"] += time.perf_counter() - start
        answer: Tensor | tuple[Tensor, Tensor] = net(*arguments)
        return answer

    if isinstance(loss, pf.PFGMLoss):
        return loss(timed, batch, reference).sum(1).mean()
    return loss(timed, batch).mean()


def pfgm_settings(data: Tensor) -> pf.Hyperparameters:
    return pf.hyperparameters(float(data.flatten(1).norm(dim=1).mean()), data[0].numel())


def latents(D: float, count: int, data: Tensor) -> tuple[Tensor, float]:
    """Where the samples begin, and at which level; for PFGM within the norms that it was trained at."""
    shape = (count, 1, 8, 8)
    if D != 1:
        return pf.prior(shape, SIGMA_MAX, D, seeds=range(count)), SIGMA_MAX
    settings = pfgm_settings(data)
    x = pf.prior(shape, settings.z_max, D, seeds=range(count))
    norm = x.flatten(1).norm(dim=1)[:, None, None, None]
    return x * (settings.upper_norm / norm).clamp(max=1), settings.z_max


def save(path: Path, step: int, net: Network, average: Network, optimizer: torch.optim.Optimizer) -> None:
    """Replaces the checkpoint as a whole."""
    tensors = {f"net.{name}": value for name, value in net.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in average.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    draft = path.with_suffix(".part")
    save_file(tensors, draft, metadata={"step": str(step)})
    draft.replace(path)


def load(path: Path, net: Network, average: Network, optimizer: torch.optim.Optimizer) -> int:
    """Fills all three and returns the steps that were done."""
    with safe_open(path, framework="pt") as file:
        step = int(file.metadata()["step"])
        parts: dict[str, dict[str, Tensor]] = {"net": {}, "average": {}, "optimizer": {}}
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            part, _, rest = name.partition(".")
            parts[part][rest] = file.get_tensor(name)
    net.load_state_dict(parts["net"])
    average.load_state_dict(parts["average"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in parts["optimizer"].items():
        index, _, field = name.partition(".")
        state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E|a - b| - E|a - a'| - E|b - b'|: 0 for equal laws (Szekely and Rizzo 2013)."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    within = [torch.cdist(p, p).sum() / (len(p) * (len(p) - 1)) for p in (a, b)]
    return float(2 * torch.cdist(a, b).mean() - within[0] - within[1])


def neighbour_accuracy(a: Tensor, b: Tensor) -> float:
    """How often the nearest other point is of the same set (Lopez-Paz and Oquab 2017): 0.5 for equal laws."""
    points = torch.cat([a, b]).flatten(1)
    distance = torch.cdist(points, points).fill_diagonal_(math.inf)
    of_a = torch.arange(len(points)) < len(a)
    return float((of_a[distance.argmin(1)] == of_a).double().mean())


def picture(samples: dict[str, Tensor], path: Path) -> None:
    """A row of samples for each name."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(samples), 12, figsize=(9, 0.85 * len(samples)), squeeze=False)
    for row, (name, images) in zip(axes, samples.items(), strict=True):
        for axis, image in zip(row, images, strict=False):
            axis.imshow(image[0], cmap="gray_r", vmin=-1, vmax=1)
            axis.set_axis_off()
        row[0].set_title(name, loc="left", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=70)
    plt.close(figure)


def original_seconds(D: float, data: Tensor) -> float:
    """The target as the original code computes it, on B x M x (N + 1) differences."""
    x, sigma = pf.perturb(data[:BATCH], 1.0, D).flatten(1), torch.ones(BATCH)
    charges = torch.cat([data.flatten(1), torch.zeros(len(data), 1)], 1)
    start = time.perf_counter()
    points = torch.cat([x, sigma[:, None]], 1)
    difference = points[:, None] - charges[None]
    distance = difference.square().sum(-1).sqrt()
    weights = (distance.amin(1, keepdim=True) / (distance + 1e-7)) ** (65 if D == 1 else 64 + min(D, 1e6))
    weights = weights / (weights.sum(1, keepdim=True) + 1e-7)
    (weights[..., None] * -difference).sum(1)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000, help="of training, for each D (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("digits-output"), help="(default: %(default)s)")
    parser.add_argument("--samples", type=int, default=600, help="for each row of the table (default: %(default)s)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data = digits()
    shown, lines = {"held back": data.held_back[:12]}, []
    for D in DIMENSIONS:
        net, target, rest = train(D, data.train, options.steps, options.out)
        start, sigma_max = latents(D, options.samples, data.train)
        for solver, how in SOLVERS.items():
            solution = pf.sample(
                net.denoiser(), latents=start, solver=solver, sigma_min=0.01, sigma_max=sigma_max, **how
            )
            images = solution.samples.clamp(-1, 1)
            quality = energy_distance(images, data.held_back), neighbour_accuracy(images, data.held_back)
            lines.append(
                (f"{D:g}", solver, f"{float(solution.nfe.double().mean()):.0f}", *(f"{q:.3f}" for q in quality))
            )
            shown[f"D = {D:g}, {solver}"] = images[:12]
        if rest:  # none, where a finished run is looked at again
            original = original_seconds(D, data.train)
            print(f"D={D:g}: target and noise take {1e3 * target:.1f} ms, {target / (target + rest):.0%} of a step;")
            print(f"    by the original formula {1e3 * original:.0f} ms, {original / (original + rest):.0%} of a step")
    train_quality = energy_distance(data.train[:HELD_BACK], data.held_back)
    lines.append(
        (
            "",
            "training digits",
            "",
            f"{train_quality:.3f}",
            f"{neighbour_accuracy(data.train[:HELD_BACK], data.held_back):.3f}",
        )
    )
    picture(shown, options.out / "samples.png")
    table = [("D", "solver", "evaluations", "energy distance", "1-NN accuracy"), ("---",) * 5, *lines]
    text = "\n".join("| " + " | ".join(line) + " |" for line in table)
    (options.out / "quality.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
