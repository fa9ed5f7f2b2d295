"""Interpolated and rescaled latents, and completion of what is known in part."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from problems import broken, gaussian, path
from torch import Tensor

import pfgm_fast as pf

Golden = Callable[[str], dict[str, NDArray[Any]]]


def latent(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestInterpolate:
    def test_the_original(self, golden: Golden) -> None:
        recorded = {name: torch.from_numpy(values) for name, values in golden("pfgm_interp_latents").items()}
        a, b = pf.rescale(recorded["gauss"].double(), norm=3000)
        got = pf.interpolate(a, b, 10)
        assert float((got - recorded["slerp"]).abs().max()) < 1e-6 * 3000

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
    def test_ends_norms_and_angles(self, dtype: torch.dtype) -> None:
        a, b = latent(3, 2, 2).to(dtype), (5 * latent(3, 2, 2, seed=1)).to(dtype)
        got = pf.interpolate(a, b, 7)
        assert (got.shape, got.dtype) == ((7, 3, 2, 2), dtype)
        eps = 4 * torch.finfo(dtype).eps
        assert torch.allclose(got[0], a, rtol=eps, atol=eps)
        assert torch.allclose(got[-1], b, rtol=eps, atol=eps)
        flat = got.double().flatten(1)
        norms = flat.norm(dim=1)
        assert torch.allclose(norms, torch.linspace(norms[0], norms[-1], 7, dtype=torch.float64), rtol=10 * eps)
        units = flat / norms[:, None]
        angles = 2 * torch.asin((units[1:] - units[:-1]).norm(dim=1) / 2)
        assert torch.allclose(angles, angles.mean().expand(6), rtol=0, atol=10 * eps)
        assert torch.linalg.matrix_rank(flat, rtol=10 * eps) == 2

    @pytest.mark.parametrize("scale", [1.0, 3.0])
    @pytest.mark.parametrize("tilt", [0.0, 1e-9, 1e-4])
    def test_one_direction(self, scale: float, tilt: float) -> None:
        a = latent(20)
        b = scale * (a + tilt * latent(20, seed=1))
        share = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None]
        direction = torch.lerp(a / a.norm(), b / b.norm(), share)  # to the square of the tilt
        expected = torch.lerp(a.norm(), b.norm(), share) * direction / direction.norm(dim=1, keepdim=True)
        assert torch.allclose(pf.interpolate(a, b, 5), expected, rtol=0, atol=10 * tilt**2 + 1e-13)

    def test_one_point(self) -> None:
        assert torch.allclose(pf.interpolate(latent(4), latent(4, seed=1), 1), latent(4)[None])

    def test_on_the_meta_device(self) -> None:
        like = latent(4).to("meta")
        assert pf.interpolate(like, like, 3).shape == (3, 4)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"a": torch.zeros(4).double()}, ValueError, "a must not be 0"),
            ({"b": torch.zeros(4).double()}, ValueError, "b must not be 0"),
            ({"b": -2 * latent(4)}, ValueError, "opposite directions"),
            ({"b": latent(5)}, ValueError, "of one shape"),
            ({"b": latent(4).float()}, TypeError, "b must have dtype float64"),
            ({"a": latent(4).numpy()}, TypeError, "torch.from_numpy"),
            ({"b": torch.full((4,), math.nan).double()}, ValueError, "b must be finite"),
            ({"a": torch.tensor(1.0), "b": torch.tensor(1.0)}, ValueError, "of one shape"),
            ({"n": 0}, ValueError, "n must be an integer >= 1"),
        ],
    )
    def test_bad_arguments(self, change: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            pf.interpolate(**{"a": latent(4), "b": latent(4, seed=1), "n": 3, **change})


class TestRescale:
    def test_the_original(self, golden: Golden) -> None:
        recorded = {name: torch.from_numpy(values) for name, values in golden("pfgm_interp_latents").items()}
        got = pf.rescale(recorded["gauss"][:1].expand(10, -1), norm=torch.linspace(1000, 6000, 10))
        assert got.dtype == torch.float32
        assert torch.allclose(got, recorded["rescale"], rtol=1e-6, atol=0)

    def test_factors(self) -> None:
        x = latent(3, 2, 2)
        assert torch.equal(pf.rescale(x, factor=2), 2 * x)
        factors = torch.tensor([0.5, 1.0, 4.0])
        assert torch.equal(pf.rescale(x, factor=factors), factors[:, None, None] * x)
        assert torch.allclose(pf.rescale(x, norm=factors).flatten(1).norm(dim=1), factors.double())

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({}, "exactly one of factor and norm must be given, got neither"),
            ({"factor": 1, "norm": 1}, "got both"),
            ({"factor": 0}, "factor must be"),
            ({"norm": torch.ones(2)}, r"norm must be a number, 0-d, \(3,\)"),
            ({"norm": 1, "latents": torch.zeros(3, 2)}, "must not be 0 in any row"),
            ({"norm": 1, "latents": torch.zeros(3)}, r"latents must be \(B"),
        ],
    )
    def test_bad_arguments(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            pf.rescale(**{"latents": latent(3, 2), **change})


def apart(M: int) -> Tensor:
    """M images (1, 4, 4) of pixels -1 and 1, each half of which tells it from the others."""
    return torch.randn(M, 1, 4, 4, generator=torch.Generator().manual_seed(0)).sign()


LEFT = torch.tensor([True, True, False, False])  # of four columns


class TestInpaint:
    @pytest.mark.parametrize("D", [1.0, 128.0, math.inf])
    @pytest.mark.parametrize(
        "options", [{"steps": 40}, {"solver": "unipc", "steps": 40}, {"solver": "rk45"}], ids=["heun", "unipc", "rk45"]
    )
    def test_the_datum_is_completed(self, D: float, options: dict[str, Any]) -> None:
        """Steered, nearly all of them; without, more than by chance, one in six."""
        data = apart(6)
        x, field = data.repeat(8, 1, 1, 1), pf.EmpiricalField(data, D)
        right = {}
        for sigma_data in (0.3, None):
            done = pf.inpaint(field, x.where(LEFT, math.nan), LEFT, sigma_data=sigma_data, seeds=range(48), **options)
            near = (done.raise_for_status().samples - x).abs().flatten(1).mean(1) < 0.05
            right[sigma_data] = float(near.float().mean())
        assert right[0.3] > 0.95
        assert right[None] > 0.3

    @pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_2m", "unipc"])
    @pytest.mark.parametrize("sigma_data", [None, 0.5])
    def test_the_known_part_is_on_its_path(self, solver: str, sigma_data: float | None) -> None:
        """x + (sigma/sigma_max) latents at every level, for any denoiser; x itself at 0."""
        x, latents = latent(5, 3, 4), 80 * latent(5, 3, 4, seed=1)
        done = pf.inpaint(
            gaussian, x, LEFT, D=8, latents=latents, sigma_data=sigma_data, solver=solver, steps=9, trajectory=True
        )
        states, sigmas = path(done)
        for state, sigma in zip(states, sigmas[:, 0], strict=True):
            assert torch.allclose(state[..., LEFT], (x + sigma / 80 * latents)[..., LEFT], rtol=0, atol=1e-11)
        assert torch.equal(done.samples[..., LEFT], x[..., LEFT])

    def test_the_known_part_by_rk45(self) -> None:
        x, latents = latent(5, 3, 4), 80 * latent(5, 3, 4, seed=1)
        done = pf.inpaint(gaussian, x, LEFT, latents=latents, solver="rk45", sigma_min=0.1, rtol=1e-8, atol=1e-8)
        assert torch.allclose(done.samples[..., LEFT], (x + 0.1 / 80 * latents)[..., LEFT], rtol=0, atol=1e-6)

    def test_all_or_nothing_known(self) -> None:
        x = latent(4, 3)
        every, nothing = torch.ones(3, dtype=torch.bool), torch.zeros(4, 1, dtype=torch.bool)
        assert torch.equal(pf.inpaint(gaussian, x, every, D=8, seeds=range(4)).samples, x)
        free = pf.sample(gaussian, (4, 3), D=8, seeds=range(4), dtype=torch.float64).samples
        for sigma_data in (None, 0.5):
            done = pf.inpaint(gaussian, x, nothing, D=8, seeds=range(4), sigma_data=sigma_data)
            assert torch.allclose(done.samples, free, rtol=1e-12)

    def test_steering_in_a_gaussian(self) -> None:
        """For N(0, I) nothing is learnt of one coordinate from another: steering must not move it."""
        x = latent(6, 4)
        runs = [pf.inpaint(gaussian, x, LEFT, D=math.inf, seeds=range(6), sigma_data=s).samples for s in (None, 0.5)]
        assert torch.allclose(runs[0], runs[1], rtol=1e-12)

    def test_rows_by_themselves(self) -> None:
        data = apart(6)
        field = pf.EmpiricalField(data, 8, labels=torch.arange(6) % 2)
        masks = (latent(6, 1, 4, 4) > 0) & (torch.arange(6) != 3)[:, None, None, None]
        labels = torch.arange(6) % 2
        options: dict[str, Any] = {"sigma_data": 0.5, "solver": "rk45"}
        whole = pf.inpaint(field, data, masks, seeds=range(6), extra_args={"labels": labels}, batch_size=2, **options)
        rows = torch.tensor([4, 1])
        few = pf.inpaint(field, data[rows], masks[rows], seeds=[4, 1], extra_args={"labels": labels[rows]}, **options)
        assert torch.allclose(few.samples, whole.samples[rows], rtol=0, atol=1e-5)

    def test_randomness(self) -> None:
        x = latent(3, 4)
        generators = [torch.Generator().manual_seed(3) for _ in range(2)]
        a, b = (pf.inpaint(gaussian, x, LEFT, D=8, generator=g, churn=4).samples for g in generators)
        assert torch.equal(a, b)
        assert not torch.equal(a, pf.inpaint(gaussian, x, LEFT, D=8, seeds=range(3), churn=4).samples)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_dtypes(self, dtype: torch.dtype) -> None:
        data = apart(3).to(dtype)
        done = pf.inpaint(pf.EmpiricalField(data, math.inf), data, LEFT, sigma_data=0.5, seeds=range(3))
        assert done.ok
        assert done.samples.dtype == dtype
        assert torch.equal(done.samples[..., LEFT], data[..., LEFT])

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"denoiser": 3}, TypeError, "denoiser must be callable"),
            ({"x": torch.zeros(4)}, ValueError, r"x must be \(B"),
            ({"x": torch.full((2, 4), math.nan)}, ValueError, "x must be finite"),
            ({"mask": torch.ones(4)}, TypeError, "mask must have dtype bool"),
            ({"mask": torch.ones(3, dtype=torch.bool)}, ValueError, r"mask must broadcast to \(2, 4\)"),
            ({"D": None}, ValueError, "D must be given"),
            ({"latents": torch.zeros(2, 5)}, ValueError, "latents must be like x"),
            ({"latents": torch.zeros(2, 4).double()}, TypeError, "latents must have dtype float32"),
            ({"sigma_data": 0.0}, ValueError, "sigma_data must be"),
            ({"sigmas": [1.0, 2.0]}, ValueError, "sigmas must decrease"),
            ({"solver": "rk23"}, ValueError, "unknown solver"),
            ({"seeds": [1]}, ValueError, "seeds must be one for each"),
        ],
    )
    def test_bad_arguments(self, change: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            pf.inpaint(**{"denoiser": broken, "x": torch.zeros(2, 4), "mask": LEFT, "D": 1.0, **change})

    def test_a_denoiser_without_gradients(self) -> None:
        with pytest.raises(ValueError, match="the denoiser must be differentiable"):
            pf.inpaint(lambda x, sigma: torch.zeros_like(x), latent(2, 4), LEFT, D=1, sigma_data=0.5)


def test_the_latents_of_two_data_are_a_path_between_them() -> None:
    """Encoded, interpolated and decoded: the ends come back."""
    data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    field = pf.EmpiricalField(data, 8)
    options: dict[str, Any] = {"sigma_min": 0.2, "rtol": 1e-8, "atol": 1e-8}
    ends = data[:2] + 0.1
    a, b = pf.encode(field, ends, **options).samples
    got = pf.sample(field, latents=pf.interpolate(a, b, 5), solver="rk45", **options).samples
    assert np.allclose(got[[0, -1]], ends, atol=1e-5)
