"""`python -m benchmarks.run --check BASE`: two builds of the library side by side."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

sys.path.append(str(Path(__file__).parent.parent))  # benchmarks/ is not installed
from benchmarks import accuracy, check, run
from benchmarks.check import Compared, Revision, RevisionError
from benchmarks.checkout import ROOT
from benchmarks.registry import find
from pfgm_fast.bench.measure import Block

NOWHERE = "no-such-revision-anywhere"


def test_an_unknown_revision_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RevisionError, match=f"--check must name a revision, got '{NOWHERE}', which git does not know"):
        check.commit_of(NOWHERE)
    assert run.main(["--check", NOWHERE, "--operation", "posterior_mean"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"--check must name a revision, got '{NOWHERE}'" in err
    assert run.main(["--check", "HEAD", "--device", "meta"]) == 2
    assert "--check measures on the CPU, got --device meta" in capsys.readouterr().err


def test_times_are_compared_pair_by_pair() -> None:
    before, now = [4e-3, 8e-3, 6e-3, 2e-3, 5e-3], [2e-3, 2e-3, 2e-3, 2e-3, 1e-3]  # 2, 4, 3, 1, 5 times
    assert Compared(before, now).line("a call") == ("a call", "5", "2", "2.5", "2–4", "5")
    assert Compared([1e-3] * 3, [2e-3] * 3).line("slower") == ("slower", "1", "2", "0.5", "0.5–0.5", "3")
    assert len(Compared(before, now).line("a call")) == len(check.HEADER)


class Fake:
    """A revision that answers at once, and writes down when it was asked."""

    def __init__(self, name: str, labels: list[str], seconds: float, log: list[str], wrong: str = "") -> None:
        self.name, self.seconds, self.log = name, seconds, log
        self.right = {label: label != wrong for label in labels}

    def ask(self, **what: Any) -> Any:
        if "prepare" in what:
            assert what["prepare"] == {"operation": "posterior_mean", "case": "a case", "variant": "a variant"}
            return self.right
        self.log.append(f"{self.name} {what['call']}")
        return self.seconds


def test_revisions_take_turns() -> None:
    block, log = Block(partial(find, "posterior_mean"), "a case", "a variant"), list[str]()
    fakes = [Fake("before", ["removed", "slow", "fast"], 0.2, log), Fake("now", ["fast", "slow", "new"], 0.1, log)]
    lines = check.compare(block, cast(list[Revision], fakes), seconds=1.0)
    assert [line[0] for line in lines] == [f"posterior_mean a case, a variant: {label}" for label in ("slow", "fast")]
    for line in lines:
        assert line[1:] == ("200", "100", "2", "2–2", "7")  # pairs of 0.3 s until each has had its second
    for label in ("slow", "fast"):
        turns = [f"{who} {label}" for who in ("before", "now", "now", "before")]
        assert [entry for entry in log if label in entry] == (turns * 4)[:14]


def test_a_wrong_result_has_no_ratio() -> None:
    block, log = Block(partial(find, "posterior_mean"), "a case", "a variant"), list[str]()
    fakes = [Fake("before", ["one", "two"], 0.2, log), Fake("now", ["one", "two"], 0.1, log, wrong="one")]
    one, two = check.compare(block, cast(list[Revision], fakes), seconds=1.0)
    assert one == ("posterior_mean a case, a variant: one", "", "wrong", "", "", "")
    assert two[1:4] == ("200", "100", "2")
    assert not any("one" in entry for entry in log)


@pytest.mark.parametrize(("seconds", "pairs"), [(100.0, check.LEAST), (1e-6, check.MOST)])
def test_repeats_are_neither_too_few_nor_too_many(seconds: float, pairs: int) -> None:
    block = Block(partial(find, "posterior_mean"), "a case", "a variant")
    fakes = [Fake(name, ["one"], seconds, []) for name in ("before", "now")]
    (line,) = check.compare(block, cast(list[Revision], fakes), seconds=1.0)
    assert line[-1] == str(pairs)


def test_a_revision_beside_itself_is_as_fast(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "commit_of", lambda base: "")
    monkeypatch.setattr(check, "built", lambda base, commit: ROOT)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert (
        run.main(["--check", "BASE", "--operation", accuracy.NAME, "--case", "uint8", "--quick", "--tests", "skip"])
        == 0
    )
    text = capsys.readouterr().out
    assert text.startswith(f"BASE ({ROOT.name}) beside this tree\n\ncase ")
    lines = [line.split() for line in text.splitlines() if accuracy.NAME in line]
    assert len(lines) == len(accuracy.LEVELS)
    for line in lines:
        pairs, ratio = int(line[-1]), float(line[-3])
        assert check.LEAST <= pairs <= check.MOST
        assert 0.5 < ratio < 2


def test_only_ours_on_this_device_is_compared(native: str) -> None:
    with Revision(ROOT) as revision:
        field = {"operation": "posterior_mean", "case": "B=1797 M=1797 N=64 D=128", "variant": "sigma 80"}
        labels = revision.ask(prepare=field)
        assert {"pfgm_fast native", "pfgm_fast native, unprepared"} <= set(labels)
        assert all(label.startswith("pfgm_fast") for label in labels)
        assert not any("triton" in label for label in labels)
        assert 0 < revision.ask(call="pfgm_fast native") < 60
        curve = {"operation": "scaling_data", "case": "B=32 M=1000 N=16 D=128", "variant": "sigma 0.002 to 80"}
        assert revision.ask(prepare=curve) == {"pfgm_fast native": True, "pfgm_fast, data in a mapped file": True}


def test_a_process_that_ends_is_said_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pfgm_fast").mkdir()
    (tmp_path / "pfgm_fast" / "__init__.py").write_text("raise SystemExit(5)")
    with Revision(tmp_path) as revision, pytest.raises(RuntimeError, match="the process that measures ended with 5"):
        revision.ask(prepare={})
