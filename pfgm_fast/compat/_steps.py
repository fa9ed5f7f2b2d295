"""The loop of the originals' fixed-step samplers: PFGM's in z, EDM's and PFGM++'s in their time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

Slope = Callable[[Tensor, float], Tensor]
"""slope(x, t) -> dx/dt, like x."""

Prelude = Callable[[int, Tensor, float], tuple[Tensor, float]]
"""prelude(i, x, t) -> where step i really begins, as after churn."""

SOLVERS = ("euler", "heun")


def integrate(
    slope: Slope,
    x: Tensor,
    times: Sequence[float],
    solver: str,
    *,
    alpha: float = 1.0,
    prelude: Prelude | None = None,
    visit: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """x at the last of the times, from x at the first.

    "heun" is the family of second order whose inner stage lies at the share alpha of the step (Karras et al. 2022,
    algorithm 3): 1 is Heun's method, 1/2 the midpoint rule. The last step is always Euler's.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(map(repr, SOLVERS))}, got {solver!r}")
    last = len(times) - 2
    for i, (time, t_next) in enumerate(pairwise(times)):
        x, t = (x, time) if prelude is None else prelude(i, x, time)
        h = t_next - t
        d = slope(x, t)
        if solver == "heun" and i < last:
            inner = slope(x + alpha * h * d, t_next if alpha == 1 else t + alpha * h)
            d = (1 - 1 / (2 * alpha)) * d + 1 / (2 * alpha) * inner
        x = x + h * d
        if visit is not None:
            visit(i, x)
    return x
