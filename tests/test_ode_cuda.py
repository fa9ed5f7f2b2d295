"""The CUDA loop without a GPU: its kernels compiled for the host and run serially, in shuffled orders too, against the
slots in C++, bit for bit."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from ode_rows import OPTIONS, Problem, run, same, start
from torch import Tensor

from pfgm_fast import schedule
from pfgm_fast.ode import cuda, solve
from pfgm_fast.solution import Record, Status

pytest_plugins = ["host_slots"]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1,), torch.float32),
        ((3,), torch.float32),
        ((3,), torch.float64),
        ((5, 8), torch.float64),
        ((300,), torch.float32),
    ],
    ids=str,
)
def test_kernels_have_the_bits_of_the_loop_on_the_cpu(
    on_host: Any, compiled_slots: Any, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    problem = Problem(shape, dtype, B=40 if shape != (300,) else 13)
    expected, _ = run(compiled_slots, problem, 40)
    assert {Status.SUCCESS, Status.NONFINITE} <= set(expected.status.tolist())
    for slots in (1, 7, 40):
        record, at = run(cuda.CudaSlots, problem, slots)
        assert same(record, expected), f"{slots} slots"
        assert at.native.counter("running") == 0


@pytest.mark.parametrize("shape", [(3,), (70,)], ids=str)
def test_the_order_of_threads_and_blocks_does_not_matter(
    on_host: Any, shim: ctypes.CDLL, shape: tuple[int, ...]
) -> None:
    problem = Problem(shape, torch.float32)
    expected, _ = run(cuda.CudaSlots, problem, 9)
    for seed in range(1, 4):
        shim.shuffle(seed)
        record, at = run(cuda.CudaSlots, problem, 9)
        assert same(record, expected)
        assert at.native.counter("running") == 0


@pytest.mark.parametrize("slots", [3, 40])
def test_rows_out_of_steps_leave(on_host: Any, compiled_slots: Any, slots: int) -> None:
    problem = Problem((3,), torch.float32)
    record, at = run(cuda.CudaSlots, problem, slots, max_steps=4)
    expected, _ = run(compiled_slots, problem, slots, max_steps=4)
    assert (record.status == Status.MAX_STEPS).sum() > 10
    assert same(record, expected)
    assert at.native.counter("running") == 0


def test_rows_with_nowhere_to_go_are_done_at_once(on_host: Any) -> None:
    problem = Problem((3,), torch.float64)
    problem.end = problem.t0.clone()
    record, at = run(cuda.CudaSlots, problem, 4)
    assert (record.status == Status.SUCCESS).all()
    assert record.nfe.sum() == 0
    assert at.native.counter("running") == 0


def test_the_cap_ends_a_loop_that_nothing_else_ends(on_host: Any) -> None:
    problem = Problem((3,), torch.float64)
    record, end = problem.record()
    at = cuda.CudaSlots(record, end, slots=5, **OPTIONS)
    at.native.set_counter("cap", 20)
    for _ in range(30):
        at.stage_out(problem(*at.show()))
    assert at.native.counter("running") == 0
    running = record.status == Status.STOPPED
    assert running.sum() > 10
    assert torch.isfinite(record.x[5:]).all()
    nfe = record.nfe.clone()
    at.stage_out(problem(*at.show()))
    assert torch.equal(nfe, record.nfe)
    assert nfe.sum() <= 20 * 5
    assert at.stage_in() is None


def test_idle_slots_show_what_they_showed(on_host: Any) -> None:
    problem = Problem((3,), torch.float64)
    problem.end[2:] = problem.t0[2:]
    _, at = run(cuda.CudaSlots, problem, 40)
    t, y, rows = at.show()
    assert torch.isfinite(y).all()
    assert torch.isfinite(t).all()
    assert torch.equal(rows, torch.arange(40))


def test_few_slots_take_few_evaluations(on_host: Any) -> None:
    problem = Problem((2,), torch.float64)
    record, at = run(cuda.CudaSlots, problem, 8)
    assert at.native.counter("iterations") < 1.3 * record.nfe.sum() / 8 + record.nfe.max()


def test_the_driver_and_its_watchers_see_the_same(on_host: Any, compiled_slots: Any) -> None:
    problem = Problem((3,), torch.float64)

    def watched(machine: Any) -> tuple[Record, set[tuple[int, float, float]]]:
        record, end = problem.record()
        record.steps = []
        seen: set[tuple[int, float, float]] = set()

        def watch(i: int, rows: Tensor, t: Tensor, y: Tensor, slope: Tensor) -> bool:
            seen.update(zip(rows.tolist(), t.tolist(), slope[:, 0].tolist(), strict=True))
            return False

        solve.solve(problem, record, end, **OPTIONS, slots=6, machine=machine, watch=watch)
        return record, seen

    (record, seen), (expected, wanted) = watched(cuda.CudaSlots), watched(compiled_slots)
    assert same(record, expected)
    assert seen == wanted
    trajectory, there = record.solution().trajectory, expected.solution().trajectory
    assert trajectory is not None
    assert there is not None
    assert torch.equal(trajectory.nan_to_num(9e9), there.nan_to_num(9e9))


def gaussian(sigma: Tensor, x: Tensor, rows: Tensor) -> Tensor:
    return x / (1 + (sigma * sigma)[:, None])


def test_a_denoiser_is_asked_at_levels(on_host: Any, compiled_slots: Any) -> None:
    first, last = 80.0, 0.002
    latents = 80 * torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    asked = []

    def denoise(sigma: Tensor, x: Tensor, rows: Tensor) -> Tensor:
        assert sigma.dtype == x.dtype
        asked.append(sigma.clone())
        return gaussian(sigma, x, rows)

    record, end = start(latents, first, last)
    cuda.solve(
        denoise,
        record,
        end,
        **OPTIONS,
        levels=(first, last),
        cuda_graph="off",
        slots=11,
    )
    level = schedule.log_level(first, last)

    def slope(t: Tensor, x: Tensor, rows: Tensor) -> Tensor:
        return x - gaussian(level(t).to(x.dtype), x, rows)

    expected, end = start(latents, first, last)
    solve.solve(slope, expected, end, **OPTIONS, machine=compiled_slots)
    assert (record.status == Status.SUCCESS).all()
    sigma = torch.cat(asked)
    assert sigma.min() == torch.tensor(last)
    assert sigma.max() == torch.tensor(first)
    assert torch.equal(record.accepted, expected.accepted)
    # torch.exp and the kernel's differ in a last digit of the level, here and there
    torch.testing.assert_close(record.x, expected.x, rtol=1e-5, atol=1e-6)


def test_other_tensors_are_refused(on_host: Any) -> None:
    problem = Problem((3,), torch.float32)
    record, end = problem.record()
    with pytest.raises(ValueError, match=r"expected \(40,\) torch.float64 on cpu, got torch.float32"):
        cuda.CudaSlots(record, end.float(), slots=4, **OPTIONS)
    record.x = record.x.half()
    with pytest.raises(ValueError, match="float32 or float64 states"):
        cuda.CudaSlots(record, end, slots=4, **OPTIONS)
    record, end = problem.record()
    at = cuda.CudaSlots(record, end, slots=4, **OPTIONS)
    with pytest.raises(ValueError, match=r"the slope must be \(4, 3\) on cpu"):
        at.stage_out(torch.zeros(4, 2))
