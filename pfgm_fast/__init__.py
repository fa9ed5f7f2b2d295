"""Exact Poisson and diffusion fields of a data set, and samplers that follow them."""

from pfgm_fast._version import __version__
from pfgm_fast.field import EmpiricalField, log_density, posterior_mean

__all__ = ["EmpiricalField", "__version__", "log_density", "posterior_mean"]
