"""What the benchmarks measure: a registry that holds together, inputs, the truth, errors, providers that agree."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parent.parent))  # benchmarks/ is not installed
from benchmarks import accuracy, bars, shapes
from benchmarks.checkout import ROOT
from benchmarks.registry import OPERATIONS, find
from pfgm_fast.bench import posterior_mean as pm
from pfgm_fast.bench import queries
from pfgm_fast.bench.core import Answer, Operation, Provider
from pfgm_fast.bench.expressions import in_data_units
from pfgm_fast.bench.queries import ALL_80, SPREAD, Query, Shape
from pfgm_fast.bench.rows import Key, Row, Table

CPU = torch.device("cpu")
OPERATION = pm.operation(shapes.cases())
TINY = {
    f"{shape.name}, {variant}": partial(queries.make, shape, variant, CPU)
    for shape in (
        Shape(33, 170, 2, 1.0),
        Shape(33, 170, 2, math.inf),
        Shape(33, 170, 20, 128.0),
        Shape(33, 170, 300, 2048.0),
        Shape(33, 170, 300, 128.0, pixels=True),
    )
    for variant in (SPREAD, ALL_80)
}
COMPILES = (pm.FLEX, pm.FLEX_TF32, pm.KEOPS, pm.COMPILED, pm.COMPILED_TF32)  # for seconds, each shape
COMPLETE = [
    provider
    for provider in pm.PROVIDERS
    if provider.complete
    and provider.name not in COMPILES
    and ("cpu" in provider.devices or provider.name == pm.TRITON)  # of those for GPUs one is interpreted
]


def distances(data: Tensor) -> Tensor:
    """From each datum to the nearest other one, (M,)."""
    values = in_data_units(data, torch.float64)
    nearest: Tensor = torch.cdist(values, values).fill_diagonal_(math.inf).amin(1)
    return nearest


# ---- the registry


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=list(OPERATIONS))
def test_registry_is_well_formed(operation: Operation[Any]) -> None:
    assert find(operation.name) is operation
    labels = [provider.label for provider in operation.providers]
    assert len(set(labels)) == len(labels)
    assert operation.cases
    assert len(set(operation.variants)) == len(operation.variants) > 0
    assert operation.tests
    for test in operation.tests:
        assert (ROOT / test).is_file(), test
    for case in operation.cases.values():
        assert set(case.devices) <= {"cpu", "cuda"}
        assert case.devices
        assert set(case.threads) <= {1, 2}
        assert 1 in case.threads
    for provider in operation.providers:
        assert set(provider.devices) <= {"cpu", "cuda"}
        assert not (provider.ours and not provider.complete)
        assert operation.provider(provider.name, provider.setting) is provider


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=list(OPERATIONS))
def test_rows_are_compared_with_ours(operation: Operation[Any]) -> None:
    """The rival of any row is a measured one of this library, and no row is its own."""
    case, variant = next(iter(operation.cases)), operation.variants[0]
    rows = [
        Row(operation.name, case, variant, p.name, p.setting, 1, "ok", 1.0, error_p99=1.0) for p in operation.providers
    ]
    ours = {provider.label for provider in operation.providers if provider.ours}
    for row in rows:
        rival = operation.rival(Table(rows), row)
        assert rival is None or rival.label in ours
        assert operation.rival(Table([replace(one, median_ms=None, status="skipped") for one in rows]), row) is None


class Asked(Table):
    """Remembers what it is asked for, and has nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[Key] = []

    def get(self, *key: Any, **names: Any) -> Row | None:
        self.keys.append(Key(*key, **names))
        return None


@pytest.mark.parametrize("bar", bars.ALL, ids=lambda bar: f"{bar.operation}, {bar.what}")
def test_goals_are_of_what_is_measured(bar: bars.Bar) -> None:
    table = Asked()
    assert bar.verdict(table) == (None, "not measured")
    assert bar.value > 0
    operation, found = OPERATIONS[bar.operation], []
    assert all(table.keys)
    for key in table.keys:
        assert key.operation == operation.name
        assert bar.device in operation.cases[key.case].devices
        assert key.threads == 1
        assert key.variant in operation.variants
        provider = operation.provider(key.provider, key.setting)
        assert bar.device in provider.devices
        found.append(provider.ours)
    if len(found) == 2:
        assert found == [True, False]
    elif operation.name in ("poisson_solve", "linear_odes"):  # the best of several is ours; a peer is asked for alone
        assert found == ([False] if "faster" in bar.what else [])
    else:
        assert found == [True]


