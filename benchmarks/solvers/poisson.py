"""The exact Poisson field of 2,000 points in the plane, from the prior at z = 40 down to z = 1e-3 in the time log z."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pfgm_fast as pf
from benchmarks.solvers import peers
from benchmarks.solvers.core import Answer, Array, Block, Effort, Problem, Run

NAME = "poisson"
OURS = "pfgm_fast rk45"
PUBLISHED = "SciPy RK45, field by differences"  # the field as the published code writes it
REFERENCE = "float64 reference beside SciPy's"
HIGH, LOW = 40.0, 1e-3
RADIUS = 3000.0  # the heavy tail of the prior is clipped there
TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6)
OUR_TOLERANCES = (1e-3, 5e-4, 2.2e-4, 1.8e-4, 1.5e-4, 1.2e-4, 1e-4, 5e-5, 2e-5, 1e-5, 1e-6)
BAR = 1e-4


def setting(tolerance: float) -> str:
    return f"{tolerance:.1e}".replace(".0e", "e")


def points(M: int) -> Tensor:
    """(M, 2): 8 components of spread 0.2 around centres of standard deviation 1."""
    generator = torch.Generator().manual_seed(0)
    component = torch.randint(8, (M,), generator=generator)
    centres = torch.randn(8, 2, generator=generator)
    return centres[component] + 0.2 * torch.randn(M, 2, generator=generator)


def starts(B: int) -> Tensor:
    x = pf.prior((B, 2), HIGH, 1, seeds=range(B))
    shrink: Tensor = (RADIUS / x.norm(dim=1, keepdim=True)).clamp(max=1)
    return x * shrink


def by_products(data: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """dx/dlog z = x - x_hat; the squared distances by one matrix product: the fastest expression in PyTorch."""
    norms = (data * data).sum(1)

    def drift(log_z: Tensor, x: Tensor) -> Tensor:
        own = (x * x).sum(1, keepdim=True) + torch.exp(2 * log_z)[..., None]
        squares = torch.addmm(norms, x, data.T, alpha=-2).add_(own).clamp_min_(1e-12)
        return x - torch.softmax(squares.log_().mul_(-1.5), 1) @ data

    return drift


def by_differences(data: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The same with the differences as a tensor of B x M x 2."""

    def drift(log_z: Tensor, x: Tensor) -> Tensor:
        squares = (x[:, None] - data).pow(2).sum(-1) + torch.exp(2 * log_z)[..., None]
        return x - torch.softmax(-1.5 * torch.log(squares), 1) @ data

    return drift


def in_jax(data: Tensor) -> Callable[[Any, Any, Any], Any]:
    """The products in jax.numpy for one row; under vmap and jit five times as fast as the differences."""
    import jax
    import jax.numpy as jnp

    y, norms = jnp.asarray(data.numpy()), jnp.asarray((data * data).sum(1).numpy())

    def drift(log_z: Any, x: Any, _: Any) -> Any:
        squares = jnp.maximum(norms - 2 * y @ x + jnp.sum(x * x) + jnp.exp(2 * log_z), 1e-12)
        return x - jax.nn.softmax(-1.5 * jnp.log(squares)) @ y

    return drift


def as_poisson_flow(drift: Callable[[Tensor, Tensor], Tensor], x: Tensor, tolerance: float) -> peers.Solve:
    """solve_ivp on the flattened batch with z as one more plane of the state, in float64; the field in float32."""
    B = len(x)
    y0 = np.concatenate([x.numpy(), np.full((B, 1), HIGH)], 1).astype(np.float64)

    def func(t: float, y: Array) -> Array:
        state = torch.from_numpy(y.reshape(B, 3)).float()
        dx = drift(torch.tensor(t, dtype=torch.float32), state[:, :2])
        result: Array = torch.cat([dx, torch.full((B, 1), math.exp(t))], 1).numpy().ravel()
        return result

    solve = peers.scipy(func, y0, math.log(HIGH), math.log(LOW), tolerance)

    def without_plane() -> Answer:
        answer = solve()
        return answer._replace(states=answer.states[:, :2])

    return without_plane


