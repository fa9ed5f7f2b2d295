"""The benchmarks of solvers: providers solve the same problem, references are right, peers are met at their error."""

from __future__ import annotations

import importlib
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parent.parent))  # benchmarks/ is not installed
from benchmarks import bars
from benchmarks.solvers import linear, nfe, overhead, peers, poisson, sampling
from benchmarks.solvers.poisson import Plane
from benchmarks.solvers.solve import plane_work, setting
from pfgm_fast.bench.core import Answer, Operation, Provider
from pfgm_fast.bench.queries import Shape
from pfgm_fast.bench.rows import Row, Table

CPU = torch.device("cpu")
ROW = Row(
    poisson.NAME, poisson.CASE, poisson.VARIANT, poisson.OURS, "1e-04", 1, "ok", 50.0, 45.0, 55.0, 9,
    error_median=1e-4, error_p99=1e-2, error_max=1e-1, evaluations=94.2, calls=164, tests="passed",
)  # fmt: skip
PEER = replace(ROW, provider=peers.SCIPY, median_ms=600.0, error_p99=1e-2)
LINEAR = replace(ROW, operation=linear.NAME, case=linear.CASE, variant=linear.SETTING, setting="", error_max=5.0)


def solved(provider: Provider[Plane], inputs: Plane) -> Answer:
    answer = provider.prepare(inputs)()
    assert isinstance(answer, Answer)
    return answer


# ---- the Poisson field


@pytest.mark.parametrize("name", [*peers.NAMES, poisson.OURS, poisson.PUBLISHED])
def test_all_providers_solve_the_poisson_problem(name: str) -> None:
    inputs = Plane(poisson.points(50), poisson.starts(8))
    provider = poisson.OPERATION.provider(name, setting(1e-6))
    if why := provider.refuses(inputs):
        pytest.skip(why)
    truth = poisson.reference(inputs, 1e-8)
    answer = solved(provider, inputs)
    assert (answer.values.double() - truth).norm(dim=1).median() < 1e-3
    assert answer.calls >= answer.evaluations > 50
    found = poisson.OPERATION.error(inputs, answer.values, truth)
    assert found.bounds is None
    assert found.median < 1e-3


def test_the_reference_agrees_with_scipy() -> None:
    """An eighth-order method in float64, row by row."""
    integrate = importlib.import_module("scipy.integrate")
    inputs = Plane(poisson.points(100), poisson.starts(4))
    data = inputs.data.double().numpy()

    def drift(log_z: float, x: np.ndarray) -> np.ndarray:
        squares = ((x - data) ** 2).sum(1) + math.exp(2 * log_z)
        weights = (squares / squares.min()) ** -1.5
        return np.asarray(x - weights @ data / weights.sum())

    found = [
        integrate.solve_ivp(
            drift, (math.log(poisson.HIGH), math.log(poisson.LOW)), x, method="DOP853", rtol=1e-11, atol=1e-12
        ).y[:, -1]
        for x in inputs.x.double().numpy()
    ]
    assert np.linalg.norm(np.array(found) - poisson.reference(inputs).numpy(), axis=1).max() < 1e-7


def test_expressions_of_the_poisson_field_agree() -> None:
    data, x = poisson.points(200), poisson.starts(16)
    for log_z in (torch.tensor(0.5), torch.linspace(-1, 3, 16)):
        drifts = [make(data)(log_z, x) for make in (poisson.by_products, poisson.by_differences)]
        torch.testing.assert_close(*drifts, rtol=1e-4, atol=1e-4)


def test_the_poisson_problem_is_what_the_page_says() -> None:
    inputs = poisson.OPERATION.cases[poisson.CASE].make(poisson.VARIANT, CPU)
    assert inputs.data.shape == (2000, 2)
    assert inputs.x.shape == (1024, 2)
    assert inputs.x.norm(dim=1).max() <= poisson.RADIUS * (1 + 1e-6)
    assert poisson.BAR in poisson.TOLERANCES
    settings = {(p.name, p.setting) for p in poisson.OPERATION.providers}
    assert {(name, setting(t)) for name in peers.NAMES for t in poisson.TOLERANCES} <= settings
    assert [setting(t) for t in (1e-3, 2.2e-4, 1e-6)] == ["1e-03", "2.2e-04", "1e-06"]
    found = Answer(inputs.x, 10.0, 20)
    assert plane_work(inputs, found).pairs == 10 * 1024 * 2000
    assert poisson.OPERATION.work(inputs, found) == plane_work(inputs, found)


