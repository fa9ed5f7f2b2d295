"""Rows of the benchmarks: their keys, their files, and the speed-ups that are refused."""

from __future__ import annotations

import math
import os
from dataclasses import fields, replace
from pathlib import Path

import pytest

from pfgm_fast.bench import rows
from pfgm_fast.bench.rows import OWN_CHECK, Key, RefusedError, Row, Table, memory_saved, speed_up

ROW = Row(
    operation="posterior_mean", case="B=1024", variant="sigma 80", provider="ours", setting="", threads=1, status="ok",
    median_ms=4.0, p10_ms=3.5, p90_ms=4.5, repeats=7, memory_mb=2.0, error_bounds=0.5, error_median=1e-7,
    error_p99=1e-6, error_max=2e-6, evaluations=1.5, calls=3, gpairs_per_s=2.5, gflop_per_s=20.0, bound="log and exp",
    bound_share=0.9, copy_gb_per_s=10.0, matrix_gflop_per_s=100.0, log_exp_g_per_s=2.0, remark='of "all", twice',
    tests="passed", machine="A Processor, 2 logical cores", device="A Processor", versions="torch 2.13",
    pfgm_fast="0.1.0", commit="abc", date="2030-01-01",
)  # fmt: skip
BASELINE = replace(ROW, provider="original formula", median_ms=400.0, memory_mb=300.0, error_bounds=3.0, status="wrong")


def test_rows_replace_those_of_their_key(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "rows.csv"
    rows.update(path, [ROW, BASELINE])
    faster = replace(ROW, median_ms=2.0, memory_mb=None)
    others = [
        replace(ROW, **{name: value})  # type: ignore[arg-type]
        for name, value in (("threads", 2), ("setting", "1e-4"), ("variant", "all"), ("case", "B=1"))
    ]
    rows.update(path, [*others, faster])
    assert list(rows.read(path)) == [faster, BASELINE, *others]
    assert path.read_text().splitlines()[0] == ",".join(field.name for field in fields(Row))
    assert list(path.parent.iterdir()) == [path]


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    empty = replace(ROW, provider="empty", **dict.fromkeys(("median_ms", "memory_mb", "calls", "evaluations")))  # type: ignore[arg-type]
    infinite = replace(ROW, provider="infinite", error_bounds=math.inf, error_max=math.inf)
    digits = replace(ROW, provider="digits", median_ms=1.23456789e-5)
    rows.update(path, [ROW, empty, infinite, digits])
    assert list(rows.read(path)) == [ROW, empty, infinite, replace(digits, median_ms=1.235e-5)]
    assert not rows.read(tmp_path / "none.csv")


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("operation,case\na,b\n")
    for touch in (lambda: rows.read(path), lambda: rows.update(path, [ROW])):
        with pytest.raises(
            ValueError, match=r"rows\.csv must be a CSV file of measurements, but has no column 'variant'"
        ):
            touch()
    assert path.read_text() == "operation,case\na,b\n"


def test_an_interruption_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.csv"
    rows.update(path, [ROW])

    def interrupted(*paths: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rows.update(path, [BASELINE])
    assert list(rows.read(path)) == [ROW]
    rows.update(path, [BASELINE])
    assert list(tmp_path.iterdir()) == [path]
    assert list(rows.read(path)) == [ROW, BASELINE]


def test_a_table_finds_rows() -> None:
    skipped = replace(ROW, provider="skipped", status="skipped", median_ms=None)
    two = replace(ROW, threads=2, setting="a")
    table = Table([ROW, BASELINE, skipped, two])
    assert table.get("posterior_mean", "B=1024", "sigma 80", "ours") == ROW
    assert table.get(*two.key) == two
    assert table.get(**ROW.key._asdict()) == ROW
    assert table.get(*ROW.key._replace(case="B=1")) is None
    assert table.get(*skipped.key) is None
    assert skipped in list(table)
    assert list(table.where(provider="ours")) == [ROW, two]
    assert list(table.where(provider="ours", threads=2)) == [two]
    assert not table.where(provider="nobody")
    assert table.values("provider") == ["ours", "original formula", "skipped"]
    assert (two.label, ROW.label) == ("ours, a", "ours")
    assert ROW.key == Key("posterior_mean", "B=1024", "sigma 80", "ours")


def test_no_speed_up_of_a_wrong_result() -> None:
    assert speed_up(ROW, BASELINE) == 100
    assert memory_saved(ROW, BASELINE) == 150
    wrong = replace(ROW, status="wrong", error_bounds=1.5)
    for ratio in (speed_up, memory_saved):
        with pytest.raises(RefusedError, match=r"ours on B=1024 is 1\.5 times its error bound"):
            ratio(wrong, BASELINE)


@pytest.mark.parametrize("tests", ["", "not run", "Passed"])
def test_no_speed_up_without_tests(tests: str) -> None:
    for ratio in (speed_up, memory_saved):
        with pytest.raises(RefusedError, match="ours on B=1024 was measured without its tests"):
            ratio(replace(ROW, tests=tests), BASELINE)
    assert speed_up(ROW, replace(BASELINE, tests=tests)) == 100


def test_a_run_of_a_user_is_tested_by_its_own_errors() -> None:
    own = replace(ROW, tests=OWN_CHECK)
    assert speed_up(own, BASELINE) == 100
    with pytest.raises(RefusedError, match="without its tests"):
        speed_up(replace(own, error_bounds=None), BASELINE)
    with pytest.raises(RefusedError, match="error bound"):
        speed_up(replace(own, status="wrong"), BASELINE)


def test_nothing_is_said_of_what_was_not_measured() -> None:
    none = replace(ROW, median_ms=None, memory_mb=None)
    for ours, baseline in ((None, BASELINE), (ROW, None), (none, BASELINE), (ROW, none)):
        assert speed_up(ours, baseline) is None
        assert memory_saved(ours, baseline) is None
    assert memory_saved(replace(ROW, memory_mb=0.01), BASELINE) == 300
