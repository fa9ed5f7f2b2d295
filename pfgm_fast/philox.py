"""Counter-based random numbers: Philox4x32-10 words, and the normals and chi-squares made of them.

Every number is a function of a row's 64-bit seed and of its place in that row, and of nothing else: not of the
batch, the shape, the dtype or the device. docs/random-numbers.md states the recipe for other implementations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from pfgm_fast._checks import readable, short

# the stream word of the counter: what the numbers are for
NORMAL, CHI2, CHURN_NORMAL, CHURN_CHI2, PFGM, PROBE = range(6)

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_ATTEMPTS = 12  # one fails with probability < 0.05, so all do with probability < 3e-16


def row_seeds(B: int, seeds: Any, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """One 64-bit seed for each of `B` rows, int64 (B,) on `device`.

    `seeds` are B integers (any 64-bit value, signed or unsigned) or an int64 tensor (B,). Without them the seeds are
    drawn from `generator`, or else from torch's default generator of `device`.

    Raises TypeError for seeds that are not integers; ValueError for another length, integers beyond 64 bits, or
    seeds and generator together.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    if seeds is None:
        home = device if generator is None else generator.device
        return torch.randint(-(2**63), 2**63 - 1, (B,), generator=generator, device=home).to(device)
    if generator is not None:
        raise ValueError("seeds and generator exclude each other, got both: give one of them")
    if not isinstance(seeds, Tensor):
        seeds = _as_tensor(seeds)
    if seeds.dtype != torch.int64:
        raise TypeError(f"seeds must be integers or an int64 tensor, got a tensor of dtype {short(seeds.dtype)}")
    if tuple(seeds.shape) != (B,):
        raise ValueError(f"seeds must be one for each of the {B} rows, got shape {tuple(seeds.shape)}, expected ({B},)")
    return cast(Tensor, seeds.detach().to(device))


def _as_tensor(seeds: Any) -> Tensor:
    if not isinstance(seeds, Sequence) or isinstance(seeds, (str, bytes)):
        hint = "torch.from_numpy" if type(seeds).__module__ == "numpy" else "one integer a row, as range(B)"
        raise TypeError(
            f"seeds must be a list of integers or an int64 tensor (B,), got {type(seeds).__name__}: use {hint}"
        )
    for seed in seeds:
        if isinstance(seed, bool) or not hasattr(seed, "__index__"):
            raise TypeError(f"seeds must be integers, got {type(seed).__name__} ({seed!r})")
        if not -(2**63) <= seed.__index__() < 2**64:
            raise ValueError(f"seeds must be 64-bit integers, in [-2**63, 2**64), got {seed}")
    return torch.tensor([(seed.__index__() + 2**63) % 2**64 - 2**63 for seed in seeds], dtype=torch.int64)


