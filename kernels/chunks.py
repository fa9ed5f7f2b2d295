"""How many rows are worked on at a time, so that what a call holds beside its inputs is bounded."""

from __future__ import annotations

from collections.abc import Iterator

WORKSPACE = 1 << 30  # bytes at a time, but always at least ROWS rows
ROWS = 128


def of_rows(B: int, row_bytes: int) -> Iterator[slice]:
    """Slices of B rows of which each takes so many bytes."""
    rows = max(1, WORKSPACE // (row_bytes * ROWS)) * ROWS
    return (slice(start, start + rows) for start in range(0, B, rows))