def ours(field: pf.EmpiricalField, x: Tensor, tolerance: float) -> Answer:
    solution = pf.sample(
        field, latents=x, solver="rk45", sigma_min=LOW, sigma_max=HIGH, rtol=tolerance, atol=tolerance, max_steps=10**6
    ).raise_for_status()
    return Answer(solution.samples, float(solution.nfe.double().mean()), int(solution.nfe.max()))


def run(name: str, data: Tensor, x: Tensor, tolerance: float) -> Run:
    """A provider by name."""
    interval = math.log(HIGH), math.log(LOW), tolerance
    solve: peers.Solve
    if name == OURS:
        solve = partial(ours, pf.EmpiricalField(data, 1), x, tolerance)
    elif name == PUBLISHED:
        solve = as_poisson_flow(by_differences(data), x, tolerance)
    elif name == peers.SCIPY:
        solve = as_poisson_flow(by_products(data), x, tolerance)
    elif name == peers.TORCHDIFFEQ:
        solve = peers.torchdiffeq(by_products(data), x, *interval)
    elif name == peers.TORCHODE:
        solve = peers.torchode(by_products(data), x, *interval)
    else:
        solve = peers.diffrax(in_jax(data), x.numpy(), None, *interval)
    return Run(name, setting(tolerance), solve)


def reference(data: Tensor, x: Tensor, scratch: str | None, tolerance: float = 1e-10) -> Tensor:
    """(B, 2) float64: our own solver at a tight tolerance, kept in the scratch folder."""
    kept = Path(scratch) / f"{NAME}-{len(data)}-{len(x)}-{tolerance:.0e}.npy" if scratch else None
    if kept is not None and kept.exists():
        return torch.from_numpy(np.load(kept))
    states = ours(pf.EmpiricalField(data.double(), 1), x.double(), tolerance).states
    if kept is not None:
        np.save(kept, states)
    return torch.as_tensor(states)


def scipy_reference(data: Tensor, x: Tensor, tolerance: float = 1e-10) -> Answer:
    """SciPy's DOP853, row by row, with the field in NumPy's float64."""
    from scipy.integrate import solve_ivp

    y = data.double().numpy()

    def func(t: float, at: Array) -> Array:
        weights = (((at - y) ** 2).sum(1) + math.exp(2 * t)) ** -1.5
        result: Array = at - weights @ y / weights.sum()
        return result

    interval = math.log(HIGH), math.log(LOW)
    found = [
        solve_ivp(func, interval, row, method="DOP853", rtol=tolerance, atol=tolerance) for row in x.double().numpy()
    ]
    calls = sum(f.nfev for f in found)
    return Answer(np.stack([f.y[:, -1] for f in found]), calls / len(found), calls)


def blocks(effort: Effort) -> Iterator[Block]:
    data, x = points(2000), starts(1024)
    truth = reference(data, x, effort.scratch, 1e-8 if effort.quick else 1e-10)

    def errors(states: Tensor) -> Tensor:
        distance: Tensor = (states - truth[: len(states)]).norm(dim=1)
        return distance

    names = peers.available()
    ours = [run(OURS, data, x, tolerance) for tolerance in OUR_TOLERANCES]
    yield Block("at 1e-4", [run(name, data, x, BAR) for name in names] + ours, errors, 4.0, 3, 9)
    if effort.threads > 1 or effort.quick or peers.missing(peers.SCIPY):
        return
    check = Run(REFERENCE, "16 rows", partial(scipy_reference, data, x[:16]))
    yield Block("reference", [check], errors, most=1, least=1)
    for tolerance in TOLERANCES:
        sweep = [run(name, data, x, tolerance) for name in names if tolerance != BAR]
        published = run(PUBLISHED, data, x, tolerance)
        yield Block(f"at {setting(tolerance)}", [*sweep, published], errors, 2.0, 1, 3)


PROBLEM = Problem(NAME, blocks)
