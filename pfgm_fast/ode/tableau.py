"""A Runge-Kutta method is a table.

Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, section II.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class ButcherTableau:
    """An explicit embedded Runge-Kutta method of s stages.

    Attributes:
        a: s rows; row i weighs the i stages before it.
        b: (s,) weights of the solution.
        c: (s,) times of the stages in units of the step, within [0, 1].
        error: (s,) weights of the error estimate: b minus the weights of the embedded method.
        error_order: order of the embedded method; the estimate shrinks as step^(error_order + 1).

    Raises:
        ValueError: if the table is not explicit or not consistent.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    error: tuple[float, ...]
    error_order: int

    def __post_init__(self) -> None:
        def same(total: float, wanted: float) -> bool:
            return math.isclose(total, wanted, rel_tol=0, abs_tol=1e-13)

        if not len(self.a) == len(self.b) == len(self.c) == len(self.error):
            raise ValueError("a, b, c and error must have one entry for each stage")
        for i, (row, c) in enumerate(zip(self.a, self.c, strict=True)):
            if len(row) != i:
                raise ValueError(f"a must be strictly lower triangular: row {i} must have {i} entries, got {len(row)}")
            if not same(math.fsum(row), c) or not 0 <= c <= 1:
                raise ValueError(f"row {i} of a must sum to c[{i}] within [0, 1], got {math.fsum(row)} and {c}")
        if not same(math.fsum(self.b), 1):
            raise ValueError(f"b must sum to 1, got {math.fsum(self.b)}")
        if not same(math.fsum(self.error), 0) or not any(self.error):
            raise ValueError(f"error must sum to 0 and not vanish, got {self.error}")

    @cached_property
    def closed(self) -> ButcherTableau:
        """The same method with the slope at the step's end as its last stage: the first one of the next step."""
        if self.c[-1] == 1 and self.b == (*self.a[-1], 0.0):
            return self
        return ButcherTableau(
            (*self.a, self.b), (*self.b, 0.0), (*self.c, 1.0), (*self.error, 0.0), error_order=self.error_order
        )


DORMAND_PRINCE = ButcherTableau(
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    error=(71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    error_order=4,
)
"""Dormand and Prince 1980, 5(4), with the error row of that paper, which SciPy uses too."""
