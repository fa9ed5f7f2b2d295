"""The exact Poisson field of 2,000 points in the plane, from the prior at z = 40 down to z = 1e-3 in the time log z."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import pfgm_fast as pf
from benchmarks.solvers import peers
from benchmarks.solvers.solve import TESTS, Array, Solve, answer, distances, plane_work, setting
from pfgm_fast.bench.core import Answer, Case, Effort, Operation, Provider
from pfgm_fast.bench.rows import Row, Table

Drift = Callable[[Tensor, Tensor], Tensor]

NAME = "poisson_solve"
CASE = "B=1024 M=2000 N=2 D=1"
VARIANT = "z 40 to 0.001"
OURS = "pfgm_fast rk45"
PUBLISHED = "SciPy RK45, field by differences"  # the field as the published code writes it
HIGH, LOW = 40.0, 1e-3
RADIUS = 3000.0  # the heavy tail of the prior is clipped there
TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6)
OUR_TOLERANCES = (1e-3, 5e-4, 2.2e-4, 1.8e-4, 1.5e-4, 1.2e-4, 1e-4, 5e-5, 2e-5, 1e-5, 1e-6)
BAR = 1e-4


class Plane(NamedTuple):
    """States x (B, 2) at z = 40 in the field of data (M, 2)."""

    data: Tensor
    x: Tensor


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


def by_products(data: Tensor) -> Drift:
    """dx/dlog z = x - x_hat; the squared distances by one matrix product: the fastest expression in PyTorch."""
    norms = (data * data).sum(1)

    def drift(log_z: Tensor, x: Tensor) -> Tensor:
        own = (x * x).sum(1, keepdim=True) + torch.exp(2 * log_z)[..., None]
        squares = torch.addmm(norms, x, data.T, alpha=-2).add_(own).clamp_min_(1e-12)
        return x - torch.softmax(squares.log_().mul_(-1.5), 1) @ data

    return drift


def by_differences(data: Tensor) -> Drift:
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


def as_poisson_flow(drift: Drift, x: Tensor, tolerance: float) -> Solve:
    """solve_ivp on the flattened batch with z as one more plane of the state, in float64; the field in float32."""
    B = len(x)
    y0 = np.concatenate([x.cpu().numpy(), np.full((B, 1), HIGH)], 1).astype(np.float64)

    def func(t: float, y: Array) -> Array:
        state = torch.from_numpy(y.reshape(B, 3)).to(x.device, torch.float32)
        dx = drift(torch.tensor(t, dtype=torch.float32), state[:, :2])
        result: Array = torch.cat([dx.cpu(), torch.full((B, 1), math.exp(t))], 1).numpy().ravel()
        return result

    solve = peers.scipy(func, y0, math.log(HIGH), math.log(LOW), tolerance)

    def without_plane() -> Answer:
        found = solve()
        return found._replace(values=found.values[:, :2].to(x.device))

    return without_plane


def ours(field: pf.EmpiricalField, x: Tensor, tolerance: float) -> Answer:
    return answer(
        pf.sample(
            field, latents=x, solver="rk45", sigma_min=LOW, sigma_max=HIGH, rtol=tolerance, atol=tolerance,
            max_steps=10**6,
        )
    )  # fmt: skip


def solve(name: str, tolerance: float, inputs: Plane) -> Solve:
    """The call of a provider."""
    data, x, interval = inputs.data, inputs.x, (math.log(HIGH), math.log(LOW), tolerance)
    if name == OURS:
        return partial(ours, pf.EmpiricalField(data, 1), x, tolerance)
    if name == PUBLISHED:
        return as_poisson_flow(by_differences(data), x, tolerance)
    if name == peers.SCIPY:
        return as_poisson_flow(by_products(data), x, tolerance)
    if name == peers.TORCHDIFFEQ:
        return peers.torchdiffeq(by_products(data), x, *interval)
    if name == peers.TORCHODE:
        return peers.torchode(by_products(data), x, *interval)
    return peers.diffrax(in_jax(data), x.numpy(), None, *interval)


def reference(inputs: Plane, tolerance: float = 1e-10) -> Tensor:
    """(B, 2) float64: our own solver at a tight tolerance."""
    return ours(pf.EmpiricalField(inputs.data.double(), 1), inputs.x.double(), tolerance).values


def make(M: int, B: int, variant: str, device: torch.device) -> Plane:
    return Plane(points(M).to(device), starts(B).to(device))


def match(block: Table, row: Row) -> Row | None:
    """The fastest row of ours whose p99 error is no worse than that of a peer's."""
    if row.provider == OURS:
        return None
    mine = [one for one in block if one.provider == OURS and one.median_ms is not None]
    good = [one for one in mine if (one.error_p99 or 0) <= (row.error_p99 or 0)]
    return min(good, key=lambda one: one.median_ms or 0, default=None)


def _provider(name: str, tolerance: float) -> Provider[Plane]:
    def refuses(inputs: Plane) -> str | None:
        return None if name == OURS else peers.refuses(peers.SCIPY if name == PUBLISHED else name, inputs.x.device)

    return Provider(name, partial(solve, name, tolerance), setting(tolerance), ours=name == OURS, refuses=refuses)


OPERATION = Operation(
    name=NAME,
    cases={CASE: Case(partial(make, 2000, 1024))},
    variants=(VARIANT,),
    providers=(
        *(_provider(OURS, tolerance) for tolerance in OUR_TOLERANCES),
        *(_provider(name, tolerance) for name in (*peers.NAMES, PUBLISHED) for tolerance in TOLERANCES),
    ),
    truth=reference,
    error=distances,
    work=plane_work,
    small=lambda inputs: Plane(inputs.data[:64], inputs.x[:4]),
    tests=TESTS,
    rival=match,
    error_unit="|x - x*|",
    effort=Effort(2.0, 1, 9),
)
