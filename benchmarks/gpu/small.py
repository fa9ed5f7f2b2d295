"""Small calls that between them launch every kernel, for compute-sanitizer: `python -m benchmarks.gpu.small`.

Sizes are odd, so that every mask counts. PYTORCH_NO_CUDA_MEMORY_CACHING=1 puts each tensor into an allocation of its
own, beside which a stray access is seen.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from typing import Any

import torch

import pfgm_fast as pf

B, M = 5, 301
WIDTHS = (2, 100, 784)  # by differences, fused, and in two passes
KINDS = ((torch.float32, 1.0), (torch.uint8, math.inf), (torch.float64, 128.0))  # data and D

SOLVES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("unipc", {"steps": 4}),
    ("rk45", {}),  # in one launch for few dimensions, else by graph replay
    ("rk45", {"callback": lambda info: None, "batch_size": 2}),  # launched plainly
)


def run(device: torch.device, N: int) -> Iterator[str]:
    """Makes the calls for N dimensions one by one and names each; the results must be finite."""
    generator = torch.Generator().manual_seed(0)
    for kind, D in KINDS:
        data = torch.randint(256, (M, N), generator=generator, dtype=torch.uint8)
        data = data if kind == torch.uint8 else data.to(kind) / 255
        x = torch.rand(B, N, generator=generator, dtype=torch.float64 if kind == torch.float64 else torch.float32)
        sigma = torch.logspace(-2, 1, B)
        labels, masses = torch.arange(M) % 3, torch.linspace(-3, 0, M)
        plain = pf.EmpiricalField(data, D, backend="triton", device=device)
        labelled = pf.EmpiricalField(data, D, labels=labels, log_weights=masses, backend="triton", device=device)
        x, sigma, rows = x.to(device), sigma.to(device), (torch.arange(B) % 4 - 1).to(device)
        results = [plain(x, sigma), plain.log_density(x, sigma), labelled(x, sigma, labels=rows)]
        if not all(bool(result.isfinite().all()) for result in results):
            raise ArithmeticError(f"not finite: N={N} {kind} D={D}")
        yield f"field N={N} D={D:g} {kind}"
    for dtype, D in ((torch.float32, math.inf), (torch.bfloat16, 1.0), (torch.float64, 128.0)):
        seeds = torch.arange(B, device=device)
        x = pf.perturb(torch.zeros(B, N, dtype=dtype, device=device), 0.5, D, seeds=seeds)
        x += pf.prior((B, N), 80.0, D, seeds=seeds, dtype=dtype)
        yield f"noise N={N} D={D:g} {dtype}, mean {x.double().mean().item():.3g}"
    field = pf.EmpiricalField(torch.rand(M, N, generator=generator), 128.0, backend="triton", device=device)
    for solver, how in SOLVES:
        solution = pf.sample(field, (B, N), solver=solver, seeds=range(B), sigma_min=0.1, **how)
        if not solution.ok:
            raise ArithmeticError(f"did not end: N={N} {solver} {how}: {solution.status.tolist()}")
        yield f"solve N={N} {solver} {how}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.small", description=__doc__)
    parser.add_argument("--widths", nargs="+", type=int, default=WIDTHS, metavar="N")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("there is no GPU here that PyTorch can use", file=sys.stderr)
        return 3
    for N in options.widths:
        for done in run(torch.device("cuda"), N):
            print(done, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
