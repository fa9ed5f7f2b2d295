"""The command `pfgm-fast`: what it prints, how it fails, how it is interrupted."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pfgm_fast import __version__, cli, demo, info


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command answers to arguments that it must refuse: usage and one line."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    usage, _, line = err.rpartition("error: ")
    assert usage.startswith("usage: pfgm-fast")
    assert line.count("\n") == 1
    return line


def test_info_prints_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    assert capsys.readouterr().out == f"{info()}\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"pfgm-fast {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "mentioned"),
    [
        (["--help"], ("info", "demo", "--version")),
        (["info", "--help"], ("backends",)),
        (["demo", "--help"], ("--out", "--seed", "--quick", "demo-output", "pfgm-fast[demo]")),
    ],
)
def test_help(arguments: list[str], mentioned: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert [word for word in mentioned if word not in text] == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "COMMAND"),
        (["paint"], "paint"),
        (["info", "--fast"], "--fast"),
        (["demo", "--seed", "-1"], "--seed"),
        (["demo", "--seed", "one"], "must be an integer from 0 to 2**63 - 1, got 'one'"),
        (["demo", "--seed", str(2**63)], "--seed"),
        (["demo", "--out"], "--out"),
    ],
)
def test_bad_arguments(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert reason in refused(arguments, capsys)


@pytest.mark.parametrize(
    ("absent", "named"),
    [
        ({"matplotlib"}, "matplotlib not installed"),
        ({"sklearn"}, "scikit-learn not installed"),
        ({"matplotlib", "sklearn"}, "matplotlib and scikit-learn not installed"),
    ],
)
def test_missing_extras_are_named(
    absent: set[str],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    find: Callable[[str], object] = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else find(name))
    out = tmp_path / "figures"
    assert cli.main(["demo", "--out", str(out)]) == 1
    assert capsys.readouterr().err == f'pfgm-fast demo: error: {named}; run: pip install "pfgm-fast[demo]"\n'
    assert not out.exists()


@pytest.mark.skipif(demo.missing() is not None, reason=str(demo.missing()))
def test_a_folder_that_cannot_be_made(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["demo", "--out", str(tmp_path / "file")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pfgm-fast demo: error: ")
    assert err.count("\n") == 1
    assert str(tmp_path / "file") in err


@pytest.mark.skipif(demo.missing() is not None, reason=str(demo.missing()))
def test_interrupt_ends_with_130_and_no_traceback(tmp_path: Path) -> None:
    code = "import sys; from pfgm_fast.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code, "demo", "--out", str(tmp_path / "figures")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    for line in process.stdout:  # the first work begins after this line
        if "field lines from the far hemisphere" in line:
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == cli.INTERRUPTED
    assert err.endswith("interrupted\n")
    assert "Traceback" not in err


def test_tuning_needs_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["tune", "--data", "100", "--dimension", "64"]) == 1
    assert "no GPU to tune for" in capsys.readouterr().err


def test_tuning_needs_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["tune", "--data", "0", "--dimension", "64"])
    assert "must be an integer >= 1, got '0'" in capsys.readouterr().err
