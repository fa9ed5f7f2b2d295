# Sizes and addresses of contiguous tensors, checked by the callers: csrc/bindings.cpp.
from typing import ClassVar

def build_info() -> dict[str, str]: ...
def cuda_devices() -> tuple[int, str, int, int]: ...
def instruction_set() -> str: ...
def select_instruction_set(name: str, /) -> bool: ...
def posterior(
    wide: bool,
    B: int,
    M: int,
    N: int,
    x: int,
    scale: int,
    data: int,
    element: str,
    center: int,
    log_weights: int,
    segments: int,
    power: float,
    mean: int,
    log_sum: int,
    threads: int,
    /,
) -> None: ...

class SlotsFloat:
    def __init__(
        self,
        B: int,
        n: int,
        x: int,
        t: int,
        status: int,
        nfe: int,
        accepted: int,
        rejected: int,
        end: int,
        slots: int,
        rtol: float,
        atol: float,
        safety: float,
        min_factor: float,
        max_factor: float,
        max_steps: int,
        threads: int,
        /,
    ) -> None: ...
    def busy(self) -> int: ...
    def rows(self, out: int, /) -> None: ...
    def stage_in(self, x: int, t: int, /) -> None: ...
    def stage_out(self, slope: int, /) -> bool: ...
    def starting(self, rows: int, slope: int, /) -> int: ...
    def restart(self, slope: int, /) -> None: ...
    def attempted(self) -> int: ...
    def copy_attempted(self, out: int, /) -> None: ...
    def solve_field(
        self,
        M: int,
        data: int,
        element: str,
        center: int,
        log_weights: int,
        segments: int,
        D: float,
        first: float,
        last: float,
        evaluations: int,
        /,
    ) -> bool: ...

class SlotsDouble(SlotsFloat): ...

class CudaSlots:
    ahead: ClassVar[int]
    slot_bytes: ClassVar[int]
    counter_bytes: ClassVar[int]
    def __init__(
        self, wide: bool, addresses: list[int], sizes: list[int], numbers: list[float], device: int, flags: int, /
    ) -> None: ...
    @property
    def left(self) -> int: ...
    def start(self, stream: int, /) -> None: ...
    def stage_in(self, stream: int, /) -> None: ...
    def stage_out(self, slope: int, stream: int, /) -> None: ...
    def ask(self, stream: int, /) -> None: ...
    def finished(self) -> bool: ...
    def solve_field(
        self,
        M: int,
        data: int,
        log_weights: int,
        segments: int,
        power: float,
        spread: float,
        answers: int,
        stream: int,
        /,
    ) -> None: ...

class WhileGraph:
    def __init__(self, slots: CudaSlots, answer: int, graph: int, /) -> None: ...
    def launch(self, stream: int, /) -> None: ...
    def wait(self) -> None: ...

def attempt_float(
    B: int, n: int, x: int, a: float, factors: list[float], terms: list[int], threads: int, status: int, out: int, /
) -> None: ...
def advance_float(
    B: int,
    n: int,
    x: int,
    a: float,
    factors: list[float],
    terms: list[int],
    threads: int,
    status: int,
    t: int,
    accepted: int,
    t_next: float,
    count: int,
    /,
) -> None: ...

attempt_double = attempt_float
advance_double = advance_float