def test_a_peer_is_met_at_an_error_no_worse_than_its_own() -> None:
    loose = replace(ROW, setting="1e-03", median_ms=20.0, error_p99=2e-2)
    tight = replace(ROW, setting="1e-05", median_ms=90.0, error_p99=1e-4)
    failed = replace(ROW, setting="5e-04", status="skipped", median_ms=None, error_p99=None)
    found = Table([failed, loose, ROW, tight, PEER])
    assert poisson.match(found, PEER) == ROW
    assert poisson.match(found, replace(PEER, error_p99=3e-2)) == loose
    assert poisson.match(found, replace(PEER, error_p99=1e-6)) is None
    assert poisson.match(found, ROW) is None
    assert poisson.OPERATION.rival is poisson.match


def test_goals_against_peers_are_at_their_error() -> None:
    peer = replace(PEER, setting=setting(poisson.BAR))

    def verdict(*rows: Row) -> tuple[str, ...]:
        return next(line for line in bars.lines(Table(rows)) if peers.SCIPY in line[1])[2:]

    assert verdict(ROW, peer) == ("≥ 10", "12", "PASS")
    assert verdict(ROW, replace(peer, median_ms=400.0)) == ("≥ 10", "8", "short")
    assert verdict(ROW, replace(peer, error_p99=1e-6)) == ("≥ 10", "–", "not measured")
    assert verdict(replace(ROW, threads=2), peer) == ("≥ 10", "–", "not measured")
    assert verdict(replace(ROW, tests="not run"), peer) == ("≥ 10", "–", "untested")
    assert verdict() == ("≥ 10", "–", "not measured")


# ---- linear problems


@pytest.mark.parametrize("name", [*peers.NAMES, linear.OURS, linear.OURS_SMALL])
def test_all_providers_solve_the_linear_problems(name: str) -> None:
    inputs = linear.Linear(*linear.problems(32))
    provider = linear.OPERATION.provider(name)
    if why := provider.refuses(inputs):
        pytest.skip(why)
    answer = provider.prepare(inputs)()
    assert isinstance(answer, Answer)
    truth = linear.OPERATION.truth(inputs)
    assert truth is not None
    assert linear.error(inputs, answer.values, truth).largest < 50


def test_the_linear_problems_are_what_the_page_says() -> None:
    rates, y0 = linear.OPERATION.cases[linear.CASE].make(linear.SETTING, CPU)
    sizes = y0.norm(dim=1)
    assert len(rates) == 1024
    assert 0.3 <= rates.min() < 0.32 < 95 < rates.max() <= 100
    assert 0.01 <= sizes.min() < 0.011 < 95 < sizes.max() <= 100
    flow = torch.linalg.matrix_exp(rates[:, None, None] * linear.TURN)
    torch.testing.assert_close(linear.exact(rates, y0), (flow @ y0[..., None])[..., 0], rtol=1e-9, atol=1e-9)


def test_errors_of_linear_problems_are_in_tolerances() -> None:
    inputs = linear.Linear(*linear.problems(3))
    truth = torch.tensor([[1.0, -1.0], [0.0, 3.0], [9.0, 9.0]], dtype=torch.float64)
    off = linear.TOLERANCE * torch.tensor([[2.0, -2.0], [0.0, 0.0], [-10.0, 0.0]], dtype=torch.float64)
    found = linear.error(inputs, truth + off, truth)
    assert found.median == pytest.approx(math.sqrt(0.5), rel=1e-6)
    assert found.largest == pytest.approx(1, rel=1e-6)


def test_the_faster_of_ours_meets_the_goals() -> None:
    ours, small = (replace(LINEAR, provider=name) for name in (linear.OURS, linear.OURS_SMALL))
    peer = replace(LINEAR, provider=peers.DIFFRAX, median_ms=80.0)
    faster = replace(small, median_ms=40.0, error_max=9.0)
    found = {line[1]: line[2:] for line in bars.lines(Table([ours, faster, peer]))}
    assert found[f"times faster than {peers.DIFFRAX}"] == ("≥ 1", "2", "PASS")
    assert found["worst error in units of the tolerance"] == ("≤ 10", "9", "PASS")
    assert linear.rival(Table([ours, faster, peer]), ours) is None
    assert linear.rival(Table([ours, faster, peer]), peer) == faster


# ---- what a solver costs


def test_a_trivial_network_is_the_same_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "SHAPE", (2, 1, 4, 4))
    x = overhead.make(overhead.VARIANT, CPU)
    assert x.shape == (2, 1, 4, 4)
    states: dict[str, Tensor] = {}
    for provider in overhead.OPERATION.providers:
        if provider.refuses(x) is None:
            answer = provider.prepare(x)()
            assert isinstance(answer, Answer)
            states[provider.name] = answer.values.double().flatten()
    assert set(overhead.OURS) <= set(states)
    for name, state in states.items():
        fixed = name in map(overhead.fixed, overhead.FIXED)
        torch.testing.assert_close(state, states[overhead.RK45], rtol=0, atol=0.4 if fixed else 1e-3)


