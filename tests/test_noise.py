"""perturb and prior: their law, what a seed fixes, shapes and dtypes, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from pfgm_fast import philox
from pfgm_fast.noise import perturb, prior

inf = math.inf


def images(B: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(B, 3, 4, 5, generator=torch.Generator().manual_seed(2)).to(dtype)


@pytest.mark.parametrize("D", [1.0, 8.0, 128.0])
@pytest.mark.parametrize("N", [2, 31])
def test_radii_of_the_prior(N: int, D: float) -> None:
    """R**2 / (D sigma**2) is inverse-beta, as PFGM++ draws it; one chi-square a row."""
    R = prior((50_000, N), 3.0, D, seeds=range(50_000), dtype=torch.float64).norm(dim=1).numpy()
    assert stats.kstest(R**2 / (9 * D), stats.betaprime(N / 2, D / 2).cdf).pvalue > 1e-3


def test_radii_of_the_prior_at_infinite_D() -> None:
    R = prior((50_000, 7), 3.0, inf, seeds=range(50_000)).norm(dim=1).numpy()
    assert stats.kstest(R / 3, stats.chi(7).cdf).pvalue > 1e-3


@pytest.mark.parametrize("D", [0.3, 1.0, 40.0])
def test_each_coordinate_is_student_t_about_y(D: float) -> None:
    y = images(1).expand(40_000, 3, 4, 5)
    z = ((perturb(y, 0.5, D, seeds=range(40_000)) - y) / 0.5).flatten(1)[:, [0, 3, 59]].numpy()
    assert all(stats.kstest(column, stats.t(D).cdf).pvalue > 1e-3 for column in z.T)


def test_directions_are_uniform() -> None:
    x = prior((50_000, 2), 80.0, 1.0, seeds=range(50_000)).numpy()
    angle = np.arctan2(x[:, 1], x[:, 0]) / (2 * np.pi) + 0.5
    assert stats.kstest(angle, "uniform").pvalue > 1e-3
    assert abs(stats.spearmanr(np.linalg.norm(x, axis=1), angle).statistic) < 5 / math.sqrt(50_000)


@pytest.mark.parametrize("D", [1.0, 128.0, inf])
def test_a_row_is_the_same_in_any_batch(D: float) -> None:
    y, seeds, sigma = images(), torch.tensor([9, -8, 7, 2**62, 5, 0]), torch.tensor([0.002, 0.1, 1, 5, 20, 80])
    x = perturb(y, sigma, D, seeds=seeds)
    order = torch.tensor([4, 0, 5, 2])
    assert torch.equal(perturb(y[order], sigma[order], D, seeds=seeds[order]), x[order])
    for i in range(6):
        assert torch.equal(perturb(y[i : i + 1], sigma[i].item(), D, seeds=seeds[i : i + 1])[0], x[i])


def test_the_numbers_are_those_of_the_recipe() -> None:
    """Fixed values: a change here changes every user's samples."""
    x = prior((2, 3), 2.0, 1.0, seeds=[0, 2**64 - 1], dtype=torch.float64)
    expected = [
        [3.756786155073171, -3.50482190256771, -2.3409722552178214],
        [1.4617496654339637, 0.8413171291577484, 0.8593564056572935],
    ]
    torch.testing.assert_close(x, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)


def test_prior_is_the_kernel_about_zero_and_seeds_are_ints_or_a_tensor() -> None:
    drawn = prior((4, 3, 2), 80.0, 8, seeds=[3, 1, 2**64 - 1, -5])
    assert torch.equal(drawn, perturb(torch.zeros(4, 3, 2), 80.0, 8, seeds=torch.tensor([3, 1, -1, -5])))


def test_infinite_D_is_gaussian_and_the_limit() -> None:
    y, seeds = images(), range(6)
    x = perturb(y, 0.5, inf, seeds=seeds)
    g = philox.normals(torch.arange(6), 60, torch.float32).view(y.shape)
    assert torch.equal(x, y + 0.5 * g)
    torch.testing.assert_close(perturb(y, 0.5, 1e14, seeds=seeds), x, rtol=0, atol=1e-5)


