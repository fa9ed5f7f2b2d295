"""Philox words against the published vectors and plain Python, and the numbers made of them against their laws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from torch import Tensor

from pfgm_fast import philox

KNOWN_ANSWERS = [  # Random123's kat_vectors for philox4x32-10: counter, key, words
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def signed(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


def int64(*values: int) -> Tensor:
    return torch.tensor([signed(v) for v in values])


def plain_philox(seed: int, block: int, draw: int, stream: int) -> list[int]:
    """The same words by unbounded integers."""
    key, c = [seed & 0xFFFFFFFF, seed >> 32], [block & 0xFFFFFFFF, block >> 32, draw, stream]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b >> 32 ^ c[1] ^ key[0], b & 0xFFFFFFFF, a >> 32 ^ c[3] ^ key[1], a & 0xFFFFFFFF]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return c


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    c, k = ([int(word, 16) for word in text.split()] for text in (counter, key))
    words = philox.words(int64(k[0] | k[1] << 32), int64(c[0] | c[1] << 32), int64(c[2]), c[3])
    assert " ".join(f"{int(word):08x}" for word in words) == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**63 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_words_are_those_of_unbounded_integers(seed: int, block: int, draw: int, stream: int) -> None:
    words = philox.words(int64(seed), int64(block), int64(draw), stream)
    assert [int(word) for word in words] == plain_philox(seed, block, draw, stream)


def test_words_broadcast() -> None:
    seeds, blocks = int64(3, 2**64 - 7), int64(0, 5, 2**33 + 1)
    words = philox.words(seeds[:, None], blocks, int64(2), 9)
    for i, seed in enumerate((3, 2**64 - 7)):
        for j, block in enumerate(blocks.tolist()):
            assert [int(word[i, j]) for word in words] == plain_philox(seed, block, 2, 9)


def test_normals_follow_the_documented_recipe_in_float32() -> None:
    """As a kernel would compute them, every step rounded to float32: 1e-6 relative, in every element."""
    seeds, N = int64(1, 2, 3), 4001
    f32 = np.float32
    w = np.stack(
        [word.numpy() for word in philox.words(seeds[:, None], torch.arange(-(-N // 4)), int64(0), philox.NORMAL)]
    )
    radius_word, angle_word = w[0::2], w[1::2]
    low = radius_word < 2**31
    u = (np.where(low, radius_word, 2**32 - 1 - radius_word).astype(f32) + f32(0.5)) * f32(2.0**-32)
    radius = np.sqrt(f32(-2) * np.where(low, np.log(u), np.log1p(-u)))
    half_turns = (2 * (angle_word >> 9) + 1).astype(f32) * f32(2.0**-23)
    assert np.array_equal(half_turns.astype(np.float64) * 2**23, 2 * (angle_word >> 9) + 1)
    exact = np.pi * half_turns.astype(np.float64)
    cosine, sine = np.cos(exact).astype(f32), np.sin(exact).astype(f32)  # what cospi and sinpi return
    recipe = np.stack([radius[0] * cosine[0], radius[0] * sine[0], radius[1] * cosine[1], radius[1] * sine[1]], -1)
    ours = philox.normals(seeds, N, torch.float64).numpy()
    np.testing.assert_allclose(recipe.reshape(3, -1)[:, :N], ours, rtol=1e-6, atol=0)


def test_a_row_depends_on_its_seed_alone() -> None:
    seeds = torch.arange(23) * 0x9E3779B97F4A7C15
    order = torch.randperm(23, generator=torch.Generator().manual_seed(1))
    together, ratios = philox.normals(seeds, 101, torch.float32), philox.log_chi2_over_D(seeds, 2.0)
    assert torch.equal(philox.normals(seeds[order], 101, torch.float32), together[order])
    assert torch.equal(philox.log_chi2_over_D(seeds[order], 2.0), ratios[order])
    for i in range(23):
        assert torch.equal(philox.normals(seeds[i : i + 1], 101, torch.float32)[0], together[i])
        assert torch.equal(philox.log_chi2_over_D(seeds[i : i + 1], 2.0)[0], ratios[i])


@pytest.mark.parametrize("N", [1, 2, 3, 4, 5, 64, 65537, 70003])
def test_an_element_depends_neither_on_N_nor_on_the_dtype(N: int) -> None:
    longest = philox.normals(int64(5, -6), 140_000, torch.float64)  # several tiles
    assert torch.equal(philox.normals(int64(5, -6), N, torch.float64), longest[:, :N])
    assert torch.equal(philox.normals(int64(5, -6), N, torch.float32), longest[:, :N].float())


def test_many_rows_are_tiled_without_a_seam() -> None:
    seeds = torch.arange(40_000)
    rows = philox.normals(seeds, 3, torch.float32)
    assert torch.equal(torch.cat([philox.normals(part, 3, torch.float32) for part in seeds.split(7_001)]), rows)


def test_draws_streams_and_seeds_give_other_numbers() -> None:
    seeds = int64(0, 1, 2**32, 2**63)
    tables = [
        philox.normals(seeds, 8, torch.float64, draw=draw, stream=stream) for draw in (0, 1, 2**31) for stream in (0, 1)
    ]
    values = torch.cat(tables).flatten()
    assert len(values.unique()) == len(values)


def test_normals_are_finite_and_never_zero_at_the_extreme_words() -> None:
    extremes = torch.cartesian_prod(
        int64(0, 511, 512, 2**31 - 1, 2**31, 2**32 - 512, 2**32 - 1), int64(*range(0, 2**32, 2**29))
    )
    for g in philox._box_muller(*extremes.T):
        assert bool((g.float().isfinite() & (g.float() != 0)).all())
        assert float(g.abs().max()) < 6.77


def test_normals_are_standard_and_independent() -> None:
    g = philox.normals(torch.arange(2_000), 250, torch.float64).numpy()
    assert stats.kstest(g.ravel(), "norm").pvalue > 1e-3
    columns = np.corrcoef(g, rowvar=False) - np.eye(250)
    rows = np.corrcoef(g[:250]) - np.eye(250)
    assert abs(columns).max() < 5.5 / math.sqrt(2_000)
    assert abs(rows).max() < 5.5 / math.sqrt(250)
    pairs = (g**2).reshape(2_000, 125, 2)
    assert abs(np.corrcoef(pairs[..., 0].ravel(), pairs[..., 1].ravel())[0, 1]) < 5 / math.sqrt(250_000)


def plain_log_chi2_over_D(seed: int, D: float) -> float:
    """The documented recipe, one row, step by step, in the textbook's form of the test."""
    a = D / 2 + 1 if D < 2 else D / 2
    d = a - 1 / 3
    for attempt in range(12):
        w = plain_philox(seed, 0, attempt, 1)
        u = [(word + 0.5) / 2**32 for word in w]
        z = math.sqrt(-2 * math.log(u[0])) * math.cos(math.pi * (2 * (w[1] >> 9) + 1) / 2**23)
        v = (1 + z / math.sqrt(9 * d)) ** 3
        if v > 0 and math.log(u[2]) < z * z / 2 + d - d * v + d * math.log(v):
            return math.log(2 * d * v / D) + (math.log(u[3]) * 2 / D if D < 2 else 0)
    raise AssertionError


