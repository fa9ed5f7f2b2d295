"""`python -m benchmarks.run`: tests first, a process for each number of threads, what is left out, what is kept."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent))  # benchmarks/ is not installed
from benchmarks import gate, run, scaling, shapes, worker
from benchmarks.checkout import ROOT
from benchmarks.registry import OPERATIONS
from pfgm_fast.bench import posterior_mean as pm
from pfgm_fast.bench import rows
from pfgm_fast.bench.measure import NO_TIME, Block, Setup
from pfgm_fast.bench.queries import ALL_80, SPREAD
from pfgm_fast.bench.rows import Row

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CASE = shapes.SMALL_LATENTS.name
CHOICE = ("--operation", "posterior_mean", "--case", CASE)
Measure = Callable[..., list[Row]]


def row(block: Block, setup: Setup, provider: str, milliseconds: float | None, remark: str = "") -> Row:
    status = "skipped" if milliseconds is None else "ok"
    return Row(
        block.operation.name, block.case, block.variant, provider, "", setup.threads, status, milliseconds,
        milliseconds, milliseconds, error_bounds=0.5, remark=remark, tests=setup.tests, **setup.origin._asdict(),
    )  # fmt: skip


def rows_of(block: Block, setup: Setup, *rest: object) -> list[Row]:
    providers = [provider.name for provider in block.operation.providers if "cpu" in provider.devices]
    return [row(block, setup, name, 2.0 if name == pm.NATIVE else 14.0) for name in providers]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The variants measured so far, by processes that are played by this one; their rows are made up."""
    blocks: list[str] = []

    def measure(block: Block, setup: Setup, *rest: object) -> list[Row]:
        blocks.append(f"{block.variant}, {setup.threads}")
        return rows_of(block, setup, *rest)

    def played(command: list[str], environment: dict[str, str]) -> int:
        assert command[:3] == [sys.executable, "-m", "benchmarks.worker"]
        return worker.main(command[3:])

    monkeypatch.setattr(run, "_wait", played)
    monkeypatch.setattr(run, "commit", lambda: "abc")
    monkeypatch.setattr(worker, "pin", lambda threads: None)
    monkeypatch.setattr(worker, "measure", measure)
    return blocks


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[tuple[argparse.Namespace, dict[str, str]]]:
    """What the processes are asked, and their environment; they do nothing."""
    asked: list[tuple[argparse.Namespace, dict[str, str]]] = []

    def wait(command: list[str], environment: dict[str, str]) -> int:
        asked.append((worker._options(command[3:]), environment))
        return 0

    monkeypatch.setattr(run, "_wait", wait)
    return asked


def written(folder: Path, passes: bool) -> str:
    path = folder / "test_of_the_moment.py"
    path.write_text(f"def test_it():\n    assert {passes}\n")
    return str(path)


# ---- the gate


def test_nothing_is_measured_while_a_test_is_red(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gate, "tests_of", lambda operations, device: [written(tmp_path, passes=False)])
    out = tmp_path / "rows.csv"
    assert run.main([*CHOICE, "--out", str(out)]) == 1
    assert "the tests are red: nothing is measured" in capsys.readouterr().out
    assert measured == []
    assert not out.exists()


def test_speed_ups_are_reported_where_the_tests_passed(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gate, "tests_of", lambda operations, device: [written(tmp_path, passes=True)])
    out = tmp_path / "rows.csv"
    assert run.main([*CHOICE, "--out", str(out)]) == 0
    assert {one.tests for one in rows.read(out)} == {"passed"}
    text = capsys.readouterr().out
    assert "7× faster" in text
    assert f"rows are in {out}" in text
    assert measured == [f"{SPREAD}, 1", f"{ALL_80}, 1", f"{SPREAD}, 2", f"{ALL_80}, 2"]


def test_no_speed_up_is_reported_without_tests(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gate, "passed", lambda tests: pytest.fail("the tests were run"))
    out = tmp_path / "rows.csv"
    assert run.main([*CHOICE, "--out", str(out), "--tests", "skip"]) == 0
    assert measured
    assert {one.tests for one in rows.read(out)} == {"not run"}
    text = capsys.readouterr().out
    assert "untested" in text
    assert re.search(r"\d× (faster|slower)", text) is None
    assert "PASS" not in text


