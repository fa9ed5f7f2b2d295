"""`pfgm-fast bench`: what it measures and tells and refuses, that it goes on, and that it praises nothing wrong."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pfgm_fast
from pfgm_fast import cli, cli_bench
from pfgm_fast.bench import ceilings, measure, memory, posterior_mean, rows
from pfgm_fast.bench.ceilings import Ceilings
from pfgm_fast.bench.measure import Block, Setup
from pfgm_fast.bench.queries import Query, Shape
from pfgm_fast.bench.rows import OWN_CHECK, Row, Table

TINY = ("--data=60", "--dimension=3", "--batch=8")
SHAPE = Shape(8, 60, 3, 128.0)
OPERATION = cli_bench.of_shape(SHAPE, SHAPE.name)
OURS = Row(
    operation="posterior_mean", case=SHAPE.name, variant=OPERATION.variants[0], provider=posterior_mean.NATIVE,
    setting="", threads=1, status=rows.OK, median_ms=2.0, p10_ms=1.9, p90_ms=2.1, repeats=7, error_bounds=0.1,
    error_median=1e-7, error_p99=1e-6, error_max=1e-6, gpairs_per_s=1.0, gflop_per_s=9.0, bound="log and exp",
    bound_share=0.5, copy_gb_per_s=10.0, matrix_gflop_per_s=80.0, log_exp_g_per_s=0.5, tests=OWN_CHECK,
)  # fmt: skip
PRODUCTS = replace(OURS, provider=posterior_mean.PRODUCTS, median_ms=7.0, bound_share=0.14)
CDIST = replace(OURS, provider=posterior_mean.CDIST, median_ms=9.0)
BARE = replace(OURS, provider=posterior_mean.BARE, median_ms=0.5, status=rows.PART, error_bounds=None)
WRONG = replace(PRODUCTS, status=rows.WRONG, error_bounds=30.0)
UNPREPARED = replace(OURS, provider=posterior_mean.NATIVE_UNPREPARED, median_ms=1.0)

REACHED = "pfgm_fast native reaches 50 % of the speed that log and exp would allow on this machine"
FASTEST = "the fastest alternative, two products"


@pytest.fixture
def fixed_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take a second, each time."""
    monkeypatch.setattr(ceilings, "measure", lambda device, stopwatch: Ceilings(10.0, 80.0, log_exp=0.5))


