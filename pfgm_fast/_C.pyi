# Sizes and addresses of contiguous tensors, checked by the callers: csrc/bindings.cpp.

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
