"""What only a GPU can tell of the adaptive loop: the device's bits, its graphs, and that the host does not wait."""

from __future__ import annotations

import math
import signal
from types import FrameType
from typing import Any

import pytest
import torch
from ode_rows import FIELDS, OPTIONS, Problem, run, same, start
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast import schedule
from pfgm_fast.ode import cuda, solve
from pfgm_fast.ode.native import NativeSlots
from pfgm_fast.solution import Record, Status

GPU = torch.device("cuda", 0)
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or cuda.unavailable() is not None,
    reason="no GPU that PyTorch can use, or no CUDA in the extension",
)
HOW = ("off", "auto", "while")


def solved(problem: Problem, cuda_graph: str, slots: int = 9) -> Record:
    """On the device, with a problem that lies there."""
    record, end = problem.record()
    cuda.solve(problem, record, end, slots=slots, cuda_graph=cuda_graph, **OPTIONS)
    return record


def on_cpu(record: Record) -> Record:
    for name in FIELDS:
        setattr(record, name, getattr(record, name).cpu())
    return record


def problem_of(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Problem, Problem]:
    problem = Problem(shape, dtype)
    return problem, problem.to(GPU)


@pytest.mark.parametrize("shape", [(1,), (3,), (5, 8), (300,), (3, 64, 64)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_device_does_what_the_cpu_does(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """But for the last bit of pow, which moves a step by less than a rounding of its state."""
    here, there = problem_of(shape, dtype)
    expected, _ = run(NativeSlots, here, 40)
    for slots in (1, 7, 40):
        record = on_cpu(solved(there, "off", slots))
        assert torch.equal(record.status, expected.status)
        assert (record.nfe == expected.nfe).double().mean() >= 0.9
        torch.testing.assert_close(record.x, expected.x, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("shape", [(3,), (300,)], ids=str)
@pytest.mark.parametrize("slots", [7, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_graphs_change_no_bit(shape: tuple[int, ...], slots: int, dtype: torch.dtype) -> None:
    _, there = problem_of(shape, dtype)
    plain = solved(there, "off", slots)
    for how in ("auto", "while"):
        for _ in range(3):
            assert same(solved(there, how, slots), plain), how


@pytest.mark.parametrize("how", HOW)
def test_the_host_does_not_wait(how: str) -> None:
    _, there = problem_of((3,), torch.float32)
    torch.cuda.set_sync_debug_mode("error")
    try:
        solved(there, how)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_network_is_solved() -> None:
    """With matrix products and convolutions in the graph, and classes gathered by row."""
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(3, 3, 3, 3, generator=generator).to(GPU) / 10
    mix = torch.randn(5, 192, 192, generator=generator).to(GPU) / 14
    latents = torch.randn(50, 3, 8, 8, generator=generator).to(GPU)
    classes = torch.arange(50, device=GPU) % 5

    def func(t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        turned = torch.bmm(mix[classes[rows]], y.reshape(len(y), 192, 1)).reshape(y.shape)
        return torch.conv2d(y, kernel, padding=1) - y + turned * t.float()[:, None, None, None]

    records = []
    for how in HOW:
        record = Record.start(latents, 0.0)
        cuda.solve(func, record, torch.full_like(record.t, 2.0), slots=16, cuda_graph=how, **OPTIONS)
        assert (record.status == Status.SUCCESS).all()
        records.append(record)
    for record in records[1:]:
        torch.testing.assert_close(record.x, records[0].x, rtol=1e-3, atol=1e-3)


def test_what_waits_is_launched_plainly() -> None:
    _, there = problem_of((3,), torch.float32)

    def func(t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        assert y.sum().item() < math.inf
        return there(t, y, rows)

    record, end = there.record()
    with pytest.warns(RuntimeWarning, match=r"launched plainly: the evaluation waits for the device at .*test_gpu_ode"):
        cuda.solve(func, record, end, slots=9, **OPTIONS)
    assert same(record, solved(there, "off"))


def test_random_numbers_are_kept_out_of_a_while_node() -> None:
    _, there = problem_of((3,), torch.float32)
    record, end = there.record()
    with pytest.raises(ValueError, match="draws random numbers"):
        cuda.solve(lambda t, y, rows: -torch.rand_like(y) * y, record, end, cuda_graph="while", **OPTIONS)


def test_a_while_node_is_interrupted() -> None:
    """A solve that would take minutes ends at once, with the rows where they stand."""

    def func(t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        return -1e7 * y

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    record = Record.start(torch.ones(4, 3, device=GPU), 0.0)
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            cuda.solve(
                func, record, torch.full_like(record.t, 1e3), cuda_graph="while", **{**OPTIONS, "max_steps": 10**9}
            )
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert (record.status == Status.STOPPED).all()
    assert (record.t > 0).all()
    assert (record.t < 1e3).all()


@pytest.mark.parametrize(("N", "D"), [(1, 128.0), (2, 1.0), (2, math.inf), (16, 2048.0)])
def test_a_small_field_is_solved_in_one_launch(N: int, D: float) -> None:
    B, first, last = 500, 40.0, 0.01
    data = torch.randn(2000, N, generator=torch.Generator().manual_seed(N))
    latents = pf.prior((B, N), first, D, seeds=list(range(B)))
    record, end = start(latents.to(GPU), first, last)
    cuda.solve_field(record, end, data.to(GPU), None, None, D, (first, last), **OPTIONS)
    field = pf.EmpiricalField(data, D)
    level = schedule.log_level(first, last)
    expected, end = start(latents, first, last)
    solve.solve(lambda t, x, rows: x - field.unchecked(x, level(t).float()), expected, end, **OPTIONS)
    assert (record.status == Status.SUCCESS).all()
    away = (record.x.cpu() - expected.x).abs().amax(1)
    assert away.median() <= 1e-5
    assert (away <= 1e-3).float().mean() >= 0.95


def gaussian(x: Tensor, sigma: Tensor, scale: Tensor) -> Tensor:
    """The denoiser of normal data, each row's with a scale of its own."""
    return x / (1 + (sigma / scale)[:, None] ** 2)


SAMPLERS: dict[str, dict[str, Any]] = {
    **{solver: {"solver": solver, "steps": 9} for solver in ("euler", "heun", "dpmpp_2m", "unipc")},
    "heun, churn": {"solver": "heun", "steps": 9, "churn": 20.0, "seeds": range(50)},
    **{f"rk45, {how}": {"solver": "rk45", "cuda_graph": how} for how in HOW},
    "rk45, few slots": {"solver": "rk45", "batch_size": 7},
    "rk45, one step size": {"solver": "rk45", "step_control": "batch"},
    "rk45, watched": {"solver": "rk45", "callback": lambda info: None, "trajectory": True},
}


@pytest.mark.parametrize("N", [5, 9000])
@pytest.mark.parametrize("how", SAMPLERS.values(), ids=list(SAMPLERS))
def test_samplers_do_what_they_do_on_the_cpu(how: dict[str, Any], N: int) -> None:
    latents = pf.prior((50, N), 80.0, 128.0, seeds=range(50))
    scale = torch.logspace(-1, 1, 50)
    here = pf.sample(gaussian, D=128.0, latents=latents, extra_args={"scale": scale}, **how)
    there = pf.sample(gaussian, D=128.0, latents=latents.to(GPU), extra_args={"scale": scale.to(GPU)}, **how)
    assert there.ok
    assert (there.nfe.cpu() == here.nfe).double().mean() >= 0.9
    torch.testing.assert_close(there.samples.cpu(), here.samples, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_graphs_of_a_denoiser_change_no_bit(dtype: torch.dtype) -> None:
    latents = pf.prior((50, 12), 80.0, 128.0, seeds=range(50), dtype=dtype, device=GPU)
    scale = torch.logspace(-1, 1, 50, dtype=dtype, device=GPU)
    plain, *graphs = (
        pf.sample(gaussian, latents=latents, extra_args={"scale": scale}, solver="rk45", batch_size=16, cuda_graph=how)
        for how in HOW
    )
    for solution in graphs:
        assert torch.equal(solution.samples, plain.samples)
        assert torch.equal(solution.nfe, plain.nfe)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_odeint_does_what_it_does_on_the_cpu(dtype: torch.dtype) -> None:
    rates = torch.logspace(-1, 2, 100, dtype=dtype)

    def decay(t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
        return -rate[:, None] * y

    here, there = (
        pf.odeint(decay, torch.ones(100, 2, dtype=dtype, device=device), 0.0, 1.0, args=(rates.to(device),))
        for device in (torch.device("cpu"), GPU)
    )
    assert there.ok
    assert (there.nfe.cpu() == here.nfe).double().mean() >= 0.9
    torch.testing.assert_close(there.samples.cpu(), here.samples, rtol=1e-3, atol=1e-5)


def test_a_small_field_with_classes_and_masses_is_solved_in_one_launch() -> None:
    """As the wide way solves it, by the kernels for the operator."""
    data = torch.randn(900, 4, generator=torch.Generator().manual_seed(0))
    labels, masses = torch.arange(900) % 3, torch.linspace(-3, 0, 900)
    field = pf.EmpiricalField(data, 16.0, labels=labels, log_weights=masses, backend="triton", device=GPU)
    rows = (torch.arange(200) % 4 - 1).to(GPU)
    latents = pf.prior((200, 4), 40.0, 16.0, seeds=range(200), device=GPU)
    options: dict[str, Any] = {"solver": "rk45", "sigma_min": 0.05, "sigma_max": 40.0, "latents": latents}
    whole = pf.sample(field, extra_args={"labels": rows}, **options)
    step_by_step = pf.sample(field, extra_args={"labels": rows}, callback=lambda info: None, **options)
    assert whole.ok
    away = (whole.samples - step_by_step.samples).abs().amax(1)
    assert away.median() <= 1e-4
    assert (away <= 1e-2).double().mean() >= 0.95
