"""Perturbations, targets and losses of training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

import pfgm_fast as pf

Golden = Callable[[str], dict[str, NDArray[Any]]]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def digits(M: int = 40, seed: int = 0) -> Tensor:
    return torch.randint(256, (M, 3, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def as_float(images: Tensor) -> Tensor:
    return (2 * images.double() - 255) / 255


class TestHyperparameters:
    def test_the_original_script(self, golden: Golden) -> None:
        recorded = golden("pfgm_hyperparameters")
        for (norm, N), expected in zip(recorded["inputs"], recorded["outputs"], strict=True):
            got = pf.hyperparameters(norm, int(N))
            assert expected[0] == got.M
            assert got == pytest.approx(tuple(expected), rel=1e-12)

    @pytest.mark.parametrize(
        ("change", "message"),
        [({"data_norm": 0}, "data_norm"), ({"N": 0}, "N must be"), ({"sigma": 0}, "sigma"), ({"tau": 0}, "tau")],
    )
    def test_bad_arguments(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            pf.hyperparameters(**{"data_norm": 30.0, "N": 3072, **change})

    def test_data_too_small(self) -> None:
        with pytest.raises(ValueError, match="data_norm must be >= "):
            pf.hyperparameters(0.001, 3072)


class TestPFGMPerturb:
    def test_the_law(self) -> None:
        """(x - y)/s is normal and independent of z/s = |e|; ln s is uniform over the exponents."""
        y = torch.zeros(20000, 4, dtype=torch.float64)
        x, z = pf.pfgm_perturb(y, restrict_M=False, seeds=range(20000))
        # |x|^2/z^2 is 4 F(4, 1), whatever the scale
        ratio = (x.square().sum(1) / z**2 / 4).numpy()
        assert stats.kstest(ratio, stats.f(4, 1).cdf).pvalue > 1e-3
        # the scale of a row cannot be seen, but its law can: |x|^2 = s^2 chi-squared(4)
        exponent = np.random.default_rng(0).uniform(0, 291, 20000)
        scale = 0.01 * 1.03**exponent
        other = scale**2 * stats.chi2(4).rvs(20000, random_state=1)
        assert stats.ks_2samp(x.square().sum(1).numpy(), other).pvalue > 1e-3
        assert z.min() > 0

    def test_small_z_restricts_the_exponent(self) -> None:
        y = torch.zeros(50000, 1, dtype=torch.float64)
        x, z = pf.pfgm_perturb(y, seeds=range(50000))
        free_x, free_z = pf.pfgm_perturb(y, seeds=range(50000), restrict_M=False)
        moved = z != free_z
        # sigma_end |e| < 0.005 in erf(0.5/sqrt(2)) of the rows
        assert float(moved.double().mean()) == pytest.approx(math.erf(0.5 / math.sqrt(2)), abs=0.01)
        assert z[moved].max() <= 0.005 * 1.03 ** int(0.7 * 291)
        assert torch.equal(x[~moved], free_x[~moved])

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_rows_depend_on_their_seeds_alone(self, dtype: torch.dtype) -> None:
        y = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
        x, z = pf.pfgm_perturb(y, seeds=range(6))
        assert x.dtype == z.dtype == dtype
        assert x.shape == y.shape
        assert z.shape == (6,)
        one = pf.pfgm_perturb(y[4:5], seeds=[4])
        assert torch.equal(one[0], x[4:5])
        assert torch.equal(one[1], z[4:5])

    def test_the_generator_governs(self) -> None:
        y = torch.ones(3, 2)
        first = pf.pfgm_perturb(y, generator=torch.Generator().manual_seed(1))
        second = pf.pfgm_perturb(y, generator=torch.Generator().manual_seed(1))
        assert torch.equal(first[0], second[0])
        torch.manual_seed(3)
        third = pf.pfgm_perturb(y)
        torch.manual_seed(3)
        assert torch.equal(third[1], pf.pfgm_perturb(y)[1])

    def test_gradients_flow_to_the_data(self) -> None:
        y = torch.ones(3, 2, requires_grad=True)
        x, z = pf.pfgm_perturb(y)
        x.sum().backward()
        assert y.grad is not None
        assert torch.equal(y.grad, torch.ones(3, 2))
        assert not z.requires_grad

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"y": [1.0]}, TypeError, "y must be a torch.Tensor"),
            ({"y": torch.ones(3)}, ValueError, r"y must be \(B, \*data\)"),
            ({"y": digits()}, TypeError, "y must be floating, got uint8"),
            ({"sigma_end": 0}, ValueError, "sigma_end"),
            ({"tau": 0}, ValueError, "tau"),
            ({"M": 0}, ValueError, "M must be"),
            ({"seeds": [1]}, ValueError, "seeds must be one for each of the 2 rows"),
        ],
    )
    def test_bad_arguments(self, change: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            pf.pfgm_perturb(**{"y": torch.ones(2, 3), **change})


class TestTargets:
    def test_a_batch_or_a_field(self) -> None:
        data, x = digits(), as_float(digits(5, 1)).float()
        z = torch.logspace(-1, 1, 5)
        field = pf.EmpiricalField(data, 1.0)
        assert torch.equal(pf.pfgm_target(x, z, data), field.poisson_field(x, z, 5.0))
        assert torch.equal(pf.pfgm_target(x, z, field, gamma=0.5), field.poisson_field(x, z, 0.5))
        for D in (1.0, 2.5, 128.0, math.inf):
            field = pf.EmpiricalField(data, D)
            assert torch.equal(pf.pfgmpp_target(x, z, field, D), field(x, z))
            assert torch.equal(pf.pfgmpp_target(x, z, data, D), field(x, z))
        assert torch.equal(pf.stf_target(x, z, data), field(x, z))

    def test_labels(self) -> None:
        data, labels = digits(), torch.arange(40) % 3
        x, z, classes = as_float(digits(4, 1)), torch.full((4,), 2.0), torch.tensor([0, 2, -1, 1])
        field = pf.EmpiricalField(data, 1.0, labels=labels)
        got = pf.pfgm_target(x, z, field, labels=classes)
        for i, k in enumerate(classes.tolist()):
            own = data if k < 0 else data[labels == k]
            assert torch.allclose(got[i], pf.pfgm_target(x[i : i + 1], z[i : i + 1], own)[0], atol=1e-9)
        gaussian = pf.EmpiricalField(data, math.inf, labels=labels)
        own = pf.stf_target(x[1:2], z[1:2], data[labels == 2])
        assert torch.allclose(pf.stf_target(x, z, gaussian, labels=classes)[1], own[0], atol=1e-9)

    def test_no_gradient_flows(self) -> None:
        x = as_float(digits(2)).requires_grad_()
        data = as_float(digits())
        assert not pf.pfgm_target(x, 1.0, data).requires_grad
        assert not pf.stf_target(x, 1.0, data).requires_grad

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (lambda x, field: pf.pfgm_target(x, 1.0, field), ValueError, "data must be a field of D=1, got one of D=8"),
            (lambda x, field: pf.pfgmpp_target(x, 1.0, field, 2.0), ValueError, "field of D=2, got one of D=8"),
            (lambda x, field: pf.stf_target(x, 1.0, field), ValueError, "field of D=inf, got one of D=8"),
            (lambda x, field: pf.pfgmpp_target(x, 1.0, x.numpy(), 8.0), TypeError, r"data.*torch\.from_numpy"),
            (lambda x, field: pf.pfgmpp_target(x, -1.0, field, 8.0), ValueError, "sigma"),
            (lambda x, field: pf.pfgm_target(x, -1.0, x), ValueError, "z must be"),
            (
                lambda x, field: pf.stf_target(x, 1.0, x.clone().requires_grad_()),
                ValueError,
                "data requires a gradient",
            ),
            (lambda x, field: pf.pfgmpp_target(x, 1.0, x[:, :1], 8.0), ValueError, "x must be"),
        ],
    )
    def test_bad_arguments(self, call: Callable[..., Any], error: type[Exception], message: str) -> None:
        x = torch.ones(2, 3, 4, 4)
        with pytest.raises(error, match=message):
            call(x, pf.EmpiricalField(digits(), 8.0))


class Net(torch.nn.Module):
    """A field or a denoiser of two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, z: Tensor, labels: Tensor | None = None) -> Any:
        if z.ndim == 1:
            return self.gain * x, self.gain * z
        return self.gain * x * (1 if labels is None else labels.double().mean().to(x.dtype))


