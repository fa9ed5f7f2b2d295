"""Training targets: thin functions over the empirical field of a reference set."""

from __future__ import annotations

import math

from torch import Tensor

from pfgm_fast import _checks
from pfgm_fast.field import EmpiricalField


def pfgm_target(
    x: Tensor, z: float | Tensor, data: Tensor | EmpiricalField, gamma: float = 5.0, labels: Tensor | None = None
) -> Tensor:
    """PFGM's normalised Poisson field at (x, z) (2209.11178, section 3.2), D = 1:

        -sqrt(N) (x - x_hat, z) / (|(x - x_hat, z)| + gamma)

    Args:
        x: (B, *data) perturbed data.
        z: (B,) or a number, > 0.
        data: the reference: (M, *data), floating or uint8, or an `EmpiricalField` of D = 1, which is prepared once.
        gamma: >= 0.
        labels: (B,) int64: the reference of a row is its class; for a field with labels.
    Returns:
        (B, N + 1), the z component last, in the dtype of x. No gradient flows through it.
    Raises:
        TypeError, ValueError: naming the argument; a field of another D.
    """
    level = _checks.noise_level(z, _checks.tensor("x", x), "z")
    return reference(data, 1.0).poisson_field(x.detach(), level, gamma, labels)


def pfgmpp_target(
    x: Tensor, sigma: float | Tensor, data: Tensor | EmpiricalField, D: float, labels: Tensor | None = None
) -> Tensor:
    """PFGM++'s target with a large reference batch: the posterior mean E[y | x, sigma] (2302.04265, section 3).

    Args:
        x: (B, *data) perturbed data.
        sigma: noise level > 0: a number, 0-d, (B,) or (B, 1, ..., 1).
        data: the reference: (M, *data), floating or uint8, or an `EmpiricalField` of the same D, prepared once.
        D: augmented dimension > 0, or math.inf.
        labels: (B,) int64: the reference of a row is its class; for a field with labels.
    Returns:
        Like x. No gradient flows through it.
    Raises:
        TypeError, ValueError: naming the argument; a field of another D.
    """
    return reference(data, D)(_checks.tensor("x", x).detach(), sigma, labels)


def stf_target(x: Tensor, sigma: float | Tensor, data: Tensor | EmpiricalField, labels: Tensor | None = None) -> Tensor:
    """The stable target of diffusion (Xu et al. 2023, 2302.00670): `pfgmpp_target` at D = inf."""
    return pfgmpp_target(x, sigma, data, math.inf, labels)


def reference(data: Tensor | EmpiricalField, D: float) -> EmpiricalField:
    """The field of the reference at D: itself, or made of a batch."""
    D = _checks.augmented_dimension(D)
    if isinstance(data, EmpiricalField):
        if data.D != D:
            raise ValueError(f"data must be a field of D={D:g}, got one of D={data.D:g}")
        return data
    return EmpiricalField(data, D)
