"""Small calls that between them launch every kernel, for compute-sanitizer: `python -m benchmarks.gpu.small`.

Sizes are odd, so that every mask counts, and data come in families of near-duplicates, so that at the lowest noise
levels log weights are in doubt and repaired. PYTORCH_NO_CUDA_MEMORY_CACHING=1 puts each tensor into an allocation of
its own, beside which a stray access is seen; no CUDA graph can be captured then (`--without graph`).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast import update
from pfgm_fast.solution import Record, Status

B, M = 6, 301
inf = math.inf
Call = Callable[[torch.device], None]


class Case(NamedTuple):
    """A field whose kernels are compiled for this data, and what is asked of it.

    Attributes:
        priors: whether a second field is asked, which has classes and log masses.
        query: the dtype of the queries.
    """

    N: int
    D: float
    data: torch.dtype = torch.float32
    precision: str = "highest"
    priors: bool = False
    query: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        words = ["field", f"N={self.N}", f"D={self.D:g}", str(self.data).removeprefix("torch.")]
        words += [self.precision] * (self.precision != "highest") + ["with priors"] * self.priors
        return " ".join(words)


CASES = (
    # by differences: weights as roots, logarithms, polynomials and exponentials; rows that float64 serves again
    Case(2, 1.0),
    Case(1, 60.0, priors=True),
    Case(3, 100.0),
    Case(5, 128.0, torch.float64, query=torch.float64),
    Case(2, inf, torch.uint8, priors=True),
    Case(16, 2048.0),
    # fused
    Case(64, 128.0),
    Case(64, 1.0, torch.uint8, priors=True),
    Case(100, inf, priors=True),
    Case(17, 1.0, precision="high"),
    Case(100, 2048.0, torch.uint8, "high"),
    # in two passes
    Case(200, inf, priors=True),
    Case(784, 1.0),
    Case(300, 128.0, torch.uint8, priors=True),
    Case(784, inf, torch.uint8),
    Case(784, 2048.0, torch.uint8, "high"),
    Case(200, 1.0, precision="high"),
    Case(40, 128.0, torch.float64, priors=True, query=torch.float64),
    Case(300, inf, torch.uint8, query=torch.float64),
    Case(17_000, 1.0),  # digits enough for more than one sum of products
    Case(66_000, inf, torch.uint8, "high"),
)


def field_call(case: Case, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(case.N)
    count = M if case.N < 1000 else 70  # tiles are whole and ragged all the same
    data = torch.randint(256, (-(-count // 7), case.N), generator=generator, dtype=torch.uint8)
    data = data.repeat_interleave(7, 0)[:count]
    data[torch.arange(count), torch.randint(case.N, (count,), generator=generator)] ^= 1
    points = (2 * data.double() - 255) / 255
    sigma = torch.logspace(math.log10(0.002), 1, B, dtype=torch.float64)
    x = points[:B] + sigma[:, None] * torch.randn(B, case.N, generator=generator, dtype=torch.float64)
    x[1] += 0.5  # far out in its kernel
    x, sigma = x.to(device, case.query), sigma.to(device, case.query)
    data = data if case.data == torch.uint8 else points.to(case.data)
    make = partial(pf.EmpiricalField, D=case.D, precision=case.precision, backend="triton", device=device)
    plain = make(data)
    weights, indices = plain.top_weights(x, sigma, 3)
    results = [plain(x, sigma), plain.log_density(x, sigma), weights, indices.double()]
    if case.priors:
        rows = (torch.arange(B) % 4 - 1).to(device)
        seen = make(data, labels=torch.arange(count) % 3, log_weights=torch.linspace(-3, 0, count))
        results += [seen(x, sigma, labels=rows), make(data, labels=torch.arange(count) % 3)(x, sigma, labels=rows)]
        x[0, 0] = math.nan
        rows[2] = 77
        bad = seen.unchecked(x, sigma, rows)
        results.append(bad[[1, 3, 4, 5]])
    _finite(*results)


def noise_call(N: int, D: float, dtype: torch.dtype, device: torch.device) -> None:
    seeds = torch.arange(B, device=device)
    x = pf.perturb(torch.zeros(B, N, dtype=dtype, device=device), 0.5, D, seeds=seeds)
    _finite(x + pf.prior((B, N), 80.0, D, seeds=seeds, dtype=dtype))


def half_steps(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """Both kinds with 0 to 5 terms, over rows that run, one that has ended and one that ends now."""
    generator = torch.Generator().manual_seed(0)
    for count in range(6):
        record = Record.start(torch.randn(B, *shape, generator=generator).to(device, dtype), 2.0)
        terms = [(0.5, torch.randn(B, *shape, generator=generator).to(device, dtype)) for _ in range(count)]
        record.status[2] = Status.NONFINITE
        record.x[3].view(-1)[-1] = inf
        work, out = torch.empty(2, *record.x.shape, dtype=dtype, device=device), torch.empty_like(record.x)
        module = update.implementation(record.x)
        module.attempt(out, record.x, record.status, 0.9, terms, work)
        module.advance(record.x, record.t, record.accepted, record.status, 1.1, terms, 1.0, 1, work)
        _finite(out, record.x[:3])
        if (record.status == Status.NONFINITE).tolist() != [False, False, True, True, False, False]:
            raise ArithmeticError(f"other rows ended than should: {record.status.tolist()}")


def sampled(N: int, device: torch.device, dtype: torch.dtype = torch.float32, breaks: bool = True, **how: Any) -> None:
    """A solve of a denoiser of the user's; if it `breaks`, one row becomes NaN on the way."""

    def denoise(x: Tensor, sigma: Tensor, broken: Tensor) -> Tensor:
        denoised = x / (1 + sigma[:, None].to(x.dtype) ** 2)
        return denoised.masked_fill((broken & (sigma < 1))[:, None], math.nan)

    broken = (torch.arange(B, device=device) == 1) & breaks
    latents = pf.prior((B, N), 10.0, 128.0, seeds=range(B), dtype=dtype, device=device)
    options: dict[str, Any] = {"sigma_min": 0.1, "sigma_max": 10.0, "steps": 4, "extra_args": {"broken": broken}}
    solution = pf.sample(denoise, latents=latents, D=128.0, **{**options, **how})
    _ended(solution, [0, int(Status.NONFINITE) * breaks, *[0] * (B - 2)])


