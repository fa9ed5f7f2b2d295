"""`pfgm-fast sample`: what it writes, what it refuses, and that it goes on where it stopped."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pfgm_fast import EmpiricalField, archive, cli, cli_sample, sample


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.npy"
    np.save(path, np.random.default_rng(0).normal(size=(50, 2, 3)).astype(np.float32))
    return path


def command(data: Path, out: Path, **changes: Any) -> list[str]:
    options = {"D": 8, "n": 40, "out": out, "batch": 4, "seed": 7, **changes}
    return ["sample", str(data), *(f"--{name.replace('_', '-')}={value}" for name, value in options.items())]


def test_the_samples_are_those_of_the_library(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "samples.npy"
    assert cli.main(command(data, out)) == 0
    assert capsys.readouterr().out == f"written: {out}\n"
    field = EmpiricalField(torch.from_numpy(np.load(data)), 8.0)
    expected = sample(field, (40, 2, 3), seeds=range(7, 47), solver="rk45").samples
    assert np.array_equal(np.load(out), expected.numpy())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npy", "samples.npy"]


@pytest.mark.parametrize("solver", ["rk45", "heun"])
def test_an_interrupted_run_goes_on_to_the_same_result(
    solver: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole.npy", tmp_path / "parts.npy"
    assert cli.main(command(data, whole, solver=solver)) == 0

    left = 3  # one checks the options

    def interrupting(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        solution = sample(*arguments, **options)
        left -= 1
        if left == 0:
            solution.status[1::2] = 4
            stop = KeyboardInterrupt()
            stop.solution = solution  # type: ignore[attr-defined]  # as sample() does
            raise stop
        return solution

    monkeypatch.setattr(cli_sample, "sample", interrupting)
    assert cli.main(command(data, parts, solver=solver)) == cli.INTERRUPTED
    assert not parts.exists()
    notes = json.loads((tmp_path / "parts.npy.partial.json").read_text())
    assert notes["done"] == [[0, 33], [34, 35], [36, 37], [38, 39]]
    monkeypatch.setattr(cli_sample, "sample", sample)
    assert cli.main(command(data, parts, solver=solver)) == 0
    assert np.array_equal(np.load(parts), np.load(whole))
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize("solver", ["rk45", "heun"])
def test_ctrl_c_for_real(solver: str, data: Path, tmp_path: Path) -> None:
    """A process of its own, interrupted once it has noted something; started again it goes on."""
    whole, parts = tmp_path / "whole.npy", tmp_path / "parts.npy"
    options = {"solver": solver, "n": 4000, "batch": 2, "steps": 60}
    notes = tmp_path / "parts.npy.partial.json"
    start = "import sys; from pfgm_fast.cli import main; sys.exit(main())"
    program = [sys.executable, "-c", start, *command(data, parts, **options)]
    process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (notes.exists() and json.loads(notes.read_text())["done"]):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == cli.INTERRUPTED, err
    assert not parts.exists()
    assert cli.main(command(data, whole, **{**options, "batch": 500})) == 0
    assert cli.main(command(data, parts, **{**options, "batch": 500})) == 0
    assert np.array_equal(np.load(parts), np.load(whole))


def test_a_partial_file_of_other_settings_is_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(field: Any, shape: tuple[int, ...], **options: Any) -> Any:
        if shape[0]:
            raise KeyboardInterrupt

    out = tmp_path / "samples.npy"
    monkeypatch.setattr(cli_sample, "sample", stop)
    assert cli.main(command(data, out)) == cli.INTERRUPTED
    assert cli.main(command(data, out, seed=8)) == 1
    assert "was begun with seed=7, not seed=8" in capsys.readouterr().err
    assert (tmp_path / "samples.npy.partial").exists()


def test_nothing_is_overwritten(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "samples.npy"
    out.write_text("precious")
    assert cli.main(command(data, out)) == 1
    assert "exists already" in capsys.readouterr().err
    assert out.read_text() == "precious"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 0}, "--n must be an integer >= 1, got 0"),
        ({"batch": 0}, "--batch must be an integer >= 1"),
        ({"seed": 2**63}, "--seed must be below"),
        ({"device": "nowhere"}, "--device nowhere cannot be used"),
        ({"D": -1}, "D must be"),
        ({"sigma_min": 100}, "sigma_min must be < sigma_max"),
    ],
)
def test_bad_options(
    changes: dict[str, Any], message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command(data, tmp_path / "samples.npy", **changes)) == 1
    error = capsys.readouterr().err
    assert error.startswith("pfgm-fast sample: error: ")
    assert message in error
    assert not (tmp_path / "samples.npy").exists()


def test_rows_that_fail_do_not_hold_up_the_others(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command(data, tmp_path / "samples.npy", tolerance=1e-30)) == 1
    assert "40 of 40 samples did not reach the end; the others are kept" in capsys.readouterr().err


def test_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command(tmp_path / "none.npy", tmp_path / "samples.npy")) == 1
    assert "none.npy" in capsys.readouterr().err


def test_digest_tells_files_apart(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    assert archive.digest(first) != archive.digest(second)