def test_what_a_solver_costs_is_by_evaluation() -> None:
    row = replace(ROW, operation=overhead.NAME, case=overhead.CASE, variant=overhead.VARIANT, setting="", calls=100)
    found = [replace(row, provider=overhead.RK45), replace(row, provider=overhead.RK45_TORCH, median_ms=110.0)]
    assert overhead.per_call(row) == 0.5
    assert overhead.per_call(replace(row, calls=None)) is None
    lines = {line[1]: line[2:] for line in bars.lines(Table(found))}
    assert lines[f"ms an evaluation, {overhead.RK45}"] == ("≤ 1", "0.5", "PASS")
    assert lines[f"ms an evaluation, {overhead.RK45_TORCH}"] == ("≤ 1", "1.1", "short")


# ---- errors by evaluations


def test_evaluations_are_those_asked_for() -> None:
    x = nfe.make(nfe.VARIANT, CPU).x[:4]
    inputs = nfe.Spiral(nfe.spiral(30), x)
    for provider in nfe.OPERATION.providers:
        if provider.name != nfe.ADAPTIVE:
            answer = provider.prepare(inputs)()
            assert isinstance(answer, Answer)
            assert answer.evaluations == int(provider.setting)
    assert nfe.adaptive(1e-4, inputs).evaluations > 20
    assert all(provider.ours for provider in nfe.OPERATION.providers)


def test_errors_fall_with_evaluations() -> None:
    inputs = nfe.Spiral(nfe.spiral(30), nfe.make(nfe.VARIANT, CPU).x[:16])
    truth = nfe.OPERATION.truth(inputs)
    assert truth is not None
    for solver in nfe.FIXED:
        few, many = (
            nfe.OPERATION.error(inputs, nfe.by_steps(solver, count, inputs).values, truth).median for count in (10, 80)
        )
        assert many < few / 4, solver
    assert nfe.OPERATION.error(inputs, nfe.adaptive(1e-6, inputs).values, truth).median < 1e-4


@pytest.mark.parametrize(("evaluations", "error", "verdict"), [("20", 6e-3, "short"), ("20", 4e-3, "PASS")])
def test_goals_that_are_upper_bounds(evaluations: str, error: float, verdict: str) -> None:
    row = replace(ROW, operation=nfe.NAME, case=nfe.CASE, variant=nfe.VARIANT, provider="unipc", setting=evaluations,
                  error_median=error)  # fmt: skip
    found = {line[1]: line[2:] for line in bars.lines(Table([row]))}
    assert found["median error of unipc at 20"][-1] == verdict
    assert found["median error of unipc at 40"][-1] == "not measured"


# ---- samples by Heun's method


@pytest.mark.parametrize("shape", [Shape(6, 60, 8, 128), Shape(6, 60, 8, 2048, pixels=True)], ids=str)
def test_all_loops_sample_the_same(shape: Shape) -> None:
    operation: Operation[sampling.Prior] = sampling.OPERATION
    inputs = sampling.prior(shape, operation.variants[0], CPU)
    truth = operation.truth(inputs)
    assert truth is not None
    assert truth.dtype == torch.float64
    for provider in operation.providers:
        assert provider.refuses(inputs) is None
        answer = provider.prepare(inputs)()
        assert isinstance(answer, Answer)
        assert answer.values.dtype == torch.float32
        assert answer.evaluations == answer.calls == 2 * sampling.STEPS - 1
        found = operation.error(inputs, answer.values, truth)
        assert found.largest < (1e-3 if provider.ours else 0.05), provider.name
    once = sampling.work(inputs, Answer(truth))
    assert sampling.work(inputs, Answer(truth, 35.0)).pairs == 35 * once.pairs == 35 * 6 * 60
    few = sampling.small(inputs)
    assert (len(few.latents), few.query.shape.B) == (4, 4)


def test_loops_that_take_too_long_are_refused() -> None:
    inputs = sampling.prior(Shape(6, 60, 8, 128), sampling.OPERATION.variants[0], CPU)
    vast = torch.zeros(1, 1).expand(10**8, 8)
    slow = replace(inputs, query=replace(inputs.query, data=vast))
    provider = sampling.OPERATION.provider(sampling.ORIGINAL, sampling.SETTING)
    assert "it would take some" in str(provider.refuses(slow))


@pytest.mark.parametrize("name", peers.NAMES)
def test_a_peer_that_is_not_installed_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    assert "is not installed (pip install" in str(peers.refuses(name, CPU))


def test_jax_stays_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda module: object())
    assert peers.refuses(peers.DIFFRAX, CPU) is None
    assert "on the CPU alone" in str(peers.refuses(peers.DIFFRAX, torch.device("cuda")))
    assert peers.refuses(peers.TORCHODE, torch.device("cuda")) is None