def field_solve(N: int, device: torch.device, priors: bool = False, **how: Any) -> None:
    """A solve of an empirical field: of few dimensions in one launch."""
    data = torch.rand(M, N, generator=torch.Generator().manual_seed(0))
    labels, masses = (torch.arange(M) % 3, torch.linspace(-3, 0, M)) if priors else (None, None)
    field = pf.EmpiricalField(data, 128.0, labels=labels, log_weights=masses, backend="triton", device=device)
    extra = {"labels": (torch.arange(B) % 4 - 1).to(device)} if priors else {}
    options: dict[str, Any] = {"solver": "rk45", "rtol": 1e-2, "atol": 1e-2, "sigma_min": 0.1, "sigma_max": 10.0}
    _ended(pf.sample(field, (B, N), seeds=range(B), device=device, extra_args=extra, **options, **how), [0] * B)


def integrated(dtype: torch.dtype, device: torch.device, **how: Any) -> None:
    """An equation of the user's: rows that succeed, that run out of steps, and one with nowhere to go."""
    rates = torch.tensor([0.1, 1, 10, 1e6, 0, 3], dtype=dtype, device=device)
    ends = torch.tensor([1.0, 2, 1, 1, 0, -1], dtype=torch.float64, device=device)
    options: dict[str, Any] = {"t0": 0.0, "t1": ends, "max_steps": 50, "batch_size": 4}
    y0 = torch.ones(B, 5, 7, dtype=dtype, device=device)
    solution = pf.odeint(lambda t, y, rate: -rate[:, None, None] * y, y0, args=(rates,), **{**options, **how})
    out = int(Status.SUCCESS if how.get("step_control") == "batch" else Status.MAX_STEPS)
    _ended(solution, [0, 0, 0, out, 0, 0])


def _finite(*results: Tensor) -> None:
    if not all(bool(result.isfinite().all()) for result in results):
        raise ArithmeticError(f"not finite: {[int((~result.isfinite()).sum()) for result in results]} numbers")