def test_every_operation_of_speed_has_a_goal() -> None:
    """Of all that is not a curve: nobody would notice that it became slow."""
    assert {bar.operation for bar in bars.ALL} == {
        "posterior_mean", "training_target", "poisson_solve", "linear_odes", "host_time", "error_by_evaluations"
    }  # fmt: skip
    assert len({(bar.operation, bar.what, bar.device) for bar in bars.ALL}) == len(bars.ALL)
    for shape in shapes.ON_GPU:
        assert (shape in {goal.shape for goal in bars.ON_GPU}) == (
            shape not in (shapes.ACTIONS, shapes.FFHQ, shapes.DIGITS)
        )


def test_sizes_belong_to_devices() -> None:
    cases = shapes.cases()
    for device, wanted in (("cpu", shapes.ON_CPU), ("cuda", shapes.ON_GPU)):
        assert {name for name, case in cases.items() if device in case.devices} == {shape.name for shape in wanted}
    assert len(cases) == len({*shapes.ON_CPU, *shapes.ON_GPU})
    assert shapes.WORDS.keys() == {*shapes.ON_CPU, *shapes.ON_GPU}
    for shape in shapes.ON_CPU:
        floats = shape.B * shape.M, shape.M * shape.N
        assert max(floats) <= 1 << 26, f"{shape.name} is too large for two cores"


# ---- inputs


@pytest.mark.parametrize("pixels", [False, True])
def test_inputs_are_what_the_cases_say(pixels: bool) -> None:
    shape = Shape(33, 500, 30, 1, pixels)
    query, again = queries.make(shape, SPREAD, CPU), queries.make(shape, SPREAD, CPU)
    assert query.shape == shape
    assert all(
        torch.equal(*both) for both in ((query.x, again.x), (query.sigma, again.sigma), (query.data, again.data))
    )
    assert query.x.shape == (33, 30)
    assert query.x.dtype == query.sigma.dtype == torch.float32
    assert (query.data.dtype == torch.uint8) == pixels
    assert 0.002 <= query.sigma.min() < 0.1 < 8 < query.sigma.max() <= 80
    apart = distances(query.data)
    near = apart < (2 / 255 + 1e-9 if pixels else 0.00501)
    assert 5 <= near.sum() <= 10
    assert apart[~near].min() > 10 * apart[near].max()
    assert apart.min() > 0
    work = queries.work(query, Answer(query.x))
    assert work.pairs == 33 * 500
    assert work.flop == 4 * work.pairs * 30
    assert work.bytes == 500 * 30 * (1 if pixels else 4) + (2 * 33 * 30 + 33) * 4
    assert queries.work(query, Answer(query.x, evaluations=3.0)).pairs == 3 * work.pairs


def test_queries_start_at_near_duplicates() -> None:
    query = queries.make(Shape(64, 400, 30, 1), "sigma 0.0001", CPU)
    nearest = torch.cdist(query.x, query.data).argmin(1)
    near = distances(query.data) < 0.0051
    assert near[nearest[::16]].all()
    assert not near[nearest].all()


def test_a_variant_is_a_noise_level() -> None:
    shape = Shape(5, 40, 3, 1)
    for variant, level in ((ALL_80, 80.0), *((accuracy.variant(level), level) for level in accuracy.LEVELS)):
        query = queries.make(shape, variant, CPU)
        assert query.level == level
        for _ in range(queries.SETS):
            query.turn()
            assert (query.sigma == torch.tensor(level)).all()
    assert queries.make(shape, SPREAD, CPU).level is None
    with pytest.raises(ValueError, match="large"):
        queries.make(shape, "large", CPU)


@pytest.mark.parametrize("shape", [Shape(33, 170, 300, 128, pixels=True), Shape(33, 170, 2, 1)], ids=str)
def test_sets_of_queries_take_turns(shape: Shape) -> None:
    query = queries.make(shape, SPREAD, CPU)
    place = query.x.data_ptr(), query.sigma.data_ptr()
    assert torch.equal(query.x, query.sets[0][0])
    seen: list[tuple[Tensor, Tensor]] = []
    for turn in range(1, 2 * queries.SETS + 1):
        query.turn()
        assert (query.x.data_ptr(), query.sigma.data_ptr()) == place
        assert all(map(torch.equal, (query.x, query.sigma), query.sets[turn % queries.SETS]))
        assert (query.x.norm(dim=1) > 0).all()
        seen.append((query.x.clone(), query.sigma.clone()))
    for x, sigma in seen[1 : queries.SETS]:
        assert (x != seen[0][0]).all(1).all()
        assert (sigma != seen[0][1]).all()


