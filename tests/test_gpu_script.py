"""benchmarks/gpu.sh and its programmes without a GPU: stages under stand-ins for Python and the tools, the experiments'
answers, ncu's table, and the small calls by Triton's interpreter."""

from __future__ import annotations

import ast
import csv
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent))  # benchmarks/ is not installed
from benchmarks.gpu import profile, questions, questions_experiments, questions_networks, small
from pfgm_fast.bench import machine
from pfgm_fast.solution import Record

pytest_plugins = ["host_slots"]
ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
STAGES = ("build", "tests", "sanitize", "questions", "bench", "profile")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")

# It is PYTHON, and then the environment's: notes what it is asked to do, and does what FAKE_* say about it.
FAKE_PYTHON = """#!/usr/bin/env bash
case "$*" in
    "-m venv"*) mkdir -p "${@: -1}/bin"; cp "$0" "${@: -1}/bin/python" ;;
    *sysconfig.get_path\\(*) echo "$FAKE_FOLDER" ;;
    *sysconfig*) echo "$FAKE_FOLDER/outer" ;;
    "-c import sys, torch"*) exit "${FAKE_GPU:-0}" ;;
    "-c"*) ;;
    *)
        echo "$(date +%s%N) ${PYTORCH_NO_CUDA_MEMORY_CACHING:--} $*" >>"$FAKE_FOLDER/calls"
        [[ -n ${FAKE_SLOW:-} && "$*" == *$FAKE_SLOW* ]] && sleep 60
        [[ -n ${FAKE_BROKEN:-} && "$*" == *$FAKE_BROKEN* ]] && exit "${FAKE_STATUS:-1}"
        [[ "$*" == *gpu.small* ]] && echo "a call: done"
        ;;
esac
exit 0
"""
FAKE_CHECKER = """#!/usr/bin/env bash
echo "$*" >>"$FAKE_FOLDER/checks"
[[ -n ${FAKE_FOUND:-} && "$*" == *$FAKE_FOUND* ]] && { echo "Invalid read"; exit 9; }
while [[ $1 == --* ]]; do shift 2; done
exec "$@"
"""