def words(seeds: Tensor, block: Tensor, draw: Tensor, stream: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four 32-bit words of Philox4x32-10 (Salmon et al. 2011) as int64 in [0, 2**32).

    Key: (seed low, seed high). Counter: (block low, block high, draw, stream). `seeds`, `block` and `draw` are int64
    tensors that broadcast against each other; draw and stream lie in [0, 2**32).
    """
    key0, key1 = seeds & _MASK, (seeds >> 32) & _MASK
    c0, c1, c2, c3 = block & _MASK, block >> 32, draw, torch.full_like(draw, stream)
    for _ in range(_ROUNDS):
        # The product wraps modulo 2**64: its low word is exact, and the mask removes the sign that >> drags in.
        # The low words go on unmasked, since the next round masks them.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = ((product1 >> 32) ^ c1 ^ key0) & _MASK
        c2 = ((product0 >> 32) ^ c3 ^ key1) & _MASK
        c1, c3 = product1, product0
        key0, key1 = (key0 + _WEYL[0]) & _MASK, (key1 + _WEYL[1]) & _MASK
    return c0, c1 & _MASK, c2, c3 & _MASK


def normals(seeds: Tensor, N: int, dtype: torch.dtype, *, draw: int = 0, stream: int = NORMAL) -> Tensor:
    """Independent standard normals (B, N): element n of a row depends on its seed, n, draw and stream only.

    Computed in float64 and rounded once to `dtype`. Temporaries stay below 4 MiB on a CPU and 256 MiB on a GPU.
    """
    B, blocks = len(seeds), -(-N // 4)
    out = torch.empty(B, N, dtype=dtype, device=seeds.device)
    tile = _tile(seeds, B * blocks)
    columns = min(blocks, tile)
    rows = max(1, tile // max(1, columns))
    draws = torch.full((), draw, dtype=torch.int64, device=seeds.device)
    for first in range(0, blocks, columns):
        last = min(first + columns, blocks)
        block = torch.arange(first, last, device=seeds.device)
        for row in range(0, B, rows):
            w = words(seeds[row : row + rows, None], block, draws, stream)
            pairs = (*_box_muller(w[0], w[1]), *_box_muller(w[2], w[3]))
            end = min(4 * last, N)
            out[row : row + rows, 4 * first : end] = torch.stack(pairs, -1).flatten(1)[:, : end - 4 * first]
    return out


def uniforms_and_normal(seeds: Tensor, *, stream: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two uniforms in (0, 1) and a normal for each row, float64 (B,): from the words 0, 1 and (2, 3) of one block."""
    zero = torch.zeros_like(seeds)
    w = words(seeds, zero, zero, stream)
    return _uniform(w[0]), _uniform(w[1]), _box_muller(w[2], w[3])[0]


def log_chi2_over_D(seeds: Tensor, D: float, *, block: int = 0, stream: int = CHI2) -> Tensor:
    """ln(X / D) for one X ~ chi-squared with D degrees of freedom in each row: float64 (B,).

    It depends on the row's seed, on D, block and stream only.

    Any real D > 0. The logarithm is finite where X itself underflows (small D) and exact where X/D is near 1 (large D).
    Rejection by Marsaglia and Tsang (2000); attempt k is the counter's draw k. A GPU is never waited for.
    """
    if not readable(seeds):
        tile = max(1, _tile(seeds, len(seeds) * _ATTEMPTS) // _ATTEMPTS)
        parts = [_first_accepted(part, D, 0, _ATTEMPTS, block, stream)[0] for part in torch.split(seeds, tile)]
        return torch.cat(parts)
    result, accepted = _first_accepted(seeds, D, 0, 1, block, stream)
    again = (~accepted).nonzero().squeeze(1)
    if len(again):
        result[again] = _first_accepted(seeds[again], D, 1, _ATTEMPTS, block, stream)[0]
    return result


def _tile(seeds: Tensor, everything: int) -> int:
    """How many Philox blocks to compute at once: all where a compiler fuses the temporaries away."""
    if torch.compiler.is_compiling():
        return max(1, everything)
    return 2**14 if seeds.device.type == "cpu" else 2**20


def _uniform(word: Tensor) -> Tensor:
    """(w + 1/2) / 2**32, strictly between 0 and 1."""
    return (word.to(torch.float64) + 0.5) * 2.0**-32


def _box_muller(radius_word: Tensor, angle_word: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent normals, float64, neither ever 0.

    The angle is an odd multiple of 2**-23 half-turns: exact in float32, and never so near an axis that the rounding of
    pi shows in the result.
    """
    radius = (-2.0 * _uniform(radius_word).log()).sqrt()
    angle = ((angle_word >> 9).to(torch.float64) + 0.5) * (math.pi * 2.0**-22)
    return radius * angle.cos(), radius * angle.sin()


def _first_accepted(seeds: Tensor, D: float, first: int, last: int, block: int, stream: int) -> tuple[Tensor, Tensor]:
    """ln(X / D) of the first accepted attempt of [first, last), and whether there was one."""
    attempts = torch.arange(first, last, device=seeds.device)[:, None]
    log_ratio, accepted = _marsaglia_tsang(seeds, D, attempts, block, stream)
    result = log_ratio[-1]
    for k in reversed(range(last - first - 1)):
        result = torch.where(accepted[k], log_ratio[k], result)
    return result, accepted.any(0)


class GammaLaw(NamedTuple):
    """The constants of the rejection for D degrees of freedom: a = D/2, or D/2 + 1 if D < 2."""

    d: float  # a - 1/3
    spread: float  # 1/sqrt(9 d)
    shift: float  # ln(2 d / D)
    boost: float  # 2/D if D < 2, else 0


def gamma_law(D: float) -> GammaLaw:
    """What `log_chi2_over_D` and any kernel for it need to know of D."""
    boost = D < 2
    d = D / 2 + boost - 1 / 3
    return GammaLaw(d, 1 / math.sqrt(9 * d), math.log(2 * d) - math.log(D), 2 / D if boost else 0.0)


def _marsaglia_tsang(
    seeds: Tensor, D: float, attempts: Tensor, block: int = 0, stream: int = CHI2
) -> tuple[Tensor, Tensor]:
    """Proposals for ln(X / D) and whether each is accepted: (len(attempts), B).

    Gamma(a), a = D/2, is d v with d = a - 1/3, v = (1 + t)**3, t = z/sqrt(9 d), z normal, accepted if ln u is below
    z**2/2 + d - d v + d ln v, written here without the terms that cancel. For a < 1 it is Gamma(a + 1) * u'**(1/a).
    """
    d, spread, shift, boost = gamma_law(D)
    w = words(seeds, torch.full_like(attempts, block), attempts, stream)
    t = _box_muller(w[0], w[1])[0] * spread
    log_1p = t.log1p()
    accepted = _uniform(w[2]).log() < 3 * d * (log_1p - t + t * t * (0.5 - t / 3))
    log_ratio = 3 * log_1p + shift
    if boost:
        log_ratio = log_ratio + _uniform(w[3]).log() * boost
    return log_ratio, accepted
