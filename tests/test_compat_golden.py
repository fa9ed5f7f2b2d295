"""Every recorded output of the original code that pfgm_fast.compat answers for; golden_report.py prints the table."""

from __future__ import annotations

import golden_report
import pytest
from replay import DATA


@pytest.mark.parametrize("name", golden_report.FILES)
def test_recorded(name: str) -> None:
    found = golden_report.deviations(name)
    assert found
    wrong = [f"{d.case}: {d.value:.3g} > {d.tolerance:g}" for d in found if not d.value <= d.tolerance]
    assert wrong == []


def test_no_file_is_forgotten() -> None:
    known = {*golden_report.FILES, *golden_report.ELSEWHERE}
    assert {path.stem for path in DATA.glob("*.npz")} <= known
