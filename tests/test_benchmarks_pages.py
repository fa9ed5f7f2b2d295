"""Goals, tables and figures of the benchmarks: they follow the rows, and praise nothing that is wrong or untested."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent))  # benchmarks/ is not installed
from benchmarks import accuracy, bars, plot, scaling, shapes, table
from benchmarks import training_target as target
from benchmarks.registry import OPERATIONS
from benchmarks.solvers import linear, nfe, overhead, peers, poisson
from benchmarks.solvers.solve import setting
from pfgm_fast.bench import cells, report, rows
from pfgm_fast.bench import posterior_mean as pm
from pfgm_fast.bench.queries import ALL_80, SPREAD
from pfgm_fast.bench.rows import Row, Table

FIELD = OPERATIONS["posterior_mean"]
ROW = Row(
    "posterior_mean", shapes.SMALL_TOY.name, SPREAD, pm.NATIVE, "", 1, "ok", 4.0, 3.5, 4.5, 7, memory_mb=2.0,
    error_bounds=0.5, error_median=1e-7, error_p99=1e-6, error_max=1e-6, evaluations=1.0, calls=1, gpairs_per_s=2.5,
    gflop_per_s=20.0, bound="log and exp", bound_share=0.9, copy_gb_per_s=10.0, matrix_gflop_per_s=100.0,
    log_exp_g_per_s=2.0, tests="passed", machine="A Processor", device="A Processor", versions="torch 2+cpu",
    pfgm_fast="0.1.0", commit="abc", date="2030-01-01",
)  # fmt: skip
ORIGINAL = replace(ROW, provider=pm.ORIGINAL, median_ms=400.0, memory_mb=300.0, error_bounds=3.0, status="wrong")
FAST = replace(ROW, provider=pm.PRODUCTS, median_ms=2.0, error_bounds=0.25)
BARE = replace(ROW, provider=pm.BARE, median_ms=0.1, status="part", error_bounds=None)
SKIPPED = replace(ROW, provider=pm.KEOPS, median_ms=None, status="skipped", remark="pykeops is not installed")
WRONG = replace(ROW, status="wrong", error_bounds=1.5)
UNTESTED = replace(ROW, tests="not run")


def of_device(part: Callable[[str, Table], str]) -> Callable[[Table], str]:
    return lambda found: part("a-device", found)


PAGES: dict[str, Callable[[Table], str]] = {
    "summary": table.summary,
    "page": of_device(table.full),
    "every row": of_device(table.every_row),
}


# ---- goals


def verdicts(*found: Row) -> dict[tuple[str, str], str]:
    return {(line[0], line[1]): line[-1] for line in bars.lines(Table(found))}


def test_goals_are_lower_where_nothing_can_be_skipped() -> None:
    near = replace(ORIGINAL, median_ms=4 * 79.0)
    found = verdicts(*(replace(row, variant=variant) for row in (ROW, near) for variant in (SPREAD, ALL_80)))
    what = f"{ROW.case}, {{}}: times faster than {{}}"
    assert found["posterior_mean", what.format(SPREAD, pm.ORIGINAL)] == "short"
    assert found["posterior_mean", what.format(ALL_80, pm.ORIGINAL)] == "PASS"
    assert found["posterior_mean", what.format(SPREAD, pm.PRODUCTS)] == "not measured"
    values = {(bar.what, bar.value) for bar in bars.ALL}
    assert (what.format(SPREAD, pm.ORIGINAL), 80) in values
    assert (what.format(ALL_80, pm.ORIGINAL), 72) in values


@pytest.mark.parametrize(("ours", "verdict"), [(ROW, "PASS"), (WRONG, "wrong"), (UNTESTED, "untested")])
def test_a_goal_is_not_met_by_what_is_wrong_or_untested(ours: Row, verdict: str) -> None:
    """Of time, of memory, and of figures that are compared with nothing."""
    image, level = replace(ours, case=shapes.PFGM.name), "D = 128, sigma 80 to 0.05"
    count = replace(ours, operation=nfe.NAME, case=nfe.CASE, variant=level, provider="unipc", setting="20",
                    error_median=1e-4)  # fmt: skip
    host = replace(ours, operation=overhead.NAME, case=overhead.CASE, variant=overhead.VARIANT, calls=40,
                   provider=overhead.RK45)  # fmt: skip
    stiff = replace(ours, operation=linear.NAME, case=linear.CASE, variant=linear.SETTING, provider=linear.OURS)
    slower = [replace(image, provider=pm.ORIGINAL, median_ms=999.0, memory_mb=999.0),
              replace(stiff, provider=peers.DIFFRAX, median_ms=99.0)]  # fmt: skip
    found = verdicts(image, count, host, stiff, *slower)
    assert set(found.values()) == {verdict, "not measured"}
    assert list(found.values()).count(verdict) == 6


def test_goals_are_those_of_the_device() -> None:
    on_gpu = verdicts(replace(ROW, versions="torch 2, cuda 13.0"))
    on_cpu = verdicts(ROW)
    assert set(on_cpu) | set(on_gpu) == {(bar.operation, bar.what) for bar in bars.ALL}
    assert len(on_cpu) + len(on_gpu) == len(bars.ALL)
    assert any(shapes.IMAGENET.name in what for _, what in on_gpu)


# ---- words


def test_numbers_are_short() -> None:
    assert [cells.number(x) for x in (None, 0.0, 1234.5, 12.345, 0.00123456, 0.0000123)] == [
        "", "0", "1234", "12.3", "0.00123", "1e-05"
    ]  # fmt: skip
    assert [cells.percent(x) for x in (None, 1.234, 0.5, 0.0012)] == ["", "123 %", "50 %", "0.1 %"]
    assert cells.without_empty(("a", "b", "c"), [("", "", "1"), ("", "", "")]) == (("a", "c"), [("", "1"), ("", "")])
    assert cells.aligned(("name", "ms", "remark"), [("a", "10", "x"), ("long name", "2", "")]).splitlines() == [
        "name       ms  remark", "a          10  x", "long name   2"
    ]  # fmt: skip


def test_a_block_says_who_is_faster_in_plain_words() -> None:
    header, lines = report.block(FIELD, Table([ROW, ORIGINAL, FAST, BARE, SKIPPED]))
    said = {line[0]: line[header.index("pfgm_fast is")] for line in lines}
    assert said[pm.NATIVE] == said[pm.KEOPS] == ""
    assert (said[pm.ORIGINAL], said[pm.PRODUCTS], said[pm.BARE]) == ("100× faster", "2× slower", "40× slower")
    remarks = {line[0]: line[-1] for line in lines}
    assert remarks[pm.ORIGINAL] == "outside the accuracy contract"
    assert remarks[pm.KEOPS] == "pykeops is not installed"
    assert "evaluations" not in header
    for ours, word in ((WRONG, "wrong"), (UNTESTED, "untested")):
        _, lines = report.block(FIELD, Table([ours, ORIGINAL]))
        assert lines[1][header.index("pfgm_fast is")] == word


# ---- tables


@pytest.mark.parametrize("page", PAGES.values(), ids=list(PAGES))
def test_pages_hold_the_speed_ups(page: Callable[[Table], str]) -> None:
    text = page(Table([ROW, ORIGINAL]))
    assert "100" in text
    assert ("100×" in text) or "times faster than original formula | ≥ 80 | 100 | PASS" in text
    for word in ("A Processor", "torch 2+cpu", "commit abc", "2030-01-01"):
        assert word in text


@pytest.mark.parametrize("page", PAGES.values(), ids=list(PAGES))
@pytest.mark.parametrize("ours", [WRONG, UNTESTED], ids=["wrong", "untested"])
def test_pages_do_not_praise_what_is_wrong_or_untested(page: Callable[[Table], str], ours: Row) -> None:
    text = page(Table([ours, replace(ORIGINAL, median_ms=412.0, memory_mb=622.0), replace(FAST, median_ms=99.0)]))
    for praise in ("103", "24.8", "311"):
        assert praise not in text
    assert ("wrong" if ours is WRONG else "untested") in text
    assert "PASS" not in text


@pytest.mark.parametrize("page", [table.summary, of_device(table.full), of_device(table.every_row)])
def test_pages_say_that_an_alternative_is_faster(page: Callable[[Table], str]) -> None:
    text = page(Table([ROW, ORIGINAL, FAST]))
    assert "0.5×, this one is faster" in text or f"{pm.PRODUCTS} is 2× as fast" in text or "2× slower" in text


def test_the_summary_has_a_line_for_each_size() -> None:
    other = shapes.MNIST.name
    found = Table([
        ROW, ORIGINAL, BARE, replace(ROW, threads=2, median_ms=2.5), replace(FAST, median_ms=40.0),
        replace(ROW, provider=pm.CDIST, median_ms=20.0), replace(ROW, case=other, median_ms=8.0), SKIPPED,
        replace(ROW, variant=ALL_80, median_ms=7777.0),
    ])  # fmt: skip
    lines = [line.strip("| ").split(" | ") for line in table.summary(found).splitlines() if line.startswith("|")]
    header, _, toy, mnist = lines
    cells_of = dict(zip(header, toy, strict=False))
    assert (toy[0], mnist[0]) == ("toy data in the plane", "MNIST, part")
    assert cells_of["ms, 1 thread"] == "4"
    assert cells_of["2 threads"] == "2.5"
    assert cells_of["× faster than original formula"] == "100×"
    assert cells_of["× faster than two products"] == "10×"
    assert cells_of["fastest other"] == pm.CDIST
    assert cells_of["× faster"] == "5×"
    assert cells_of["× less memory than original formula"] == "150×"
    assert cells_of["error / bound"] == "0.5"


def test_the_summary_tells_of_targets_and_solves() -> None:
    step = replace(ROW, operation="training_target", case=target.PFGM, variant=target.NOISE, provider=target.BATCH)
    solve = replace(ROW, operation=poisson.NAME, case=poisson.CASE, variant=poisson.VARIANT, provider=poisson.OURS,
                    setting="1e-03")  # fmt: skip
    text = table.summary(Table([
        step, replace(step, provider=target.ORIGINAL, median_ms=400.0, status="part"),
        replace(step, provider=target.KEPT, median_ms=200.0),
        solve, replace(solve, provider=peers.SCIPY, setting=setting(poisson.BAR), median_ms=48.0),
    ]))  # fmt: skip
    assert f"A training target of {target.PFGM}: 4 ms. The original formula takes 100 times as long" in text
    assert "in chunks that keep their memory 50 times." in text
    wrong = table.summary(Table([replace(step, status="wrong"), replace(step, provider=target.KEPT)]))
    assert "A training target" not in wrong
    assert "extrapolated from a part" in text
    assert "faster at no worse an error: 12× SciPy RK45." in text


def test_losses_list_what_is_faster() -> None:
    text = table.losses(Table([ROW, ORIGINAL, FAST, BARE, SKIPPED]))
    assert text == (
        f"- posterior_mean, {ROW.case}, {SPREAD}, 1 thread: two products is 2× as fast; "
        "errors in bounds: 0.25, ours 0.5."
    )
    assert table.losses(Table([ROW, ORIGINAL, BARE])) == "Nowhere among the rows measured."
    loose = replace(FAST, status="wrong", error_bounds=9.0)
    assert "errors in bounds: 9, ours 0.5" in table.losses(Table([ROW, loose]))
    apart = replace(FAST, threads=2)
    assert table.losses(Table([ROW, apart])) == "Nowhere among the rows measured."


def test_an_origin_of_several_runs_says_so() -> None:
    one = table.origin(Table([ROW, ORIGINAL]))
    assert one == "A Processor; torch 2+cpu; commit abc; 2030-01-01."
    mixed = Table([ROW, replace(ORIGINAL, commit="def", date="2030-02-02"), replace(FAST, commit="abc")])
    assert "commit abc / def; 2030-01-01 / 2030-02-02." in table.origin(mixed)
    assert table.origin(Table([replace(ROW, device="A GPU")])).startswith("A GPU (A Processor); ")


def test_growth_is_that_of_the_curves() -> None:
    name, rows_of = "scaling_queries", list[Row]()
    for size, shape in scaling.SCALING[name].shapes().items():
        one = replace(ROW, operation=name, case=shape.name, median_ms=0.5 * size, memory_mb=7.0)
        rows_of += [one, replace(one, threads=2, median_ms=0.25 * size)]
    lines = table.growth(Table(rows_of)).splitlines()
    *start, memory, second = lines[-1].strip("| ").split(" | ")
    assert start == ["B", "pfgm_fast native", "1 to 10,000", "0.5", "5000", "1"]
    assert abs(float(memory)) < 1e-9
    assert second == "2"
    assert table.growth(Table([ROW])) == table.NOTHING


def test_every_row_stands_with_its_columns() -> None:
    text = table.every_row("a-device", Table([ROW, ORIGINAL, SKIPPED, replace(ROW, threads=2)]))
    for part in ("benchmarks/results/a-device.csv", "1 thread\n", "2 threads\n", "log and exp", "90 %", "3.5–4.5"):
        assert part in text
    assert "| PyKeOps | skipped |" in text
    assert f"Errors: {FIELD.error_unit}." in text


def test_errors_stand_by_noise_level() -> None:
    found = [
        replace(ROW, operation=accuracy.NAME, case=accuracy.SHAPES[0].name, variant=accuracy.variant(level),
                error_bounds=0.125 * place, provider=name)
        for place, level in enumerate(accuracy.LEVELS) for name in (pm.NATIVE, pm.TRITON)
    ]  # fmt: skip
    text = table.full("a-device", Table(found))
    assert f"| {accuracy.SHAPES[0].name} | sigma 0.02 | 0.25 | 0.25 |" in text
    assert "figures/a-device-error-by-sigma.png" in text


# ---- pages and files


def test_tables_stand_between_the_markers() -> None:
    begin, end = "<!-- speed:begin -->", "<!-- speed:end -->"
    page = f"# Title\n{begin}\nold\n{end}\nmore\n"
    assert table.render(page, "speed", "100×") == f"# Title\n{begin}\n100×\n{end}\nmore\n"
    assert table.render(table.render(page, "speed", "100×"), "speed", "old") == page
    for broken in ("# Title", begin, f"{end}{begin}", page + page):
        with pytest.raises(ValueError, match="once each"):
            table.render(broken, "speed", "100×")


def test_tables_follow_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = plot.tables
    monkeypatch.setattr(plot, "tables", lambda: tables(tmp_path))
    assert table.of_devices(table.full) == table.NOTHING
    rows.update(tmp_path / "b.csv", [replace(ROW, device="Another"), replace(ORIGINAL, device="Another")])
    rows.update(tmp_path / "a.csv", [ROW])
    text = table.of_devices(table.every_row)
    assert text.index("## A Processor") < text.index("## Another")
    assert "100× faster" in text
    assert set(table.stale()) >= {"README.md", "docs/benchmarks.md", "docs/benchmark-rows.md"}
    assert all("Another" in page for page in table.stale().values())


def test_pages_say_what_the_measurements_say() -> None:
    assert list(table.stale()) == [], "run python -m benchmarks.table"
