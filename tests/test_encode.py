"""Up the ODE and down again, and PFGM networks seen as denoisers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from problems import broken, gaussian
from torch import Tensor

import pfgm_fast as pf


def data(M: int = 60, N: int = 4) -> Tensor:
    return torch.randn(M, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class TestEncode:
    @pytest.mark.parametrize("D", [1.0, 128.0, math.inf])
    def test_there_and_back(self, D: float) -> None:
        field = pf.EmpiricalField(data(), D)
        x = data(5) + 0.3 * torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        options: dict[str, Any] = {"solver": "rk45", "sigma_min": 0.2, "rtol": 1e-9, "atol": 1e-9}
        up = pf.encode(field, x, **options).raise_for_status()
        down = pf.sample(field, latents=up.samples, **options).raise_for_status()
        assert (down.samples - x).abs().max() < 1e-6
        assert (up.samples - x).abs().max() > 1

    @pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_2m", "unipc", "rk45"])
    def test_the_known_solution(self, solver: str) -> None:
        x = torch.randn(3, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        solution = pf.encode(gaussian, x, solver=solver, steps=200, trajectory=True).raise_for_status()
        gain = math.sqrt((1 + 80**2) / (1 + 0.002**2))
        tolerance = 0.05 if solver == "euler" else 2e-3
        assert (solution.samples / (gain * x) - 1).abs().max() < tolerance
        assert solution.trajectory_sigma is not None
        assert solution.trajectory_sigma[-1].nan_to_num(80).tolist() == [80] * 3

    def test_given_levels_are_climbed(self) -> None:
        seen: list[float] = []

        def recording(x: Tensor, sigma: Tensor) -> Tensor:
            seen.append(float(sigma[0]))
            return gaussian(x, sigma)

        pf.encode(recording, torch.ones(1, 2), solver="euler", sigmas=[4.0, 2.0, 1.0])
        assert seen == [1.0, 2.0]

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"denoiser": 3}, TypeError, "denoiser must be callable"),
            ({"x": torch.ones(3)}, ValueError, r"x must be \(B, \*data\)"),
            ({"x": torch.full((2, 3), math.nan)}, ValueError, "x must be finite"),
            ({"sigmas": [2.0, 1.0, 0.0], "solver": "heun"}, ValueError, "no level can be reached from 0"),
            ({"steps": 1, "solver": "heun"}, ValueError, "steps must be at least 2"),
            ({"solver": "ddim"}, ValueError, "unknown solver"),
            ({"batch_size": 0}, ValueError, "batch_size"),
        ],
    )
    def test_bad_arguments_are_refused(self, change: dict[str, Any], error: type[Exception], message: str) -> None:
        options: dict[str, Any] = {"denoiser": broken, "x": torch.ones(2, 3), **change}
        with pytest.raises(error, match=message):
            pf.encode(**options)


class TestAsDenoiser:
    def field_as_network(self, field: pf.EmpiricalField, gamma: float) -> Any:
        def net(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
            v = field.poisson_field(x, z, gamma=gamma)
            return v[:, :-1].reshape(x.shape), v[:, -1]

        return net

    @pytest.mark.parametrize("gamma", [0.0, 5.0])
    def test_the_exact_field_gives_back_its_own_denoiser(self, gamma: float) -> None:
        field = pf.EmpiricalField(data().reshape(60, 2, 2), 1.0)
        denoiser = pf.as_denoiser(self.field_as_network(field, gamma), gamma=gamma)
        x, z = 3 * data(7).reshape(7, 2, 2), torch.logspace(-2, 1, 7, dtype=torch.float64)
        assert torch.allclose(denoiser(x, z), field(x, z), atol=1e-9)
        assert denoiser.D == 1

    def test_below_z_exp_the_networks_v_z_is_not_used(self) -> None:
        field = pf.EmpiricalField(data(), 1.0)
        exact = self.field_as_network(field, 5.0)

        def net(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
            v_x, v_z = exact(x, z)
            return v_x, v_z.masked_fill(z < 0.5, math.nan)

        x, z = 3 * data(6), torch.logspace(-2, 1, 6, dtype=torch.float64)
        guarded = pf.as_denoiser(net, z_exp=0.5)(x, z)
        plain = pf.as_denoiser(net)(x, z)
        assert plain[z < 0.5].isnan().all()
        assert torch.allclose(plain[z >= 0.5], guarded[z >= 0.5])
        v_x, _ = exact(x, z)
        q = v_x.norm(dim=1) / 2
        closed = -2 * z / (torch.sqrt((5 * q / (1 - q)) ** 2 + z**2) + 5)
        expected = x - (z / closed)[:, None] * v_x
        assert torch.allclose(guarded[z < 0.5], expected[z < 0.5], rtol=0, atol=1e-9)

    def test_it_samples(self) -> None:
        field = pf.EmpiricalField(data(), 1.0)
        denoiser = pf.as_denoiser(self.field_as_network(field, 5.0))
        options: dict[str, Any] = {"seeds": range(4), "solver": "rk45", "sigma_max": 40.0, "dtype": torch.float64}
        through = pf.sample(denoiser, (4, 4), **options)
        assert torch.allclose(through.samples, pf.sample(field, (4, 4), **options).samples, atol=1e-6)

    def test_its_device_is_that_of_the_network(self) -> None:
        assert pf.as_denoiser(torch.nn.Linear(2, 2, device="meta")).device == torch.device("meta")
        assert pf.as_denoiser(lambda x, z: (x, z)).device is None

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"net": 3}, TypeError, "net must be callable"),
            ({"kind": "edm"}, ValueError, "unknown kind 'edm'; known: 'pfgm'"),
            ({"gamma": -1}, ValueError, "gamma"),
            ({"z_exp": -1}, ValueError, "z_exp"),
            ({"z_exp": 1, "gamma": 0}, ValueError, "z_exp > 0 needs gamma > 0"),
        ],
    )
    def test_bad_arguments_are_refused(self, change: dict[str, Any], error: type[Exception], message: str) -> None:
        options: dict[str, Any] = {"net": broken, **change}
        with pytest.raises(error, match=message):
            pf.as_denoiser(**options)

    def test_a_bad_answer_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"net's v_z must return a tensor like x, of shape \(2,\), got"):
            pf.as_denoiser(lambda x, z: (x, x))(torch.ones(2, 3), torch.ones(2))
