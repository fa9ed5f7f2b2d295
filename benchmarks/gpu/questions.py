"""What only a GPU answers about CUDA graphs and the adaptive loop: `python -m benchmarks.gpu.questions`.

Each experiment of questions_experiments.py runs in a process of its own and under a time limit, so that one that
crashes or hangs takes no other with it. Answers go to questions-<device>.csv in $OUT or benchmarks/results.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, NamedTuple

import torch

from benchmarks.checkout import ROOT, results
from pfgm_fast.bench import machine
from pfgm_fast.bench.cells import aligned, number

MARK = "answer: "  # of the lines that an experiment prints


class Experiment(NamedTuple):
    """What is asked; one that is `timed` runs while no other does."""

    question: str
    timed: bool = False


QUESTIONS = {
    "resolve": Experiment("does the driver resolve cudaGraphSetConditional without device linking"),
    "runtimes": Experiment("do the two CUDA runtimes of the process share streams, events and memory"),
    "equal": Experiment("is the loop on the device equal to that of the C++ slots"),
    "linear": Experiment("does a captured network of cuBLAS run in a WHILE node"),
    "convolution": Experiment("does a captured network of cuDNN run in a WHILE node"),
    "attention": Experiment("does captured attention run in a WHILE node"),
    "field": Experiment("do captured Triton kernels run in a WHILE node"),
    "compiled": Experiment("does a network by torch.compile run in a WHILE node"),
    "cost": Experiment("what does an iteration cost", timed=True),
}


class Answer(NamedTuple):
    """Numbers are None where they say nothing.

    Attributes:
        iterations: of the loop, each with one evaluation.
        us: of an iteration, in microseconds.
        setup_ms: of all that a solve does once, capture and instantiation included.
        memory_mb: that the driver takes for the instantiated graph.
        off: the largest difference from the plainly launched loop, or from the C++ slots.
    """

    question: str
    case: str
    answer: str
    iterations: int | None = None
    us: float | None = None
    setup_ms: float | None = None
    memory_mb: float | None = None
    off: float | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        numbers = (self.us, self.setup_ms, self.memory_mb, self.off)
        count = "" if self.iterations is None else str(self.iterations)
        return self.question, self.case, count, *map(number, numbers), self.answer


HEADER = ("question", "case", "iterations", "us each", "set-up ms", "MB", "off by", "answer")
Command = Callable[[str], Sequence[str]]


def command_of(name: str) -> Sequence[str]:
    return [sys.executable, "-m", "benchmarks.gpu.questions_experiments", name]


def ask(name: str, limit: float, command: Command = command_of) -> list[Answer]:
    """What one experiment says; if it did not come to its end, the last answer says why."""
    started, why = time.monotonic(), None
    # files, not pipes: compilers that an experiment leaves behind would keep these open
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        process = subprocess.Popen(command(name), cwd=ROOT, stdout=out, stderr=err)
        try:
            process.wait(timeout=max(limit, 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            why = f"no answer within {limit:.0f} s"
        said, cried = _text(out), _text(err)
    if why is None and process.returncode:
        why = _failure(process.returncode, cried)
    answers = [Answer(**json.loads(line.removeprefix(MARK))) for line in said.splitlines() if line.startswith(MARK)]
    if why is not None or not answers:
        answers.append(Answer(QUESTIONS[name].question, "", f"not answered: {why or 'it said nothing'}"))
        print(f"-- {name}, after {time.monotonic() - started:.0f} s:\n{cried[-3000:]}", file=sys.stderr, flush=True)
    return answers


def _text(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _failure(code: int, err: str) -> str:
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    last = [line.strip() for line in err.splitlines() if line.strip()]
    return f"status {code}: {last[-1][:200] if last else 'without a word'}"


def ask_all(names: Sequence[str], seconds: float, command: Command = command_of) -> Iterator[list[Answer]]:
    """Those that time nothing side by side, in two thirds of the time, then the others one by one."""
    deadline = time.monotonic() + seconds
    together = [name for name in names if not QUESTIONS[name].timed]
    alone = [name for name in names if QUESTIONS[name].timed]
    limit = seconds * (2 / 3 if alone else 1)
    with ThreadPoolExecutor(max(1, len(together))) as pool:
        yield from pool.map(lambda name: ask(name, limit, command), together)
    for place, name in enumerate(alone):
        left = deadline - time.monotonic()
        yield ask(name, left / (len(alone) - place), command)


def write(path: Path, answers: Sequence[Answer], origin: machine.Origin) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*Answer._fields, *origin._fields))
        writer.writerows((*answer, *origin) for answer in answers)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.questions", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="for all of them (default: %(default)g)")
    parser.add_argument("--only", nargs="+", choices=[*QUESTIONS], default=[*QUESTIONS], metavar="NAME")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("there is no GPU here that PyTorch can use", file=sys.stderr)
        return 3
    origin = machine.origin(torch.device("cuda"), os.environ.get("PFGM_COMMIT", ""))
    folder = results()
    path = folder / f"questions-{machine.file_name(origin.device)}"
    answers: list[Answer] = []
    for some in ask_all(options.only, options.seconds):
        answers += some
        write(path, answers, origin)
    print(aligned(HEADER, [answer.cells for answer in answers]))
    print(f"\nanswers are in {path}")
    return int(any(answer.answer.startswith("not answered") for answer in answers))


if __name__ == "__main__":
    sys.exit(main())
