"""The empirical field of a data set: thin functions, in the field's words, over the one operator."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pfgm_fast import _checks, gradients, operator, reference, streaming, student
from pfgm_fast.ode import cuda
from pfgm_fast.ode.native import NativeSlots, solve_field
from pfgm_fast.solution import Record

PRECISIONS = ("highest", "high")

_EVALUATIONS = 16  # of a whole solve between two looks at the progress bar


class EmpiricalField:
    """The Poisson or diffusion field of a data set, as an exact denoiser.

    PFGM (arXiv 2209.11178) sees the data as charges on a plane of an (N + D)-dimensional space, PFGM++ (arXiv
    2302.04265) for any D: D = 1 is PFGM, D = math.inf diffusion. Called as `field(x, sigma)` it is the denoiser of
    EDM's convention, E[y | x, sigma] = sum_j w_j y_j with w_j in proportion to
    exp(a_j) (1 + |x - y_j|^2 / (D sigma^2))^(-(N + D)/2).

    Every method takes x as (B, N) or (B, *data), whatever the shape of the field's data if N agrees, and sigma > 0 in
    data units as a number, 0-d, (B,) or (B, 1, ..., 1); results have the dtype of x. Gradients with respect to x flow,
    once and in closed form, through the posterior mean and the log density; a gradient through anything else, or with
    respect to sigma, is not defined, and a ValueError. The data are not copied where they need no change: do not write
    to them while the field is in use.

    Data in host memory that, as the backend prepares them, would fill more than half of what a GPU `device` has free
    stay where they are, pinned, pageable or memory-mapped (torch.from_numpy(np.load(path, mmap_mode="r"))), and stream
    through it in chunks: once at each call, twice for score (D finite) and effective_sample_size. The repr says
    "streamed from cpu". Labels make it gather rows one by one; data sorted by class spare it that. Such a field keeps
    every promise but three: torch.compile leaves its calls uncompiled and refuses them where fullgraph=True, CUDA
    graphs cannot hold it, and no gradient flows.

    Args:
        data: (M, *data), M >= 1, floating, or uint8 for images: pixel u stands for (2u - 255)/255 and stays 8-bit.
        D: augmented dimension, a float > 0 or math.inf.
        labels: (M,) int64 >= 0, the class of each datum.
        log_weights: (M,) floating, the log mass a_j of each datum; default 0.
        precision: "highest" (float32-accurate log weights) or "high": on a GPU, for data of more than 16 dimensions
            that are not float64, several times faster, with coordinates of queries and of floating data rounded to
            2^-14 of the largest, and the mean summed in float16 of 11 bits (docs/kernels.md); elsewhere as "highest".
        backend: "auto" or a name in pf.info().backends.
        device: where the data goes, or streams to; default: where it is.
    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.
    """

    def __init__(
        self,
        data: Tensor,
        D: float,
        *,
        labels: Tensor | None = None,
        log_weights: Tensor | None = None,
        precision: str = "highest",
        backend: str = "auto",
        device: torch.device | str | None = None,
    ) -> None:
        _checks.tensor("data", data, (*_checks.FLOATING, torch.uint8))
        _checks.no_grad_needed("data", data)
        if data.ndim < 2 or data.numel() == 0:
            raise ValueError(
                f"data must be (M, *data) with at least one datum and N >= 1, got shape {tuple(data.shape)}"
            )
        self.D = _checks.augmented_dimension(D)
        self._gaussian = math.isinf(self.D)
        self.precision = _checks.choice("precision", precision, PRECISIONS)
        self.device = data.device if device is None else torch.empty(0, device=device).device
        self.backend = operator.choose(backend, self.device)
        self.shape = tuple(data.shape[1:])
        self.dtype = data.dtype
        self.N = math.prod(self.shape)
        M = len(data)
        self._log_weights = (
            None if log_weights is None else _log_weights(log_weights, M).to(self.device, _checks.wide(self.device))
        )
        self._order = self._classes = None
        if labels is not None:
            labels = _labels(labels, M, lowest=0).to(self.device)
            self._order = torch.argsort(labels, stable=True)
            self._classes, counts = torch.unique(labels, return_counts=True)
            self._bounds = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
            if self._log_weights is not None:
                self._log_weights = self._log_weights[self._order]
        self._M = M
        self._data: list[Tensor] = []
        self._stream = None
        if streaming.needed(data, self.device, self.backend, self.precision):
            self._stream = streaming.HostData(data, self._order, self.device, self.backend, self.precision)
        else:
            _checks.finite("data", data)
            flat = data.detach().reshape(M, -1).to(self.device).to(streaming.computed(data.dtype))
            flat = flat if self._order is None else flat[self._order]
            self._data = operator.prepare(flat.contiguous(), self.backend, self.precision)

    def __len__(self) -> int:
        return self._M

    def __repr__(self) -> str:
        kind, streamed = _checks.short(self.dtype), "" if self._stream is None else ", streamed from cpu"
        return (
            f"EmpiricalField(M={len(self)}, shape={self.shape}, D={self.D:g}, dtype={kind}, "
            f"backend={self.backend!r}{streamed})"
        )

    @property
    def labelled(self) -> bool:
        """Whether the data have classes."""
        return self._classes is not None

    def __call__(self, x: Tensor, sigma: float | Tensor, labels: Tensor | None = None) -> Tensor:
        """Posterior mean E[y | x, sigma], like x: the ideal denoiser and PFGM++'s target (2302.04265, section 3).

        Differentiable with respect to x.

        Args:
            labels: (B,) int64, restricts each row to the data of its class; -1 = all data.
        """
        query, scale = self._query(x, sigma, differentiable=True)
        return self._mean(x, query, scale, self._segments(labels, len(x)))

    def unchecked(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """The same without a look at values, for solvers: sigma is (B,).

        A row with NaN, sigma <= 0 or an unknown class is NaN. Differentiable with respect to x.
        """
        self._check(x, differentiable=True)
        scale = self._scale(sigma.to(_checks.wide(x.device)))
        return self._mean(x, self._flat(x), scale, self._segments(labels, len(x), check=False))

    def poisson_field(
        self, x: Tensor, sigma: float | Tensor, gamma: float = 0.0, labels: Tensor | None = None
    ) -> Tensor:
        """PFGM's normalised field (B, N + 1): -sqrt(N) (x - x_hat, r) / (|(x - x_hat, r)| + gamma), r = sigma sqrt(D).

        The training target of 2209.11178, section 3.2. D = inf, where r is infinite, is a ValueError.
        """
        gamma = _checks.number("gamma", gamma, at_least=0)
        if self._gaussian:
            raise ValueError("D must be finite for the Poisson field, got inf: r = sigma sqrt(D) is infinite")
        query, scale = self._query(x, sigma)
        mean, _ = self._run(query, scale, self._log_weights, self._segments(labels, len(x)), self._power)
        vector: Tensor = torch.cat([(query - mean).to(scale.dtype), scale.sqrt()[:, None]], 1)
        length = torch.linalg.vector_norm(vector, dim=1, keepdim=True)
        result: Tensor = vector * -math.sqrt(self.N) / (length + gamma)
        return result.to(x.dtype)

    def log_density(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Log density (B,) in nats of the data smoothed by Student-t noise: D degrees of freedom, scale sigma.

        Differentiable with respect to x.
        """
        query, scale = self._query(x, sigma, differentiable=True)
        _, log_sum = self._posterior(query, scale, self._power)
        masses = math.log(len(self)) if self._log_weights is None else self._log_weights.logsumexp(0)
        result: Tensor = log_sum - masses + student.log_normaliser(scale, self.N, self.D)
        return result.to(x.dtype)

    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Gradient of the log density with respect to x, like x: -sum_j w_j c_j (x - y_j)."""
        query, scale = self._query(x, sigma)
        *_, score = streaming.moments(query, scale, self._power, partial(self._posterior, query, scale))
        return score.to(x.dtype).reshape(x.shape)

    def divergence(self, x: Tensor, sigma: float | Tensor, labels: Tensor | None = None) -> Tensor:
        """Trace (B,) of the Jacobian of the posterior mean, exactly: no random probes.

        Args:
            labels: as for the posterior mean; not for data that stream.
        """
        query, scale = self._query(x, sigma)
        segments = self._segments(labels, len(x))
        if self._stream is None:
            result = reference.divergence(query, scale, self._data, self._log_weights, self._power, segments)
        elif segments is not None:
            raise ValueError("labels must be None for the divergence of data that stream from host memory")
        else:
            result = self._stream.divergence(query, scale, self._log_weights, self._power)
        return result.to(x.dtype)

    def top_weights(self, x: Tensor, sigma: float | Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k largest posterior weights of each row, largest first, and whose they are: (B, k) and (B, k) int64."""
        k = _checks.integer("k", k, at_least=1)
        if k > len(self):
            raise ValueError(f"k must be at most the {len(self)} data, got {k}")
        query, scale = self._query(x, sigma)
        if self._stream is None:
            weights, indices = operator.top_weights(
                query, scale, self._data, self._log_weights, self._power, self.backend, k
            )
        else:
            weights, indices = self._stream.top_weights(query, scale, self._log_weights, self._power, k)
        return weights.to(x.dtype), indices if self._order is None else self._order[indices]

    def effective_sample_size(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """1 / sum_j w_j^2 (B,): the number of data that share the posterior, between 1 and M."""
        query, scale = self._query(x, sigma)
        _, log_sum = self._posterior(query, scale, self._power)
        # sum of exp(2 l): the same kernel with twice the power, or half the scale, and twice the log masses
        twice = None if self._log_weights is None else 2 * self._log_weights
        if self._gaussian:
            _, squares = self._run(query, scale / 2, twice, None, self._power)
        else:
            _, squares = self._run(query, scale, twice, None, 2 * self._power)
        return torch.exp(2 * log_sum - squares).to(x.dtype)

    def whole_solve(
        self, record: Record, end: Tensor, levels: tuple[float, float], labels: Tensor | None, **options: Any
    ) -> Iterator[None] | None:
        """The solver "rk45" from the record's states to `end` without Python, some evaluations for each item.

        For the solvers, which otherwise call `unchecked` for every evaluation: on the CPU in C++, with the same bits
        but for the last digit of exp in float64; on a GPU, for few dimensions and data, in one launch. None where the
        field cannot be solved so.

        Args:
            levels: the noise levels at the ends.
            labels: as for the posterior mean, not looked at.
            options: rtol, atol, max_steps, controller and slots of `pfgm_fast.ode.solve`.
        """
        mixed = self.dtype == torch.float64 and record.x.dtype != torch.float64
        if self._stream is not None or mixed:
            return None
        self._check(record.x)
        points, center = self._data[:2]
        segments = self._segments(labels, len(record.x), check=False)
        if self.backend == "native":
            slots = NativeSlots(record, end, **options)
            return solve_field(
                slots, points, center, self._log_weights, segments, self.D, *levels, evaluations=_EVALUATIONS
            )
        if self.backend == "triton" and cuda.solves_field(record, points):
            del options["slots"]
            cuda.solve_field(record, end, points, self._log_weights, segments, self.D, levels, **options)
            return iter(())
        return None

    @property
    def _power(self) -> float:
        return (self.N + self.D) / 2

    def _check(self, x: Tensor, differentiable: bool = False) -> None:
        _checks.tensor("x", x)
        if not (differentiable and gradients.wanted(x)):
            _checks.no_grad_needed("x", x)
        if x.device != self.device:
            raise ValueError(f"x must be on {self.device} like the data, got {x.device}")
        if x.ndim < 2 or math.prod(x.shape[1:]) != self.N:
            raise ValueError(f"x must be (B, {self.N}) or (B, *data) with N = {self.N}, got shape {tuple(x.shape)}")

    def _query(self, x: Tensor, sigma: float | Tensor, differentiable: bool = False) -> tuple[Tensor, Tensor]:
        """Checked queries (B, N) in the compute dtype; the kernel's scale (B,): D sigma^2, or 2 sigma^2 for D = inf."""
        self._check(x, differentiable)
        _checks.finite("x", x)
        return self._flat(x), self._scale(_checks.noise_level(sigma, x))

    def _flat(self, x: Tensor) -> Tensor:
        double = torch.float64 in (x.dtype, self.dtype)
        x = x if gradients.wanted(x) else x.detach()
        return x.reshape(len(x), self.N).to(torch.float64 if double else torch.float32).contiguous()

    def _scale(self, level: Tensor) -> Tensor:
        level = torch.where(level > 0, level, math.nan)
        return (2.0 if self._gaussian else self.D) * level**2

    def _mean(self, x: Tensor, query: Tensor, scale: Tensor, segments: Tensor | None) -> Tensor:
        mean, _ = self._run(query, scale, self._log_weights, segments, self._power)
        return mean.reshape(x.shape).to(x.dtype)

    def _posterior(self, query: Tensor, scale: Tensor, power: float) -> tuple[Tensor, Tensor]:
        return self._run(query, scale, self._log_weights, None, power)

    def _run(
        self, query: Tensor, scale: Tensor, log_weights: Tensor | None, segments: Tensor | None, power: float
    ) -> tuple[Tensor, Tensor]:
        if self._stream is None:
            run = gradients.posterior if query.requires_grad else operator.posterior
            return run(query, scale, self._data, log_weights, segments, power, self.backend)
        if query.requires_grad:
            raise ValueError("x requires a gradient, which is not defined for data that stream from host memory")
        mean, log_sum = self._stream.posterior(query, scale, log_weights, segments, power)
        return mean, log_sum

    def _segments(self, labels: Tensor | None, B: int, check: bool = True) -> Tensor | None:
        """The range of the sorted data that each row sees (B, 2); an unknown class sees none."""
        if labels is None:
            return None
        if self._classes is None:
            raise ValueError("labels came with the query, but the field has none: EmpiricalField(data, D, labels=...)")
        labels = _labels(labels, B, lowest=-1, check=check)
        if labels.device != self.device:
            raise ValueError(f"labels must be on {self.device} like the data, got {labels.device}")
        place = torch.searchsorted(self._classes, labels.contiguous()).clamp_max(len(self._classes) - 1)
        known = self._classes[place] == labels
        if check and _checks.readable(labels) and not bool((known | (labels == -1)).all()):
            unknown = labels[~(known | (labels == -1))][0].item()
            raise ValueError(
                f"labels must be -1 or a class of the data, got {unknown}; known: {_listed(self._classes)}"
            )
        segment = torch.stack([self._bounds[place], self._bounds[place + 1]], 1) * known[:, None]
        everything = torch.stack([torch.zeros_like(labels), torch.full_like(labels, len(self))], 1)
        return torch.where((labels == -1)[:, None], everything, segment)


def posterior_mean(
    x: Tensor,
    sigma: float | Tensor,
    data: Tensor,
    D: float,
    *,
    log_weights: Tensor | None = None,
    precision: str = "highest",
    backend: str = "auto",
) -> Tensor:
    """Posterior mean of a data set, like x: `EmpiricalField(data, D, ...)(x, sigma)` for data that is used once."""
    return EmpiricalField(data, D, log_weights=log_weights, precision=precision, backend=backend)(x, sigma)


def log_density(
    x: Tensor,
    sigma: float | Tensor,
    data: Tensor,
    D: float,
    *,
    log_weights: Tensor | None = None,
    precision: str = "highest",
    backend: str = "auto",
) -> Tensor:
    """Log density (B,) in nats of the smoothed data: `EmpiricalField(data, D, ...).log_density(x, sigma)`."""
    return EmpiricalField(data, D, log_weights=log_weights, precision=precision, backend=backend).log_density(x, sigma)


def _log_weights(log_weights: Tensor, M: int) -> Tensor:
    _checks.tensor("log_weights", log_weights)
    _checks.no_grad_needed("log_weights", log_weights)
    if tuple(log_weights.shape) != (M,):
        raise ValueError(f"log_weights must be ({M},), one for each datum, got {tuple(log_weights.shape)}")
    _checks.finite("log_weights", log_weights)
    return log_weights.detach()


def _labels(labels: Tensor, count: int, lowest: int, check: bool = True) -> Tensor:
    _checks.tensor("labels", labels, (torch.int64,))
    if tuple(labels.shape) != (count,):
        raise ValueError(f"labels must be ({count},), one for each row, got {tuple(labels.shape)}")
    if check and count and _checks.readable(labels) and int(labels.min()) < lowest:
        raise ValueError(f"labels must be >= {lowest}, got {int(labels.min())}")
    return labels


def _listed(classes: Tensor) -> str:
    shown = ", ".join(str(c) for c in classes[:10].tolist())
    return shown + (", ..." if len(classes) > 10 else "")
