"""The benchmark suite: that it measures what it says, keeps its rows apart, and praises nothing that is wrong."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent))  # benchmarks/ is not installed
from benchmarks import compare, machine, memory, peers, results, run, table, timing
from benchmarks import posterior_mean as pm
from benchmarks.ceilings import Ceilings
from benchmarks.core import Error, Operation, Provider, Work
from benchmarks.registry import OPERATIONS
from benchmarks.results import Row

ROW = Row(
    operation="posterior_mean", case=pm.Shape(1024, 10000, 2, 1).name, variant=pm.SPREAD, provider=pm.NATIVE, threads=1,
    status="ok", median_ms=4.0, p10_ms=3.5, p90_ms=4.5, repeats=7, memory_mb=2.0, error_bounds=0.5,
    error_relative=1e-6, gpairs_per_s=2.5, gflop_per_s=20.0, matrix_share=0.2, bound="log and exp", bound_share=0.9,
    matrix_gflop_per_s=100.0, copy_gb_per_s=10.0, log_exp_g_per_s=2.0, remark="",
    machine="A Processor, 2 logical cores", torch="2.13", pfgm_fast="0.1.0", commit="abc", date="2030-01-01",
)  # fmt: skip
BASELINE = replace(ROW, provider=pm.ORIGINAL, median_ms=400.0, memory_mb=300.0, error_bounds=3.0, status="wrong")
TINY = {
    f"N={N}, D={D}, {variant}": partial(pm.make, pm.Shape(33, 170, N, D), variant)
    for N, D in ((2, 1.0), (20, 128.0), (300, 2048.0))
    for variant in pm.VARIANTS
}
COMPLETE = [provider for provider in pm.PROVIDERS if provider.complete]


def names(providers: list[Provider[pm.Query]]) -> list[str]:
    return [provider.name for provider in providers]


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=list(OPERATIONS))
def test_registry_is_well_formed(operation: Operation[pm.Query]) -> None:
    provided = names(list(operation.providers))
    assert len(set(provided)) == len(provided)
    assert next(iter(operation.variants.values())) == 1
    assert operation.bars
    for bar in operation.bars:
        assert bar.case in operation.cases
        assert operation.provider(bar.provider).ours
        assert not operation.provider(bar.baseline).ours
        assert bar.times > 1
        assert bar.quantity in ("time", "memory")
    for provider in operation.providers:
        assert not (provider.ours and not provider.complete)


def test_inputs_are_what_the_cases_say() -> None:
    shape = pm.Shape(33, 500, 3, 1)
    query, again = pm.make(shape, pm.SPREAD), pm.make(shape, pm.SPREAD)
    assert torch.equal(query.x, again.x)
    assert query.x.shape == (33, 3)
    assert query.data.shape == (500, 3)
    assert 0.002 <= query.sigma.min() < 0.1 < 8 < query.sigma.max() <= 80
    assert (pm.make(shape, pm.ALL_80).sigma == 80).all()
    apart = torch.cdist(query.data.double(), query.data.double()).fill_diagonal_(math.inf)
    assert (apart.amin(1) < 0.00501).sum() >= 10
    work = pm.work(query)
    assert work.pairs == 33 * 500
    assert work.flop == 4 * work.pairs * 3


@pytest.mark.parametrize("make", TINY.values(), ids=list(TINY))
def test_truth_agrees_with_the_oracle(make: partial[pm.Query]) -> None:
    query = make()
    exact = oracle.field(query.x, query.sigma, query.data, query.D).mean
    assert np.abs(pm.truth(query).numpy() - exact).max() < 1e-12


@pytest.mark.parametrize("name", names(COMPLETE))
def test_providers_compute_the_posterior_mean(name: str) -> None:
    provider = pm.OPERATION.provider(name)
    if why := provider.unavailable():
        pytest.skip(why)
    for make in TINY.values():
        query = make()
        with provider.within():
            result = provider.prepare(query)()
        exact = pm.truth(query)
        assert result.dtype == torch.float32
        # a peer need not keep the contract, where the expansion of a distance cannot: it must compute the same thing
        far = (
            pm.error(query, result, exact).bounds
            if provider.ours
            else (result - exact).abs().max() / query.x.abs().max()
        )
        assert far < (1.5 if provider.ours else 0.05), f"{name}, {query.x.shape}"


def test_error_is_measured_in_bounds() -> None:
    query = pm.make(pm.Shape(16, 100, 4, 1), pm.ALL_80)
    exact = pm.truth(query)
    assert pm.error(query, exact, exact) == Error(0, 0)
    bound = oracle.mean_bound(oracle.field(query.x, query.sigma, query.data, query.D), oracle.eps(query.x))
    off = exact.clone()
    off[3, 0] += 2 * float(bound[3])
    assert pm.error(query, off, exact).bounds == pytest.approx(2, rel=1e-6)
    off[5, 1] = math.nan
    assert pm.error(query, off, exact).bounds == math.inf


def test_original_formula_is_cut_into_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    query = pm.make(pm.Shape(33, 170, 20, 128), pm.SPREAD)
    provider = pm.OPERATION.provider(pm.ORIGINAL)
    whole = provider.prepare(query)()
    assert provider.remark(query) == ""
    monkeypatch.setattr(peers, "ORIGINAL_BYTES", 5 * 170 * 21 * 4)
    assert provider.remark(query) == "5 rows at a time"
    torch.testing.assert_close(provider.prepare(query)(), whole)


def test_slow_calls_are_repeated_less_and_take_turns() -> None:
    now, order = [0.0], []

    def call(name: str, seconds: float) -> timing.Timed:
        def work() -> None:
            now[0] += seconds
            order.append(name)

        return timing.Timed(work)

    calls = {
        "fast": call("fast", 0.01),
        "slow": call("slow", 0.3),
        "slower": call("slower", 9.0),
        "slowest": call("slowest", 11.0),
    }
    taken = timing.interleaved(calls, timing.by_clock(lambda: now[0]), budget=1.0, least=2, most=10)
    assert {name: len(times) for name, times in taken.items()} == {"fast": 10, "slow": 3, "slower": 2, "slowest": 1}
    assert taken["slow"] == pytest.approx([0.3] * 3)
    assert order[:4] == list(calls)
    assert "slow" in order[10:]


def test_block_gives_rows_for_every_provider(tmp_path: Path) -> None:
    small = replace(pm.OPERATION, cases={"tiny": partial(pm.make, pm.Shape(5, 60, 3, 1))})
    block = run.Block(small, "tiny", pm.ALL_80, 1)
    rows = run.measure(block, run.Effort(0.0, 1, 2), machine.origin())
    assert [row.provider for row in rows] == [p.name for p in pm.PROVIDERS if p.unavailable() is None]
    for row in rows:
        assert 0 < row.p10_ms <= row.median_ms <= row.p90_ms
        assert row.gflop_per_s == pytest.approx(4 * 5 * 60 * 3 / row.median_ms / 1e6)
        assert (row.status == "part") == (row.error_bounds is None)
        assert row.memory_mb is None
    results.update(tmp_path / "rows.csv", rows, Row)
    read = results.read(tmp_path / "rows.csv", Row)
    assert [row.key for row in read] == [row.key for row in rows]
    assert read[0].median_ms == pytest.approx(rows[0].median_ms, rel=1e-3)


def test_row_outside_the_contract_is_wrong() -> None:
    block = run.Block(pm.OPERATION, ROW.case, ROW.variant, 1)
    make = partial(
        run.row, block, pm.PROVIDERS[0], [1.0], peak=None, work=Work(1, 1, 1), ceiling=Ceilings(1, 1, 1), remark="",
        origin=machine.origin(),
    )  # fmt: skip
    assert make(error=Error(0.99, 0)).status == "ok"
    assert make(error=Error(1.01, 0)).status == "wrong"
    assert make(error=Error(math.inf, math.inf)).status == "wrong"
    assert make(error=None).status == "part"


def test_rows_replace_those_of_their_key(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "rows.csv"
    results.update(path, [ROW, BASELINE], Row)
    faster, two = replace(ROW, median_ms=2.0, memory_mb=None), replace(ROW, threads=2)
    results.update(path, [two, faster], Row)
    assert results.read(path, Row) == [faster, BASELINE, two]
    assert path.read_text().splitlines()[0] == ",".join(field.name for field in fields(Row))
    assert list(path.parent.iterdir()) == [path]


def test_finished_rows_survive_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(block: run.Block, *rest: object) -> list[Row]:
        if block.variant == pm.ALL_80:
            raise KeyboardInterrupt
        return [replace(ROW, case=block.case, variant=block.variant, threads=block.threads)]

    monkeypatch.setattr(run, "measure", measure)
    out = tmp_path / "rows.csv"
    assert run.main(["--case", "N=64", "--threads", "1", "--out", str(out)]) == 130
    assert [row.variant for row in results.read(out, Row)] == [pm.SPREAD]
    assert run.main(["--case", "no such case"]) == 2


def test_no_speed_up_of_a_wrong_result() -> None:
    assert compare.speed_up(ROW, BASELINE) == 100
    assert compare.memory_saved(ROW, BASELINE) == 150
    wrong = replace(ROW, status="wrong", error_bounds=1.5)
    for ratio in (compare.speed_up, compare.memory_saved):
        with pytest.raises(compare.RefusedError, match=r"pfgm_fast native .* 1\.5 times its error bound"):
            ratio(wrong, BASELINE)
    rows = compare.by_key([wrong, BASELINE])
    assert "100×" not in table.full(rows)
    assert "wrong" in table.summary(rows)
    assert {verdict.text for verdict in compare.verdicts(pm.OPERATION, rows, [ROW.case])} == {"wrong", "not measured"}


def test_bars_are_lower_where_nothing_can_be_skipped() -> None:
    rows = [ROW, replace(BASELINE, median_ms=4 * 79.0)]
    rows += [replace(row, variant=pm.ALL_80) for row in rows]
    found = {
        (verdict.bar.baseline, verdict.variant): (verdict.bar.times, verdict.text)
        for verdict in compare.verdicts(pm.OPERATION, compare.by_key(rows), [ROW.case])
    }
    assert found[pm.ORIGINAL, pm.SPREAD] == (80, "short")
    assert found[pm.ORIGINAL, pm.ALL_80] == (72, "PASS")
    assert found[pm.PRODUCTS, pm.SPREAD] == (15, "not measured")


def test_a_faster_peer_is_named_so() -> None:
    rows = compare.by_key([ROW, replace(BASELINE, median_ms=2.0)])
    assert "0.5×, this one is faster" in table.full(rows)


def test_the_nearest_ceiling_bounds() -> None:
    ceiling = Ceilings(matrix=100, copy=10, log_exp=1)
    assert ceiling.bound(Work(pairs=1e9, flop=4e9, bytes=1e9)) == ("log and exp", 1.0)
    assert ceiling.bound(Work(pairs=1e9, flop=3e11, bytes=1e9)) == ("matrix products", 3.0)
    assert ceiling.bound(Work(pairs=1e9, flop=4e9, bytes=2e10)) == ("copy bandwidth", 2.0)


@pytest.mark.skipif(memory.unavailable() is not None, reason="peak memory cannot be read here")
def test_peak_memory_counts_what_a_call_needs_at_once() -> None:
    code = """
