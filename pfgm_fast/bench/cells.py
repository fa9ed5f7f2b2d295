"""How numbers and tables are written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Line = tuple[str, ...]


def markdown(header: Line, lines: Sequence[Line]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ("---",) * len(header), *lines))


def aligned(header: Line, lines: Sequence[Line]) -> str:
    """The same for a terminal: the first column to the left, the last as it is, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    return "\n".join(_aligned(cells, widths) for cells in (header, *lines))


def _aligned(cells: Line, widths: Sequence[int]) -> str:
    first, *middle, last = cells
    middle = [cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True)]
    return "  ".join([first.ljust(widths[0]), *middle, last]).rstrip()


def without_empty(header: Line, lines: Sequence[Line]) -> tuple[Line, list[Line]]:
    """The columns in which something stands."""
    kept = [i for i in range(len(header)) if i == 0 or any(line[i] for line in lines)]
    return pick(header, kept), [pick(line, kept) for line in lines]


def pick(cells: Line, columns: Iterable[int]) -> Line:
    return tuple(cells[i] for i in columns)


def number(value: float | None) -> str:
    """Three significant digits, without an exponent."""
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.0e}"


def percent(value: float | None) -> str:
    if value is None:
        return ""
    return f"{100 * value:.0f} %" if value >= 0.01 else f"{100 * value:.1g} %"


def scientific(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"
