"""The field against recorded outputs of the original PFGM, PFGM++ and stable-target code."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import pfgm_fast as pf

Golden = Callable[[str], dict[str, NDArray[Any]]]


def images(u: NDArray[Any], space: str) -> Tensor:
    """The original data spaces: floats as they are, digits u/8 - 1, 8-bit images u/127.5 - 1 in float32."""
    if u.dtype != np.uint8:
        return torch.from_numpy(u)
    return torch.from_numpy(u.astype(np.float32) / np.float32(8 if space == "n64" else 127.5) - 1)


def largest(got: Tensor, expected: NDArray[Any]) -> float:
    return float((got.double().flatten(1) - torch.from_numpy(expected).double()).abs().max())


def relative(got: Tensor, expected: NDArray[Any]) -> float:
    """The largest error of a row over the length of the row."""
    wanted = torch.from_numpy(expected).double()
    return float(((got.double() - wanted).norm(dim=1) / wanted.norm(dim=1)).max())


CASES = [("n2", D) for D in ("1", "2", "128", "2048", "131072", "inf")]
CASES += [("n64", D) for D in ("1", "2", "128", "2048", "131072", "inf")]
CASES += [("n3072", D) for D in ("128", "2048", "inf")]


@pytest.mark.parametrize(("space", "D"), CASES)
def test_pfgmpp_targets(space: str, D: str, golden: Golden, backend: str) -> None:
    """Posterior means over a reference batch (EDMLoss.pfgmpp_target, stf_scores), 1e-6."""
    g = golden("pfgmpp_targets")
    x, sigma = torch.from_numpy(g[f"{space}_xhat"]), torch.from_numpy(g[f"{space}_sigma"])
    field = pf.EmpiricalField(images(g[f"{space}_ref"], space), float(D), backend=backend)
    got, key = field(x, sigma), f"{space}_D{D}"
    exact = g.get(f"{key}_exact64", g.get(f"{key}_target_f64", g[f"{key}_target"]))
    # in float32 the shares of rival data are good to 1e-4 of |x - x_hat|, far above the 1e-6 of an answer in float64
    step = (x.flatten(1) - torch.from_numpy(exact)).norm(dim=1, keepdim=True).double()
    allowed = 1e-4 * step + 1e-6
    assert bool(((got.double().flatten(1) - torch.from_numpy(exact).double()).abs() <= allowed).all())
    if D != "inf":  # the shipped diffusion target is itself in float32
        assert bool(((got.double().flatten(1) - torch.from_numpy(g[f"{key}_target"]).double()).abs() <= allowed).all())
    assert largest(field(x.double(), sigma), exact) <= 1e-6


@pytest.mark.parametrize("space", ["n2", "n64", "n3072"])
def test_stable_targets(space: str, golden: Golden, backend: str) -> None:
    """stf_targets: our float64 agrees with its float64 run to 1e-6; our float32 is nearer to that than its own float32,
    or as near as the rounding of float32 that the accuracy contract allows.
    """
    g = golden("stf_targets")
    x, sigma = torch.from_numpy(g[f"{space}_xhat"]), torch.from_numpy(g[f"{space}_sigma"])
    data = images(g[f"{space}_ref"], space)
    field = pf.EmpiricalField(data, math.inf, backend=backend)
    exact = g[f"{space}_target_f64"]
    allowed = 4 * torch.finfo(torch.float32).eps * max(float(t.flatten(1).norm(dim=1).max()) for t in (x, data))
    assert largest(field(x, sigma), exact) <= max(allowed, largest(torch.from_numpy(g[f"{space}_target"]), exact))
    assert largest(field(x.double(), sigma), exact) <= 1e-6


@pytest.mark.parametrize(
    ("name", "gamma"),
    [
        ("pfgm_target_n2_m128", 0),
        ("pfgm_target_n2_m128", 5),
        ("pfgm_target_n64_m512", 0),
        ("pfgm_target_n64_m512", 5),
        ("pfgm_target_n64_m32_b32", 5),
    ],
)
def test_pfgm_targets(name: str, gamma: int, golden: Golden, backend: str) -> None:
    """The PFGM training target is the Poisson field at D = 1, sigma = z: 2e-5 from the shipped float32."""
    g = golden(name)
    data = g["data"]
    y = torch.from_numpy(data if data.dtype != np.uint8 else data.astype(np.float32) / g["data_div"] - 1)
    perturbed = torch.from_numpy(g["perturbed"])
    x, z = perturbed[:, :-1], perturbed[:, -1]
    field = pf.EmpiricalField(y, 1.0, backend=backend)
    shipped, exact = g[f"target_g{gamma}"], g[f"exact64_g{gamma}"]
    in_double = field.poisson_field(x.double(), z, gamma)
    assert relative(in_double, exact) <= 1e-8
    assert relative(in_double, shipped) <= 2e-5
    # float32 rounds x_hat, promised to 4 eps of the longest vector, which turns a short (x - x_hat, z) the more
    length = torch.cat([x - field(x.double(), z), z[:, None]], 1).norm(dim=1)
    longest = torch.maximum(x.norm(dim=1), y.norm(dim=1).max())
    rounding = 4 * torch.finfo(torch.float32).eps * float((longest / length).max())
    assert relative(field.poisson_field(x, z, gamma), exact) <= 2e-5 + rounding


def test_pfgm_target_near_the_data(golden: Golden, backend: str) -> None:
    """A hair above a datum and above a triple one the field points straight up; beside them it is the original's."""
    g = golden("pfgm_target_edge")
    perturbed, data = torch.from_numpy(g["perturbed"]), torch.from_numpy(g["data"])
    field = pf.EmpiricalField(data, 1.0, backend=backend)
    ordinary = [5, 7]
    got = field.poisson_field(perturbed[ordinary, :-1], perturbed[ordinary, -1], 5.0)
    assert relative(got, g["target_f64_g5"][ordinary]) <= 2e-5
    on_data = [2, 6]
    up = field.poisson_field(perturbed[on_data, :-1].double(), perturbed[on_data, -1])
    assert relative(up, g["target_f64_g0"][on_data]) <= 1e-8


@pytest.mark.parametrize("D", [128, 2048, 1000000, math.inf])
def test_pfgmpp_targets_of_large_images(D: float, golden: Golden, backend: str) -> None:
    """N = 12288: the first 256 components and two sums of the original's target."""
    g = golden("pfgmpp_target_bigN")
    N, (B, M), seed = 12288, g["n12288_BM"], int(g["seed"])
    u = np.random.default_rng([seed, 5, N]).integers(0, 256, (M, N), dtype=np.uint8)
    sigma = g["n12288_sigma"]
    noise = np.random.default_rng([seed, 7, N]).standard_normal((B, N), dtype=np.float32)
    y = (u / 127.5 - 1).astype(np.float32)
    x = torch.from_numpy(y[:B] + sigma[:, None] * noise)
    got = pf.EmpiricalField(torch.from_numpy(y), D, backend=backend)(x, torch.from_numpy(sigma)).double()
    key = "n12288_Dinf_f64" if math.isinf(D) else f"n12288_D{D}"
    assert (got[:, :256] - torch.from_numpy(g[f"{key}_head"]).double()).abs().max() <= 2e-5
    assert np.allclose(got.sum(1).numpy(), g[f"{key}_sum"], rtol=1e-5, atol=1e-2)
