"""The slots on a CUDA device (csrc/ode): no decision waits for the host, so that an iteration can be a CUDA graph.

The host learns that all rows have left a few iterations late. Until then they are repeated: idle slots show a state
and a time they showed before, and their answers are ignored.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from pfgm_fast import _extension
from pfgm_fast.ode import capture
from pfgm_fast.ode.controller import IntegralController
from pfgm_fast.solution import Record

Func = Callable[[Tensor, Tensor, Tensor], Tensor]
"""func(t (slots,) float64, y (slots, ...), rows (slots,) int64) -> dy/dt, like y. In a solve of a denoiser:
func(sigma (slots,) like y, y, rows) -> the denoised state."""

SLOPES = 6  # kept for each row
WHILE_DRIVER = 12060  # older ones refuse some kernels in the body of a WHILE node
FIELD_DIMENSIONS = 16  # of a field that is solved in one launch
FIELD_DATA = 1 << 14  # every row streams all of them by itself


def unavailable() -> str | None:
    """Why there are no slots on CUDA devices, or None if there are."""
    why = _extension.why_missing()
    if why is None and not hasattr(_native(), "CudaSlots"):
        why = f"pfgm_fast._C was built without CUDA: {_native().build_info()['cuda']}"
    return why


def _native() -> Any:
    return importlib.import_module("pfgm_fast._C")


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream


class CudaSlots:
    """The machine of `pfgm_fast.ode.solve` for Dormand and Prince's method.

    Always all slots are shown. What `stage_in` returns is overwritten by the next one; `starting` and `attempted` wait
    for the device, nothing else does.

    Args:
        record, end, slots, rtol, atol, max_steps, controller: as for the other machines.
        levels: the noise levels at the ends, in a solve of a denoiser over t = log(sigma): `stage_in` then gives sigma
            (slots,) in the state's dtype, exact at both ends, in place of t, and `stage_out` takes denoised states.
    """

    def __init__(
        self,
        record: Record,
        end: Tensor,
        *,
        slots: int,
        rtol: float,
        atol: float,
        max_steps: int,
        controller: IntegralController,
        levels: tuple[float, float] | None = None,
    ) -> None:
        _check(record, end)
        x, native = record.x, _native().CudaSlots
        B, n, slots = len(x), math.prod(x.shape[1:]), min(slots, len(x))
        if not 0 < B < 2**31:
            raise ValueError(f"the slots on CUDA devices take 1 to 2^31 - 1 rows, got {B}")
        self.device = x.device

        def empty(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=x.device)

        self._shown = empty(slots, *x.shape[1:], dtype=x.dtype)
        self._time = empty(slots, dtype=torch.float64 if levels is None else x.dtype)
        self._rows = empty(slots, dtype=torch.int64)
        self._k = empty(slots, SLOPES, *x.shape[1:], dtype=x.dtype)
        self._starting, self._attempted = empty(slots, dtype=torch.int64), empty(slots, dtype=torch.int64)
        self._flags = torch.empty(native.ahead, dtype=torch.int32, pin_memory=x.is_cuda)
        states = empty(slots * native.slot_bytes, dtype=torch.uint8), empty(native.counter_bytes, dtype=torch.uint8)
        columns = record.t, end, record.status, record.nfe, record.accepted, record.rejected
        times = (self._time, None) if levels is None else (None, self._time)
        self._kept = [x, *columns, self._shown, *times, self._rows, self._k, states[0]]
        self._kept += [self._starting, self._attempted, states[1]]
        addresses = [0 if t is None else t.data_ptr() for t in self._kept]
        # twice what the slowest way through the queue takes: not to be reached, but a graph must not run for ever
        cap = min(2 * (B // slots + 2) * (2 + SLOPES * max_steps), 2**62)
        c, (first, last) = controller, levels or (1.0, 1.0)
        numbers = [rtol, atol, c.safety, c.min_factor, c.max_factor, math.log(first), math.log(last), first, last]
        wide, index = x.dtype == torch.float64, x.device.index or 0
        self.native = native(wide, addresses, [B, slots, n, cap, max_steps], numbers, index, self._flags.data_ptr())
        self._settled = slots == B  # every row has its slot, and keeps it
        self.native.start(_stream(x.device))

    def stage_in(self) -> tuple[Tensor, Tensor, Tensor] | None:
        return None if self.native.finished() else self.show()

    def stage_out(self, slope: Tensor) -> None:
        self.advance(slope)
        self.native.ask(_stream(self.device))

    def show(self) -> tuple[Tensor, Tensor, Tensor]:
        """`stage_in`, whether rows are left or not."""
        self.native.stage_in(_stream(self.device))
        return self.shown()

    def shown(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where `stage_in` leaves what the slots ask for."""
        # rows: another object where the device may have changed them
        return self._time, self._shown, self._rows if self._settled else self._rows.view(-1)

    def advance(self, slope: Tensor) -> Tensor:
        """`stage_out`, but the host is not told what is left; the tensor whose memory was read."""
        slope = self.answer(slope)
        self.native.stage_out(slope.data_ptr(), _stream(self.device))
        return slope

    def answer(self, slope: Tensor) -> Tensor:
        """The slope as the kernels take it."""
        if slope.shape != self._shown.shape or slope.device != self.device:
            wanted, got = tuple(self._shown.shape), tuple(slope.shape)
            raise ValueError(f"the slope must be {wanted} on {self.device} like the state, got {got} on {slope.device}")
        return slope.to(self._shown.dtype).contiguous()

    def starting(self) -> tuple[Tensor, Tensor] | None:
        slots = (self._starting >= 0).nonzero().squeeze(1)
        return (self._starting[slots], self._k[slots, 0]) if len(slots) else None

    def restart(self, slope: Tensor) -> None:
        slots = (self._starting >= 0).nonzero().squeeze(1)
        self._k[slots, 0] = slope

    def attempted(self) -> Tensor | None:
        rows = self._attempted[self._attempted >= 0]
        return rows if len(rows) else None