def test_the_tests_of_all_chosen_operations_are_run() -> None:
    found = gate.tests_of(OPERATIONS.values(), CPU)
    assert len(found) == len(set(found))
    assert {"tests/test_native.py", "tests/test_training.py", "tests/test_odeint.py"} <= set(found)
    own = list(OPERATIONS["training_target"].tests)
    assert gate.tests_of([OPERATIONS["training_target"]], CPU) == own
    assert gate.tests_of([OPERATIONS["training_target"]], CUDA) == [*own, *gate.ON_GPU]
    assert all((ROOT / test).exists() for test in gate.ON_GPU)


# ---- the parent


def test_a_process_for_each_number_of_threads(commands: list[tuple[argparse.Namespace, dict[str, str]]]) -> None:
    out = "rows.csv"
    assert run.main(["--tests", "passed", "--quick", "--provider", "native", "--out", out]) == 0
    assert [one.threads for one, _ in commands] == [1, 2, 1, 2, 1]
    alone = ["training_target"]  # which leaves other settings of memory behind
    together = [name for name in OPERATIONS if name not in (*alone, "error_by_sigma")]
    assert [one.operation for one, _ in commands] == [together, together, alone, alone, ["error_by_sigma"]]
    assert [environment for _, environment in commands] == [{}, {}, {}, {}, {"TRITON_INTERPRET": "1"}]
    for one, _ in commands:
        assert (one.tests, one.quick, one.resume, one.provider, one.case) == ("passed", True, False, ["native"], None)
        assert one.seconds == float("inf")
        assert one.out.is_absolute()
        assert one.commit


def test_processes_share_the_time(
    commands: list[tuple[argparse.Namespace, dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([100.0, 100.0, 130.0])  # the first takes all of its half
    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=lambda: next(times)))
    assert run.main([*CHOICE, "--tests", "passed", "--seconds", "60", "--out", "rows.csv"]) == 0
    assert [one.seconds for one, _ in commands] == [30, 30]


def test_an_unknown_case_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--operation", "posterior_mean", "--case", "no such case"]) == 2
    assert f"no case matches ['no such case']; known: {next(iter(shapes.cases()))}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run.main(["--operation", "no such operation"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--device", "cuda"]) == 3
    assert "there is no GPU" in capsys.readouterr().err


def test_the_parent_waits_for_an_interrupted_process(monkeypatch: pytest.MonkeyPatch) -> None:
    class Process:
        def __init__(self, command: list[str], **options: Any) -> None:
            assert options["env"]["OF_THE_TEST"] == "1"
            self.waited = 0

        def __enter__(self) -> Process:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def wait(self) -> int:
            self.waited += 1
            if self.waited < 3:
                raise KeyboardInterrupt
            return 130

    monkeypatch.setattr(subprocess, "Popen", Process)
    assert run._wait(["command"], {"OF_THE_TEST": "1"}) == 130


# ---- the process that measures


def names(found: list[Block]) -> list[tuple[str, str]]:
    return [(block.case, block.variant) for block in found]


def test_blocks_are_those_of_the_device_and_the_threads() -> None:
    field = ["posterior_mean"]
    assert names(worker.blocks(field, None, CPU, 2)) == [
        (name, variant)
        for name, case in shapes.cases().items() if "cpu" in case.devices for variant in (SPREAD, ALL_80)
    ]  # fmt: skip
    on_gpu = names(worker.blocks(field, None, CUDA, 1))
    assert {case for case, _ in on_gpu} == {shape.name for shape in shapes.ON_GPU}
    assert names(worker.blocks(field, ["N=784", "uint8"], CPU, 1)) == [
        (shape.name, variant)
        for shape in (shapes.MNIST, shapes.SMALL_CIFAR, shapes.SMALL_FFHQ) for variant in (SPREAD, ALL_80)
    ]  # fmt: skip
    curves = list(scaling.SCALING)
    assert {block.operation.name for block in worker.blocks(curves, None, CPU, 2)} == {"scaling_queries"}
    assert {block.operation.name for block in worker.blocks(curves, None, CUDA, 2)} == set(curves)
    assert worker.blocks(["linear_odes"], None, CUDA, 1) == []


def test_a_process_is_bound_to_as_many_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[list[int]] = []
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {7, 3, 5}, raising=False)
    monkeypatch.setattr("os.sched_setaffinity", lambda process, to: bound.append(to), raising=False)
    worker.pin(1)
    worker.pin(2)
    assert bound == [[3], [3, 5]]


