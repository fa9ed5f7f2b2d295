"""log_likelihood where the truth is known: densities in closed form, and the exact density of the empirical field."""

from __future__ import annotations

import math
from typing import Any

import mpmath  # type: ignore[import-untyped]  # it publishes none
import numpy as np
import pytest
import torch
from problems import broken, gaussian
from scipy import stats
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast import philox, student

FAR = 1e4  # a sigma_max from which data of unit size are a point
TIGHT: dict[str, Any] = {"sigma_max": FAR, "rtol": 1e-6, "atol": 1e-6}


def charges(M: int, N: int, seed: int = 0) -> Tensor:
    """Data (M, N) around 0, which the prior is centred on."""
    data = torch.randn(M, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / 2
    return data - data.mean(0)


def around(data: Tensor, sigma: float, D: float) -> Tensor:
    return pf.perturb(data, sigma, D, seeds=range(len(data)))


class TestTheTruth:
    @pytest.mark.parametrize("N", [1, 3, 50])
    def test_one_gaussian(self, N: int) -> None:
        """A single datum at D = inf: N(y, sigma^2), whose path is a straight line."""
        field = pf.EmpiricalField(torch.zeros(1, N, dtype=torch.float64), math.inf)
        x = around(torch.zeros(7, N, dtype=torch.float64), 0.5, math.inf)
        got = pf.log_likelihood(field, x, sigma_min=0.5)
        expected = -x.square().sum(1) / (2 * 0.25) - N / 2 * math.log(2 * math.pi * 0.25)
        assert torch.allclose(got.nats, expected, rtol=0, atol=5e-4 + 1e-4 * N)

    @pytest.mark.parametrize(("N", "D"), [(1, 1), (1, math.inf), (2, 0.7), (2, 8), (20, 1), (20, 2048), (20, math.inf)])
    def test_a_mixture(self, N: int, D: float) -> None:
        field = pf.EmpiricalField(charges(6, N), D)
        x = around(charges(6, N), 0.3, D)
        got = pf.log_likelihood(field, x, sigma_min=0.3, **TIGHT)
        assert torch.allclose(got.nats, field.log_density(x, 0.3), rtol=0, atol=5e-4)

    @pytest.mark.parametrize("D", [1, 8, math.inf])
    def test_probability_by_quadrature(self, D: float) -> None:
        """N = 1: exp(nats) is a density: what it holds of an interval is what the distribution function says."""
        data, sigma = torch.tensor([[-1.0], [0.2], [0.8]], dtype=torch.float64), 0.3
        law = stats.norm if math.isinf(D) else stats.t(D)
        nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(60))
        x = 3 * nodes[:, None]
        got = pf.log_likelihood(pf.EmpiricalField(data, D), x, sigma_min=sigma, **TIGHT)
        inside = float((3 * weights * got.nats.exp()).sum())
        ends = [float(law.cdf((end - data.numpy()) / sigma).mean()) for end in (-3.0, 3.0)]
        assert inside == pytest.approx(ends[1] - ends[0], abs=1e-4)

    @pytest.mark.parametrize("D", [3, math.inf])
    def test_the_prior_is_all_that_is_approximate(self, D: float) -> None:
        """At a small sigma_max: nats = density at sigma_min + (prior - density) at sigma_max, by SciPy's prior."""
        field = pf.EmpiricalField(charges(5, 3) + 1, D)
        x = around(charges(5, 3) + 1, 0.2, D)
        options: dict[str, Any] = {"sigma_min": 0.2, "sigma_max": 4.0, "rtol": 1e-7, "atol": 1e-7}
        ends = pf.encode(field, x, **options).raise_for_status().samples
        if math.isinf(D):
            prior = torch.from_numpy(stats.norm(scale=4).logpdf(ends.numpy()).sum(1))
        else:
            prior = torch.from_numpy(stats.multivariate_t([0.0] * 3, 16 * torch.eye(3).numpy(), D).logpdf(ends.numpy()))
        expected = field.log_density(x, 0.2) + prior - field.log_density(ends, 4.0)
        assert torch.allclose(pf.log_likelihood(field, x, **options).nats, expected, atol=1e-5)

    def test_the_default_accuracy(self) -> None:
        """Below 1e-2 nats per dimension at rtol = atol = 1e-4 for few dimensions, 2e-3 for more."""
        for N, bound in ((8, 1e-2), (64, 2e-3)):
            field, x = pf.EmpiricalField(charges(30, N), 16), around(charges(30, N), 0.1, 16)
            got = pf.log_likelihood(field, x, sigma_min=0.1, sigma_max=FAR)
            assert bool(((got.nats - field.log_density(x, 0.1)).abs() < bound * N).all())
            assert bool((got.nfe < 200).all())

    def test_a_class(self) -> None:
        data, labels = charges(12, 3), torch.arange(12) % 2
        field, alone = pf.EmpiricalField(data, 8, labels=labels), pf.EmpiricalField(data[1::2], 8)
        x, ones = around(data, 0.3, 8), torch.ones(12, dtype=torch.int64)
        for exact in (True, False):
            options: dict[str, Any] = {"sigma_min": 0.3, "exact": exact, "seeds": range(12)}
            got = pf.log_likelihood(field, x, extra_args={"labels": ones}, **options)
            assert torch.allclose(got.nats, pf.log_likelihood(alone, x, **options).nats, atol=1e-8)


