"""Exact Poisson and diffusion fields of a data set, and samplers that follow them."""

from pfgm_fast import compat
from pfgm_fast._info import info
from pfgm_fast._version import __version__
from pfgm_fast.denoiser import as_denoiser
from pfgm_fast.editing import inpaint, interpolate, rescale
from pfgm_fast.field import EmpiricalField, log_density, posterior_mean
from pfgm_fast.integrate import odeint
from pfgm_fast.likelihood import LogLikelihood, log_likelihood
from pfgm_fast.noise import perturb, prior
from pfgm_fast.sampling import encode, sample
from pfgm_fast.solution import Solution, SolverError, Status
from pfgm_fast.training.losses import PFGMLoss, PFGMPPLoss
from pfgm_fast.training.perturbation import Hyperparameters, hyperparameters, pfgm_perturb
from pfgm_fast.training.prefetch import TargetPrefetcher
from pfgm_fast.training.targets import pfgm_target, pfgmpp_target, stf_target

__all__ = [
    "EmpiricalField",
    "Hyperparameters",
    "LogLikelihood",
    "PFGMLoss",
    "PFGMPPLoss",
    "Solution",
    "SolverError",
    "Status",
    "TargetPrefetcher",
    "__version__",
    "as_denoiser",
    "compat",
    "encode",
    "hyperparameters",
    "info",
    "inpaint",
    "interpolate",
    "log_density",
    "log_likelihood",
    "odeint",
    "perturb",
    "pfgm_perturb",
    "pfgm_target",
    "pfgmpp_target",
    "posterior_mean",
    "prior",
    "rescale",
    "sample",
    "stf_target",
]