class TestLosses:
    @pytest.mark.parametrize("whole", [False, True])
    def test_pfgm(self, whole: bool) -> None:
        images, net = digits(6), Net()
        field = pf.EmpiricalField(digits(40, 3), 1.0) if whole else None
        torch.manual_seed(0)
        error = pf.PFGMLoss(gamma=2.0)(net, images, field)
        assert error.shape == (6, 49)
        torch.manual_seed(0)
        x, z = pf.pfgm_perturb(as_float(images).float())
        target = pf.pfgm_target(x, z, images if field is None else field, gamma=2.0)
        expected = (torch.cat([0.5 * x.flatten(1), 0.5 * z[:, None]], 1) - target).square()
        assert torch.allclose(error, expected, rtol=1e-5)
        error.sum().backward()
        assert net.gain.grad is not None

    @pytest.mark.parametrize("D", [1.0, 2.5, 128.0, math.inf])
    @pytest.mark.parametrize("reference", [None, "batch", "field"])
    def test_pfgmpp(self, D: float, reference: str | None) -> None:
        images, net, data = as_float(digits(6)), Net(), as_float(digits(40, 3))
        of = {None: None, "batch": data, "field": pf.EmpiricalField(data, D)}[reference]
        torch.manual_seed(0)
        error = pf.PFGMPPLoss(D, reference=of)(net, images)
        assert error.shape == images.shape
        torch.manual_seed(0)
        sigma = torch.exp(torch.randn(6) * 1.2 - 1.2)
        x = pf.perturb(images, sigma, D)
        target = images if of is None else pf.pfgmpp_target(x, sigma, data, D)
        level = sigma.double()[:, None, None, None]
        expected = (level**2 + 0.25) / (0.5 * level) ** 2 * (0.5 * x - target).square()
        assert torch.allclose(error, expected, rtol=1e-6)
        error.sum().backward()
        assert net.gain.grad is not None

    def test_labels_choose_the_reference(self) -> None:
        data, labels = digits(), torch.arange(40) % 3
        field = pf.EmpiricalField(data, 8.0, labels=labels)
        classes = torch.tensor([2, 0, 1])
        one_hot = torch.nn.functional.one_hot(classes, 3).float()
        results = []
        for given in (classes, one_hot):
            torch.manual_seed(0)
            results.append(pf.PFGMPPLoss(8.0, reference=field)(lambda x, s, given: 0 * x, digits(3, 1), given))
        assert torch.equal(results[0], results[1])
        torch.manual_seed(0)
        free = pf.PFGMPPLoss(8.0, reference=pf.EmpiricalField(data, 8.0))(lambda x, s: 0 * x, digits(3, 1))
        assert not torch.allclose(results[0], free)

    def test_no_label_at_all_is_unrestricted(self) -> None:
        data, labels = digits(), torch.arange(40) % 3
        losses = []
        for given in (torch.tensor([-1, 1]), torch.tensor([[0.0, 0, 0], [0, 1, 0]])):
            torch.manual_seed(0)
            field = pf.EmpiricalField(data, 8.0, labels=labels)
            losses.append(pf.PFGMPPLoss(8.0, reference=field)(lambda x, s, given: 0 * x, digits(2, 1), given))
        assert torch.equal(*losses)
        assert pf.PFGMPPLoss(8.0, reference=field)(lambda x, s, given: x, digits(2), torch.zeros(2, 0)).isfinite().all()

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_dtypes_and_channels_last(self, dtype: torch.dtype) -> None:
        images = as_float(digits(4)).to(dtype)
        torch.manual_seed(0)
        plain = pf.PFGMPPLoss(128.0)(Net(), images)
        torch.manual_seed(0)
        last = pf.PFGMPPLoss(128.0)(Net(), images.to(memory_format=torch.channels_last))
        assert plain.dtype == dtype
        assert torch.equal(plain, last)
        torch.manual_seed(0)
        assert pf.PFGMLoss()(Net(), images).dtype == dtype

    def test_repeatable(self) -> None:
        for loss in (pf.PFGMLoss(), pf.PFGMPPLoss(16.0)):
            runs = []
            for _ in range(2):
                torch.manual_seed(11)
                runs.append(loss(Net(), digits(5)))
            assert torch.equal(*runs)

    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda: pf.PFGMLoss(gamma=-1), ValueError, "gamma"),
            (lambda: pf.PFGMLoss(M=0), ValueError, "M must be"),
            (lambda: pf.PFGMPPLoss(0), ValueError, "D must be"),
            (lambda: pf.PFGMPPLoss(8.0, P_std=-1), ValueError, "P_std"),
            (lambda: pf.PFGMPPLoss(8.0, sigma_data=0), ValueError, "sigma_data"),
            (lambda: pf.PFGMPPLoss(8.0, reference=pf.EmpiricalField(digits(), 1.0)), ValueError, "field of D=8"),
            (lambda: pf.PFGMLoss()(lambda x, z: (x, x), digits(2)), ValueError, "net's v_z"),
            (lambda: pf.PFGMPPLoss(8.0)(lambda x, s: x[:1], digits(2)), ValueError, "net must return"),
            (lambda: pf.PFGMPPLoss(8.0)(Net(), digits(2).long()), TypeError, "images must have dtype"),
        ],
    )
    def test_bad_arguments(self, make: Callable[[], Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            make()


class TestPrefetcher:
    def test_every_batch_in_order_and_again(self) -> None:
        prefetcher = pf.TargetPrefetcher([1, 2, 3], lambda n: (torch.full((2,), n), n))
        for _ in range(2):
            assert [n for _, n in prefetcher] == [1, 2, 3]
        assert len(prefetcher) == 3

    def test_errors_come_through(self) -> None:
        def bad(n: int) -> Tensor:
            raise ValueError(f"batch {n}")

        with pytest.raises(ValueError, match="batch 1"):
            next(iter(pf.TargetPrefetcher([1], bad)))

    def test_target_fn_is_checked(self) -> None:
        with pytest.raises(TypeError, match="target_fn must be callable, got int"):
            pf.TargetPrefetcher([1], 3)  # type: ignore[arg-type]  # what is tested