class TestThePrior:
    @pytest.mark.parametrize("D", [0.01, 1, 2.7, 31, 33, 2048, 1e6, 1e12, 1e300, math.inf])
    @pytest.mark.parametrize("N", [1, 3072, 196608])
    def test_log_density(self, N: int, D: float) -> None:
        squared = torch.tensor([0.0, 0.5 * N, 1e3 * N], dtype=torch.float64)
        got = student.log_density(squared, 3.0, N, D)
        with mpmath.workdps(360):
            s, n = mpmath.mpf(9), mpmath.mpf(N)
            for value, rho in zip(got.tolist(), squared.tolist(), strict=True):
                if math.isinf(D):
                    expected = -n / 2 * mpmath.log(2 * mpmath.pi * s) - mpmath.mpf(rho) / (2 * s)
                else:
                    d = mpmath.mpf(D)
                    expected = mpmath.loggamma((n + d) / 2) - mpmath.loggamma(d / 2)
                    expected -= n / 2 * mpmath.log(d * mpmath.pi * s) + (n + d) / 2 * mpmath.log1p(rho / (d * s))
                assert value == pytest.approx(float(expected), rel=1e-13, abs=1e-13)

    @pytest.mark.parametrize("D", [1, 40, math.inf])
    def test_the_normaliser_of_the_field_is_the_same(self, D: float) -> None:
        sigma = torch.tensor([0.1, 3.0], dtype=torch.float64)
        scale = sigma**2 * (2 if math.isinf(D) else D)
        at_zero = [float(student.log_density(torch.zeros(1).double(), s, 7, D)) for s in sigma.tolist()]
        assert student.log_normaliser(scale, 7, D).tolist() == pytest.approx(at_zero, rel=1e-14)


class Network(torch.nn.Module):
    """The denoiser of a mixture of two Gaussians of unequal variances at D = inf, as a network would be one."""

    def __init__(self) -> None:
        super().__init__()
        self.means = torch.nn.Parameter(torch.tensor([[-0.6, 0.0, 0.4], [0.6, 0.0, -0.4]], dtype=torch.float64))
        self.variances = torch.nn.Parameter(torch.tensor([[0.3, 0.1, 0.2], [0.05, 0.4, 0.1]], dtype=torch.float64))
        self.calls = 0

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls += len(x)
        flat = x.flatten(1)[:, None]
        total = self.variances + sigma[:, None, None] ** 2
        log = -((flat - self.means) ** 2 / total + total.log()).sum(2) / 2
        each = (self.variances * flat + sigma[:, None, None] ** 2 * self.means) / total
        return (log.softmax(1)[:, :, None] * each).sum(1).reshape(x.shape).to(x.dtype)

    def log_density(self, x: Tensor, sigma: float) -> Tensor:
        total = self.variances.detach() + sigma**2
        log = -((x[:, None] - self.means.detach()) ** 2 / total + (2 * math.pi * total).log()).sum(2) / 2
        return log.logsumexp(1) - math.log(2)


