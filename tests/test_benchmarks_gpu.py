"""The benchmark of GPUs, on the CPU with shrunk shapes: its inputs, truth, providers, goals and predictions."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parent.parent))  # benchmarks/ is not installed
from benchmarks import bars, shapes, table
from benchmarks.gpu import predict
from benchmarks.shapes import CIFAR, CIFAR_MANY, LATENTS, ON_GPU
from pfgm_fast import kernels
from pfgm_fast.bench import posterior_mean as pm
from pfgm_fast.bench import queries
from pfgm_fast.bench.ceilings import Ceilings
from pfgm_fast.bench.queries import ALL_80, SPREAD, Query, Shape
from pfgm_fast.bench.rows import Row, Table

CPU = torch.device("cpu")
COMPILES = (pm.FLEX, pm.FLEX_TF32, pm.KEOPS, pm.COMPILED, pm.COMPILED_TF32)  # for seconds, each shape
ROW = Row(
    operation="posterior_mean", case=CIFAR.name, variant=SPREAD, provider=pm.TRITON, setting="", threads=1,
    status="ok", median_ms=0.2, p10_ms=0.1, p90_ms=0.3, repeats=50, memory_mb=3.0, error_bounds=0.5, error_median=1e-6,
    gpairs_per_s=400.0, gflop_per_s=4e5, bound="bf16 products", bound_share=0.5, copy_gb_per_s=4000.0,
    half_gflop_per_s=79e4, int8_gop_per_s=15e5, matrix_gflop_per_s=5e4, tests="passed", machine="A Processor",
    device="A GPU", versions="torch 2, triton 3, cuda 13.0, driver 1", pfgm_fast="0.1.0", commit="abc",
    date="2030-01-01",
)  # fmt: skip


def shrunk(shape: Shape, factor: int = 400) -> Shape:
    """The same with fewer queries and data, and of many dimensions fewer."""
    N = shape.N if shape.N <= 64 else max(64, shape.N // factor)
    return replace(shape, B=max(3, shape.B // factor), M=max(50, shape.M // factor), N=N)


SHRUNK = {
    f"{shape.name}, {variant}": partial(queries.make, shrunk(shape), variant, CPU)
    for shape in ON_GPU
    for variant in (SPREAD, ALL_80)
}


@pytest.mark.parametrize("make", SHRUNK.values(), ids=list(SHRUNK))
def test_providers_on_gpus_compute_the_posterior_mean(make: partial[Query]) -> None:
    query = make()
    exact = queries.truth(query)
    x, sigma = (t[query.rows] for t in query.sets[0])
    assert np.abs(exact.numpy() - oracle.field(x, sigma, query.data, query.D).mean).max() < 1e-11
    for provider in pm.PROVIDERS:
        if "cuda" not in provider.devices or provider.name in (*COMPILES, pm.BARE, pm.GRAPH) or provider.refuses(query):
            continue
        if "triton" in provider.name and query.shape.N > 2:
            continue  # the interpreter is slow, and its kernels have tests of their own
        with provider.within():
            result = provider.prepare(query)()
        assert isinstance(result, Tensor)
        assert result.shape == query.x.shape
        far = (result[query.rows] - exact).abs().max() / query.x.abs().max()
        bounds = queries.error(query, result, exact).bounds
        assert bounds is not None
        assert bounds < 1 if provider.ours else far < 0.05, provider.name


# ---- goals


def test_goals_on_a_gpu_have_verdicts() -> None:
    slow = replace(ROW, median_ms=0.4, variant=ALL_80)
    found = {line[1]: line[2:] for line in bars.lines(Table([ROW, slow]))}
    what = f"{CIFAR.name}, {{}}: ms, {pm.TRITON}"
    assert found[what.format(SPREAD)] == ("≤ 0.3", "0.2", "PASS")
    assert found[what.format(ALL_80)] == ("≤ 0.3", "0.4", "short")
    (wrong, *_) = (
        line for line in bars.lines(Table([replace(ROW, status="wrong", error_bounds=3.0)]))
        if line[1] == what.format(SPREAD)
    )  # fmt: skip
    assert wrong[-2:] == ("–", "wrong")


def test_goals_of_rates_are_least_ones() -> None:
    latents = replace(ROW, case=LATENTS.name)
    high = replace(latents, provider=pm.TRITON_HIGH)
    found = {line[1]: line[2:] for line in bars.lines(Table([latents, high]))}
    what = f"{LATENTS.name}, {SPREAD}: Gpairs/s, {{}}"
    assert found[what.format(pm.TRITON)] == ("≥ 350", "400", "PASS")
    assert found[what.format(pm.TRITON_HIGH)] == ("≥ 600", "400", "short")


def test_goals_are_of_sizes_on_gpus() -> None:
    for goal in bars.ON_GPU:
        assert goal.shape in ON_GPU
        assert goal.provider in (pm.TRITON, pm.TRITON_HIGH)
        assert goal.column in ("median_ms", "gpairs_per_s")
        assert not goal.baseline or goal.column == "median_ms"
    assert len({(goal.shape, goal.baseline, goal.provider) for goal in bars.ON_GPU}) == len(bars.ON_GPU)


def test_pages_tell_of_gpus() -> None:
    found = Table([ROW, replace(ROW, provider=pm.PRODUCTS, median_ms=9.0)])
    text = table.full("a-gpu", found)
    assert "A GPU (A Processor); torch 2, triton 3, cuda 13.0, driver 1;" in text
    assert "GFLOP/s of bf16 products" in text
    assert shapes.SMALL_TOY.name not in text
    assert "45× faster" in table.every_row("a-gpu", found)
    assert "| all of CIFAR-10 |" in table.summary(found)


# ---- predictions


def test_predictions_follow_the_busiest_unit() -> None:
    first, second = predict.passes(CIFAR_MANY)
    pairs = CIFAR_MANY.B * CIFAR_MANY.M
    assert first.int8 == 6 * pairs * 3072
    assert second.bytes == CIFAR_MANY.M * 3072 + 24 * 4 * pairs
    fast = Ceilings(copy=1e12, matrix=1e12, half=1e12, int8=1e3)
    unit, least = first.bound(fast)
    assert unit == "int8 products"
    assert least == pytest.approx(first.int8 / 1e12)
    for shape in ON_GPU:
        assert shape.name in predict.text()
        assert 0 < predict.seconds(shape, predict.H200) < 1
        if shape.N > kernels.NARROW:
            assert predict.seconds(shape, predict.H200, "high") < predict.seconds(shape, predict.H200)


def test_predictions_are_of_the_ceilings_given() -> None:
    text = predict.text(predict.H200._replace(int8=1234e3))
    assert "1234 TOP/s of int8 products" in text
    assert text != predict.text()
    full = predict.H200
    slow = Ceilings(full.copy / 2, full.matrix / 2, (full.half or 0) / 2, (full.int8 or 0) / 2)
    for shape in ON_GPU:
        assert predict.seconds(shape, slow) == pytest.approx(2 * predict.seconds(shape, predict.H200))


def test_predictions_know_the_kernels() -> None:
    blend = pytest.importorskip("pfgm_fast.kernels.blend")
    digits = pytest.importorskip("pfgm_fast.kernels.digits")
    assert blend.COLUMNS["floats"] == predict.COLUMNS
    assert digits.ALIGNMENT == predict.DEPTH
    for kind, data in ((predict.PIXELS, torch.uint8), (predict.FLOATS, torch.float32)):
        (planes, *_) = digits.empty(10, 20, 1 if data == torch.uint8 else digits.FLOAT, CPU)
        assert len(planes) * planes.element_size() == kind.digits
        assert torch.empty(0, dtype=data).element_size() == kind.value
