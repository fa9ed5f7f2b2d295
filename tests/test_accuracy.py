"""Every backend against the oracle, over every hard case, within the bounds that the library promises."""

from __future__ import annotations

import math

import cases
import numpy as np
import oracle
import pytest
import torch
from cases import Case
from torch import Tensor

import pfgm_fast as pf

pytestmark = pytest.mark.usefixtures("poison")


def field_of(case: Case, backend: str) -> pf.EmpiricalField:
    return pf.EmpiricalField(case.data, case.D, labels=case.labels, log_weights=case.log_weights, backend=backend)


def check_all(case: Case, truth: oracle.Truth, backend: str) -> None:
    field, query, eps = field_of(case, backend), (case.x, case.sigma), case.eps
    mean = field(*query, labels=case.row_labels)
    assert mean.shape == case.x.shape
    assert mean.dtype == case.x.dtype
    # a float32 answer of a float64 computation is off by its own rounding, whatever is computed
    eps = max(eps, torch.finfo(case.x.dtype).eps)
    oracle.check_mean(mean, truth, eps)
    if math.isfinite(case.D):
        gamma = 5.0
        oracle.check_poisson_field(field.poisson_field(*query, gamma, case.row_labels), truth, case.D, gamma, eps)
    if case.row_labels is not None:
        return
    oracle.check_log_density(field.log_density(*query), truth, eps)
    oracle.check_score(field.score(*query), truth, eps)
    oracle.check_divergence(field.divergence(*query), truth, eps)
    oracle.check_effective_sample_size(field.effective_sample_size(*query), truth, eps)
    weights, indices = field.top_weights(*query, len(case.data))
    assert bool((weights[:, :-1] >= weights[:, 1:]).all())
    oracle.check_weights(weights, indices, truth, eps)


@pytest.mark.parametrize("name", cases.NAMES)
def test_within_the_promised_bounds(name: str, backend: str) -> None:
    check_all(cases.make(name), cases.truth(name), backend)


@pytest.mark.parametrize("name", cases.DOUBLE)
def test_float64_is_computed_in_float64(name: str, backend: str) -> None:
    case = cases.make(name)
    if case.eps < 1e-10:
        case = Case(case.x, case.sigma, case.data, case.D)  # mixed dtypes: only the queries' rounding differs
    check_all(case.double(), cases.truth(name), backend)


def softmax_mean(rho: Tensor, case: Case, y: Tensor) -> Tensor:
    sigma = case.sigma[:, None]
    N = y.shape[1]
    logits = -rho / (2 * sigma**2) if math.isinf(case.D) else -(N + case.D) / 2 * torch.log1p(rho / (case.D * sigma**2))
    return torch.softmax(logits if case.log_weights is None else logits + case.log_weights, 1) @ y


def by_differences(case: Case, y: Tensor) -> Tensor:
    return softmax_mean(((case.x[:, None] - y) ** 2).sum(2), case, y)


def by_expansion(case: Case, y: Tensor) -> Tensor:
    centre = y.mean(0)
    x, y = case.x - centre, y - centre
    rho = torch.addmm((y**2).sum(1), x, y.T, alpha=-2) + (x**2).sum(1, keepdim=True)
    return softmax_mean(rho.clamp_min(0), case, y) + centre


def by_cdist(case: Case, y: Tensor) -> Tensor:
    return softmax_mean(torch.cdist(case.x, y) ** 2, case, y)


FLOAT32 = tuple(n for n in cases.NAMES if not n.startswith(("double", "classes", "many")))


@pytest.mark.parametrize("name", FLOAT32)
def test_at_most_twice_the_error_of_pytorch(name: str, backend: str) -> None:
    """By bands of sigma, in units of the rounding error 4 eps max(|x|, max|y|), below which no error is looked at."""
    case, truth = cases.make(name), cases.truth(name)
    y = (2 * case.data.float() - 255) / 255 if case.data.dtype == torch.uint8 else case.data
    floor = 4 * case.eps * truth.scale

    def error(mean: Tensor) -> oracle.Array:
        return np.maximum(oracle.mean_error(mean, truth) / floor, 1)

    ours = error(field_of(case, backend)(case.x, case.sigma))
    theirs = [error(expression(case, y)) for expression in (by_differences, by_expansion, by_cdist)]
    for low, high in ((0, 0.1), (0.1, 3), (3, math.inf)):
        band = (truth.sigma > low) & (truth.sigma <= high)
        if band.any():
            best = min(t[band].max() for t in theirs)
            assert ours[band].max() <= 2 * best, f"sigma in ({low}, {high}]: {ours[band].max():.3g} against {best:.3g}"