import json, torch
from dataclasses import replace
from functools import partial
from benchmarks import core, memory, posterior_mean as pm
kept = lambda q: (lambda copy: lambda: copy.sum())(torch.ones(5_000_000))
peak = lambda q: lambda: (torch.ones(500_000 * len(q.x)), torch.ones(750_000 * len(q.x)))[0]
providers = (core.Provider("kept", kept), core.Provider("peak", peak))
operation = replace(pm.OPERATION, cases={"tiny": partial(pm.make, pm.Shape(8, 100, 2, 1))}, providers=providers)
print(json.dumps(memory.peaks(operation, "tiny", ["kept", "peak"])))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=machine.ROOT)
    assert done.returncode == 0, done.stderr
    peaks = json.loads(done.stdout)
    assert peaks == {"kept": pytest.approx(20, abs=2), "peak": pytest.approx(40, abs=2)}


def test_tables_stand_between_the_markers() -> None:
    begin, end = "<!-- speed:begin -->", "<!-- speed:end -->"
    page = f"# Title\n{begin}\nold\n{end}\nmore\n"
    assert table.render(page, "speed", "100×") == f"# Title\n{begin}\n100×\n{end}\nmore\n"
    for broken in ("# Title", begin, f"{end}{begin}", page + page):
        with pytest.raises(ValueError, match="once each"):
            table.render(broken, "speed", "100×")


def test_tables_follow_the_rows(tmp_path: Path) -> None:
    results.update(tmp_path / "a.csv", [ROW, BASELINE], Row)
    (tmp_path / "gpu-a.csv").write_text("of other columns")
    assert list(table.measured(tmp_path)) == ["a.csv"]
    assert "100×" in table.full(table.measured(tmp_path)["a.csv"])


def test_tables_say_what_the_measurements_say() -> None:
    assert list(table.stale()) == [], "run python -m benchmarks.table"


def test_machines_have_files_of_their_own() -> None:
    assert machine.file_name("Intel(R) Xeon(R) Processor, 2 logical cores") == "intel-xeon-2-cores.csv"
    assert machine.file_name("AMD EPYC 9654 96-Core Processor, 8 logical cores") == "amd-epyc-9654-96-core-8-cores.csv"
