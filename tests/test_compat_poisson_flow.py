"""What the recorded outputs do not show of pfgm_fast.compat.poisson_flow: installing, arguments, random draws."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from golden_poisson_flow import FieldNet, ToyNet, config
from replay import Replay
from torch import Tensor

from pfgm_fast.compat import poisson_flow
from pfgm_fast.compat._install import Installation

SHAPE = (5, 3, 4, 4)


def data(M: int = 12, seed: int = 0) -> Tensor:
    return torch.rand(M, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def sde(**changes: Any) -> poisson_flow.Poisson:
    return poisson_flow.Poisson(config(SHAPE[1:], training_small_batch_size=5, sampling_N=12, **changes))


@pytest.fixture
def checkout(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """Modules with the names and globals of a checkout, whose functions say that they are the originals."""

    def original(*args: Any, **kwargs: Any) -> str:
        return "original"

    names = {
        "models": (),
        "models.utils_poisson": ("forward_pz",),
        "losses": ("get_loss_fn",),
        "methods": (),
        "sampling": ("get_rk45_sampler_pfgm", "get_ode_sampler"),
        "likelihood": ("get_likelihood_fn_pfgm",),
    }
    modules = {name: ModuleType(name) for name in names}
    for name, functions in names.items():
        vars(modules[name]).update(dict.fromkeys(functions, original))
        monkeypatch.setitem(sys.modules, name, modules[name])
    modules["methods"].Poisson = type("Poisson", (), {"prior_sampling": original, "ode": original})  # type: ignore[attr-defined]
    return modules


class TestInstall:
    def test_replaces_and_puts_back(self, checkout: dict[str, ModuleType]) -> None:
        before = {name: dict(vars(module)) for name, module in checkout.items()}
        poisson = dict(vars(checkout["methods"].Poisson))
        with poisson_flow.install() as installed:
            assert isinstance(installed, Installation)
            assert checkout["models.utils_poisson"].forward_pz is poisson_flow.forward_pz
            assert checkout["sampling"].get_rk45_sampler_pfgm is poisson_flow.get_rk45_sampler_pfgm
            assert checkout["likelihood"].get_likelihood_fn_pfgm is poisson_flow.get_likelihood_fn_pfgm
            assert checkout["methods"].Poisson.ode is poisson_flow.ode
            assert checkout["methods"].Poisson.prior_sampling is poisson_flow.prior_sampling
        assert {name: dict(vars(module)) for name, module in checkout.items()} == before
        assert dict(vars(checkout["methods"].Poisson)) == poisson
        installed.undo()

    def test_score_models_keep_the_originals(self, checkout: dict[str, ModuleType]) -> None:
        poisson, ve = sde(), SimpleNamespace(config=config(SHAPE[1:], training_sde="vesde"))
        losses, sampling = checkout["losses"], checkout["sampling"]
        with poisson_flow.install():
            assert losses.get_loss_fn(ve, True, method_name="vesde") == "original"
            assert losses.get_loss_fn(ve, True) == "original"
            assert callable(losses.get_loss_fn(poisson, True, method_name="poisson"))
            assert callable(losses.get_loss_fn(poisson, True, False, True, 1e-5, "poisson"))
            assert sampling.get_ode_sampler(ve, SHAPE, "forward_euler", None) == "original"
            arguments = {"shape": SHAPE, "ode_solver": "forward_euler", "inverse_scaler": abs}
            assert callable(sampling.get_ode_sampler(sde=poisson, **arguments))

    def test_another_module_of_that_name(self, checkout: dict[str, ModuleType]) -> None:
        del checkout["likelihood"].get_likelihood_fn_pfgm
        before = dict(vars(checkout["losses"]))
        with pytest.raises(ImportError, match="'likelihood' has no 'get_likelihood_fn_pfgm'"):
            poisson_flow.install()
        assert dict(vars(checkout["losses"])) == before

    def test_without_a_checkout(self) -> None:
        with pytest.raises(ImportError, match=r"models\.utils_poisson.*sys\.path"):
            poisson_flow.install()


class TestTraining:
    def test_draws_come_from_the_global_generators(self) -> None:
        """The original's calls, in its order."""
        images, m = data(5), torch.full((5,), 50.0)
        torch.manual_seed(3)
        ours = poisson_flow.forward_pz(sde(), sde().config, images, m)
        torch.manual_seed(3)
        e = torch.randn((5, 1, 1, 1))
        small = int(((e * 0.01).abs() < 0.005).sum())
        again = [("rand", torch.rand((small,)).numpy())]
        noise, angle = torch.randn_like(images), torch.randn(5, 48)
        draws = Replay(("randn", e.numpy()), *again, ("randn_like", noise.numpy()), ("randn", angle.numpy()))
        m = torch.full((5,), 50.0)
        assert torch.equal(ours, poisson_flow.forward_pz(sde(), sde().config, images, m, draws))
        assert draws.all_used()

    def test_restricted_exponents_are_written_to_the_argument(self) -> None:
        m = torch.full((200,), 290.0)
        poisson_flow.forward_pz(sde(), sde().config, data(200), m)
        moved = m != 290
        assert 0.3 < float(moved.float().mean()) < 0.5  # P(|e| < 1/2) = 0.38
        assert m[moved].max() <= int(0.7 * 291)

    def test_gradients_reach_the_network_and_its_mode_is_set(self) -> None:
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1))

        class Net(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = net

            def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
                return self.inner(x), -z

        model = Net()
        for train in (True, False):
            loss = poisson_flow.get_loss_fn(sde(), train, method_name="poisson")(model, data())
            assert model.training is train
        loss.backward()
        assert all(bool(p.grad.abs().sum() > 0) for p in model.parameters() if p.grad is not None)
        assert loss.shape == ()

    def test_a_datum_hit_exactly_trains_on(self) -> None:
        """z = 0 on a datum, where the original's weights all vanish."""
        zero = np.zeros(1, np.float32)
        normals = [("randn_like", np.zeros((1, 3, 4, 4), np.float32)), ("randn", np.ones((1, 48), np.float32))]
        settings = config(SHAPE[1:], training_small_batch_size=1, training_restrict_M=False)
        draws = Replay(("rand", zero), ("randn", zero.reshape(1, 1, 1, 1)), *normals)
        loss_fn = poisson_flow.get_loss_fn(poisson_flow.Poisson(settings), True, method_name="poisson", draws=draws)
        assert bool(torch.isfinite(loss_fn(ToyNet(), data())))

    def test_other_methods_are_refused(self) -> None:
        with pytest.raises(ValueError, match="method_name must be 'poisson' here, got 'vesde'"):
            poisson_flow.get_loss_fn(sde(), True, method_name="vesde")


class TestSampling:
    @pytest.fixture
    def net(self) -> FieldNet:
        return FieldNet(data().flatten(1), 5)

    def test_prior(self) -> None:
        np.random.seed(0)  # noqa: NPY002 - the originals' generator
        torch.manual_seed(0)
        x = poisson_flow.prior_sampling(sde(sampling_upper_norm=60.0), (4000, 3, 4, 4))
        norm = x.flatten(1).norm(dim=1)
        assert x.shape == (4000, 3, 4, 4)
        assert x.dtype == torch.float32
        assert float(norm.max()) == pytest.approx(60, rel=1e-6)
        assert float((norm > 59.999).float().mean()) > 0.9  # the clipping is felt
        assert float(norm.min()) >= 1

    @pytest.mark.parametrize("solver", ["forward_euler", "improved_euler", "rk45"])
    def test_shapes_and_scaling(self, net: FieldNet, solver: str) -> None:
        torch.manual_seed(0)
        problem = sde(sampling_ode_solver=solver)

        def unscale(x: Tensor) -> Tensor:
            return (x + 1) / 2

        if solver == "rk45":
            sampler = poisson_flow.get_rk45_sampler_pfgm(problem, SHAPE, unscale, device="cpu")
        else:
            sampler = poisson_flow.get_ode_sampler(problem, SHAPE, solver, unscale, device="cpu")
        x, nfe = sampler(net)
        assert x.shape == SHAPE
        assert x.dtype == torch.float32
        assert type(nfe) is int
        assert {"forward_euler": nfe == 12, "improved_euler": nfe == 23, "rk45": nfe > 30}[solver]

    def test_solvers_by_their_class(self, net: FieldNet) -> None:
        """As the checkout's registry hands them over."""
        by_class = type("ImprovedEulerPredictor", (), {})
        problem = sde(sampling_ode_solver="improved_euler")
        results = []
        for solver in (by_class, "improved_euler"):
            torch.manual_seed(1)
            np.random.seed(1)  # noqa: NPY002 - the originals' generator
            results.append(poisson_flow.get_ode_sampler(problem, SHAPE, solver, lambda x: x, device="cpu")(net)[0])
        assert torch.equal(*results)
        with pytest.raises(ValueError, match=r"ode_solver must be one of .*EulerMaruyama"):
            poisson_flow.get_ode_sampler(problem, SHAPE, type("EulerMaruyama", (), {}), lambda x: x)

    def test_start_of_another_arrangement(self, net: FieldNet) -> None:
        """Rows of float64, as the original interpolates."""
        sampler = poisson_flow.get_rk45_sampler_pfgm(sde(), SHAPE, lambda x: x, device="cpu")
        start = torch.randn(5, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 40
        assert torch.equal(sampler(net, x=start)[0], sampler(net, x=start.float().view(SHAPE))[0])

    @pytest.mark.parametrize("make", [poisson_flow.get_rk45_sampler_pfgm, poisson_flow.get_likelihood_fn_pfgm])
    def test_other_methods_of_integration(self, make: Any) -> None:
        arguments = (SHAPE, lambda x: x) if "shape" in inspect.signature(make).parameters else ()
        with pytest.raises(ValueError, match="method must be 'RK45', got 'LSODA'"):
            make(sde(), *arguments, method="LSODA")

    def test_likelihood_of_two_channels(self) -> None:
        x = torch.rand(2, 2, 2, 2, generator=torch.Generator().manual_seed(0))
        problem = poisson_flow.Poisson(config((2, 2, 2), sampling_z_max=5.0))
        bpd, nfe = poisson_flow.get_likelihood_fn_pfgm(problem)(FieldNet(x.flatten(1) + 0.1, 5), x)
        assert bpd.shape == (2,)
        assert bool(torch.isfinite(bpd).all())
        assert nfe > 10
        with pytest.raises(NotImplementedError, match="Hutchinson type Cauchy unknown"):
            poisson_flow.get_likelihood_fn_pfgm(problem, "Cauchy")
