"""Small problems with known solutions, for the solvers."""

from __future__ import annotations

from torch import Tensor

from pfgm_fast.solution import Solution


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """The denoiser of data N(0, 1) at D = inf, whose trajectories are x_sigma = x_0 sqrt(1 + sigma^2)."""
    return x / (1 + sigma.reshape(-1, *(1,) * (x.ndim - 1)) ** 2)


def path(solution: Solution) -> tuple[Tensor, Tensor]:
    """The trajectory, which must be there, and its noise levels."""
    assert solution.trajectory is not None
    assert solution.trajectory_sigma is not None
    return solution.trajectory, solution.trajectory_sigma


def broken(x: Tensor, sigma: Tensor) -> Tensor:
    """A denoiser for calls that must be refused, or have nothing to do, before it is reached."""
    raise AssertionError("the denoiser must not be called")