@pytest.mark.parametrize("D", [0.05, 1.0, 2.0, 128.0, 1e6])
def test_chi_squared_follows_the_documented_recipe(D: float) -> None:
    ours = philox.log_chi2_over_D(torch.arange(400), D).tolist()
    assert ours == pytest.approx([plain_log_chi2_over_D(seed, D) for seed in range(400)], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("D", [0.05, 0.5, 1.0, 1.999, 2.0, 3.0, 128.0, 1e6])
def test_chi_squared(D: float) -> None:
    x = D * philox.log_chi2_over_D(torch.arange(100_000) * 77, D).exp().numpy()
    assert stats.kstest(x, stats.chi2(D).cdf).pvalue > 1e-3


def test_chi_squared_of_a_tiny_D_is_exact_where_it_underflows() -> None:
    D = 0.01
    log_x = philox.log_chi2_over_D(torch.arange(100_000), D).numpy() + math.log(D)
    assert np.isfinite(log_x).all()
    assert log_x.min() < -1000
    tail = np.exp(D / 2 * (log_x - math.log(2)) - special.gammaln(D / 2 + 1))  # P(X < x) to first order in x
    cdf = np.where(log_x < -40, tail, special.gammainc(D / 2, np.exp(log_x) / 2))
    assert stats.kstest(cdf, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("D", [1e9, 1e12, 1e18])
def test_chi_squared_of_a_large_D_keeps_its_relative_spread(D: float) -> None:
    z = philox.log_chi2_over_D(torch.arange(20_000), D).numpy() * math.sqrt(D / 2)
    assert stats.kstest(z, "norm").pvalue > 1e-3


@pytest.mark.parametrize("D", [5e-324, 1e-300, 1e300])
def test_no_D_gives_nan(D: float) -> None:
    assert not philox.log_chi2_over_D(torch.arange(100), D).isnan().any()


@pytest.mark.parametrize("D", [0.05, 1.999, 2.0, 128.0])
def test_the_fixed_number_of_attempts_gives_the_same_chi_squared(D: float, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = torch.arange(30_000)
    lazy = philox.log_chi2_over_D(seeds, D)
    monkeypatch.setattr(philox, "readable", lambda _: False)
    assert torch.equal(philox.log_chi2_over_D(seeds, D), lazy)


@pytest.mark.parametrize("D", [1e-3, 1.999, 2.0])
def test_attempts_fail_rarely_enough(D: float) -> None:
    """The rates of rejection are highest here: 12 attempts fail together less than once in 1e12 rows."""
    _, accepted = philox._marsaglia_tsang(torch.arange(100_000), D, torch.tensor([[0]]))
    assert (1 - accepted.double().mean().item()) ** philox._ATTEMPTS < 1e-12


def test_seeds_of_any_64_bits() -> None:
    cpu = torch.device("cpu")
    wanted = [0, -1, 2**63 - 1, -(2**63), 5]
    for seeds in (
        wanted,
        tuple(wanted),
        [0, 2**64 - 1, 2**63 - 1, 2**63, 5],
        torch.tensor(wanted),
        list(np.array(wanted)),
    ):
        assert philox.row_seeds(5, seeds, None, cpu).tolist() == wanted
    assert philox.row_seeds(3, range(7, 10), None, cpu).tolist() == [7, 8, 9]
    assert philox.row_seeds(0, [], None, cpu).dtype == torch.int64


@pytest.mark.parametrize(
    ("seeds", "error", "message"),
    [
        (3, TypeError, "seeds must be a list of integers.*got int"),
        ("12", TypeError, "seeds .*got str"),
        (np.arange(2), TypeError, r"seeds .*torch\.from_numpy"),
        ([1, True], TypeError, "seeds must be integers, got bool"),
        ([1, 2.0], TypeError, "seeds must be integers, got float"),
        (torch.zeros(2), TypeError, "seeds .*float32"),
        (torch.zeros(2, dtype=torch.bool), TypeError, "seeds .*bool"),
        (torch.zeros(2, dtype=torch.int32), TypeError, "seeds .*int32"),
        ([1], ValueError, r"seeds .*2 rows.*\(1,\)"),
        (torch.zeros(2, 1, dtype=torch.int64), ValueError, r"seeds .*\(2, 1\)"),
        ([1, 2**64], ValueError, "seeds must be 64-bit"),
        ([-(2**63) - 1, 0], ValueError, "seeds must be 64-bit"),
    ],
)
def test_bad_seeds(seeds: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        philox.row_seeds(2, seeds, None, torch.device("cpu"))
