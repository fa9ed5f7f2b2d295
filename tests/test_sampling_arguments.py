"""What sample() refuses, before the first step and from the denoiser."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import broken
from torch import Tensor

from pfgm_fast.sampling import SOLVERS, sample


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"solver": "dopri"},
            ValueError,
            "unknown solver 'dopri'; known: 'euler', 'heun', 'dpmpp_2m', 'unipc', 'rk45'",
        ),
        ({"steps": 0}, ValueError, "steps must be an integer >= 1, got 0"),
        ({"steps": 2.5}, TypeError, "steps"),
        ({"steps": 0, "solver": "rk45"}, ValueError, "steps"),
        ({"rho": -1}, ValueError, "rho"),
        ({"sigma_min": 0}, ValueError, "sigma_min"),
        ({"sigma_min": 80}, ValueError, "sigma_min must be < sigma_max"),
        ({"sigma_min": 80, "solver": "rk45"}, ValueError, "sigma_min must be < sigma_max"),
        ({"sigma_max": math.nan}, ValueError, "sigma_max"),
        ({"sigmas": [1.0]}, ValueError, "sigmas must hold at least 2"),
        ({"sigmas": [1.0, 2.0]}, ValueError, "sigmas must decrease"),
        ({"rtol": -1e-3}, ValueError, "rtol"),
        ({"atol": -1e-3}, ValueError, "atol"),
        ({"atol": math.nan}, ValueError, "atol"),
        ({"rtol": 0, "atol": 0}, ValueError, "rtol and atol must not both be 0"),
        ({"max_steps": 0}, ValueError, "max_steps"),
        ({"D": 0}, ValueError, "D must be"),
        ({"D": math.nan}, ValueError, "D must be"),
        ({"latents": None}, ValueError, "got neither"),
        ({"shape": (2, 3)}, ValueError, "got both"),
        ({"latents": torch.ones(2, 3).numpy()}, TypeError, r"latents must be a torch.Tensor.*torch\.from_numpy"),
        ({"latents": torch.ones(2, 3, dtype=torch.int64)}, TypeError, "latents must have dtype"),
        ({"latents": torch.ones(2, 3, dtype=torch.bool)}, TypeError, "latents must have dtype"),
        ({"latents": torch.ones(2, 3, dtype=torch.complex64)}, TypeError, "latents must have dtype"),
        ({"latents": torch.ones(3)}, ValueError, "latents must be"),
        ({"latents": torch.tensor([[1.0, math.nan]])}, ValueError, "latents must be finite"),
        ({"latents": None, "shape": 3, "D": 1}, TypeError, "shape"),
        ({"latents": None, "shape": (3,), "D": 1}, ValueError, "shape"),
        ({"latents": None, "shape": (-1, 2), "D": 1}, ValueError, "shape"),
        ({"seeds": [1, 2], "generator": torch.Generator()}, ValueError, "seeds and generator"),
        ({"seeds": [1, 2, 3]}, ValueError, r"seeds must be one for each of the 2 rows, got shape \(3,\)"),
        ({"dtype": torch.int64}, TypeError, "dtype must be one of"),
        ({"extra_args": [1]}, TypeError, "extra_args must be a dict"),
        ({"extra_args": {"label": torch.arange(5)}}, ValueError, r"extra_args\['label'\] must have a row.* 2 samples"),
        ({"callback": 3}, TypeError, "callback"),
        ({"denoiser": 3}, TypeError, "denoiser must be callable.*got int"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    options: dict[str, Any] = {"denoiser": broken, "latents": torch.ones(2, 3), **change}
    with pytest.raises(error, match=message):
        sample(options.pop("denoiser"), options.pop("shape", None), **options)


@pytest.mark.parametrize("solver", list(SOLVERS))
@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (lambda x: (x, x), TypeError, "the denoiser's result must be a torch.Tensor, got tuple"),
        (lambda x: x[:, :1], ValueError, r"like x, of shape \(2, 3\), got shape \(2, 1\)"),
        (lambda x: x.long(), TypeError, "the denoiser's result must have dtype"),
        (lambda x: x.to("meta"), ValueError, "on cpu like x, got one on meta"),
    ],
)
def test_bad_answers_are_refused(
    solver: str, answer: Callable[[Tensor], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sample(lambda x, sigma: answer(x), latents=torch.ones(2, 3), solver=solver)