def solve(
    func: Func,
    record: Record,
    end: Tensor,
    *,
    rtol: float,
    atol: float,
    max_steps: int,
    controller: IntegralController,
    slots: int | None = None,
    levels: tuple[float, float] | None = None,
    cuda_graph: str = "auto",
    reached: Callable[[int], object] | None = None,
) -> None:
    """`pfgm_fast.ode.solve.solve` with nobody watching, on a CUDA device.

    The first two evaluations are launched plainly, so that libraries allocate and tune what they need. After that
    func is captured once: whatever it does in Python happens at that time, not at every evaluation.

    Args:
        func: see `Func`; not to change its arguments in place if levels are given.
        levels: as for `CudaSlots`.
        cuda_graph: "auto" replays one captured iteration. If func cannot be captured, because it makes the host wait
            for the device, it is launched plainly, with a warning that says so. "while" makes the rest of the solve one
            launch, with a WHILE node; func may draw no random numbers then. "off": neither.
        reached: called now and then with the number of rows left, as far as is known.

    Raises:
        ValueError: cuda_graph="while" cannot be had, and why.
    """
    machine = CudaSlots(
        record,
        end,
        slots=slots or len(record.x),
        rtol=rtol,
        atol=atol,
        max_steps=max_steps,
        controller=controller,
        levels=levels,
    )
    LAUNCHES[cuda_graph](machine, func, reached or (lambda left: None))


def _plainly(machine: CudaSlots, func: Func, reached: Callable[[int], object]) -> None:
    while (stage := machine.stage_in()) is not None:
        machine.stage_out(func(*stage))
        reached(machine.native.left)


def _replayed(machine: CudaSlots, func: Func, reached: Callable[[int], object]) -> None:
    with capture.aside(machine.device):
        why = _warm_up(machine, func)
        if why is None:
            try:
                graph, _held = capture.capture(lambda: machine.advance(func(*machine.show())))
            except RuntimeError as error:
                why = str(error).splitlines()[0]
        if why is not None:
            warnings.warn(f"no CUDA graph, launched plainly: {why}", RuntimeWarning, stacklevel=4)
            _plainly(machine, func, reached)
            return
        while not machine.native.finished():
            graph.replay()
            machine.native.ask(_stream(machine.device))
            reached(machine.native.left)


