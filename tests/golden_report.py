"""The recorded outputs of the original code and how far this library is from each: `python tests/golden_report.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import golden_edm
import golden_poisson_flow
import torch
from replay import DATA, Deviation, Golden, read

FILES = {**golden_poisson_flow.FILES, **golden_edm.FILES}
ELSEWHERE = {"ve_rk45_n64": "the ODE of a score model: tests/test_golden_rk45.py"}


def deviations(name: str, folder: Path = DATA) -> list[Deviation]:
    """Of every case of a file."""
    g: Golden = read(name, folder)
    return list(FILES[name](g))


def table(folder: Path = DATA) -> str:
    """One row for each file: its worst case as a share of the tolerance, and the deviation itself."""
    rows = ["| file | cases | worst case | deviation | tolerance |", "|---|---|---|---|---|"]
    for name in FILES:
        found = deviations(name, folder)
        worst = max(found, key=lambda d: d.share)
        rows.append(f"| {name} | {len(found)} | {worst.case} | {worst.value:.2g} | {worst.tolerance:.2g} |")
    rows += [f"| {name} | | {where} | | |" for name, where in ELSEWHERE.items()]
    return "\n".join(rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(table(Path(sys.argv[1]) if len(sys.argv) > 1 else DATA) + "\n")