@pytest.fixture
def quick(fixed_ceilings: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor processes that measure memory."""
    monkeypatch.setattr(memory, "unavailable", lambda: "not here")


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)


def command(*arguments: object, provider: str = "native") -> list[str]:
    return ["bench", *map(str, arguments), "--quick", f"--provider={provider}"]


def counting(monkeypatch: pytest.MonkeyPatch, stop_at: int = 0) -> list[int]:
    """The threads of each block measured; the one at that place is interrupted."""
    blocks: list[int] = []
    function = measure.measure

    def counted(block: Block, setup: Setup, chosen: Callable[[str], bool]) -> list[Row]:
        blocks.append(setup.threads)
        if len(blocks) == stop_at:
            raise KeyboardInterrupt
        return function(block, setup, chosen)

    monkeypatch.setattr(measure, "measure", counted)
    return blocks


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command answers."""
    assert cli.main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pfgm-fast bench: error: ")
    assert err.count("\n") == 1
    return err


def test_a_run_tells_what_it_measured(native: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "rows.csv"
    assert cli.main(["bench", *TINY, "--out", str(out), "--quick", "--provider", "NATIVE", "centring"]) == 0
    text = capsys.readouterr().out
    assert f"pfgm_fast {pfgm_fast.__version__}, torch {torch.__version__}" in text
    assert "data:      B=8 M=60 N=3 D=128, quick, random\n" in text
    assert "\n1 thread\nprovider " in text
    assert re.search(r"^ceilings: copy \S+ GB/s, matrix products \S+ GFLOP/s, log and exp \S+ G/s; ", text, re.M)
    *_, sentence, written = text.strip().split("\n\n")
    assert re.fullmatch(r"pfgm_fast native reaches \S+ % of .*fastest alternative.*\.", sentence)
    assert written == f"written: {out}"
    measured = list(rows.read(out))
    assert {posterior_mean.NATIVE, posterior_mean.PRODUCTS_UNPREPARED} <= {row.provider for row in measured}
    assert "cdist" not in text
    for row in measured:
        assert f"\n{row.provider} " in text or f"\nskipped: {row.provider}: {row.remark}" in text
        if row.status != rows.SKIPPED:
            assert row.tests == OWN_CHECK
            assert row.error_bounds is not None
            assert (row.memory_mb is None) == (memory.unavailable() is not None)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", ">f4", "uint8"])
def test_a_file(
    dtype: str, native: str, fixed_ceilings: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "mine.npy", tmp_path / "rows.csv"
    values = np.random.default_rng(0).uniform(0, 200, (50, 2, 3)).astype(dtype)
    np.save(path, values)
    assert cli.main(command(path, "--batch=8", "--D=inf", "--out", out)) == 0
    text = capsys.readouterr().out
    assert ("computed as float32" in text) == (dtype in ("float64", "float16", ">f4"))
    row = rows.read(out).where(provider=posterior_mean.NATIVE).values("case")
    assert row[0].startswith(f"B=8 M=50 N=6 D=inf{' uint8' * (dtype == 'uint8')}, mine.npy ")
    data = cli_bench.load(path)
    assert data.dtype == (torch.uint8 if dtype == "uint8" else torch.float32)
    assert np.array_equal(data.numpy(), values.reshape(50, 6).astype(np.float32))
    measured = rows.read(out).get("posterior_mean", row[0], OURS.variant, posterior_mean.NATIVE)
    assert measured is not None
    assert measured.status == rows.OK
    assert (measured.memory_mb is None) == (memory.unavailable() is not None)


def test_files_of_one_size_are_kept_apart(
    native: str, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "mine.npy", tmp_path / "rows.csv"
    blocks = counting(monkeypatch)
    for number in range(2):
        np.save(path, np.full((20, 2), number, np.float32))
        assert cli.main(command(path, "--batch=8", "--out", out)) == 0
    assert len(blocks) == 2
    assert len(rows.read(out).values("case")) == 2


def test_blocks_travel_to_other_processes(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", np.ones((4, 2)))
    parser_options = {"pixels": False, "data": None, "dimension": None, "batch": 2, "D": 1.0, "quick": False}
    options = argparse.Namespace(file=tmp_path / "data.npy", **parser_options)
    for subject in (cli_bench._of_file(options), cli_bench._synthetic(options, torch.device("cpu"))):
        operation = pickle.loads(pickle.dumps(subject.block)).operation
        assert list(operation.cases) == [subject.block.case]
        assert operation.variants == (subject.block.variant,)


# ---- going on


def test_a_finished_block_is_not_measured_again(
    native: str,
    quick: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "rows.csv"
    blocks = counting(monkeypatch)
    assert cli.main(command(*TINY, "--out", out)) == 0
    first, text = out.read_text(), capsys.readouterr().out
    assert cli.main(command(*TINY, "--out", out)) == 0
    assert blocks == [1]
    assert out.read_text() == first
    again = capsys.readouterr().out
    assert f"1 thread, measured before ({out}, " in again
    assert again.splitlines()[-3].startswith("pfgm_fast native reaches ")
    assert next(line for line in text.splitlines() if "unprepared" in line) in again

    for changes in (["--batch=9"], ["--D=inf"], ["--pixels"], ["--data=61"]):
        assert cli.main([*command(*TINY, "--out", out), *changes]) == 0
    assert len(blocks) == 5
    assert (
        cli.main([*command(*TINY, "--out", out), "--provider", "native", "cdist in chunks"]) == 0
    )  # one was not there
    assert len(blocks) == 6
    monkeypatch.setattr(pfgm_fast, "__version__", "99")
    assert cli.main(command(*TINY, "--out", out)) == 0
    assert len(blocks) == 7


def test_an_interrupted_run_goes_on(
    native: str,
    quick: None,
    two_cores: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "rows.csv"
    arguments = command(*TINY, "--threads", 1, 2, "--out", out)
    with monkeypatch.context() as patch:
        assert counting(patch, stop_at=2) == []
        assert cli.main(arguments) == cli.INTERRUPTED
    assert "\n1 thread\n" in capsys.readouterr().out
    kept = rows.read(out)
    assert kept.values("threads") == [1]
    blocks = counting(monkeypatch)
    assert cli.main(arguments) == 0
    assert blocks == [2]
    assert rows.read(out).values("threads") == [1, 2]
    assert list(rows.read(out).where(threads=1)) == list(kept)


def test_ctrl_c_for_real() -> None:
    """A process of its own, interrupted while it measures."""
    code = "import sys; from pfgm_fast.cli import main; sys.exit(main())"
    program = [sys.executable, "-c", code, "bench", "--data=20000", "--dimension=200", "--provider=cdist"]
    process = subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert process.stderr is not None
    seen = ""
    while "cdist" not in seen:
        more = process.stderr.read(1)
        assert more, seen
        seen += more
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == cli.INTERRUPTED
    assert err.endswith("interrupted\n")
    assert "Traceback" not in err


# ---- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--data=1"], "--data must be an integer >= 2, got 1"),
        (["--dimension=0"], "--dimension must be an integer >= 1, got 0"),
        (["--data=1000000000", "--dimension=1000000"], "--data 1000000000 and --dimension 1000000 do not fit"),
        (["--batch=0"], "--batch must be an integer >= 1, got 0"),
        (["--D=0"], "--D must be > 0, got 0"),
        (["--D=nan"], "--D must be > 0, got nan"),
        (["--device=nowhere"], "--device nowhere cannot be used: "),
        (["--device=meta"], "--device must be of cpu or cuda, got meta"),
        (["--threads", "0"], "--threads must be an integer >= 1, got 0"),
        (["--threads", "1", "3"], "--threads must be at most 2, the cores that this process may use, got 3"),
        (
            ["--provider", "native", "nativ3"],
            "--provider must be part of a name, got 'nativ3'; known: pfgm_fast native",
        ),
    ],
)
def test_bad_options(
    changes: list[str], message: str, two_cores: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.csv"
    assert message in refused([*command("--out", out), *changes], capsys)
    assert not out.exists()


@pytest.mark.parametrize("size", [["--data=5"], ["--dimension=5"], ["--pixels"]])
def test_a_file_and_a_size(size: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "data.npy", np.ones((4, 2)))
    error = refused(command(tmp_path / "data.npy", *size), capsys)
    assert "got DATA.npy and a size of random data" in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "must be a .npy file, but could not be read"),
        (b"1, 2\n3, 4\n", "must be a .npy file, but could not be read"),
        (b"PK\x03\x04", "must be a .npy file, but could not be read"),
        (np.ones((4, 2), np.int64), "must hold floating numbers or uint8, got int64"),
        (np.ones(4), "must be (M, *data) with M >= 1 and N >= 1, got shape (4,)"),
        (np.ones((0, 2)), "got shape (0, 2)"),
        (np.array([[1.0], [np.nan]]), "data.npy as float32 must be finite, got 1 NaN or infinite of 2 values"),
        (np.full((3, 1), 1e300), "data.npy as float32 must be finite, got 3 NaN"),
    ],
    ids=["none", "empty", "text", "zip", "integers", "one axis", "no data", "nan", "too large for float32"],
)
def test_bad_files(content: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "data.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    error = refused(command(path), capsys)
    assert message in error
    assert "data.npy" in error


def test_an_archive_of_arrays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "data.npz", np.ones((4, 2)))
    assert "one array, got an archive of several" in refused(command(tmp_path / "data.npz"), capsys)


@pytest.mark.parametrize("content", ["precious", "a,b\n1,2\n"])
def test_nothing_is_overwritten(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.csv"
    out.write_text(content)
    assert "must be a CSV file of measurements, but has no column 'operation'" in refused(command("--out", out), capsys)
    assert out.read_text() == content
    assert str(tmp_path) in refused(command("--out", tmp_path), capsys)


def test_threads_are_of_the_cpu() -> None:
    with pytest.raises(ValueError, match="--threads is for a CPU, got it with --device cuda:1"):
        cli_bench._threads([1], torch.device("cuda:1"))
    assert cli_bench._threads(None, torch.device("cuda:1")) == [1]


# ---- the closing sentence


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ([OURS, PRODUCTS, CDIST, BARE, UNPREPARED], f"{REACHED}; it is 3.5× faster than {FASTEST}."),
        ([OURS, WRONG], f"{REACHED}; it is 3.5× faster than {FASTEST}, whose result is outside the accuracy contract."),
        ([OURS, replace(PRODUCTS, median_ms=1.0), CDIST], f"{REACHED}; {FASTEST}, is 2× faster than it."),
        (
            [OURS, replace(WRONG, median_ms=1.0)],
            f"{REACHED}; {FASTEST}, is 2× faster than it, but its result is outside the accuracy contract.",
        ),
        ([OURS, replace(PRODUCTS, median_ms=2.002)], f"{REACHED}; {FASTEST}, is as fast as it."),
        (
            [replace(OURS, bound_share=1.2), BARE, replace(CDIST, status=rows.SKIPPED, median_ms=None)],
            f"{REACHED.replace('50', '120')} (it need not do all that this counts); no alternative was measured.",
        ),
        (
            [replace(OURS, status=rows.WRONG, error_bounds=7.0), PRODUCTS],
            "The result of pfgm_fast native is WRONG here: 7 times the error that is allowed, so its speed means "
            "nothing. Please report it with this output.",
        ),
        ([PRODUCTS, CDIST], "No backend of pfgm_fast was measured."),
        ([replace(OURS, status=rows.SKIPPED, median_ms=None)], "No backend of pfgm_fast was measured."),
    ],
)
def test_the_closing_sentence(table: list[Row], sentence: str) -> None:
    assert cli_bench.verdict(OPERATION, Table(table)) == sentence


def test_only_a_checked_result_of_an_own_run_is_praised() -> None:
    assert rows.speed_up(OURS, PRODUCTS) == 3.5
    for refused in (
        replace(OURS, error_bounds=None),
        replace(OURS, status=rows.WRONG, error_bounds=2.0),
        replace(OURS, tests=rows.NOT_RUN),
        replace(OURS, tests=""),
    ):
        with pytest.raises(rows.RefusedError):
            rows.speed_up(refused, PRODUCTS)


def test_wrong_results_are_not_praised(
    native: str, quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(query: Query) -> posterior_mean.Call:
        return lambda: query.x.neg()

    providers = tuple(replace(p, prepare=wrong) if p.ours else p for p in posterior_mean.PROVIDERS)
    monkeypatch.setattr(posterior_mean, "PROVIDERS", providers)
    assert cli.main(["bench", *TINY, "--quick", "--provider", "native", "cdist"]) == 0
    text = capsys.readouterr().out
    assert "faster" not in text
    assert "The result of pfgm_fast native is WRONG here" in text.splitlines()[-1]
    assert "outside the accuracy contract" in text


def test_what_cannot_run_is_named_with_the_reason(
    native: str, quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(query: Query) -> posterior_mean.Call:
        raise RuntimeError("no such thing\nhere")

    changes: dict[str, Any] = {
        posterior_mean.CDIST: {"refuses": lambda query: "it is not installed"},
        posterior_mean.CHUNKED: {"prepare": failing},
    }
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    providers = tuple(replace(p, **changes.get(p.name, {})) for p in posterior_mean.PROVIDERS)
    monkeypatch.setattr(posterior_mean, "PROVIDERS", providers)
    assert cli.main(["bench", *TINY, "--quick", "--provider", "native", "cdist"]) == 0
    text = capsys.readouterr().out
    assert "\nskipped: cdist + softmax + mm: it is not installed\n" in text
    assert "\nskipped: cdist in chunks: failed: RuntimeError: no such thing\n" in text
    assert "\nOther processes keep this machine busy (load 99.0 on " in text
    assert text.rstrip().endswith("no alternative was measured.")
