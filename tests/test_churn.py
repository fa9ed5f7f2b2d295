"""Churn: the law of its noise for every D, EDM's numbers at D = inf, and what it must not do."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from solving import exact, pixels, run
from torch import Tensor

from pfgm_fast import multistep, perturb, philox, schedule
from pfgm_fast.churn import Churn
from pfgm_fast.multistep import METHODS

Golden = Callable[[str], dict[str, NDArray[Any]]]
DIMENSIONS = (4.0, 32.0, 128.0, 2048.0, math.inf)
EDM = 18, 0.002, 80.0, 7.0


def seeds(B: int) -> Tensor:
    return torch.arange(B) * 7919 + 3


def p_value(x: Tensor, sigma: float, D: float) -> float:
    """Kolmogorov-Smirnov test of the radii of x (B, N) against those of the kernel of level sigma around 0."""
    N = x.shape[1]
    ratio = (x / sigma).square().sum(1).numpy() / N
    law = stats.chi2(N, scale=1 / N) if math.isinf(D) else stats.f(N, D)
    return float(stats.kstest(ratio, law.cdf).pvalue)


def raised(x: Tensor, denoised: Tensor, D: float, law: float | None = None) -> Tensor:
    """x (B, N), drawn at .5 for D with the same seeds, carried to 1.2 with the noise of D, or of another law."""
    churn = Churn(1.0, D if law is None else law, seeds(len(x)))
    noise = churn.draw(5, x, denoised if churn.needs_denoised else None, 0.5)
    return x + math.sqrt(1.2**2 - 0.5**2) * noise


@pytest.mark.parametrize("D", DIMENSIONS)
@pytest.mark.parametrize("N", [2, 64])
def test_noise_around_the_true_point_has_the_law_of_the_raised_level(N: int, D: float) -> None:
    B = 20_000
    y = torch.zeros(B, N, dtype=torch.float64)
    x = perturb(y, 0.5, D, seeds=seeds(B))
    assert p_value(x, 0.5, D) > 1e-3
    assert p_value(raised(x, y, D), 1.2, D) > 1e-3


@pytest.mark.parametrize("D", [4.0, 32.0, 128.0])
def test_gaussian_noise_has_not(D: float) -> None:
    B = 20_000
    y = torch.zeros(B, 64, dtype=torch.float64)
    assert p_value(raised(perturb(y, 0.5, D, seeds=seeds(B)), y, D, law=math.inf), 1.2, D) < 1e-10


@pytest.mark.parametrize("D", DIMENSIONS)
def test_the_posterior_mean_stands_for_the_true_point_in_64_dimensions(D: float, golden: Golden) -> None:
    x, y, denoised = seen_from_data(pixels(golden("pfgmpp_stochastic")["data"]), 3000, D)
    assert p_value(raised(x, denoised, D) - y, 1.2, D) > 1e-3


def test_but_not_where_clusters_overlap_in_the_plane() -> None:
    """The documented limit of the approximation: N = 2, D = 4."""
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    x, y, denoised = seen_from_data(torch.stack([angle.cos(), angle.sin()], 1), 20_000, 4.0)
    assert p_value(raised(x, denoised, 4.0) - y, 1.2, 4.0) < 1e-6


def seen_from_data(data: Tensor, B: int, D: float) -> tuple[Tensor, Tensor, Tensor]:
    """States at level .5, the points they came from and the posterior means."""
    y = data[torch.randint(len(data), (B,), generator=torch.Generator().manual_seed(4))]
    x = perturb(y, 0.5, D, seeds=seeds(B))
    denoise = exact(data, D)
    return x, y, torch.cat([denoise(part, 0.5) for part in x.split(500)])


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize(("D", "law"), [(4.0, 4.0), (128.0, 128.0), (math.inf, math.inf), (4.0, math.inf)])
def test_a_whole_solve_keeps_the_law(solver: str, D: float, law: float) -> None:
    """Around a single point both solvers and the noise are exact; EDM's noise at D = 4 is not."""
    B, levels = 10_000, [10.0 * 0.8**i for i in range(13)]
    x = perturb(torch.zeros(B, 16, dtype=torch.float64), levels[0], D, seeds=seeds(B))
    churn = Churn(4.0, law, seeds(B))
    result = run(METHODS[solver], lambda x, sigma: torch.zeros_like(x), x, levels, churn=churn)
    p = p_value(result.x, levels[-1], D)
    assert p > 1e-3 if law == D else p < 1e-10
    evaluations = {"euler": 12, "heun": 24}[solver]
    extra = 0 if math.isinf(law) else 11  # not in the first step, where the level cannot be raised
    assert result.nfe.unique().tolist() == [evaluations + extra]


