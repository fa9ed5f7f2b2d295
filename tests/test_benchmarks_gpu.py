"""The benchmark of GPUs, on the CPU with small shapes: its inputs, truth, providers, rows, tables and predictions."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parent.parent))  # benchmarks/ is not installed
from benchmarks import machine, results, table
from benchmarks import posterior_mean as pm
from benchmarks.gpu import __main__ as gpu_run
from benchmarks.gpu import ceilings as gpu_ceilings
from benchmarks.gpu import page, predict, rows
from benchmarks.gpu import posterior_mean as gpu
from benchmarks.gpu import small as gpu_small

GPU_ROW = rows.Row(
    operation="posterior_mean", case=gpu.CIFAR.name, variant=pm.SPREAD, provider=gpu.TRITON, status="ok", repeats=50,
    median_ms=0.2, p10_ms=0.1, p90_ms=0.3, memory_mb=3.0, error_bounds=0.5, error_relative=1e-6, rows_checked=64,
    gpairs_per_s=32.0, tflop_per_s=393.0, bound="bf16 products", bound_share=0.5, predicted_ms=0.1, remark="",
    copy_tb_per_s=4.0, bf16_tflop_per_s=790.0, int8_top_per_s=1500.0, fp32_tflop_per_s=50.0, device="A GPU", driver="1",
    torch="2", triton="3", cuda="13", pfgm_fast="0.1.0", commit="abc", date="2030-01-01",
)  # fmt: skip
CPU = torch.device("cpu")
GPU_SHAPES = {
    f"{shape.name}, {variant}": partial(gpu.make, shape.shrunk(400), CPU, variant)
    for shape in gpu.SHAPES
    for variant in gpu.VARIANTS
}


@pytest.fixture(scope="module")
def bench() -> gpu_run.Bench:
    """The programme for GPUs on the CPU, without what the compiler takes long for."""
    done = gpu_run.prepare(CPU, 2000, 60.0)
    providers = tuple(p for p in done.operation.providers if p.name not in (gpu.COMPILED, gpu.COMPILED_TF32))
    small = replace(done.operation, providers=providers)
    return done._replace(operation=small, effort=gpu_run.Effort(0.01, 2, 3))


@pytest.mark.parametrize("make", GPU_SHAPES.values(), ids=list(GPU_SHAPES))
def test_gpu_providers_compute_the_posterior_mean(make: partial[gpu.Query]) -> None:
    query = make()
    exact = gpu.truth(query)
    x, sigma = (t[query.rows] for t in query.sets[0])
    assert np.abs(exact.numpy() - oracle.field(x, sigma, query.data, query.D).mean).max() < 1e-11
    for provider in gpu.providers(CPU):
        if provider.name in (gpu.COMPILED, gpu.COMPILED_TF32) or provider.unavailable() or provider.refuses(query):
            continue
        if provider.name == gpu.TRITON and query.shape.N > 2:
            continue  # the interpreter is slow, and its kernels have tests of their own
        result = provider.prepare(query)()
        assert result.shape == query.x.shape
        far = (result[query.rows] - exact).abs().max() / query.x.abs().max()
        assert gpu.error(query, result, exact).bounds < 1 if provider.ours else far < 0.05, provider.name


def test_compiled_products_are_the_products() -> None:
    query = gpu.make(gpu.TOY.shrunk(1000), CPU, pm.SPREAD)
    plain, compiled = (p.prepare(query)() for p in gpu.providers(CPU) if p.name in (gpu.PRODUCTS, gpu.COMPILED))
    torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-3)


def test_a_transport_plan_is_brought_to_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashSinkhorn's function by its documentation: P_ij = exp((f_i + g_j + 2 x_i.y_j) / eps) times a matrix."""

    def apply(
        x: Tensor, y: Tensor, f: Tensor, g: Tensor, a: Tensor, b: Tensor, matrix: Tensor, *, eps: float, axis: int
    ) -> Tensor:
        assert axis == 1
        assert matrix.shape == y.shape
        return torch.exp((f[:, None] + g + 2 * x @ y.T) / eps + a[:, None] + b) @ matrix

    fake = SimpleNamespace(apply_plan_mat_flashstyle=apply)
    monkeypatch.setitem(sys.modules, "flash_sinkhorn.kernels.apply_flash", fake)
    query = gpu.make(gpu.TOY_GAUSSIAN.shrunk(1000), CPU, pm.ALL_80)
    provider = next(p for p in gpu.providers(CPU) if p.name == gpu.SINKHORN)
    assert provider.refuses(query) is None
    assert gpu.error(query, provider.prepare(query)(), gpu.truth(query)).bounds < 1
    assert "one sigma" in str(provider.refuses(replace(query, level=None)))
    assert "finite D" in str(provider.refuses(replace(query, D=1.0)))


def test_gpu_inputs_take_turns() -> None:
    query = gpu.make(gpu.CIFAR.shrunk(400), CPU, pm.SPREAD)
    assert query.data.dtype == torch.uint8
    apart = torch.cdist(gpu.values(query.data, torch.float64), gpu.values(query.data, torch.float64))
    assert (apart.fill_diagonal_(math.inf).amin(1) < 0.0079).sum() >= 2
    seen = []
    for _ in range(2 * gpu.SETS):
        with query.turn():
            seen.append(query.x.clone())
    assert all(torch.equal(x, query.sets[i % gpu.SETS][0]) for i, x in enumerate(seen))
    assert not torch.equal(seen[0], seen[1])


