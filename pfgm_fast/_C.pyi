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
