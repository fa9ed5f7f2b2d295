"""What the recorded outputs do not show of pfgm_fast.compat.{pfgmpp,stf,edm}: signatures, draws, quirks, pickles."""

from __future__ import annotations

import inspect
import math
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from golden_edm import FieldNet, ToyNet, identity
from scipy import stats
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast.compat import edm, pfgmpp, stf

SHAPE = (4, 1, 8, 8)


def images(M: int = 4, seed: int = 0) -> Tensor:
    return torch.rand(M, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def net(D: float = math.inf) -> FieldNet:
    return FieldNet(images(20).flatten(1), D, (1, 8, 8))


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the originals' generator


class TestSignatures:
    """The names, order and defaults by which the checkouts call these."""

    @pytest.mark.parametrize(
        ("function", "arguments"),
        [
            (edm.EDMLoss.__call__, "self net images labels augment_pipe"),
            (stf.EDMLoss.__call__, "self net images labels augment_pipe stf ref_images"),
            (stf.EDMLoss.stf_targets, "self sigmas perturbed_samples ref"),
            (pfgmpp.EDMLoss.__init__, "self P_mean P_std sigma_data D N gamma opts"),
            (pfgmpp.EDMLoss.__call__, "self net images labels augment_pipe stf pfgmpp ref_images"),
            (pfgmpp.VELoss.__init__, "self sigma_min sigma_max D N opts"),
            (pfgmpp.VELoss.__call__, "self net images labels augment_pipe stf pfgmpp ref_images"),
            (pfgmpp.EDMLoss.pfgmpp_target, "self r perturbed_samples samples_full"),
            (pfgmpp.EDMLoss.stf_scores, "self sigmas perturbed_samples samples_full"),
            (pfgmpp.EDMLoss.pfgm_target, "self perturbed_samples_vec samples_full"),
            (pfgmpp.EDMLoss.pfgm_perturation, "self samples r"),
        ],
    )
    def test_methods(self, function: Any, arguments: str) -> None:
        assert list(inspect.signature(function).parameters) == arguments.split()

    @pytest.mark.parametrize(("module", "noise"), [(edm, 1), (stf, 0), (pfgmpp, 0)])
    def test_samplers(self, module: Any, noise: float) -> None:
        names = "net latents class_labels randn_like num_steps sigma_min sigma_max rho S_churn S_min S_max S_noise"
        sampler = inspect.signature(module.edm_sampler).parameters
        assert list(sampler) == [*names.split(), *(["pfgmpp"] if module is pfgmpp else [])]
        assert sampler["S_noise"].default == noise
        assert inspect.signature(module.ablation_sampler).parameters["S_noise"].default == 1


class TestLosses:
    @pytest.mark.parametrize(
        "loss", [edm.EDMLoss(), stf.EDMLoss(), pfgmpp.EDMLoss(D=7, N=64), pfgmpp.VELoss(D=7, N=64)]
    )
    def test_pickles(self, loss: Any) -> None:
        """EDM's snapshots hold the loss."""
        copy = pickle.loads(pickle.dumps(loss))
        results = []
        for each in (loss, copy):
            seed_all(1)
            results.append(each(ToyNet(), images(), None))
        assert torch.equal(*results)
        assert results[0].shape == SHAPE

    def test_by_class_name_with_the_options_of_train_py(self) -> None:
        loss = pfgmpp.EDMLoss(opts=SimpleNamespace(lsun=True), D=128, N=64)
        seed_all(0)
        wide = ToyNet()
        loss(wide, images(), pfgmpp=True)
        loss.opts = SimpleNamespace(lsun=False)
        seed_all(0)
        narrow = ToyNet()
        loss(narrow, images(), pfgmpp=True)
        assert torch.allclose(wide.sigma, 4.75 * narrow.sigma)

    def test_draws_of_pfgmpp_come_before_those_of_the_augmentation(self) -> None:
        """And those of diffusion after them, as in the original."""

        def flip(x: Tensor) -> tuple[Tensor, Tensor]:
            return x * torch.randn(len(x), 1, 1, 1), torch.zeros(len(x), 9)

        for pfgm in (True, False):
            shown = ToyNet()
            seed_all(5)
            pfgmpp.EDMLoss(D=16, N=64)(shown, images(), augment_pipe=flip, pfgmpp=pfgm)
            seed_all(5)
            shape = (4,) if pfgm else (4, 1, 1, 1)
            sigma = torch.exp(torch.randn(shape) * 1.2 - 1.2).reshape(4, 1, 1, 1)
            if pfgm:
                b = np.random.beta(a=32, b=8, size=4)  # noqa: NPY002 - the originals' generator
                gauss = torch.randn(4, 64)
                y, _ = flip(images())
                radius = sigma.double().flatten() * 4 * torch.from_numpy(b / (1 - b + 1e-8) + 1e-8).sqrt()
                noise = (gauss / gauss.norm(dim=1, keepdim=True) * radius[:, None]).float().view(SHAPE)
            else:
                y, _ = flip(images())
                noise = torch.randn_like(y) * sigma
            assert torch.allclose(shown.x, y + noise, rtol=1e-6, atol=1e-6)

    def test_reference_batch_is_refreshed_in_place(self) -> None:
        def shift(x: Tensor) -> tuple[Tensor, None]:
            return x + 1, None

        losses: list[tuple[Any, dict[str, Any]]] = [(stf.EDMLoss(), {})]
        losses.append((pfgmpp.EDMLoss(D=16, N=64), {"pfgmpp": True}))
        for loss, options in losses:
            reference = images(10, seed=1)
            loss(ToyNet(), images(), augment_pipe=shift, stf=True, ref_images=reference, **options)
            assert torch.equal(reference[4:], images(10, seed=1)[4:] + 1)
            assert torch.equal(reference[:4], images() + 1)

    def test_without_augmentation_the_reference_keeps_its_rest(self) -> None:
        reference = images(10, seed=1)
        loss = stf.EDMLoss()(ToyNet(), images(), stf=True, ref_images=reference)
        assert torch.equal(reference[:4], images())
        assert torch.equal(reference[4:], images(10, seed=1)[4:])
        assert loss.shape == SHAPE
        with pytest.raises(ValueError, match="ref_images must be given"):
            stf.EDMLoss()(ToyNet(), images(), stf=True)

    def test_targets_are_the_fields(self) -> None:
        reference, x = images(30, seed=2), images() + 0.1
        loss, sigma = pfgmpp.EDMLoss(D=9, N=64, gamma=2), torch.tensor([0.01, 0.1, 1.0, 30.0], dtype=torch.float64)
        target = loss.pfgmpp_target(sigma * 3, x, reference)
        assert target.dtype == torch.float32
        field = pf.EmpiricalField(reference, 9)
        assert torch.equal(target, field(x.double(), sigma).flatten(1).float())
        vector = torch.cat([x.flatten(1).double(), 3 * sigma[:, None]], 1)
        wanted = field.poisson_field(x.double(), sigma, 2.0) * math.sqrt(73 / 64)
        wanted[:, -1] /= 3
        assert torch.allclose(loss.pfgm_target(vector, reference), wanted, rtol=1e-12)

    def test_samples_of_another_dimension(self) -> None:
        with pytest.raises(ValueError, match="N=3072 components"):
            pfgmpp.EDMLoss().pfgmpp_target(torch.ones(4), images(), images())

    def test_one_row(self) -> None:
        """Where the original's squeeze() lost the dimension."""
        loss = pfgmpp.EDMLoss(D=16, N=64)
        shape = loss(ToyNet(), images(1), augment_pipe=identity, stf=True, pfgmpp=True, ref_images=images(3)).shape
        assert shape == (1, 1, 8, 8)

    def test_clipping_of_beta_is_training_s_alone(self) -> None:
        """At D = 2 and N = 3072 more than half of the radii are at the bound; pfgm_perturation has the exact law."""
        seed_all(0)
        y, D, N = torch.zeros(3000, 64), 0.05, 64
        loss, shown = pfgmpp.EDMLoss(D=D, N=N, P_mean=0, P_std=0), ToyNet()
        loss(shown, y.view(-1, 1, 8, 8), pfgmpp=True)
        bound = math.sqrt(D) * math.sqrt(0.999 / (0.001 + 1e-8) + 1e-8)
        assert float((shown.x.flatten(1).norm(dim=1) > bound * (1 - 1e-5)).float().mean()) > 0.5
        free = pfgmpp.EDMLoss(D=8, N=N).pfgm_perturation(y, torch.full((3000,), math.sqrt(8), dtype=torch.float64))
        ratio = (free.square().sum(1) / 64).numpy()  # F(N, D)
        assert stats.kstest(ratio, stats.f(64, 8).cdf).pvalue > 1e-3


class TestSamplers:
    def test_noise_is_drawn_in_every_step(self) -> None:
        """Whether it counts or not, so that a generator stands where it did."""
        drawn: list[torch.dtype] = []

        def randn_like(x: Tensor) -> Tensor:
            drawn.append(x.dtype)
            return torch.zeros_like(x)

        latents = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
        for module in (edm, stf, pfgmpp):
            module.edm_sampler(net(), latents, randn_like=randn_like, num_steps=5)
            module.ablation_sampler(net(), latents, randn_like=randn_like, num_steps=5)
        assert drawn == 30 * [torch.float64]

    def test_range_is_cut_to_the_network_s(self) -> None:
        narrow = net()
        narrow.sigma_min, narrow.sigma_max = 0.5, 3.0
        edm.edm_sampler(narrow, torch.randn(SHAPE), num_steps=4)
        assert narrow.asked[0] == pytest.approx(3)
        assert narrow.asked[-1] == pytest.approx(0.5)

    def test_agrees_with_the_library_s_sampler(self) -> None:
        latents = pf.prior(SHAPE, 80.0, 16.0, seeds=range(4), dtype=torch.float64)
        ours, path = pfgmpp.edm_sampler(net(16), latents, pfgmpp=True)
        clean = pf.sample(net(16), D=16, latents=latents, solver="heun", steps=18, trajectory=True)
        assert clean.trajectory is not None
        assert torch.allclose(ours, clean.samples, atol=1e-10)
        assert torch.allclose(path, clean.trajectory[-18:], atol=1e-9)

    def test_one_step_is_nan(self) -> None:
        """The original divides 0 by 0."""
        assert bool(edm.edm_sampler(net(), torch.randn(SHAPE), num_steps=1).isnan().all())

    def test_vp_ranges_differ(self) -> None:
        ends = []
        for module in (edm, pfgmpp):
            asked = net()
            module.ablation_sampler(asked, torch.randn(SHAPE), num_steps=3, discretization="vp", schedule="vp")
            ends.append(asked.asked[0])
        assert ends == pytest.approx([math.sqrt(math.expm1(19.9 / 2 + 0.1)), math.sqrt(math.expm1(19.1 / 2 + 0.1))])

    @pytest.mark.parametrize("choice", ["solver", "discretization", "schedule", "scaling"])
    def test_unknown_choices(self, choice: str) -> None:
        with pytest.raises(ValueError, match=rf"{choice}.*'cosine'"):
            edm.ablation_sampler(net(), torch.randn(SHAPE), **{choice: "cosine"})

    def test_networks_of_two_outputs(self) -> None:
        with pytest.raises(ValueError, match="pfgm=True"):
            pfgmpp.edm_sampler_alpha(net(), torch.randn(SHAPE), pfgm=True)

    def test_aligned_preconditioning(self) -> None:
        told: list[float] = []

        class Aligned(FieldNet):
            def __call__(self, x: Tensor, sigma: Tensor, class_labels: Any = None, **extra: Any) -> Tensor:
                told.append(float(sigma / extra["sigma_old"]))
                return super().__call__(x, sigma)

        latents = torch.randn(SHAPE)
        network = Aligned(images(20).flatten(1), 16, (1, 8, 8))
        pfgmpp.edm_sampler_alpha(network, latents, D=16, num_steps=3, align_precond=True)
        assert told == pytest.approx(5 * [math.sqrt(1 + 64 / 16)])


class TestGenerators:
    def test_rows_depend_on_their_seeds_alone(self) -> None:
        draws: list[Callable[[pfgmpp.StackedRandomGenerator], Tensor]] = [
            lambda g: g.randn((len(g.seeds), 3, 2), dtype=torch.float64),
            lambda g: g.randint(10, size=(len(g.seeds), 4)),
            lambda g: g.rand_beta_prime((len(g.seeds), 1, 8, 8), N=64, D=16, device="cpu"),
        ]
        for draw in draws:
            many = draw(pfgmpp.StackedRandomGenerator("cpu", torch.tensor([3, 1 << 33, 7])))
            one = draw(pfgmpp.StackedRandomGenerator("cpu", [7]))
            assert torch.equal(many[2:], one)

    def test_sigma_max_counts_for_large_images_only(self) -> None:
        generator = pfgmpp.StackedRandomGenerator("cpu", [0])
        small, same = (generator.rand_beta_prime((1, 64), 64, 16, sigma_max=s, device="cpu") for s in (80, 300))
        assert torch.equal(small, same)
        shape = (1, 3, 256, 256)
        large, other = (generator.rand_beta_prime(shape, 196608, 16, sigma_max=s, device="cpu") for s in (80, 160))
        assert torch.allclose(2 * large, other)
        assert small.dtype == torch.float64

    def test_sizes_of_another_batch(self) -> None:
        generator = pfgmpp.StackedRandomGenerator("cpu", [0, 1])
        for draw in (generator.randn, lambda size: generator.rand_beta_prime(size, 3, device="cpu")):
            with pytest.raises(ValueError, match="the 2 seeds"):
                draw((3, 3))


class TestPreconditioners:
    def test_labels_and_keywords_reach_the_network(self) -> None:
        seen: dict[str, Any] = {}

        class Inner(torch.nn.Module):
            def __init__(self, **options: Any) -> None:
                super().__init__()
                seen.update(options)

            def forward(self, x: Tensor, noise: Tensor, class_labels: Any, **more: Any) -> Tensor:
                seen.update(more, labels=class_labels, dtype=x.dtype, noise=noise.shape)
                return x

        network = edm.EDMPrecond(8, 1, label_dim=3, use_fp16=True, model_type=Inner, width=5)
        x = network(images().double(), torch.tensor(0.5), augment_labels="told")
        assert x.dtype == torch.float32
        assert seen["width"] == 5
        assert seen["augment_labels"] == "told"
        assert torch.equal(seen["labels"], torch.zeros(1, 3))
        assert seen["dtype"] == torch.float32  # float16 is for GPUs
        assert torch.isfinite(pf.sample(network, D=math.inf, shape=SHAPE, steps=3, seeds=range(4)).samples).all()

    def test_names_of_networks(self) -> None:
        with pytest.raises(TypeError, match="model_type must be a class or function"):
            edm.EDMPrecond(8, 1, model_type="SongUNet")
