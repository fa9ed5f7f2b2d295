"""The README: its Python examples run as written, their comments tell the shapes, its links lead somewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
SHAPE = re.compile(r"#\s*\(((?:\d+,?\s?)+)\)")


def test_examples_run_and_comments_tell_the_shapes() -> None:
    assert EXAMPLES
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    checked = 0
    for example in EXAMPLES:
        lines = example.splitlines()
        for statement in ast.parse(example).body:
            text = ast.unparse(statement)
            if not isinstance(statement, ast.Expr):
                exec(text, names)
                continue
            value = eval(text, names)
            found = SHAPE.search(lines[statement.lineno - 1])
            if found:
                expected = tuple(int(size) for size in re.findall(r"\d+", found[1]))
                assert tuple(value.shape) == expected, text
                checked += 1
    assert checked >= 5


@pytest.mark.parametrize("target", sorted(set(re.findall(r'\]\(([^)#]+)\)|src="([^"]+)"', README))))
def test_links_lead_somewhere(target: tuple[str, str]) -> None:
    link = target[0] or target[1]
    assert link.startswith("https://") or (ROOT / link).exists(), link


def test_every_public_name_is_in_the_table() -> None:
    import pfgm_fast

    table = README.partition("## Public functions")[2].partition("\n## ")[0]
    for name in pfgm_fast.__all__:
        assert name == "__version__" or f"`{name}" in table, name


def test_figures_are_small() -> None:
    assert sum(path.stat().st_size for path in (ROOT / "docs/figures").glob("*.png")) < 600_000
