"""Exact Poisson and diffusion fields of a data set, and samplers that follow them."""

from pfgm_fast._info import info
from pfgm_fast._version import __version__
from pfgm_fast.field import EmpiricalField, log_density, posterior_mean
from pfgm_fast.noise import perturb, prior
from pfgm_fast.sampling import sample
from pfgm_fast.solution import Solution, SolverError, Status

__all__ = [
    "EmpiricalField",
    "Solution",
    "SolverError",
    "Status",
    "__version__",
    "info",
    "log_density",
    "perturb",
    "posterior_mean",
    "prior",
    "sample",
]
