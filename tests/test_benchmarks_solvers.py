"""The benchmarks of the solvers: providers solve the same problem, references are right, verdicts follow the rows."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import pfgm_fast as pf

sys.path.append(str(Path(__file__).parent.parent))  # benchmarks/ is not installed
from benchmarks import machine, results, table
from benchmarks.machine import Origin
from benchmarks.solvers import bars, linear, measure, nfe, overhead, page, peers, poisson, rows
from benchmarks.solvers.core import Answer, Block, Effort, Problem, Run, tensor
from benchmarks.solvers.rows import Row, Table

ROW = Row(
    poisson.NAME, poisson.OURS, "1e-04", 1, 50.0, 45.0, 55.0, 9, 94.2, 164, 1e-4, 1e-2, 1e-1,
    "torch 2.13.0", "A Processor, 2 logical cores", "0.1.0", "abc", "2030-01-01",
)  # fmt: skip
PEER = replace(ROW, provider=peers.SCIPY, median_ms=600.0, error_p99=1e-2)


@pytest.mark.parametrize("name", [*peers.NAMES, poisson.OURS, poisson.PUBLISHED])
def test_all_providers_solve_the_poisson_problem(name: str) -> None:
    if why := name in peers.NAMES and peers.missing(name):
        pytest.skip(str(why))
    data, x = poisson.points(50), poisson.starts(8)
    truth = poisson.reference(data, x, None, 1e-8)
    answer = poisson.run(name, data, x, 1e-6).solve()
    assert (tensor(answer.states) - truth).norm(dim=1).median() < 1e-3
    assert answer.calls >= answer.evaluations > 50


def test_the_reference_agrees_with_scipy() -> None:
    data, x = poisson.points(100), poisson.starts(4)
    found = poisson.scipy_reference(data, x)
    assert (tensor(found.states) - poisson.reference(data, x, None)).norm(dim=1).max() < 1e-7


def test_a_reference_is_kept_for_the_next_number_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, x = poisson.points(20), poisson.starts(2)
    first = poisson.reference(data, x, str(tmp_path), 1e-4)
    monkeypatch.setattr(poisson, "ours", None)
    assert torch.equal(first, poisson.reference(data, x, str(tmp_path), 1e-4))


def test_expressions_of_the_poisson_field_agree() -> None:
    data, x = poisson.points(200), poisson.starts(16)
    for log_z in (torch.tensor(0.5), torch.linspace(-1, 3, 16)):
        drifts = [make(data)(log_z, x) for make in (poisson.by_products, poisson.by_differences)]
        torch.testing.assert_close(*drifts, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [*peers.NAMES, linear.OURS, linear.OURS_SMALL])
def test_all_providers_solve_the_linear_problems(name: str) -> None:
    if why := name in peers.NAMES and peers.missing(name):
        pytest.skip(str(why))
    rates, y0 = linear.problems(32)
    answer = linear.run(name, rates, y0).solve()
    assert linear.units(tensor(answer.states), linear.exact(rates, y0)).max() < 50


def test_the_linear_problems_are_what_the_page_says() -> None:
    rates, y0 = linear.problems(1024)
    sizes = y0.norm(dim=1)
    assert 0.3 <= rates.min() < 0.32 < 95 < rates.max() <= 100
    assert 0.01 <= sizes.min() < 0.011 < 95 < sizes.max() <= 100
    flow = torch.linalg.matrix_exp(rates[:, None, None] * linear.TURN)
    torch.testing.assert_close(linear.exact(rates, y0), (flow @ y0[..., None])[..., 0], rtol=1e-9, atol=1e-9)


def test_a_trivial_network_is_the_same_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "SHAPE", (2, 1, 4, 4))
    (block,) = overhead.PROBLEM.blocks(Effort(1, True, None))
    states = {run.provider: tensor(run.solve().states).flatten() for run in block.runs}
    assert set(overhead.OURS) <= set(states)
    for name, state in states.items():
        fixed = name in map(overhead.fixed, overhead.FIXED)
        torch.testing.assert_close(state, states[overhead.RK45], rtol=0, atol=0.4 if fixed else 1e-3)


def test_evaluations_are_those_asked_for() -> None:
    field = pf.EmpiricalField(nfe.spiral(30), nfe.D)
    x = pf.prior((4, 2), nfe.HIGH, nfe.D, seeds=range(4), dtype=torch.float64)
    for solver in nfe.FIXED:
        assert nfe.by_steps(solver, 20, field, x).evaluations == 20
    assert nfe.adaptive(1e-4, field, x).evaluations > 20


def test_a_peer_is_met_at_an_error_no_worse_than_its_own() -> None:
    loose = replace(ROW, setting="1e-03", median_ms=20.0, error_p99=2e-2)
    tight = replace(ROW, setting="1e-05", median_ms=90.0, error_p99=1e-4)
    found = Table([loose, ROW, tight, PEER])
    assert bars.match(found, PEER) == ROW
    assert bars.match(found, replace(PEER, error_p99=3e-2)) == loose
    assert bars.match(found, replace(PEER, error_p99=1e-6)) is None
    assert bars.match(found, replace(PEER, threads=2)) is None
    verdict = next(iter(bars.verdicts(found)))
    assert (verdict.got, verdict.text, verdict.remark) == (12.0, "PASS", "at 1e-04")
    slower = next(iter(bars.verdicts(Table([ROW, replace(PEER, median_ms=400.0)]))))
    assert (slower.got, slower.text) == (8.0, "short")
    assert {verdict.text for verdict in bars.verdicts(Table([]))} == {"not measured"}


def test_bars_that_are_upper_bounds() -> None:
    at = {name: partial(bars.Verdict, "x", bar, at_least=False) for name, bar in (("one", 1.0), ("half", 0.5))}
    assert [at["one"](got=got).text for got in (0.9, 1.0, 1.1, math.nan)] == ["PASS", "PASS", "short", "short"]
    unipc = replace(ROW, problem=nfe.NAME, provider="unipc", setting="20", error_median=6e-3)
    assert next(v for v in bars.verdicts(Table([unipc])) if v.got is not None).text == "short"


def test_a_faster_peer_is_named_so() -> None:
    text = page.full(Table([ROW, replace(PEER, median_ms=25.0)]))
    assert "0.5×, this one is faster" in text
    assert "12×" in page.full(Table([ROW, PEER]))


def test_rows_and_finished_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def solve() -> Answer:
        return Answer(torch.tensor([[1.0], [3.0]]), 7.0, 9)

    def blocks(effort: Effort) -> Iterator[Block]:
        def interrupted() -> Answer:
            raise KeyboardInterrupt

        first = Block("first", [Run("one", "a", solve), Run("two", "b", solve)], lambda x: x[:, 0], 0.01, 1, 2)
        return iter([first, replace(first, runs=[Run("three", "c", interrupted)])])

    monkeypatch.setitem(measure.PROBLEMS, poisson.NAME, Problem("toy", blocks))
    monkeypatch.setattr(measure, "pin", lambda threads: None)
    monkeypatch.setattr(machine, "origin", lambda: Origin("m", "t", "p", "c", "d"))
    out = tmp_path / "solvers-m.csv"
    assert measure.main(["--only", poisson.NAME, "--out", str(out)]) == 130
    found = results.read(out, Row)
    assert [row.provider for row in found] == ["one", "two"]
    assert (found[0].error_median, found[0].error_max, found[0].calls, found[0].repeats) == (2.0, 3.0, 9, 2)
    assert list(rows.tables(tmp_path)) == ["solvers-m.csv"]
    assert not table.measured(tmp_path)


def test_figures_are_of_the_numbers_in_the_tables(tmp_path: Path) -> None:
    plot = pytest.importorskip("benchmarks.solvers.plot", reason="matplotlib draws the figures")
    if newest := plot.newest():
        for name, lines in (("time-error", plot.time_error), ("nfe", plot.by_evaluations)):
            svg = (plot.FOLDER / f"solvers-{name}.svg").read_text()
            assert plot.digest(lines(newest)) in svg, "run python -m benchmarks.solvers.plot"
    drawn = plot.draw(Table([ROW, PEER, replace(ROW, problem=nfe.NAME, provider="unipc", setting="20")]), tmp_path)
    assert [path.suffix for path in drawn] == [".png", ".svg"] * 2
    assert all(path.stat().st_size > 1000 for path in drawn)