class Script:
    """gpu.sh with nothing real around it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        tools = folder / "tools"
        tools.mkdir()
        self.python = tools / "fake-python"
        for path, text in ((self.python, FAKE_PYTHON), (tools / "compute-sanitizer", FAKE_CHECKER)):
            path.write_text(text)
            path.chmod(0o755)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PFGM_")},
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PYTHON": str(self.python),
            "OUT": str(self.out),
            "GPU_VENV": str(folder / "venv"),
            "FAKE_FOLDER": str(folder),
            "PFGM_COMMIT": "abc",
        }

    def run(self, *arguments: str, **fakes: str) -> subprocess.CompletedProcess[str]:
        for name in ("calls", "checks"):
            (self.folder / name).write_text("")
        environment = {**self.environment, **fakes}
        return subprocess.run(
            [str(SCRIPT), *arguments], capture_output=True, text=True, env=environment, timeout=120, check=False
        )

    def calls(self) -> list[list[str]]:
        """By the time of their start."""
        lines = sorted(line.split() for line in (self.folder / "calls").read_text().splitlines())
        return [words[1:] for words in lines]

    def checks(self) -> list[list[str]]:
        return [line.split() for line in (self.folder / "checks").read_text().splitlines()]

    def log(self) -> str:
        return (self.out / "gpu.log").read_text()


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(tmp_path)


def stages_of(calls: list[list[str]]) -> list[str]:
    words = {"setup.py": "build", "pytest": "tests", "benchmarks.gpu.small": "sanitize"}
    words |= {"benchmarks.gpu.questions": "questions", "benchmarks.run": "bench", "benchmarks.gpu.profile": "profile"}
    found = [words[word] for call in calls for word in call if word in words]
    return list(dict.fromkeys(found))


def test_stages_run_by_priority(script: Script) -> None:
    done = script.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert stages_of(script.calls()) == list(STAGES)
    for stage in STAGES:
        assert f"\n{stage}: ok" in script.log()
    assert sorted(path.name for path in script.out.iterdir()) == ["gpu.log"]
    done = script.run("--stages", "profile,questions")
    assert stages_of(script.calls()) == ["questions", "profile"]
    assert script.log().count("stages profile,questions") == 1
    assert script.log().count("== build, at most") == 1


def test_the_time_is_shared_out(script: Script) -> None:
    script.run("--seconds", "5300")
    limits = [int(line.split()[4]) for line in script.log().splitlines() if ", at most " in line]
    shares = (60, 190, 90, 60, 90, 40)
    for place, limit in enumerate(limits):  # what a stage leaves goes to all that come after it
        assert limit == pytest.approx(5300 * shares[place] / sum(shares[place:]), rel=0.02)
    assert len(limits) == len(shares)
    script.run("--stages", "bench", "--seconds", "500")
    (call,) = script.calls()
    assert call[1:] == ["-m", "benchmarks.run", "--device", "cuda", "--seconds", call[6], "--tests", "passed"]
    assert 380 <= int(call[6]) <= 400


def test_what_fails_stops_nothing(script: Script) -> None:
    done = script.run(FAKE_BROKEN="benchmarks.gpu.questions")
    assert done.returncode == 0
    assert "questions: failed (1)" in done.stdout
    assert stages_of(script.calls()) == list(STAGES)
    assert script.run("--stages", "questions,profile", FAKE_BROKEN="benchmarks.gpu.questions").returncode == 1
    done = script.run(FAKE_BROKEN="full_size", FAKE_STATUS="4")
    assert done.returncode == 1
    assert "tests: failed (4)" in done.stdout
    assert sum("pytest" in call for call in script.calls()) == 3
    assert next(call for call in script.calls() if "benchmarks.run" in call)[-1] == "skip"
    done = script.run("--stages", "build", FAKE_BROKEN="setup.py")
    assert "no extension: status 1" in done.stdout
    assert done.returncode == 1


def test_what_hangs_is_ended(script: Script) -> None:
    script.run("--stages", "build")
    started = time.monotonic()
    done = script.run("--stages", "questions,profile", "--seconds", "18", FAKE_SLOW="benchmarks.gpu.questions")
    assert time.monotonic() - started < 18
    assert "questions: ran out of its 10 s" in done.stdout
    assert "profile: no time was left" in done.stdout
    assert done.returncode == 1


def test_a_profile_that_cannot_be_had_is_skipped(script: Script) -> None:
    script.run("--stages", "build")
    done = script.run("--stages", "profile", FAKE_BROKEN="benchmarks.gpu.profile", FAKE_STATUS="77")
    assert done.returncode == 0
    assert "profile: skipped" in done.stdout


def test_every_share_is_seen_by_every_checker(script: Script) -> None:
    script.run("--stages", "build")
    done = script.run("--stages", "sanitize")
    assert done.returncode == 0, done.stdout
    first, rest = script.calls()[:12], script.calls()[12:]
    assert {call[-1] for call in first} == {f"{part}/12" for part in range(1, 13)}
    assert len(rest) == len(script.checks()) == 20
    options = [dict(zip(check[:-1:2], check[1::2], strict=False)) for check in script.checks()]
    assert len({option["--port"] for option in options}) == 20
    assert {option["--tool"] for option in options} == {"memcheck", "racecheck", "initcheck", "synccheck"}
    assert all(option["--error-exitcode"] == "9" for option in options)
    assert sum(call[0] == "1" for call in rest) == 8
    assert all(call[0] == "0" for call in rest if "--only" in call)
    done = script.run("--stages", "sanitize", FAKE_FOUND="--tool racecheck")
    assert done.returncode == 1
    assert "racecheck 2 of 4: status 9" in done.stdout
    assert "Invalid read" in done.stdout
    assert "memcheck graph: ok, 1 calls" in done.stdout


def test_wrong_arguments(script: Script) -> None:
    assert script.run("--stages", "memcheck").returncode == 2
    assert script.run("--seconds", "soon").returncode == 2
    assert script.run("--stages", "tests").returncode == 2  # no environment yet
    done = script.run("--help")
    assert done.returncode == 0
    assert "--stages" in done.stdout
    assert script.calls() == []


@without_gpu
def test_without_a_gpu_everything_refuses(script: Script) -> None:
    done = script.run(PYTHON=sys.executable)
    assert done.returncode == 3
    assert "there is no GPU" in done.stderr
    assert not script.out.exists()
    assert small.main([]) == questions.main([]) == profile.main([]) == profile.main(["--launch", "images"]) == 3


ANSWER = questions.Answer("a question", "a case", "yes", 10, 1.5, off=0.25)
BEHAVIOURS = {
    "linear": f"print('noise'); print({questions.MARK + '{}'!r}.format(json.dumps({ANSWER._asdict()!r})))",
    "field": f"print({questions.MARK + '{}'!r}.format(json.dumps({ANSWER._asdict()!r})), flush=True); os.abort()",
    "resolve": "raise ValueError('no such symbol')",
    "equal": "pass",
    "attention": "subprocess.Popen(['sleep', '30']); time.sleep(30)",
    "cost": "sys.exit(3)",
}


def stand_in(name: str) -> Sequence[str]:
    return [sys.executable, "-c", f"import json, os, subprocess, sys, time\n{BEHAVIOURS[name]}"]


def test_every_experiment_is_answered_or_says_why(tmp_path: Path) -> None:
    answers = dict(zip(BEHAVIOURS, questions.ask_all(list(BEHAVIOURS), 6.0, stand_in), strict=True))
    said = {name: [answer.answer for answer in some] for name, some in answers.items()}
    assert answers["linear"] == [ANSWER]
    assert said["field"] == ["yes", "not answered: ended by SIGABRT"]
    assert said["resolve"] == ["not answered: status 1: ValueError: no such symbol"]
    assert said["equal"] == ["not answered: it said nothing"]
    assert said["attention"] == ["not answered: no answer within 4 s"]
    assert said["cost"] == ["not answered: status 3: without a word"]
    path = tmp_path / "answers.csv"
    found = [answer for some in answers.values() for answer in some]
    questions.write(path, found, machine.origin(torch.device("cpu"), "abc"))
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["answer"] for row in rows] == [answer.answer for answer in found]
    assert rows[0]["us"] == "1.5"
    assert rows[0]["setup_ms"] == ""
    assert rows[0]["commit"] == "abc"
    assert questions.Answer(*found[0]).cells[2:] == ("10", "1.5", "", "", "0.25", "yes")


def test_every_question_has_an_experiment() -> None:
    assert set(questions_experiments.EXPERIMENTS) == set(questions.QUESTIONS)


@pytest.fixture
def host(on_host: Any, compiled_slots: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The experiments where the host runs the loop's kernels."""
    for module in (questions_experiments, questions_networks):
        monkeypatch.setattr(module, "GPU", torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


def test_the_loop_on_the_host_is_equal_to_that_of_the_cpu(host: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions_experiments, "SHAPES", ((3,),))
    answers = list(questions_experiments.equal("?"))
    assert [answer.case for answer in answers] == ["(3,) float32", "(3,) float64"]
    for answer in answers:
        assert answer.off == 0
        assert answer.answer.startswith(("39 of 40", "40 of 40"))  # a NaN is not equal to itself, but taken for one


@pytest.mark.parametrize(
    "make", [questions_networks.linear, questions_networks.convolution, questions_networks.attention]
)
def test_networks_are_equations(make: Callable[[], questions_networks.Equation], host: None) -> None:
    equation = make()
    few = equation._replace(y0=equation.y0[:2])
    found = questions_experiments.solve(few, "off", max_steps=3)
    assert found.iterations == 2 + 6 * 3
    assert found.record.x.isfinite().all()


def test_a_cost_is_that_of_one_iteration(host: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock by which a solve takes 50 ms, and each iteration 2."""

    def solve(equation: Any, way: str, end: float, max_steps: int) -> questions_experiments.Solved:
        record = Record.start(equation.y0, 0.0)
        record.nfe += 2 + 6 * max_steps
        return questions_experiments.Solved(record, 0.05 + 0.002 * (2 + 6 * max_steps))

    monkeypatch.setattr(questions_experiments, "solve", solve)
    iterations, each, setup = questions_experiments.repeated(questions_networks.linear(), "off")
    assert iterations == 2 + 6 * (questions_experiments.FEW + 33)
    assert each == pytest.approx(0.002)
    assert setup == pytest.approx(0.05)


NCU = """==PROF== Connected to process 1
"ID","Kernel Name","gpu__time_duration.sum","dram__bytes.sum.per_second",\
"dram__throughput.avg.pct_of_peak_sustained_elapsed","sm__throughput.avg.pct_of_peak_sustained_elapsed",\
"sm__inst_executed_pipe_tensor_op_hmma.avg.pct_of_peak_sustained_active",\
"sm__inst_executed_pipe_tensor_op_imma.avg.pct_of_peak_sustained_active","launch__registers_per_thread",\
"smsp__average_warps_issue_stalled_wait_per_issue_active.ratio",\
"smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio",\
"smsp__average_warps_issue_stalled_long_scoreboard_not_issued_per_issue_active.ratio",\
"smsp__average_warps_issue_stalled_selected_per_issue_active.ratio"
"","","ns","byte/second","%","%","%","%","register/thread","inst","inst","inst","inst"
"0","_fused","12,500,000","2.5e+12","52.1","80.4","11.5","47.25","243","1.25","2.5","2.4","9"
"""


def ncu(text: str) -> profile.Command:
    """A stand-in that writes so to its log."""
    code = "import sys; open(sys.argv[1], 'w').write(sys.argv[2])"
    return lambda tool, case, log: [sys.executable, "-c", code, str(log), text]


def test_what_ncu_wrote_becomes_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ((kernel, numbers),) = profile.parsed(NCU)
    line = profile.line_of(kernel, numbers)
    assert line == ("_fused", "12.5", "2.5", "52 %", "80 %", "47 %", "", "243", "long scoreboard 2.5, wait 1.2")
    assert len(line) == len(profile.HEADER)
    assert profile.report("ncu", 20.0, tmp_path, ncu(NCU)) == 0
    assert "images: _fused" in capsys.readouterr().out
    assert (tmp_path / "profile.csv").read_text().count('"_fused"') == len(profile.CASES)
    assert [path.name for path in tmp_path.iterdir()] == ["profile.csv"]


def test_counters_that_may_not_be_read_are_a_skip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused = "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission"
    assert profile.report("ncu", 20.0, tmp_path, ncu(refused)) == profile.SKIPPED
    assert "skipped: ncu cannot read the counters here: ERR_NVGPUCTRPERM" in capsys.readouterr().out
    assert profile.report("ncu", 20.0, tmp_path, ncu("something else")) == 1
    assert list(tmp_path.iterdir()) == []


def test_shares_are_all_of_the_small_calls() -> None:
    parts = [list(small.chosen([], ["graph"], (part, 4))) for part in range(1, 5)]
    graphs = list(small.chosen(["graph"], [], (1, 1)))
    assert sorted([name for part in parts for name in part] + graphs) == sorted(small.CALLS)
    assert len(graphs) == 5
    with pytest.raises(SystemExit):
        small.main(["--share", "5/4"])


# Half of the fields, without those whose dimensions take the interpreter minutes; the others are not Triton's on a CPU.
CHEAP = [name for name in small.CALLS if name.startswith(("noise", "half steps", "solve", "loop of odeint"))]
CHEAP += [case.name for case in small.CASES[::2] if case.N < 1000]


def kernels_of(path: Path) -> Iterator[str]:
    """What the host launches: the functions for Triton that no other calls."""
    functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    ours = [f for f in functions if any("triton.jit" in ast.unparse(decorator) for decorator in f.decorator_list)]
    called = {
        node.func.id
        for f in ours
        for node in ast.walk(f)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    text = path.read_text()
    yield from (f"{path.stem}.{f.name}" for f in ours if f.name not in called and f"{f.name}[" in text)


@without_gpu
@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")
def test_the_small_calls_launch_every_kernel(interpreted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter = importlib.import_module("triton.runtime.interpreter")
    launched, repaired = set[str](), set[str]()
    run = interpreter.GridExecutor.__call__

    def noted(executor: Any, *arguments: Any, **options: Any) -> Any:
        launched.add(f"{executor.fn.__module__.rpartition('.')[2]}.{executor.fn.__name__}")
        return run(executor, *arguments, **options)

    def changes(module: str, name: str, result: Callable[..., torch.Tensor]) -> None:
        owner = importlib.import_module(module)
        repair = getattr(owner, name)

        def watched(given: Any, *arguments: Any) -> None:
            before = result(given).clone()
            repair(given, *arguments)
            if not torch.equal(before, result(given)):
                repaired.add(name)

        monkeypatch.setattr(owner, name, watched)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", noted)
    changes("pfgm_fast.kernels.wide", "mend", lambda weights: weights.weights)
    changes("pfgm_fast.kernels.fused", "recompute", lambda sums: sums.partial)
    monkeypatch.setattr(small, "M", 70)
    for name in CHEAP:
        small.CALLS[name](torch.device("cpu"))
    assert repaired == {"mend", "recompute"}
    files = [path for path in (ROOT / "kernels").glob("*.py") if path.stem not in ("noise", "update")]
    assert launched == {kernel for path in files for kernel in kernels_of(path)}
