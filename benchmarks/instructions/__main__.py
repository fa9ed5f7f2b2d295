"""Counts the instructions of the native kernels and compares them with benchmarks/instructions/counts.csv.

Exit status: 0, all within 3 %; 1, one is not, or is missing on one side; 3, the counts cannot be made or compared here.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.instructions import counts, program
from benchmarks.instructions.counts import Case, Verdict

OFF, USAGE, CANNOT_COMPARE = 1, 2, 3


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    try:
        return _run(options.case, options.write)
    except program.NotCountedError as error:
        print(f"not counted: {error}")
        return CANNOT_COMPARE
    except KeyboardInterrupt:
        print("interrupted; the file is as it was")
        return 130


def _run(parts: list[str], write: bool) -> int:
    tools, on_file = program.tools(), counts.read(counts.FILE)
    print(", ".join(tools))
    why = counts.incomparable(on_file, tools)
    if why and not write:
        print(why)
        return CANNOT_COMPARE
    print("compiling", flush=True)
    driver = program.build()
    wanted = [case for case in program.cases(driver) if _chosen(case, parts)]
    if not wanted:
        print(f"no case holds {' or '.join(parts)}")
        return USAGE
    print(f"\n{counts.HEADER}", flush=True)
    counted = {}
    for case in wanted:
        counted[case] = program.count(driver, *case)
        [verdict] = counts.verdicts({case: counted[case]}, [row for row in on_file if row.key == case])
        print(verdict if write else _line(verdict), flush=True)
    if write:
        counts.write(counted, tools, counts.FILE)
        print(f"\nwritten: {len(counted)} counts in {counts.FILE.name}")
        return 0
    return _judge(counts.verdicts(counted, [row for row in on_file if _chosen(row.key, parts)]))


def _judge(verdicts: list[Verdict]) -> int:
    for verdict in verdicts:
        if verdict.counted is None:
            print(_line(verdict))
    faults = sum(bool(verdict.fault) for verdict in verdicts)
    print(f"\n{faults} of {len(verdicts)} counts are off" if faults else f"\nall {len(verdicts)} counts are met")
    return OFF if faults else 0


def _line(verdict: Verdict) -> str:
    return f"{verdict}  {verdict.fault}".rstrip()


def _chosen(case: Case, parts: list[str]) -> bool:
    return not parts or any(part in " ".join(case) for part in parts)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--write", action="store_true", help="put the counts on file")
    choice.add_argument("--case", nargs="+", metavar="PART", default=[], help="only cases whose name holds a part")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
