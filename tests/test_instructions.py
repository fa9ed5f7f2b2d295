"""The instructions of the native kernels are those on file, and a count that is not is found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent))  # benchmarks/ is not installed
from benchmarks.instructions import __main__ as command
from benchmarks.instructions import counts, program
from benchmarks.instructions.counts import Count
from benchmarks.instructions.program import NotCountedError, Tools

TOOLS = Tools("g++ 1.0", "glibc 1.0", "valgrind-1.0")
CASES = [("field", "base"), ("field", "avx2"), ("update", "base")]
COUNTED = dict.fromkeys(CASES, 1_000_000)
ON_FILE = [Count(*case, 1_000_000, *TOOLS) for case in CASES]


@pytest.fixture(scope="module")
def driver() -> Path:
    """Skipped where other tools would count something else; that ours do not build it is an error."""
    try:
        tools = program.tools()
    except NotCountedError as error:
        pytest.skip(str(error))
    if why := counts.incomparable(counts.read(counts.FILE), tools):
        pytest.skip(why)
    return program.build()


def count(driver: Path, case: str, isa: str, **environment: str) -> int:
    try:
        return program.count(driver, case, isa, environment)
    except NotCountedError as error:
        pytest.skip(str(error))


def test_counts_on_file_are_met(driver: Path) -> None:
    counted = {case: count(driver, *case) for case in program.cases(driver)}
    assert {isa for _, isa in counted} == {"base", "avx2"}
    verdicts = counts.verdicts(counted, counts.read(counts.FILE))
    faults = [f"{verdict}  {verdict.fault}" for verdict in verdicts if verdict.fault]
    assert not faults, "\n".join(["", counts.HEADER, *faults])


@pytest.mark.parametrize("case", ["field-N64-D128-near", "update-N2-double"])
def test_nothing_but_the_code_decides_about_a_count(driver: Path, case: str) -> None:
    first = count(driver, case, "base")
    assert count(driver, case, "base") == first
    assert count(driver, case, "base", OMP_NUM_THREADS="2", LONG="x" * 5000) == first


def test_a_case_that_fails_is_an_error(driver: Path) -> None:
    with pytest.raises(RuntimeError, match="nothing base ended with status 2: usage"):
        program.count(driver, "nothing", "base")


@pytest.mark.parametrize(
    ("instructions", "fault"),
    [
        (1_035_000, "more instructions"),
        (965_000, "better: python -m benchmarks.instructions --write"),
        (1_025_000, ""),
        (975_000, ""),
    ],
)
def test_three_percent_are_allowed(instructions: int, fault: str) -> None:
    verdicts = counts.verdicts({**COUNTED, CASES[1]: instructions}, ON_FILE)
    assert [verdict.fault for verdict in verdicts] == ["", fault, ""]


def test_missing_and_stale_cases_are_faults() -> None:
    missing = counts.verdicts(COUNTED, ON_FILE[1:])
    assert [verdict.fault.split(":")[0] for verdict in missing] == ["not on file", "", ""]
    stale = counts.verdicts({case: COUNTED[case] for case in CASES[:2]}, ON_FILE)
    assert [verdict.fault.split(":")[0] for verdict in stale] == ["", "", "on file, but no longer a case"]


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[counts.Case, int]:
    """What the command counts; what it finds on file is COUNTED."""
    now = dict(COUNTED)
    file = tmp_path / "counts.csv"
    counts.write(COUNTED, TOOLS, file)
    monkeypatch.setattr(counts, "FILE", file)
    monkeypatch.setattr(program, "tools", lambda: TOOLS)
    monkeypatch.setattr(program, "build", Path)
    monkeypatch.setattr(program, "cases", lambda driver: list(now))
    monkeypatch.setattr(program, "count", lambda driver, case, isa: now[case, isa])
    return now


def test_the_command_ends_with_1_where_a_count_is_off(
    counted: dict[counts.Case, int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([]) == 0
    assert capsys.readouterr().out.endswith("all 3 counts are met\n")
    counted[CASES[0]] = 1_035_000
    assert command.main([]) == 1
    assert "1.0350  more instructions\n" in capsys.readouterr().out
    assert command.main(["--case", "update"]) == 0
    del counted[CASES[0]]
    assert command.main([]) == 1
    assert "on file, but no longer a case" in capsys.readouterr().out
    assert command.main(["--case", "nothing"]) == 2


def test_write_replaces_the_file(counted: dict[counts.Case, int]) -> None:
    counted[CASES[0]] = 500_000
    del counted[CASES[2]]
    assert command.main(["--write"]) == 0
    assert counts.read(counts.FILE) == [Count(*CASES[0], 500_000, *TOOLS), Count(*CASES[1], 1_000_000, *TOOLS)]
    assert command.main([]) == 0


def test_counts_of_other_tools_are_not_compared(
    counted: dict[counts.Case, int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "tools", lambda: TOOLS._replace(compiler="g++ 2.0"))
    counted[CASES[0]] = 2_000_000
    assert command.main([]) == 3
    said = capsys.readouterr().out
    assert "cannot be compared: they are of g++ 1.0, glibc 1.0, valgrind-1.0; here is g++ 2.0" in said
    assert command.main(["--write"]) == 0
    assert command.main([]) == 0


def test_the_command_ends_with_3_where_nothing_can_be_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command.main([]) == 3
    assert capsys.readouterr().out == "not counted: valgrind is not installed\n"