class TestHutchinson:
    def test_a_diagonal_jacobian_is_exact(self) -> None:
        """Signs see the trace of a diagonal matrix without error; and data N(0, 1) are N(0, 1 + sigma^2) at sigma."""
        x = torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        got = pf.log_likelihood(gaussian, x, D=math.inf, sigma_min=0.5, **TIGHT, seeds=range(9))
        expected = stats.norm(scale=math.sqrt(1.25)).logpdf(x.flatten(1).numpy()).sum(1)
        assert torch.allclose(got.nats, torch.from_numpy(expected), atol=1e-4)

    @pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
    def test_the_mean_over_probes_is_the_truth(self, probe: str) -> None:
        net, copies = Network(), 600
        x = torch.tensor([[0.3, -0.2, 0.1]], dtype=torch.float64).expand(copies, 3)
        options: dict[str, Any] = {"sigma_min": 0.2, "sigma_max": 1e3, "rtol": 1e-5, "atol": 1e-5}
        got = pf.log_likelihood(net, x, D=math.inf, probe=probe, seeds=range(copies), **options).nats
        error = float(got.mean() - net.log_density(x[:1], 0.2))
        deviation = float(got.std()) / math.sqrt(copies)
        assert 1e-4 < deviation < 0.2
        assert abs(error) < 4 * deviation + 1e-3

    def test_signs_vary_less(self) -> None:
        x = torch.zeros(300, 3, dtype=torch.float64) + 0.1
        spread = [
            pf.log_likelihood(
                Network(), x, D=math.inf, sigma_min=0.2, probe=probe, seeds=range(300), rtol=1e-2
            ).nats.std()
            for probe in ("rademacher", "gaussian")
        ]
        assert spread[0] < 0.7 * spread[1]

    def test_one_forward_an_evaluation(self) -> None:
        net = Network()
        got = pf.log_likelihood(net, torch.zeros(4, 3).double(), D=math.inf, sigma_min=0.1, seeds=range(4))
        assert net.calls == int(got.nfe.sum())
        assert net.means.grad is None
        assert not got.nats.requires_grad

    def test_an_estimated_field(self) -> None:
        field = pf.EmpiricalField(charges(8, 3), 8)
        x = around(charges(8, 3), 0.3, 8).repeat(80, 1)
        got = pf.log_likelihood(field, x, sigma_min=0.3, exact=False, seeds=range(len(x))).nats.reshape(80, 8)
        truth = pf.log_likelihood(field, x[:8], sigma_min=0.3).nats
        assert bool(((got.mean(0) - truth).abs() < 4 * got.std(0) / math.sqrt(80) + 1e-3).all())

    @pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
    def test_the_documented_probe(self, probe: str) -> None:
        """The integral along the path of e.(J^T e), J = A/(A + sigma^2) of N(0, A), is known for every e."""
        A = torch.tensor([[2.0, 0.7], [0.7, 0.5]], dtype=torch.float64)
        values, vectors = torch.linalg.eigh(A)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            answer: Tensor = (x @ vectors) * (values / (values + sigma[:, None] ** 2)) @ vectors.T
            return answer

        seeds, x = torch.arange(5), torch.zeros(5, 2, dtype=torch.float64)
        e = philox.normals(seeds, 2, torch.float64, stream=5)
        e = e.sign() if probe == "rademacher" else e
        low, high = 0.5, 50.0
        part = ((values + low**2).log() - (values + high**2).log()) / 2 - math.log(low / high)
        expected = student.log_density(torch.zeros(5).double(), high, 2, math.inf) + 2 * math.log(high / low)
        expected = expected - ((e @ vectors) ** 2 * part).sum(1)
        options: dict[str, Any] = {"sigma_min": low, "sigma_max": high, "rtol": 1e-8, "atol": 1e-8}
        got = pf.log_likelihood(denoise, x, D=math.inf, probe=probe, seeds=seeds, **options)
        assert torch.allclose(got.nats, expected, atol=1e-6)

    def test_seeds(self) -> None:
        x = charges(6, 3)
        options: dict[str, Any] = {"D": math.inf, "sigma_min": 0.2}
        first = pf.log_likelihood(Network(), x, seeds=range(6), **options).nats
        part = pf.log_likelihood(Network(), x[2:], seeds=range(2, 6), batch_size=3, **options).nats
        assert torch.allclose(part, first[2:], rtol=1e-12)
        generators = [torch.Generator().manual_seed(3) for _ in range(2)]
        a, b = (pf.log_likelihood(Network(), x, generator=g, **options).nats for g in generators)
        assert torch.equal(a, b)
        assert not torch.equal(a, first)

    def test_nothing_is_drawn_for_exact_divergences(self) -> None:
        state = torch.get_rng_state()
        pf.log_likelihood(pf.EmpiricalField(charges(4, 2), 1), charges(4, 2), sigma_min=0.5)
        assert torch.equal(torch.get_rng_state(), state)