class TestAgainstEDM:
    """The originals at D = inf, with their recorded normals."""

    @pytest.fixture
    def recorded(self, golden: Golden, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
        def read(name: str) -> dict[str, NDArray[Any]]:
            archive = golden(name)
            noise = torch.from_numpy(archive["churn_noise"]).double()
            monkeypatch.setattr(Churn, "draw", lambda self, step, x, denoised, sigma: noise[step].view_as(x))
            return archive

        return read

    def solve(self, archive: dict[str, NDArray[Any]], D: float, x: Tensor, churn: Churn) -> tuple[Any, list[float]]:
        denoise, asked = exact(pixels(archive["data"]), D), []

        def recording(x: Tensor, sigma: float) -> Tensor:
            asked.append(sigma)
            return denoise(x, sigma)

        return run(METHODS["heun"], recording, x, schedule.rho_levels(*EDM), churn=churn, trajectory=True), asked

    def test_pfgmpp(self, recorded: Callable[[str], Any]) -> None:
        """The original adds EDM's noise for D = 128, too: S_churn = 40 from .05 to 50, S_noise = 1.003."""
        archive = recorded("pfgmpp_stochastic")
        x = torch.from_numpy(archive["latents"])
        record, asked = self.solve(archive, 128.0, x, Churn(40, math.inf, seeds(6), 0.05, 50.0, 1.003))
        assert asked == pytest.approx(archive["churn_sigmas"].tolist(), rel=1e-12)
        path = record.solution().trajectory
        assert (path - torch.from_numpy(archive["churn_traj"])).abs().max() < 1e-9
        assert (record.x - torch.from_numpy(archive["churn_x"])).abs().max() < 1e-9

    def test_edm(self, recorded: Callable[[str], Any]) -> None:
        """S_churn = 30 from .01 to 1, S_noise = 1.007."""
        archive = recorded("edm_sampler_loss")
        x = torch.from_numpy(archive["latents"]).double() * 80
        record, asked = self.solve(archive, math.inf, x, Churn(30, math.inf, seeds(6), 0.01, 1.0, 1.007))
        assert asked == pytest.approx(archive["churn_sigmas"].tolist(), rel=1e-12)
        assert (record.x - torch.from_numpy(archive["churn_x"])).abs().max() < 1e-9


class TestDraws:
    def test_a_row_does_not_depend_on_its_batch(self) -> None:
        x = torch.randn(6, 3, 5, dtype=torch.float64)
        whole = Churn(1.0, 4.0, seeds(6)).draw(3, x, x / 2, 0.7)
        for i in range(6):
            alone = Churn(1.0, 4.0, seeds(6)[i : i + 1]).draw(3, x[i : i + 1], x[i : i + 1] / 2, 0.7)
            torch.testing.assert_close(alone, whole[i : i + 1], rtol=1e-15, atol=0)

    def test_steps_streams_and_rows_differ(self) -> None:
        x = torch.zeros(50, 40, dtype=torch.float64)
        churn = Churn(1.0, math.inf, seeds(50))
        draws = [churn.draw(step, x, None, 1.0) for step in (0, 1)]
        draws.append(philox.normals(seeds(50), 40, torch.float64))
        for a, b in itertools.combinations(draws, 2):
            assert abs(float((a * b).mean())) < 0.1
        ratios = [philox.log_chi2_over_D(seeds(50), 5.0, block=block, stream=philox.CHURN_CHI2) for block in (0, 1)]
        ratios.append(philox.log_chi2_over_D(seeds(50), 5.0))
        for a, b in itertools.combinations(ratios, 2):
            assert (a != b).all()

    def test_as_documented(self) -> None:
        """docs/random-numbers.md, recomputed from the words."""
        key, D, step = seeds(1), 6.0, 11
        x = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
        draws = torch.tensor([step])
        words = philox.words(key, torch.zeros(1, dtype=torch.int64), draws, 2)
        z = torch.stack([*philox._box_muller(*words[:2]), *philox._box_muller(*words[2:])], 1)[:, :3]
        ratio = philox._marsaglia_tsang(key, 3 + D, torch.tensor([[0]]), step, 3)
        assert ratio[1].all()  # the first attempt counts for this seed
        kappa = (ratio[0][0].exp() * (3 + D)) / (D + x.square().sum() / 0.25)
        noise = Churn(1.0, D, key).draw(step, x, torch.zeros_like(x), 0.5)
        torch.testing.assert_close(noise, z / kappa.sqrt(), rtol=1e-13, atol=0)

    def test_a_large_D_is_the_limit(self) -> None:
        x = torch.randn(20, 10, dtype=torch.float64)
        gaussian = Churn(1.0, math.inf, seeds(20)).draw(1, x, None, 1.0)
        assert torch.allclose(Churn(1.0, 1e14, seeds(20)).draw(1, x, x / 2, 1.0), gaussian, rtol=1e-5)


class TestLevels:
    def test_they_are_those_of_algorithm_2(self) -> None:
        churn = Churn(10.0, 1.0, seeds(1), lowest=1.0, highest=50.0)
        assert churn.level(2.0, 80.0, 40) == pytest.approx(2.5)
        assert churn.level(2.0, 80.0, 20) == pytest.approx(2.0 * math.sqrt(2))
        assert [churn.level(sigma, 80.0, 40) for sigma in (0.999, 50.001)] == [0.999, 50.001]
        assert [churn.level(sigma, 80.0, 40) for sigma in (1.0, 50.0)] == pytest.approx([1.25, 62.5])

    def test_never_above_the_first(self) -> None:
        asked = []

        def denoise(x: Tensor, sigma: float) -> Tensor:
            asked.append(sigma)
            return torch.zeros_like(x)

        levels = [80.0, 70.0, 60.0, 1.0, 0.0]
        run(METHODS["euler"], denoise, torch.ones(2, 3), levels, churn=Churn(100.0, math.inf, seeds(2)))
        assert asked == pytest.approx([80, 80, 80, math.sqrt(2)])

    def test_the_callback_sees_the_state_after_the_noise(self) -> None:
        seen = []

        def watch(i: int, sigma: float, x: Tensor, denoised: Tensor) -> bool:
            seen.append((sigma, x.clone(), denoised.clone()))
            return False

        def denoise(x: Tensor, sigma: float) -> Tensor:
            return x * sigma

        x = torch.ones(2, 3)
        run(METHODS["heun"], denoise, x, [4.0, 2.0, 1.0], watch, Churn(1.0, 8.0, seeds(2)))
        assert [sigma for sigma, _, _ in seen] == pytest.approx([4.0, 2 * math.sqrt(2)])
        assert all(torch.equal(denoised, x * sigma) for sigma, x, denoised in seen)


@pytest.mark.parametrize(
    "churn",
    [
        Churn(0.0, 4.0, seeds(3)),
        Churn(20.0, 4.0, seeds(3), noise=0.0),
        Churn(20.0, 4.0, seeds(3), lowest=90.0),
        Churn(20.0, 4.0, seeds(3), highest=0.001),
    ],
)
def test_nothing_is_drawn_or_evaluated_that_would_be_multiplied_by_zero(
    churn: Churn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(philox, "words", None)
    x, levels = torch.ones(3, 4), schedule.rho_levels(*EDM)
    record = run(METHODS["heun"], lambda x, sigma: x / 2, x, levels, churn=churn)
    assert record.nfe.tolist() == [35] * 3


def test_a_row_that_breaks_ends_alone() -> None:
    def denoise(x: Tensor, sigma: float) -> Tensor:
        out = torch.zeros_like(x)
        out[1] = math.nan if sigma < 3 else 0.0
        return out

    levels = [8.0, 4.0, 2.5, 1.0, 0.0]
    x = torch.ones(3, 4)
    churned = run(METHODS["euler"], denoise, x, levels, churn=Churn(0.2, 4.0, seeds(3)))
    clean = run(METHODS["euler"], lambda x, sigma: torch.zeros_like(x), x, levels, churn=Churn(0.2, 4.0, seeds(3)))
    assert churned.status.tolist() == [0, 3, 0]
    assert churned.accepted.tolist() == [4, 2, 4]
    assert churned.x.isfinite().all()
    assert torch.equal(churned.x[::2], clean.x[::2])


def test_a_row_that_breaks_after_its_noise_keeps_what_it_was_before() -> None:
    calls = 0

    def denoise(x: Tensor, sigma: float) -> Tensor:
        nonlocal calls
        calls += 1
        return x / (1 + sigma**2) if calls < 4 else x.where(torch.arange(3)[:, None] != 1, math.nan)

    levels = [80.0, 40.0, 20.0, 10.0, 5.0]
    churn = Churn(40.0, math.inf, seeds(3))
    record = run(METHODS["euler"], denoise, torch.ones(3, 2).double(), levels, churn=churn, trajectory=True)
    solution = record.solution()
    assert solution.status.tolist() == [0, 3, 0]
    assert solution.trajectory is not None
    assert solution.trajectory_sigma is not None
    assert solution.trajectory_sigma[:, 1].nan_to_num(-1).tolist() == [40, 20, 10, -1]
    assert torch.equal(solution.samples[1], solution.trajectory[2, 1])
    assert record.t[1] == 10


@pytest.mark.parametrize("method", [METHODS["dpmpp_2m"], METHODS["unipc"], multistep.unipc(1)])
def test_methods_with_a_memory_refuse_it(method: multistep.Method) -> None:
    with pytest.raises(ValueError, match="churn needs a method whose steps depend on the state alone"):
        run(method, lambda x, sigma: x, torch.ones(1, 1), [2.0, 1.0], churn=Churn(1.0, math.inf, seeds(1)))