def test_finished_rows_survive_an_interruption(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(block: Block, setup: Setup, *rest: object) -> list[Row]:
        if block.variant == ALL_80:
            raise KeyboardInterrupt
        return rows_of(block, setup, *rest)

    monkeypatch.setattr(worker, "measure", interrupted)
    out = tmp_path / "rows.csv"
    assert run.main([*CHOICE, "--tests", "passed", "--out", str(out)]) == 130
    assert {(one.variant, one.threads) for one in rows.read(out)} == {(SPREAD, 1)}
    assert f"finished rows are in {out}" in capsys.readouterr().out


def test_a_resumed_run_leaves_out_what_it_has(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = [*CHOICE, "--tests", "passed", "--resume", "--out", str(tmp_path / "rows.csv")]
    assert run.main([*again, "--threads", "1"]) == 0
    assert measured == [f"{SPREAD}, 1", f"{ALL_80}, 1"]
    assert run.main(again) == 0
    assert measured[2:] == [f"{SPREAD}, 2", f"{ALL_80}, 2"]
    few = [*CHOICE, "--tests", "passed", "--provider", "native", "--threads", "1", "--resume", "--out"]
    assert run.main([*few, str(tmp_path / "few.csv")]) == 0
    rows.update(tmp_path / "native.csv", [one for one in rows.read(tmp_path / "few.csv") if "native" in one.provider])
    assert run.main([*few, str(tmp_path / "native.csv")]) == 0  # it has all that is asked for
    assert run.main([*again, "--threads", "1", "--out", str(tmp_path / "native.csv")]) == 0  # but not all there is
    assert measured[4:] == [f"{SPREAD}, 1", f"{ALL_80}, 1"] * 2
    measured.clear()
    monkeypatch.setattr(run, "commit", lambda: "def")
    assert run.main(again) == 0
    assert measured == [f"{SPREAD}, 1", f"{ALL_80}, 1", f"{SPREAD}, 2", f"{ALL_80}, 2"]


def test_a_resumed_run_measures_what_had_no_time(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = [*CHOICE, "--tests", "passed", "--threads", "1", "--resume", "--out", str(tmp_path / "rows.csv")]
    with monkeypatch.context() as patch:
        patch.setattr(worker, "measure", lambda block, setup, *rest: [row(block, setup, pm.NATIVE, None, NO_TIME)])
        assert run.main(again) == 0
    assert run.main(again) == 0
    assert measured == [f"{SPREAD}, 1", f"{ALL_80}, 1"]


def test_a_block_gets_a_share_of_the_time(measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2.5 times its equal share of what is left, and the last ones all of it."""
    left: list[float] = []

    def measure(block: Block, setup: Setup, chosen: object, until: float) -> list[Row]:
        left.append(until - time.monotonic())
        return rows_of(block, setup)

    monkeypatch.setattr(worker, "measure", measure)
    options = ["--operation", "posterior_mean", "--tests", "passed", "--out", str(tmp_path / "rows.csv")]
    assert worker.main([*options, "--seconds=1000"]) == 0
    count = len(shapes.ON_CPU) * 2
    assert left == pytest.approx([1000 * min(1, worker.SHARE / (count - place)) for place in range(count)], abs=20)


def test_chosen_providers_and_efforts_reach_the_measurement(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(block: Block, setup: Setup, chosen: Callable[[str], bool], until: float) -> list[Row]:
        assert [chosen(name) for name in (pm.NATIVE, pm.PRODUCTS)] == [True, False]
        assert (setup.device, setup.effort, setup.memory) == (CPU, worker.QUICK, False)
        assert until == float("inf")
        return rows_of(block, setup)

    monkeypatch.setattr(worker, "measure", measure)
    options = ["--tests", "skip", "--quick", "--provider", "native", "avx2", "--out", str(tmp_path / "rows.csv")]
    assert run.main([*CHOICE, *options]) == 0


def test_a_real_run_writes_rows(tmp_path: Path) -> None:
    shape, out = shapes.SMALL_TOY_GAUSSIAN, tmp_path / "rows.csv"
    command = [sys.executable, "-m", "benchmarks.run", "--operation", "posterior_mean", "--case", shape.name]
    command += ["--provider", "bare", "chunks", "--threads", "1", "--quick", "--tests", "passed", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = list(rows.read(out))
    assert [(one.provider, one.variant, one.status == "part") for one in found] == [
        (name, variant, name == pm.BARE) for variant in (SPREAD, ALL_80) for name in (pm.BARE, pm.CHUNKED)
    ]
    for one in found:
        assert f"posterior_mean: {shape.name}, {one.variant}, 1 thread\n" in done.stdout
        assert (one.threads, one.tests, one.memory_mb) == (1, "passed", None)
        assert one.commit
        assert one.median_ms is not None
        assert one.copy_gb_per_s is not None
