"""The slots in C++ against those in PyTorch and SciPy, row by row and bit by bit, and solves that stay in C++."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from test_ode import PROBLEMS
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast import _extension
from pfgm_fast.ode.cohorts import TorchSlots
from pfgm_fast.ode.controller import IntegralController
from pfgm_fast.ode.native import NativeSlots, solve_field
from pfgm_fast.ode.solve import solve
from pfgm_fast.solution import Record, Status

pytestmark = pytest.mark.skipif(
    _extension.why_missing() is not None and os.environ.get("PFGM_EXT") != "on", reason=str(_extension.why_missing())
)
Func = Callable[[Tensor, Tensor, Tensor], Tensor]
DTYPES = [torch.float32, torch.float64]
SETTINGS = {"rtol": 1e-5, "atol": 1e-7, "max_steps": 10000}


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def start(y0: Tensor, t0: float = 0.0, t1: float | Tensor = 2.0) -> tuple[Record, Tensor]:
    return Record.start(y0, t0), torch.as_tensor(t1, dtype=torch.float64).expand(len(y0))


def machine(record: Record, end: Tensor, **options: Any) -> NativeSlots:
    return NativeSlots(record, end, **{**SETTINGS, "slots": len(end), "controller": IntegralController(), **options})


def run(func: Func, y0: Tensor, t0: float = 0.0, t1: float | Tensor = 2.0, **options: Any) -> Record:
    record, end = start(y0, t0, t1)
    solve(func, record, end, **{**SETTINGS, "machine": NativeSlots, **options})
    return record


def spinning(B: int, n: int, dtype: torch.dtype = torch.float64) -> tuple[Func, Tensor]:
    """Rows from easy to hard; a row's slope is made elementwise, so that it does not depend on its batch."""
    g = torch.Generator().manual_seed(B + n)
    speed = torch.logspace(-1, 1, B, dtype=torch.float64)[torch.randperm(B, generator=g)]

    def slope(t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        v = speed[rows, None].to(y.dtype)
        return v * (torch.roll(y, 1, 1) - 0.5 * y + (3 * t[:, None]).sin().to(y.dtype))

    return slope, torch.randn(B, n, generator=g, dtype=torch.float64).to(dtype)


def assert_same(a: Record, b: Record) -> None:
    for name in ("x", "t", "status", "nfe", "accepted", "rejected"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


class TestSteps:
    @pytest.mark.parametrize(("t0", "t1"), [(0.0, 5.0), (5.0, 0.0), (0.3, 0.3 + 1e-9)])
    @pytest.mark.parametrize("name", PROBLEMS)
    def test_scipy_takes_the_same_steps(self, name: str, t0: float, t1: float) -> None:
        func, y0 = PROBLEMS[name]
        if name == "van der pol" and t1 < t0:
            t1 = t0 - 0.5  # backwards in time it leaves every bound

        def host(t: float, y: NDArray[Any]) -> NDArray[Any]:
            slope: NDArray[Any] = func(torch.tensor([t], dtype=torch.float64), torch.from_numpy(y)[None])[0].numpy()
            return slope

        theirs = solve_ivp(host, (t0, t1), np.array(y0), method="RK45", rtol=1e-6, atol=1e-8)
        y = torch.tensor([y0], dtype=torch.float64)
        ours = run(lambda t, y, rows: func(t, y), y, t0, t1, rtol=1e-6, atol=1e-8)
        assert ours.status.tolist() == [Status.SUCCESS]
        assert int(ours.nfe) == theirs.nfev == 2 + 6 * int(ours.accepted + ours.rejected)
        assert int(ours.accepted) == len(theirs.t) - 1
        np.testing.assert_allclose(ours.x[0].numpy(), theirs.y[:, -1], rtol=1e-8, atol=1e-8)

    @pytest.mark.parametrize("t1", [2.0, -1.0])
    @pytest.mark.parametrize("n", [1, 2, 3, 7, 256, 700])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_pytorch_takes_the_same_steps(self, dtype: torch.dtype, n: int, t1: float) -> None:
        func, y0 = spinning(20, n, dtype)
        ours, theirs = (run(func, y0, 0.0, t1, machine=m) for m in (NativeSlots, TorchSlots))
        assert int(theirs.rejected.max()) > 0
        for name in ("status", "nfe", "accepted", "rejected"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
        # the last bit of a norm moves the steps
        assert (ours.x - theirs.x).abs().max() <= 100 * torch.finfo(dtype).eps * theirs.x.abs().max()

    def test_another_controller(self) -> None:
        func, y0 = spinning(20, 2)
        cautious = IntegralController(safety=0.5, min_factor=0.4, max_factor=2.0)
        ours, theirs = (run(func, y0, controller=cautious, machine=m) for m in (NativeSlots, TorchSlots))
        assert torch.equal(ours.nfe, theirs.nfe)
        assert not torch.equal(ours.nfe, run(func, y0).nfe)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_an_error_whose_square_overflows_is_a_long_step(self, dtype: torch.dtype) -> None:
        """It is rejected as any other, and as often as it takes, where a step that is not finite ends the row."""
        y0 = torch.tensor([[1.0, 0.0]], dtype=dtype)
        tiny = 1e-300 if dtype == torch.float64 else 1e-37

        def jump(t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
            return torch.where(t > 1, 1e9, 0.0)[:, None].to(y.dtype) * torch.ones_like(y)

        ours, theirs = (run(jump, y0, atol=tiny, rtol=0.0, machine=m) for m in (NativeSlots, TorchSlots))
        assert ours.status.tolist() == theirs.status.tolist() == [Status.STEP_UNDERFLOW]
        assert ours.rejected.tolist() == theirs.rejected.tolist()

    def test_times_stay_in_the_interval_and_touch_both_ends(self) -> None:
        t0, t1 = math.log(80.0), math.log(0.002)
        func, y0 = spinning(9, 4)
        seen = []

        def recording(t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
            seen.append(t)
            return func(t, y, rows)

        assert (run(recording, y0, t0, t1).status == Status.SUCCESS).all()
        times = torch.cat(seen)
        assert times.max() == t0
        assert times.min() == t1

    def test_max_steps_and_intervals_of_no_length(self) -> None:
        func, y0 = spinning(6, 2)
        record = run(func, y0, 0.0, torch.tensor([2.0, 0.0, 2.0, 2.0, 0.0, 0.0]), max_steps=3, slots=2)
        assert record.status.tolist() == [1, 0, 1, 1, 0, 0]
        assert (record.accepted + record.rejected).tolist() == [3, 0, 3, 3, 0, 0]
        assert record.nfe.tolist() == [20, 0, 20, 20, 0, 0]
        assert torch.equal(record.x[[1, 4, 5]], y0[[1, 4, 5]])
        assert ((record.t > 0) == (record.nfe > 0)).all()
        assert run(lambda t, y, rows: y, torch.empty(3, 0)).status.tolist() == [Status.SUCCESS] * 3


class TestBits:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("n", [2, 3, 300])
    def test_a_row_does_not_notice_slots_and_batch(self, n: int, dtype: torch.dtype) -> None:
        func, y0 = spinning(30, n, dtype)
        together = run(func, y0)
        for slots in (1, 7, 30, 31):
            assert_same(run(func, y0, slots=slots), together)
        for row in (0, 11, 29):
            alone = run(lambda t, y, rows, row=row: func(t, y, rows + row), y0[row : row + 1])  # type: ignore[misc]
            assert torch.equal(alone.x[0], together.x[row])
            assert int(alone.nfe) == together.nfe[row]

    @pytest.mark.parametrize(("B", "n"), [(70, 1000), (4000, 2)])
    def test_a_row_does_not_notice_threads(self, threads: Callable[[int], None], B: int, n: int) -> None:
        func, y0 = spinning(B, n, torch.float32)
        records = []
        for count in (1, 2, 3):
            threads(count)
            records.append(run(func, y0, t1=0.1))
        assert records[0].accepted.sum() > 0
        assert_same(records[1], records[0])
        assert_same(records[2], records[0])


class TestBadRows:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("when", [-1.0, 0.5])
    def test_a_row_that_meets_nan_leaves_alone_with_its_last_good_state(self, when: float, dtype: torch.dtype) -> None:
        func, y0 = spinning(64, 3, dtype)

        def poisoned(t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
            assert y.isfinite().all()
            return func(t, y, rows).masked_fill(((rows == 3) & (t > when))[:, None], math.nan)

        clean = run(func, y0, slots=16)
        record = run(poisoned, y0, slots=16)
        others = torch.arange(64) != 3
        assert torch.equal(record.x[others], clean.x[others])
        assert (record.status[others] == Status.SUCCESS).all()
        assert record.status[3] == Status.NONFINITE
        assert record.x[3].isfinite().all()
        assert int(record.accepted[3] + record.rejected[3]) <= int(clean.accepted[3] + clean.rejected[3]) + 50
        if when < 0:
            assert torch.equal(record.x[3], y0[3])
            assert record.nfe[3] == 1
        else:
            assert 0.4 < record.t[3] <= 0.5

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    @pytest.mark.parametrize("n", [2, 300])
    def test_a_bad_start_is_shown_as_zeros_and_left_as_it_is(self, n: int, bad: float) -> None:
        func, y0 = spinning(4, n)
        y0[2, -1] = bad

        def finite(t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
            assert y.isfinite().all()
            return func(t, y, rows)

        record = run(finite, y0)
        assert record.status.tolist() == [0, 0, Status.NONFINITE, 0]
        assert torch.equal(record.x[2], y0[2]) or math.isnan(bad)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_a_row_that_blows_up_is_never_shown(self, dtype: torch.dtype) -> None:
        def explosion(t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
            assert y.isfinite().all()
            return y**3

        ours, theirs = (run(explosion, torch.ones(2, 2, dtype=dtype), machine=m) for m in (NativeSlots, TorchSlots))
        assert ours.status.tolist() == theirs.status.tolist()
        assert (ours.status != Status.SUCCESS).all()
        assert ours.nfe.tolist() == theirs.nfe.tolist()
        assert ours.x.isfinite().all()


class TestQueue:
    def test_hard_rows_hold_nobody_up(self) -> None:
        """200 rows, one in ten of them hard, on 8 slots: near to what all slots at work all the time would take."""
        g = torch.Generator().manual_seed(0)
        speed = torch.where(torch.rand(200, generator=g) < 0.1, 30.0, 1.0).double() * (1 + torch.rand(200, generator=g))
        calls = 0

        def counting(t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return speed[rows, None] * torch.stack([y[:, 1], -y[:, 0]], 1)

        record = run(counting, torch.ones(200, 2, dtype=torch.float64), slots=8)
        assert (record.status == Status.SUCCESS).all()
        ideal = float(record.nfe.sum()) / 8
        lock_step = int(record.nfe.reshape(25, 8).amax(1).sum())
        assert ideal <= calls < 1.2 * ideal
        assert lock_step > 2 * calls

    def test_what_the_driver_is_told(self) -> None:
        func, y0 = spinning(10, 3)
        record, end = start(y0)
        at = machine(record, end, slots=4)
        before: Tensor | None = None
        attempts = torch.zeros(10, dtype=torch.int64)
        begun = torch.zeros(10, dtype=torch.int64)
        while True:
            if (starting := at.starting()) is not None:
                rows, slope = starting
                begun[rows] += 1
                assert torch.equal(slope, func(record.t[rows], record.x[rows], rows))
            stage = at.stage_in()
            if stage is None:
                break
            t, y, rows = stage
            assert len(rows) <= 4
            assert rows is before or before is None or not torch.equal(rows, before)
            before = rows
            at.stage_out(func(t, y, rows))
            if (attempted := at.attempted()) is not None:
                attempts[attempted] += 1
        assert torch.equal(attempts, record.accepted + record.rejected)
        assert torch.equal(begun, attempts)
        assert at.stage_in() is None

    def test_wrong_tensors_never_reach_cpp(self) -> None:
        record, end = start(torch.ones(4, 2))
        at = machine(record, end)
        assert at.stage_in() is not None
        for slope in (torch.ones(3, 2), torch.ones(4, 2, dtype=torch.float64), torch.ones(4, 2, 1)):
            with pytest.raises(ValueError, match="expected a contiguous tensor of shape"):
                at.stage_out(slope)
        at.stage_out(torch.ones(2, 4).T)  # not contiguous
        with pytest.raises(ValueError, match="expected a contiguous tensor of shape"):
            machine(record, end[:2])
        with pytest.raises(ValueError, match=r"dtype torch\.float64"):
            machine(record, end.float())


FIRST, LAST, ROWS = 40.0, 1e-2, 60


def exact_level(t: Tensor) -> Tensor:
    """exp as C++ has it; PyTorch's differs in the last bit."""
    sigma = torch.tensor([math.exp(v) for v in t.tolist()], dtype=torch.float64).clamp(LAST, FIRST)
    return sigma.masked_fill(t == math.log(FIRST), FIRST).masked_fill(t == math.log(LAST), LAST)


class TestField:
    def problem(
        self, data: torch.dtype = torch.float32, D: float = 2.0, classes: int = 0, weighted: bool = False
    ) -> tuple[pf.EmpiricalField, Tensor]:
        g = torch.Generator().manual_seed(3)
        points = torch.randn(150, 3, generator=g)
        points = (points * 40 + 128).clamp(0, 255).to(torch.uint8) if data == torch.uint8 else points.to(data)
        labels = torch.randint(0, classes, (150,), generator=g) if classes else None
        log_weights = torch.randn(150, generator=g) if weighted else None
        field = pf.EmpiricalField(points, D, labels=labels, log_weights=log_weights, backend="native")
        return field, torch.randn(ROWS, 3, generator=g) * FIRST

    def prepare(
        self, field: pf.EmpiricalField, x: Tensor, **options: Any
    ) -> tuple[Record, NativeSlots, tuple[Tensor, Tensor, Tensor | None]]:
        record, end = start(x, math.log(FIRST), math.log(LAST))
        at = machine(record, end, **{"rtol": 1e-4, "atol": 1e-4, **options})
        data, center = field._data
        return record, at, (data, center, field._log_weights)

    def solved(
        self,
        field: pf.EmpiricalField,
        x: Tensor,
        segments: Tensor | None = None,
        evaluations: int = 10**9,
        **options: Any,
    ) -> Record:
        record, at, arguments = self.prepare(field, x, **options)
        for _ in solve_field(at, *arguments, segments, field.D, FIRST, LAST, evaluations=evaluations):
            assert (record.status == Status.STOPPED).any()
        assert at.stage_in() is None
        return record

    @pytest.mark.parametrize("D", [2.0, math.inf])
    @pytest.mark.parametrize("data", [torch.float32, torch.float64, torch.uint8])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_the_bits_of_the_driver(self, dtype: torch.dtype, data: torch.dtype, D: float) -> None:
        field, x = self.problem(data, D, classes=3, weighted=True)
        x = x.to(dtype)
        labels = torch.arange(ROWS) % 4 - 1

        def slope(t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
            return y - field.unchecked(y, exact_level(t).to(y.dtype), labels[rows])

        ours = self.solved(field, x, field._segments(labels, ROWS), slots=17)
        theirs = run(slope, x, math.log(FIRST), math.log(LAST), rtol=1e-4, atol=1e-4)
        assert (ours.status == Status.SUCCESS).all()
        assert_same(ours, theirs)

    def test_rows_without_an_answer(self) -> None:
        field, x = self.problem(classes=2)
        x[5, 1] = math.nan
        labels = torch.zeros(ROWS, dtype=torch.int64)
        labels[9] = 77
        segments = field._segments(labels, ROWS, check=False)
        record = self.solved(field, x, segments, slots=20)
        bad = (record.status != Status.SUCCESS).nonzero().flatten()
        assert bad.tolist() == [5, 9]
        assert record.nfe[bad].tolist() == [1, 1]
        assert torch.equal(record.x[9], x[9])

    def test_it_comes_back_as_often_as_asked(self) -> None:
        field, x = self.problem()
        whole = self.solved(field, x)
        assert_same(self.solved(field, x, evaluations=1, slots=13), whole)
        assert_same(self.solved(field, x, evaluations=7), whole)
        record, at, arguments = self.prepare(field, x)
        turns = list(solve_field(at, *arguments, None, field.D, FIRST, LAST, evaluations=10))
        assert len(turns) == (int(record.nfe.max()) - 1) // 10

    def test_wrong_tensors_never_reach_cpp(self) -> None:
        field, x = self.problem()
        _, at, (data, center, _) = self.prepare(field, x)
        arguments: list[tuple[Any, Any, Any, Any]] = [
            (data[:, :2], center, None, None),
            (data.half(), center, None, None),
            (data, center.float(), None, None),
            (data, center, torch.zeros(149), None),
            (data, center, None, torch.zeros(ROWS - 1, 2, dtype=torch.int64)),
        ]
        for wrong in arguments:
            with pytest.raises(ValueError, match="expected a contiguous tensor of shape"):
                list(solve_field(at, *wrong, field.D, FIRST, LAST, evaluations=1))

    def test_a_row_does_not_notice_threads(self, threads: Callable[[int], None]) -> None:
        field, x = self.problem()
        alone = self.solved(field, x, rtol=1e-2, atol=1e-2)
        threads(2)
        assert_same(self.solved(field, x, rtol=1e-2, atol=1e-2), alone)

    def test_interrupted_and_resumed(self) -> None:
        g = torch.Generator().manual_seed(3)
        field = pf.EmpiricalField(torch.randn(5000, 24, generator=g), 2.0, backend="native")
        x = torch.randn(400, 24, generator=g) * FIRST
        record, at, arguments = self.prepare(field, x, rtol=1e-6)
        timer = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            list(solve_field(at, *arguments, None, field.D, FIRST, LAST, evaluations=10**9))
        assert (record.status == Status.STOPPED).all()
        assert record.x.isfinite().all()
        assert ((record.t >= math.log(LAST)) & (record.t <= math.log(FIRST))).all()
        list(solve_field(at, *arguments, None, field.D, FIRST, LAST, evaluations=10**9))
        assert (record.status == Status.SUCCESS).all()
        assert torch.equal(record.x, self.solved(field, x, rtol=1e-6).x)