def test_rows_of_a_peer_come_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    query = gpu.make(gpu.TOY.shrunk(1000), CPU, pm.SPREAD)
    provider = next(p for p in gpu.providers(CPU) if p.name == gpu.PRODUCTS)
    whole = provider.prepare(query)()
    monkeypatch.setattr(gpu, "ROOM", 20 * 4 * len(query.data))
    assert provider.remark(query) == "16 rows at a time"
    torch.testing.assert_close(provider.prepare(query)(), whole)


def test_gpu_run_writes_a_row_for_every_provider(bench: gpu_run.Bench, tmp_path: Path) -> None:
    found = gpu_run.measure(bench, gpu.TOY_GAUSSIAN.name, pm.SPREAD, math.inf)
    assert [row.provider for row in found] == [provider.name for provider in bench.operation.providers]
    ours = [provider.name for provider in bench.operation.providers if provider.ours]
    for row in found:
        assert row.status in (("ok", "skipped") if row.provider in ours else ("ok", "skipped", "wrong"))
        assert (row.median_ms is None) == (row.status == "skipped") == (row.error_bounds is None)
    skipped = {row.provider: row.remark for row in found if row.status == "skipped"}
    assert "flash-sinkhorn is not installed" in skipped[gpu.SINKHORN]
    results.update(tmp_path / "gpu-cpu.csv", found, rows.Row)
    assert [row.key for row in results.read(tmp_path / "gpu-cpu.csv", rows.Row)] == [row.key for row in found]
    assert "flash-sinkhorn" in page.full(found)


def test_gpu_run_ends_in_time(bench: gpu_run.Bench) -> None:
    found = gpu_run.measure(bench, gpu.LATENTS.name, pm.SPREAD, -math.inf)
    assert {(row.status, row.remark) for row in found} == {("skipped", "no time was left")}


def test_a_provider_that_fails_is_a_skipped_row(bench: gpu_run.Bench) -> None:
    def fail(query: gpu.Query) -> None:
        raise RuntimeError("no such thing\nat all")

    broken = gpu.Candidate("broken", fail)  # type: ignore[arg-type]
    alone = bench._replace(operation=replace(bench.operation, providers=(broken,)))
    (row,) = gpu_run.measure(alone, gpu.TOY.name, pm.SPREAD, math.inf)
    assert (row.status, row.remark) == ("skipped", "failed: RuntimeError: no such thing")


def test_goals_on_a_gpu_have_verdicts() -> None:
    slow = replace(GPU_ROW, median_ms=0.4, variant=pm.ALL_80)
    lines = [line for line in page.goals([GPU_ROW, slow]).splitlines() if gpu.CIFAR.name in line]
    assert [line.split("|")[-2].strip() for line in lines] == ["PASS", "short"]
    for goal in gpu.GOALS:
        assert goal.shape in gpu.SHAPES
        assert (goal.quantity == "times") == bool(goal.baseline)
    wrong = replace(GPU_ROW, status="wrong", error_bounds=3.0)
    assert page.verdict(gpu.Goal(gpu.CIFAR, "ms", 0.3), wrong, page.reached(gpu.GOALS[2], wrong, None)) == "wrong"


def test_predictions_follow_the_busiest_unit() -> None:
    first, second = predict.passes(gpu.CIFAR_MANY)
    pairs = gpu.CIFAR_MANY.B * gpu.CIFAR_MANY.M
    assert first.int8 == 6 * pairs * 3072
    assert second.bytes == gpu.CIFAR_MANY.M * 3072 + 24 * 4 * pairs
    fast = gpu_ceilings.Ceilings(copy=1e9, bf16=1e9, int8=1, fp32=1e9)
    unit, least = first.bound(fast)
    assert unit == "int8 products"
    assert least == pytest.approx(first.int8 / 1e12)
    for shape in gpu.SHAPES:
        assert shape.name in predict.text()
        assert 0 < predict.seconds(shape, gpu_ceilings.H200) < 1


def test_predictions_know_the_kernels() -> None:
    blend = pytest.importorskip("pfgm_fast.kernels.blend")
    digits = pytest.importorskip("pfgm_fast.kernels.digits")
    assert blend.COLUMNS["floats"] == predict.COLUMNS
    assert digits.ALIGNMENT == predict.DEPTH
    for kind, data in ((predict.PIXELS, torch.uint8), (predict.FLOATS, torch.float32)):
        (planes, *_) = digits.empty(10, 20, 1 if data == torch.uint8 else digits.FLOAT, CPU)
        assert len(planes) * planes.element_size() == kind.digits
        assert torch.empty(0, dtype=data).element_size() == kind.value


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_run(tmp_path: Path) -> None:
    script = machine.ROOT / "benchmarks" / "gpu.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path)}
    done = subprocess.run([str(script)], capture_output=True, text=True, env=environment)
    assert done.returncode == 3
    assert "there is no GPU" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert subprocess.run([str(script), "--stages", "all"], capture_output=True, env=environment).returncode == 2
    assert gpu_run.main([]) == gpu_small.main([]) == 3


def test_tables_follow_the_rows(tmp_path: Path) -> None:
    results.update(tmp_path / "gpu-a.csv", [GPU_ROW], rows.Row)
    assert GPU_ROW.device in table.on_gpus(tmp_path)
    assert table.on_gpus(tmp_path / "none") == table.NOTHING