def test_the_default_generator_governs() -> None:
    def draw() -> tuple[Tensor, Tensor, Tensor]:
        return perturb(images(), 1.0, 8), prior((6, 60), 1.0, 8), prior((6, 60), 1.0, 8)

    torch.manual_seed(11)
    first = draw()
    torch.manual_seed(11)
    assert all(map(torch.equal, first, draw()))
    assert not torch.equal(first[1], first[2])
    torch.manual_seed(12)
    assert not torch.equal(first[0], perturb(images(), 1.0, 8))


def test_a_generator_governs_and_advances() -> None:
    generator = torch.Generator().manual_seed(5)
    state = torch.get_rng_state()
    a, b = (prior((3, 7), 1.0, 8, generator=generator) for _ in range(2))
    assert not torch.equal(a, b)
    assert torch.equal(prior((3, 7), 1.0, 8, generator=generator.manual_seed(5)), a)
    assert torch.equal(perturb(torch.zeros(3, 7), 1.0, 8, generator=generator), b)
    assert torch.equal(torch.get_rng_state(), state)


def test_refused_input_leaves_the_generator_alone() -> None:
    generator = torch.Generator().manual_seed(5)
    state = generator.get_state()
    for sigma, D in ((0.0, 8), (1.0, -1.0), (torch.ones(2), 8)):
        with pytest.raises(ValueError, match="must be"):
            perturb(images(), sigma, D, generator=generator)
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_share_their_numbers(dtype: torch.dtype) -> None:
    y = images(dtype=dtype)
    x = perturb(y, 0.7, 8, seeds=range(6))
    exact = perturb(y.double(), 0.7, 8, seeds=range(6))
    assert x.dtype == dtype
    assert x.shape == y.shape
    torch.testing.assert_close(x.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    if dtype != torch.float64:
        assert torch.equal(x, perturb(y.float(), 0.7, 8, seeds=range(6)).to(dtype))


def test_shapes_of_sigma_agree() -> None:
    y, sigma = images(), torch.linspace(0.1, 80, 6, dtype=torch.float64)
    x = perturb(y, sigma, 8, seeds=range(6))
    assert torch.equal(perturb(y, sigma[:, None], 8, seeds=range(6)), x)
    assert torch.equal(perturb(y, sigma.view(6, 1, 1, 1), 8, seeds=range(6)), x)
    assert torch.equal(perturb(y, torch.tensor(0.5), 8, seeds=range(6)), perturb(y, 0.5, 8, seeds=range(6)))
    assert torch.equal(prior((6, 60), sigma, 8, seeds=range(6)), perturb(torch.zeros(6, 60), sigma, 8, seeds=range(6)))


def test_strides_of_y_do_not_matter_and_y_stays() -> None:
    wide = torch.randn(6, 5, 4, 3, generator=torch.Generator().manual_seed(2))
    y = wide.permute(0, 3, 2, 1)
    before = y.clone()
    x = perturb(y, 1.0, 8, seeds=range(6))
    assert torch.equal(x, perturb(before, 1.0, 8, seeds=range(6)))
    assert torch.equal(y, before)


def test_gradients_flow_to_y() -> None:
    y = images().requires_grad_()
    weight = torch.randn_like(y)
    (gradient,) = torch.autograd.grad((perturb(y, 1.0, 8) * weight).sum(), y)
    assert torch.equal(gradient, weight)


@pytest.mark.parametrize("D", [1.0, inf])
def test_no_rows(D: float) -> None:
    assert perturb(torch.empty(0, 3, 2), 1.0, D).shape == (0, 3, 2)
    assert prior((0, 5), 1.0, D, seeds=[]).shape == (0, 5)


def test_dtype_and_device_of_the_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    assert prior((2, 3), 1.0, 8).dtype == torch.float32
    monkeypatch.setattr(torch, "get_default_dtype", lambda: torch.float64)
    assert prior((2, 3), 1.0, 8).dtype == torch.float64
    assert prior([2, 3], 1.0, 8, dtype=torch.bfloat16, device="cpu").dtype == torch.bfloat16
    assert prior(torch.Size([2, 3]), 1.0, 8, seeds=torch.arange(2)).device.type == "cpu"


def test_tiny_D_is_infinite_beyond_the_range_and_never_nan() -> None:
    x = prior((20_000, 3), 80.0, 0.01, seeds=range(20_000), dtype=torch.float64)
    assert not x.isnan().any()
    assert 0 < x.isinf().any(1).double().mean() < 2e-3
    R = x[x.isfinite().all(1)].norm(dim=1)
    assert R.max() > 1e200


@pytest.mark.parametrize("D", [1.0, 128.0, inf])
def test_on_a_gpu_nothing_waits_for_the_device(D: float) -> None:
    """Meta tensors, like those of a GPU, are not checked by value; unlike those, reading one raises."""
    y = torch.empty(5, 3, 4, device="meta")
    seeds = torch.empty(5, dtype=torch.int64, device="meta")
    for x in (
        perturb(y, torch.empty(5, device="meta"), D),
        perturb(y, 1.0, D, seeds=seeds),
        prior((5, 3, 4), 1.0, D, device="meta"),
        prior((5, 3, 4), 1.0, D, seeds=seeds),
    ):
        assert x.device == y.device
        assert x.shape == y.shape


@pytest.mark.parametrize("D", [0.5, 128.0, inf])
def test_compiles_into_one_graph(D: float) -> None:
    torch.compiler.reset()
    compiled = torch.compile(
        lambda y, sigma, seeds: perturb(y, sigma, D, seeds=seeds), fullgraph=True, backend="aot_eager"
    )
    for B in (3, 6):
        y, sigma, seeds = images(B), torch.linspace(0.1, 2, B), torch.arange(B)
        torch.testing.assert_close(compiled(y, sigma, seeds), perturb(y, sigma, D, seeds=seeds), rtol=1e-6, atol=1e-6)


Y = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"y": torch.zeros(2, 3, dtype=torch.uint8)}, TypeError, r"y .*uint8.*\(2 \* y\.float\(\) - 255\) / 255"),
        ({"y": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "y .*int64"),
        ({"y": np.zeros((2, 3))}, TypeError, r"y .*torch\.from_numpy"),
        ({"y": [[0.0]]}, TypeError, "y .*list"),
        ({"y": torch.zeros(2)}, ValueError, r"y .*\(2,\)"),
        ({"y": torch.tensor([[0.0, math.nan], [0.0, 1.0]])}, ValueError, "y must be finite"),
        ({"sigma": 0.0}, ValueError, "sigma .*0"),
        ({"sigma": inf}, ValueError, "sigma .*finite"),
        ({"sigma": torch.tensor([1.0, -1.0])}, ValueError, "sigma .*-1"),
        ({"sigma": torch.ones(3)}, ValueError, r"sigma .*\(3,\)"),
        ({"sigma": "1"}, TypeError, "sigma .*str"),
        ({"sigma": torch.ones(2, requires_grad=True)}, ValueError, "sigma requires a gradient"),
        ({"D": 0}, ValueError, "D must be"),
        ({"D": math.nan}, ValueError, "D must be"),
        ({"D": "8"}, TypeError, "D must be a number"),
        ({"seeds": [1, 2, 3]}, ValueError, r"seeds .*2 rows.*\(3,\)"),
        ({"seeds": [1.5, 2.5]}, TypeError, "seeds .*float"),
        ({"seeds": [1, 2], "generator": torch.Generator()}, ValueError, "seeds and generator"),
        ({"generator": 7}, TypeError, "generator .*int"),
    ],
)
def test_perturb_refuses(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        perturb(**{"y": Y, "sigma": 1.0, "D": 8.0, **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"shape": 3}, TypeError, "shape .*int"),
        ({"shape": (2, 3.0)}, TypeError, r"shape\[1\] .*float"),
        ({"shape": (2, -1)}, ValueError, r"shape\[1\] .*-1"),
        ({"shape": (2,)}, ValueError, r"shape .*\(2,\)"),
        ({"sigma_max": -1.0}, ValueError, "sigma_max must be .*> 0"),
        ({"sigma_max": torch.ones(3)}, ValueError, r"sigma_max .*\(3,\)"),
        ({"sigma_max": torch.tensor([1.0, -1.0])}, ValueError, "sigma_max must be .*-1"),
        ({"sigma_max": "1"}, TypeError, "sigma_max must be a number, got str"),
        ({"D": 0.0}, ValueError, "D must be"),
        ({"dtype": torch.int64}, TypeError, "dtype .*int64"),
        ({"seeds": [1, 2], "generator": torch.Generator()}, ValueError, "seeds and generator"),
    ],
)
def test_prior_refuses(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        prior(**{"shape": (2, 3), "sigma_max": 1.0, "D": 8.0, **arguments})