def _ended(solution: pf.Solution, statuses: list[int]) -> None:
    _finite(solution.samples)
    if solution.status.tolist() != statuses:
        raise ArithmeticError(f"the solve ended with {solution.status.tolist()}, not with {statuses}")


def _watch(info: Mapping[str, Any]) -> None:
    """Has every step shown."""


DOUBLE = torch.float64
CALLS: dict[str, Call] = {
    **{case.name: partial(field_call, case) for case in CASES},
    "noise float32 D=inf": partial(noise_call, 300, inf, torch.float32),
    "noise bfloat16 D=1": partial(noise_call, 7, 1.0, torch.bfloat16),
    "noise float16 D=0.5": partial(noise_call, 3, 0.5, torch.float16),
    "noise float64 D=128": partial(noise_call, 1100, 128.0, DOUBLE),
    "half steps of short rows": partial(half_steps, (3, 5), torch.float32),
    "half steps of short rows float64": partial(half_steps, (1000,), DOUBLE),
    "half steps of long rows": partial(half_steps, (3, 70, 41), torch.float32),
    "half steps of long rows float64": partial(half_steps, (8193,), DOUBLE),
    **{f"solve {solver}": partial(sampled, 7, solver=solver) for solver in ("euler", "heun", "dpmpp_2m", "unipc")},
    "solve euler, churn": partial(sampled, 7, solver="euler", churn=2.0, seeds=range(B)),
    "loop, all slots": partial(sampled, 300, solver="rk45", cuda_graph="off"),
    "loop, few slots, float64": partial(sampled, 5, dtype=DOUBLE, solver="rk45", cuda_graph="off", batch_size=4),
    "loop, watched": partial(sampled, 5, solver="rk45", callback=_watch, trajectory=True),
    "loop, one step size": partial(sampled, 5, solver="rk45", step_control="batch", breaks=False),
    "loop of odeint": partial(integrated, torch.float32),
    "loop of odeint, float64": partial(integrated, DOUBLE),
    "loop in one launch, N=2": partial(field_solve, 2),
    "loop in one launch, N=4, with priors": partial(field_solve, 4, priors=True),
    "loop in one launch, N=16": partial(field_solve, 16),
    "loop of a wide field": partial(field_solve, 200, cuda_graph="off"),
    "graph, replayed": partial(sampled, 300, solver="rk45", cuda_graph="auto"),
    "graph, replayed, float64": partial(sampled, 5, dtype=DOUBLE, solver="rk45", cuda_graph="auto", batch_size=4),
    "graph with a WHILE node": partial(sampled, 300, solver="rk45", cuda_graph="while"),
    "graph with a WHILE node, float64": partial(sampled, 5, dtype=DOUBLE, solver="rk45", cuda_graph="while"),
    "graph of a wide field": partial(field_solve, 200, cuda_graph="while"),
}


def chosen(only: list[str], without: list[str], share: tuple[int, int]) -> dict[str, Call]:
    """By words in their names; of these every n-th, from the i-th on, for share (i, n)."""
    names = [name for name in CALLS if not only or any(word in name for word in only)]
    names = [name for name in names if not any(word in name for word in without)]
    first, step = share
    return {name: CALLS[name] for name in names[first - 1 :: step]}


def _share(text: str) -> tuple[int, int]:
    first, _, step = text.partition("/")
    if not 1 <= int(first) <= int(step):
        raise ValueError(text)
    return int(first), int(step)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.small", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="calls with one of these in their names")
    parser.add_argument("--without", nargs="+", default=[], metavar="WORD")
    parser.add_argument("--share", type=_share, default=(1, 1), metavar="I/N", help="every N-th call from the I-th on")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("there is no GPU here that PyTorch can use", file=sys.stderr)
        return 3
    code = 0
    for name, call in chosen(options.only, options.without, options.share).items():
        try:
            call(torch.device("cuda"))
            torch.cuda.synchronize()
        except Exception as failure:  # noqa: BLE001 (whatever a kernel raises: it must not hide what the next ones do)
            print(f"{name}: {type(failure).__name__}: {failure}", flush=True)
            code = 1
        else:
            print(f"{name}: done", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