def test_small_inputs_are_of_the_same_kind() -> None:
    query = queries.make(Shape(33, 170, 20, 128, pixels=True), SPREAD, CPU)
    few = queries.small(query)
    assert few.shape == Shape(4, 64, 20, 128, pixels=True)
    assert torch.equal(few.x, query.x[:4])
    few.turn()
    assert torch.equal(few.x, query.sets[1][0][:4])


def test_queries_come_from_the_data_of_a_user() -> None:
    data = torch.randn(90, 5, generator=torch.Generator().manual_seed(0))
    query = queries.of_data(data, 16.0, 12)
    assert query.shape == Shape(12, 90, 5, 16.0)
    assert query.level is None
    operation = pm.of_data(lambda: data, "mine", 16.0, 12)
    made = operation.cases["mine"].make(operation.variants[0], CPU)
    assert torch.equal(made.x, query.x)
    assert operation.variants == (SPREAD,)


# ---- the truth, and errors


@pytest.mark.parametrize("make", TINY.values(), ids=list(TINY))
def test_truth_agrees_with_the_oracle(make: partial[Query]) -> None:
    query = make()
    query.turn()  # of the first set, whatever is in place
    x, sigma = (t[query.rows] for t in query.sets[0])
    assert np.abs(queries.truth(query).numpy() - oracle.field(x, sigma, query.data, query.D).mean).max() < 1e-11


@pytest.mark.parametrize("pixels", [False, True])
def test_error_is_measured_in_bounds(pixels: bool) -> None:
    query = queries.make(Shape(16, 100, 4, 1, pixels), ALL_80, CPU)
    exact = queries.truth(query)
    assert queries.error(query, exact, exact) == (0, 0, 0, 0)
    truth = oracle.field(query.x, query.sigma, query.data, query.D)
    bound, residual = oracle.mean_bound(truth, oracle.eps(query.x)), truth.residual
    off = exact.clone()
    off[3, 0] += 2 * float(bound[3])
    found = queries.error(query, off, exact)
    assert found.bounds == pytest.approx(2, rel=1e-6)
    assert found.median == 0
    assert found.largest == pytest.approx(float(2 * bound[3] / residual[3]))
    off[5, 1] = math.nan
    found = queries.error(query, off, exact)
    assert (found.bounds, found.largest) == (math.inf, math.inf)


def test_the_worst_row_is_among_those_that_are_looked_at() -> None:
    query = queries.make(Shape(200, 100, 4, 1), ALL_80, CPU)
    assert len(query.rows.unique()) == queries.CHECKED
    assert {0, 199} <= set(query.rows.tolist())
    exact = queries.truth(query)
    result = torch.full((200, 4), math.nan)
    result[query.rows] = exact.float()
    assert queries.error(query, result, exact).largest < 1e-5


def test_quantiles_of_rows() -> None:
    found = queries.of_rows(torch.tensor([0.5, 3.0]), torch.arange(101.0))
    assert found == (3.0, 50.0, 99.0, 100.0)
    assert queries.of_rows(None, torch.tensor([math.inf, math.nan])) == (None, math.inf, math.inf, math.inf)


# ---- providers


def on_cpu(providers: Iterable[Provider[Query]], query: Query) -> list[Provider[Query]]:
    return [provider for provider in providers if "cpu" in provider.devices and not provider.refuses(query)]


@pytest.mark.parametrize("provider", COMPLETE, ids=lambda provider: provider.name)
def test_providers_compute_the_posterior_mean(provider: Provider[Query]) -> None:
    ran = 0
    for name, make in TINY.items():
        query = make()
        if not on_cpu([provider], query) and not (provider.name == pm.TRITON and query.shape.N == 2):
            continue  # the interpreter is slow, and its kernels have tests of their own
        if provider.refuses(query):
            continue
        exact = queries.truth(query)
        with provider.within():
            call = provider.prepare(query)
            for _ in range(queries.SETS):  # what is in place counts when it is called
                query.turn()
                result = call()
        assert isinstance(result, Tensor)
        assert result.dtype == torch.float32
        found = queries.error(query, result, exact)
        assert found.bounds is not None
        # a peer need not keep the contract, where the expansion of a distance cannot: it must compute the same thing
        far = found.bounds if provider.ours else (result[query.rows] - exact).abs().max() / query.x.abs().max()
        assert far < (1 if provider.ours else 0.05), name
        ran += 1
    if not ran:
        pytest.skip(f"{provider.name} cannot run here")


