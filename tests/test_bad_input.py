"""Bad input is refused with the argument's name, what came and what was expected."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pfgm_fast as pf

M, N, B = 6, 4, 3
DATA = torch.arange(M * N, dtype=torch.float32).reshape(M, N) / 10
X = torch.zeros(B, N)
CLASSES = torch.tensor([0, 0, 1, 1, 5, 5])


def with_value(t: Tensor, value: float) -> Tensor:
    t = t.clone()
    t.view(-1)[1] = value
    return t


# one row each: what is made wrong, the error, and what its message must say besides the name of the argument
BAD_DATA: dict[str, tuple[Any, type[Exception], tuple[str, ...]]] = {
    "numpy": (np.zeros((3, 4)), TypeError, ("ndarray", "torch.from_numpy")),
    "list": ([[0.0, 1.0]], TypeError, ("list", "Tensor")),
    "nan": (with_value(DATA, math.nan), ValueError, ("finite", "NaN")),
    "inf": (with_value(DATA, -math.inf), ValueError, ("finite",)),
    "empty": (torch.zeros(0, N), ValueError, ("0, 4",)),
    "no values": (torch.zeros(M, 0), ValueError, ("6, 0",)),
    "one-dimensional": (torch.zeros(M), ValueError, ("6",)),
    "int64": (DATA.long(), TypeError, ("int64", "uint8", "float32")),
    "int8": (DATA.to(torch.int8), TypeError, ("int8", "uint8")),
    "bool": (DATA.bool(), TypeError, ("bool",)),
    "complex": (DATA.to(torch.complex64), TypeError, ("complex64",)),
    "sparse": (DATA.to_sparse(), TypeError, ("sparse",)),
    "gradient": (DATA.clone().requires_grad_(), ValueError, ("grad",)),
}

BAD_X: dict[str, tuple[Any, type[Exception], tuple[str, ...]]] = {
    "numpy": (np.zeros((3, 4)), TypeError, ("ndarray", "torch.from_numpy")),
    "number": (0.5, TypeError, ("float", "Tensor")),
    "nan": (with_value(X, math.nan), ValueError, ("finite",)),
    "inf": (with_value(X, math.inf), ValueError, ("finite",)),
    "another N": (torch.zeros(B, N + 1), ValueError, (r"3, 5", "4")),
    "another N, shaped": (torch.zeros(B, 1, 3, 2), ValueError, (r"3, 1, 3, 2", "4")),
    "another N, empty": (torch.zeros(0, N + 1), ValueError, (r"0, 5", "4")),
    "one-dimensional": (torch.zeros(N), ValueError, ("4",)),
    "0-d": (torch.tensor(1.0), ValueError, (r"\(\)",)),
    "int64": (X.long(), TypeError, ("int64", "float32")),
    "uint8": (X.to(torch.uint8), TypeError, ("uint8", "float32")),
    "bool": (X.bool(), TypeError, ("bool",)),
    "complex": (X.to(torch.complex64), TypeError, ("complex64",)),
    "another device": (torch.zeros(B, N, device="meta"), ValueError, ("meta", "cpu")),
}

BAD_SIGMA: dict[str, tuple[Any, type[Exception], tuple[str, ...]]] = {
    "zero": (0.0, ValueError, ("> 0", "0")),
    "negative": (-1, ValueError, ("> 0", "-1")),
    "nan": (math.nan, ValueError, ("nan",)),
    "inf": (math.inf, ValueError, ("inf",)),
    "string": ("1.0", TypeError, ("str",)),
    "bool": (True, TypeError, ("bool",)),
    "none": (None, TypeError, ("NoneType",)),
    "numpy": (np.ones(3), TypeError, ("ndarray", "torch.from_numpy")),
    "tensor with zero": (torch.tensor([1.0, 0.0, 1.0]), ValueError, ("> 0", "0")),
    "tensor with nan": (torch.tensor([1.0, math.nan, 1.0]), ValueError, ("nan",)),
    "tensor with inf": (torch.tensor([1.0, math.inf, 1.0]), ValueError, ("inf",)),
    "0-d zero": (torch.tensor(0.0), ValueError, ("> 0",)),
    "another length": (torch.ones(B + 1), ValueError, (r"4", r"3")),
    "one for many": (torch.ones(1), ValueError, (r"1", r"3")),
    "like x": (torch.ones(B, N), ValueError, (r"3, 4",)),
    "int64": (torch.ones(B, dtype=torch.int64), TypeError, ("int64", "float32")),
    "another device": (torch.ones(B, device="meta"), ValueError, ("meta", "cpu")),
}

BAD_D: dict[str, tuple[Any, type[Exception], tuple[str, ...]]] = {
    "zero": (0, ValueError, ("> 0", "0")),
    "negative": (-2.0, ValueError, ("> 0", "-2")),
    "minus infinity": (-math.inf, ValueError, ("> 0", "-inf")),
    "nan": (math.nan, ValueError, ("nan",)),
    "string": ("inf", TypeError, ("str",)),
    "none": (None, TypeError, ("NoneType",)),
    "bool": (True, TypeError, ("bool",)),
}

BAD_LABELS: dict[str, tuple[Any, type[Exception], tuple[str, ...]]] = {
    "another length": (torch.zeros(M - 1, dtype=torch.int64), ValueError, ("5", "6")),
    "another shape": (torch.zeros(M, 1, dtype=torch.int64), ValueError, ("6, 1", "6")),
    "negative": (torch.tensor([0, 0, 1, 1, -2, 5]), ValueError, ("-2",)),
    "int32": (CLASSES.int(), TypeError, ("int32", "int64")),
    "floating": (CLASSES.float(), TypeError, ("float32", "int64")),
    "list": ([0, 0, 1, 1, 5, 5], TypeError, ("list", "Tensor")),
    "numpy": (CLASSES.numpy(), TypeError, ("ndarray", "torch.from_numpy")),
}

BAD_ROW_LABELS: dict[str, tuple[Any, type[Exception], tuple[str, ...]]] = {
    "another length": (torch.zeros(B + 1, dtype=torch.int64), ValueError, ("4", "3")),
    "unknown": (torch.tensor([0, 1, 2]), ValueError, ("2",)),
    "beyond": (torch.tensor([0, 1, 99]), ValueError, ("99",)),
    "below": (torch.tensor([0, 1, -2]), ValueError, ("-2",)),
    "int32": (torch.zeros(B, dtype=torch.int32), TypeError, ("int32", "int64")),
    "list": ([0, 0, 1], TypeError, ("list", "Tensor")),
    "another device": (torch.zeros(B, dtype=torch.int64, device="meta"), ValueError, ("meta", "cpu")),
}

BAD_LOG_WEIGHTS: dict[str, tuple[Any, type[Exception], tuple[str, ...]]] = {
    "another length": (torch.zeros(M + 1), ValueError, ("7", "6")),
    "another shape": (torch.zeros(M, 1), ValueError, ("6, 1", "6")),
    "nan": (with_value(torch.zeros(M), math.nan), ValueError, ("finite",)),
    "inf": (with_value(torch.zeros(M), math.inf), ValueError, ("finite",)),
    "int64": (torch.zeros(M, dtype=torch.int64), TypeError, ("int64", "float32")),
    "numpy": (np.zeros(M), TypeError, ("ndarray", "torch.from_numpy")),
    "list": ([0.0] * M, TypeError, ("list", "Tensor")),
}


def refused(make: Callable[[], object], name: str, error: type[Exception], words: tuple[str, ...]) -> None:
    """The call fails with this very error, whose message speaks of the argument by name and holds all the words."""
    with pytest.raises(error, match=rf"\b{name}\b") as caught:
        make()
    assert type(caught.value) is error
    for word in words:
        caught.match(word)


def table(rows: dict[str, tuple[Any, type[Exception], tuple[str, ...]]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("value", "error", "words"), rows.values(), ids=rows)


USES: dict[str, Callable[[Any, Any], object]] = {
    "call": lambda x, sigma: pf.EmpiricalField(DATA, 8.0)(x, sigma),
    "poisson_field": lambda x, sigma: pf.EmpiricalField(DATA, 8.0).poisson_field(x, sigma),
    "log_density": lambda x, sigma: pf.EmpiricalField(DATA, 8.0).log_density(x, sigma),
    "score": lambda x, sigma: pf.EmpiricalField(DATA, 8.0).score(x, sigma),
    "divergence": lambda x, sigma: pf.EmpiricalField(DATA, 8.0).divergence(x, sigma),
    "top_weights": lambda x, sigma: pf.EmpiricalField(DATA, 8.0).top_weights(x, sigma, 2),
    "effective_sample_size": lambda x, sigma: pf.EmpiricalField(DATA, 8.0).effective_sample_size(x, sigma),
    "posterior_mean": lambda x, sigma: pf.posterior_mean(x, sigma, DATA, 8.0),
    "function log_density": lambda x, sigma: pf.log_density(x, sigma, DATA, 8.0),
}
every_use = pytest.mark.parametrize("use", USES.values(), ids=USES)


@table(BAD_DATA)
def test_data(value: Any, error: type[Exception], words: tuple[str, ...]) -> None:
    refused(lambda: pf.EmpiricalField(value, 8.0), "data", error, words)
    refused(lambda: pf.posterior_mean(X, 1.0, value, 8.0), "data", error, words)
    refused(lambda: pf.log_density(X, 1.0, value, 8.0), "data", error, words)


@every_use
@table(BAD_X)
def test_x(value: Any, error: type[Exception], words: tuple[str, ...], use: Callable[[Any, Any], object]) -> None:
    refused(lambda: use(value, 1.0), "x", error, words)


@every_use
@table(BAD_SIGMA)
def test_sigma(value: Any, error: type[Exception], words: tuple[str, ...], use: Callable[[Any, Any], object]) -> None:
    refused(lambda: use(X, value), "sigma", error, words)


@table(BAD_D)
def test_D(value: Any, error: type[Exception], words: tuple[str, ...]) -> None:
    refused(lambda: pf.EmpiricalField(DATA, value), "D", error, words)
    refused(lambda: pf.posterior_mean(X, 1.0, DATA, value), "D", error, words)


@table(BAD_LABELS)
def test_labels_of_the_data(value: Any, error: type[Exception], words: tuple[str, ...]) -> None:
    refused(lambda: pf.EmpiricalField(DATA, 8.0, labels=value), "labels", error, words)


@table(BAD_ROW_LABELS)
def test_labels_of_the_rows(value: Any, error: type[Exception], words: tuple[str, ...]) -> None:
    field = pf.EmpiricalField(DATA, 8.0, labels=CLASSES)
    refused(lambda: field(X, 1.0, labels=value), "labels", error, words)
    refused(lambda: field.poisson_field(X, 1.0, labels=value), "labels", error, words)


def test_labels_of_the_rows_need_labels_of_the_data() -> None:
    field = pf.EmpiricalField(DATA, 8.0)
    refused(lambda: field(X, 1.0, labels=torch.zeros(B, dtype=torch.int64)), "labels", ValueError, ())


@table(BAD_LOG_WEIGHTS)
def test_log_weights(value: Any, error: type[Exception], words: tuple[str, ...]) -> None:
    refused(lambda: pf.EmpiricalField(DATA, 8.0, log_weights=value), "log_weights", error, words)
    refused(lambda: pf.posterior_mean(X, 1.0, DATA, 8.0, log_weights=value), "log_weights", error, words)


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (0, ValueError, ("0",)),
        (-1, ValueError, ("-1",)),
        (M + 1, ValueError, ("7", "6")),
        (2.0, TypeError, ("float",)),
        (True, TypeError, ("bool",)),
        (None, TypeError, ("NoneType",)),
    ],
)
def test_k(value: Any, error: type[Exception], words: tuple[str, ...]) -> None:
    refused(lambda: pf.EmpiricalField(DATA, 8.0).top_weights(X, 1.0, value), "k", error, words)


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (-1.0, ValueError, ("-1",)),
        (math.nan, ValueError, ("nan",)),
        (math.inf, ValueError, ("inf",)),
        ("5", TypeError, ("str",)),
    ],
)
def test_gamma(value: Any, error: type[Exception], words: tuple[str, ...]) -> None:
    refused(lambda: pf.EmpiricalField(DATA, 8.0).poisson_field(X, 1.0, value), "gamma", error, words)


@pytest.mark.parametrize("value", ["keops", "", "Torch", None, 3])
def test_unknown_backend_lists_the_known_ones(value: Any) -> None:
    known = ("auto", "native", "torch")
    refused(lambda: pf.EmpiricalField(DATA, 8.0, backend=value), "backend", ValueError, known)
    refused(lambda: pf.posterior_mean(X, 1.0, DATA, 8.0, backend=value), "backend", ValueError, known)


@pytest.mark.parametrize("value", ["low", "Highest", None])
def test_unknown_precision_lists_the_known_ones(value: Any) -> None:
    refused(lambda: pf.EmpiricalField(DATA, 8.0, precision=value), "precision", ValueError, ("highest", "high"))


def test_a_refusal_changes_nothing() -> None:
    field = pf.EmpiricalField(DATA, 8.0)
    before = field(X, 1.0)
    with pytest.raises(ValueError, match="sigma"):
        field(X, 0.0)
    assert torch.equal(field(X, 1.0), before)