def _looped(machine: CudaSlots, func: Func, reached: Callable[[int], object]) -> None:
    def demand(why: str | None) -> None:
        if why is not None:
            raise ValueError(f"cuda_graph='while' cannot run: {why}; use 'auto'")

    demand(_why_no_while())
    with capture.aside(machine.device):
        before = capture.random_position(machine.device)
        demand(_warm_up(machine, func))
        drawn = capture.random_position(machine.device) != before
        demand("the evaluation draws random numbers, which a repeated graph would repeat" if drawn else None)
        graph, answer = capture.capture(lambda: machine.answer(func(*machine.shown())))
        try:
            loop = _native().WhileGraph(machine.native, answer.data_ptr(), graph.raw_cuda_graph())
        except ValueError as error:
            demand(str(error))
        loop.launch(_stream(machine.device))
        loop.wait()
        reached(0)


LAUNCHES: Mapping[str, Callable[..., None]] = MappingProxyType({"auto": _replayed, "while": _looped, "off": _plainly})


def _warm_up(machine: CudaSlots, func: Func) -> str | None:
    """The first iterations, launched plainly; why func cannot be captured."""
    machine.stage_out(func(*machine.show()))
    with capture.noticing_waits() as places:
        machine.stage_out(func(*machine.show()))
    return f"the evaluation waits for the device at {places[0]}" if places else None


def _why_no_while() -> str | None:
    driver = _native().cuda_devices()[3]
    if driver < WHILE_DRIVER:
        return f"the driver serves CUDA {driver // 1000}.{driver % 1000 // 10}, at least 12.6 is needed"
    if not capture.keeps_graphs():
        return f"PyTorch {torch.__version__} does not hand out its graphs, at least 2.8 is needed"
    allocator = torch.cuda.memory.get_allocator_backend()
    if allocator != "native":
        return f"PyTorch's allocator {allocator!r} puts allocations into the graph; unset PYTORCH_CUDA_ALLOC_CONF"
    return None


def solves_field(record: Record, data: Tensor) -> bool:
    """Whether `solve_field` takes states and data like these."""
    narrow = record.x.dtype == data.dtype == torch.float32
    small = data.is_cuda and data[0].numel() <= FIELD_DIMENSIONS and len(data) <= FIELD_DATA
    return narrow and small and unavailable() is None


def solve_field(
    record: Record,
    end: Tensor,
    data: Tensor,
    log_weights: Tensor | None,
    segments: Tensor | None,
    D: float,
    levels: tuple[float, float],
    *,
    rtol: float,
    atol: float,
    max_steps: int,
    controller: IntegralController,
) -> None:
    """Solves dx/dt = x - x_hat(x, sigma), t = log(sigma), with the empirical field of the data, in one launch.

    Args:
        record: of float32 states, with t between log(levels[0]) and log(levels[1]) = end.
        data: (M, N) float32, N <= 16, M <= 16384.
        log_weights: (M,) float64 or None.
        segments: (B, 2) int64, the half-open range of data that each row of the record sees, or None for all.
        D: augmented dimension.
        levels: the noise levels at the ends.
    """
    machine = CudaSlots(
        record,
        end,
        slots=len(record.x),
        rtol=rtol,
        atol=atol,
        max_steps=max_steps,
        controller=controller,
        levels=levels,
    )
    (M, N), answers = data.shape, torch.empty_like(record.x)
    inputs = [None if t is None else t.contiguous() for t in (data, log_weights, segments)]
    machine.native.solve_field(
        M,
        *(0 if t is None else t.data_ptr() for t in inputs),
        (N + D) / 2,
        2.0 if math.isinf(D) else D,
        answers.data_ptr(),
        _stream(machine.device),
    )


def _check(record: Record, end: Tensor) -> None:
    """C++ believes what it is told."""
    x, B = record.x, len(record.x)
    doubles, longs = (record.t, end), (record.nfe, record.accepted, record.rejected)
    dtypes = {torch.float64: doubles, torch.int64: longs, torch.int8: (record.status,)}
    for dtype, columns in dtypes.items():
        for column in columns:
            if column.dtype != dtype or column.shape != (B,) or column.device != x.device:
                raise ValueError(f"expected ({B},) {dtype} on {x.device}, got {column.dtype} {tuple(column.shape)}")
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"expected float32 or float64 states, got {x.dtype}")
    if not all(t.is_contiguous() for t in (x, *doubles, *longs, record.status)):
        raise ValueError("expected contiguous tensors")