def test_instruction_sets_are_held_and_given_back(native: str) -> None:
    from pfgm_fast import _C

    query = next(iter(TINY.values()))()
    provider = OPERATION.provider(pm.NATIVE_AVX2)
    before = _C.instruction_set()
    if why := provider.refuses(query):
        pytest.skip(why)
    with provider.within():
        assert _C.instruction_set() == "avx2"
    assert _C.instruction_set() == before


def test_compiled_products_are_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    query = queries.make(Shape(33, 170, 2, 1), SPREAD, CPU)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # traced, but not for half a minute
    plain, compiled = (OPERATION.provider(name).prepare(query)() for name in (pm.PRODUCTS, pm.COMPILED))
    torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-3)


def test_a_transport_plan_is_brought_to_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashSinkhorn's function by its documentation: P_ij = exp((f_i + g_j + 2 x_i.y_j) / eps) times a matrix."""

    def apply(
        x: Tensor, y: Tensor, f: Tensor, g: Tensor, a: Tensor, b: Tensor, matrix: Tensor, *, eps: float, axis: int
    ) -> Tensor:
        assert axis == 1
        assert matrix.shape == y.shape
        return torch.exp((f[:, None] + g + 2 * x @ y.T) / eps + a[:, None] + b) @ matrix

    fake = SimpleNamespace(apply_plan_mat_flashstyle=apply)
    monkeypatch.setitem(sys.modules, "flash_sinkhorn.kernels.apply_flash", fake)
    query = queries.make(Shape(65, 100, 2, math.inf), ALL_80, CPU)
    provider = OPERATION.provider(pm.SINKHORN)
    result = provider.prepare(query)()
    assert isinstance(result, Tensor)
    bounds = queries.error(query, result, queries.truth(query)).bounds
    assert bounds is not None
    assert bounds < 1
    assert "one sigma" in str(provider.refuses(replace(query, level=None)))
    assert "finite D" in str(provider.refuses(replace(query, D=1.0)))
    wide = queries.make(Shape(3, 10, 151, math.inf), ALL_80, CPU)
    assert "150 dimensions" in str(provider.refuses(wide))


@pytest.mark.parametrize("name", [pm.PRODUCTS, pm.PRODUCTS_UNPREPARED, pm.CDIST, pm.BARE])
def test_rows_of_a_peer_come_in_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    query = queries.make(Shape(65, 100, 2, 1), SPREAD, CPU)
    provider = OPERATION.provider(name)
    whole = provider.prepare(query)()
    assert "rows" not in provider.remark(query)
    monkeypatch.setitem(pm.ROOM, "cpu", 20 * 4 * 100)
    assert provider.remark(query).endswith("16 rows at a time")
    torch.testing.assert_close(provider.prepare(query)(), whole)


def test_original_formula_is_cut_into_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = OPERATION.provider(pm.ORIGINAL)
    for D in (128.0, math.inf):
        query = queries.make(Shape(33, 170, 20, D), SPREAD, CPU)
        monkeypatch.setitem(pm.ROOM, "cpu", 3e9)
        whole = provider.prepare(query)()
        assert provider.remark(query) == ""
        monkeypatch.setitem(pm.ROOM, "cpu", 5 * 170 * 21 * 4)
        assert provider.remark(query) == "5 rows at a time"
        torch.testing.assert_close(provider.prepare(query)(), whole)


def test_what_would_take_too_long_is_refused() -> None:
    query = queries.make(Shape(4, 100, 2, 1), SPREAD, CPU)
    vast = torch.zeros(1, 1).expand(100, 10**9)
    long = replace(query, x=vast[:4], data=vast)
    assert "one row of its tensor takes 400 GB" in str(OPERATION.provider(pm.ORIGINAL).refuses(long))
    assert OPERATION.provider(pm.ORIGINAL).refuses(query) is None
    slow = replace(query, x=vast[:, :2], data=torch.zeros(1, 1).expand(10**8, 2))
    assert "one call would take some" in str(OPERATION.provider(pm.ORIGINAL).refuses(slow))
    assert "one call would take some" in str(OPERATION.provider(pm.TORCH).refuses(slow))