class TestTheResult:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("exact", [True, False])
    def test_dtypes(self, dtype: torch.dtype, exact: bool) -> None:
        data = charges(5, 4).to(dtype).reshape(5, 2, 2)
        got = pf.log_likelihood(pf.EmpiricalField(data, 4), data, sigma_min=0.3, exact=exact, seeds=range(5))
        assert got.nats.dtype == got.bits_per_dim.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert got.nfe.dtype == torch.int64
        double = data.double()
        field = pf.EmpiricalField(double, 4)
        expected = pf.log_likelihood(field, double, sigma_min=0.3, exact=exact, seeds=range(5))
        assert torch.allclose(got.nats.double(), expected.nats, atol=40 * torch.finfo(dtype).eps + 1e-3)

    def test_bits_per_dimension(self) -> None:
        field, x = pf.EmpiricalField(charges(5, 4), 4), charges(5, 4)
        plain = pf.log_likelihood(field, x, sigma_min=0.3)
        assert torch.allclose(plain.bits_per_dim, -plain.nats / (4 * math.log(2)))
        images = pf.log_likelihood(field, x, sigma_min=0.3, levels_per_unit=128)
        assert torch.allclose(images.bits_per_dim, plain.bits_per_dim + 7)

    def test_a_failing_row_is_nan_alone(self) -> None:
        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            return gaussian(x, sigma).where((x < 100) | (sigma[:, None] < 1), math.nan)

        x = torch.tensor([[0.1], [90.0], [0.3]], dtype=torch.float64)
        got = pf.log_likelihood(denoise, x, D=math.inf, sigma_min=0.5, sigma_max=10.0, seeds=range(3))
        assert got.nats.isnan().tolist() == [False, True, False]
        assert got.bits_per_dim.isnan().tolist() == [False, True, False]
        few = pf.log_likelihood(gaussian, x, D=math.inf, sigma_min=0.5, seeds=range(3), max_steps=1)
        assert bool(few.nats.isnan().all())

    def test_no_rows(self) -> None:
        got = pf.log_likelihood(pf.EmpiricalField(charges(4, 2), 1), torch.zeros(0, 2))
        assert [len(t) for t in got] == [0, 0, 0]

    def test_the_bar(self, capsys: pytest.CaptureFixture[str]) -> None:
        pf.log_likelihood(gaussian, torch.zeros(2, 3), D=1, sigma_min=0.5, progress=True)
        assert "100%" in capsys.readouterr().err


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "x": ({"x": torch.zeros(3)}, ValueError, r"x must be \(B"),
    "no values": ({"x": torch.zeros(3, 0)}, ValueError, r"x must be \(B"),
    "nan": ({"x": torch.full((2, 3), math.nan)}, ValueError, "x must be finite"),
    "integers": ({"x": torch.zeros(2, 3, dtype=torch.uint8)}, TypeError, "x must have dtype"),
    "denoiser": ({"denoiser": 3}, TypeError, "denoiser must be callable"),
    "no D": ({"D": None}, ValueError, "D must be given"),
    "D": ({"D": -1}, ValueError, "D must be"),
    "levels": ({"sigma_min": 9.0, "sigma_max": 1.0}, ValueError, "sigma_min must be <"),
    "rtol": ({"rtol": -1}, ValueError, "rtol"),
    "probe": ({"probe": "uniform"}, ValueError, "unknown probe 'uniform'"),
    "exact": ({"exact": True}, ValueError, "exact=True needs a denoiser with a method divergence"),
    "exact's type": ({"exact": "yes"}, TypeError, "exact must be True, False or None"),
    "levels_per_unit": ({"levels_per_unit": 0}, ValueError, "levels_per_unit must be"),
    "seeds": ({"seeds": [1]}, ValueError, "seeds must be one for each"),
    "both": ({"seeds": [1, 2], "generator": torch.Generator()}, ValueError, "exclude each other"),
    "extra_args": ({"extra_args": {"labels": torch.zeros(5)}}, ValueError, "extra_args.*must have a row"),
}


@pytest.mark.parametrize(("change", "error", "message"), BAD.values(), ids=BAD)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pf.log_likelihood(**{"denoiser": broken, "x": torch.zeros(2, 3), "D": 1.0, **change})


def test_a_denoiser_without_gradients() -> None:
    def detached(x: Tensor, sigma: Tensor) -> Tensor:
        return gaussian(x, sigma).detach()

    with pytest.raises(ValueError, match="the denoiser must be differentiable with respect to x"):
        pf.log_likelihood(detached, torch.zeros(2, 3), D=1)
