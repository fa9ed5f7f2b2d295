"""Measures the cases on a GPU until time is up and writes gpu-<device>.csv: `python -m benchmarks.gpu`."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks import results, timing
from benchmarks.core import Error, Operation
from benchmarks.gpu import ceilings, page, predict, rows
from benchmarks.gpu import posterior_mean as pm
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.posterior_mean import Candidate, Query
from benchmarks.gpu.rows import Origin, Row
from benchmarks.timing import Stopwatch, Timed

SHARE = 2.5  # a block may take so many times its equal share of the time that is left


class Effort(NamedTuple):
    """Seconds for the repeats of a slow provider, and how often at least and at most."""

    budget: float = 0.5
    least: int = 3
    most: int = 50


class Bench(NamedTuple):
    """What is the same for all blocks; `deadline` is in seconds of time.monotonic."""

    operation: Operation[Query]
    device: torch.device
    stopwatch: Stopwatch
    ceiling: Ceilings
    origin: Origin
    deadline: float
    effort: Effort = Effort()


class Measured(NamedTuple):
    """What the first call of a provider told."""

    call: Callable[[], object]
    error: Error
    memory_mb: float | None
    remark: str


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(
            "there is no GPU here that PyTorch can use; --device cpu --shrink 64 tries the programme", file=sys.stderr
        )
        return 3
    bench = prepare(device, options.shrink, options.seconds)
    folder = Path(os.environ.get("OUT") or results.FOLDER)
    out = options.out or folder / rows.file_name(bench.origin.device)
    print(", ".join(f"{name} {value}" for name, value in bench.origin._asdict().items()))
    print("ceilings: " + ", ".join(f"{name} {value:.4g}e12/s" for name, value in bench.ceiling._asdict().items()))
    blocks = [(case, variant) for case in bench.operation.cases for variant in pm.VARIANTS if _chosen(case, options)]
    for index, (case, variant) in enumerate(blocks):
        left = bench.deadline - time.monotonic()
        until = time.monotonic() + left * min(1.0, SHARE / (len(blocks) - index))
        found = measure(bench, case, variant, until)
        results.update(out, found, Row)
        print(f"\n{case}, {variant}\n{page.block(found)}", flush=True)
    print(f"\n{page.goals(results.read(out, Row))}\n\nrows are in {out}")
    return 0


def prepare(device: torch.device, shrink: int, seconds: float) -> Bench:
    deadline = time.monotonic() + seconds
    stopwatch = timing.by_events if device.type == "cuda" else timing.by_clock(time.perf_counter)
    ceiling = ceilings.measure(device, stopwatch)
    return Bench(pm.operation(device, shrink), device, stopwatch, ceiling, rows.origin(device), deadline)


def measure(bench: Bench, case: str, variant: str, until: float) -> list[Row]:
    """The rows of a block: one case in one variant. What cannot run, or for which no time is left, is a skipped row."""
    operation = bench.operation
    if time.monotonic() > until:
        reasons = dict.fromkeys((provider.name for provider in operation.providers), "no time was left")
        return [_row(bench, case, variant, name, remark=why) for name, why in reasons.items()]
    query = operation.cases[case](variant)
    exact = operation.truth(query)
    measured: dict[str, Measured] = {}
    skipped: dict[str, str] = {}
    for provider in operation.providers:
        assert isinstance(provider, Candidate)
        why = provider.unavailable() or provider.refuses(query)
        why = why or ("no time was left" if time.monotonic() > until else None)
        found = why or _first(bench, provider, query, exact)
        if isinstance(found, str):
            skipped[provider.name] = found
            _release(bench.device)
        else:
            measured[provider.name] = found
    timed = {name: Timed(one.call, query.turn) for name, one in measured.items()}
    seconds = timing.interleaved(timed, bench.stopwatch, *bench.effort)
    result = []
    for provider in operation.providers:
        name = provider.name
        if name in skipped:
            result.append(_row(bench, case, variant, name, remark=skipped[name]))
        else:
            result.append(_row(bench, case, variant, name, query, measured[name], seconds[name], ours=provider.ours))
    measured.clear()
    timed.clear()
    del query
    _release(bench.device)
    return result


def _first(bench: Bench, provider: Candidate, query: Query, exact: torch.Tensor) -> Measured | str:
    """The first call, which compiles and is not timed; or why it failed: one provider must not take the run with it."""
    cuda = bench.device.type == "cuda"
    started = time.monotonic()
    try:
        call = provider.prepare(query)
        call()
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        result = call()
        peak = (torch.cuda.max_memory_allocated() - before) / 1e6 if cuda else None
        error = bench.operation.error(query, result, exact)
    except torch.cuda.OutOfMemoryError as failure:
        return f"out of memory: {str(failure).splitlines()[0]}"
    except Exception as failure:  # noqa: BLE001 (whatever a peer, or a kernel of ours on its first GPU, raises)
        return f"failed: {type(failure).__name__}: {(str(failure).splitlines() or [''])[0]}"
    finally:
        print(
            f"  {provider.name}: {time.monotonic() - started:.1f} s to prepare and check", file=sys.stderr, flush=True
        )
    return Measured(call, error, peak, provider.remark(query))


def _row(
    bench: Bench,
    case: str,
    variant: str,
    provider: str,
    query: Query | None = None,
    measured: Measured | None = None,
    seconds: list[float] | None = None,
    ours: bool = False,
    remark: str = "",
) -> Row:
    ceiling = bench.ceiling
    known: dict[str, object] = dict.fromkeys(
        ("median_ms", "p10_ms", "p90_ms", "memory_mb", "error_bounds", "error_relative", "gpairs_per_s", "tflop_per_s",
         "bound_share", "predicted_ms")
    )  # fmt: skip
    status, bound = "skipped", ""
    if query is not None and measured is not None and seconds:
        low, median, high = (float(q) for q in np.quantile(seconds, (0.1, 0.5, 0.9)))
        work = bench.operation.work(query)
        bound, least = ceiling.bound(work)
        status = "ok" if measured.error.bounds <= 1 else "wrong"
        remark = measured.remark
        known |= {
            "median_ms": 1e3 * median,
            "p10_ms": 1e3 * low,
            "p90_ms": 1e3 * high,
            "memory_mb": measured.memory_mb,
            "error_bounds": measured.error.bounds,
            "error_relative": measured.error.relative,
            "gpairs_per_s": work.pairs / median / 1e9,
            "tflop_per_s": work.flop / median / 1e12,
            "bound_share": least / median,
        }
        if ours and provider != pm.TORCH:
            known["predicted_ms"] = 1e3 * predict.seconds(query.shape, ceiling)
    return Row(
        operation=bench.operation.name,
        case=case,
        variant=variant,
        provider=provider,
        status=status,
        repeats=len(seconds or ()),
        rows_checked=0 if query is None else len(query.rows),
        bound=bound,
        copy_tb_per_s=ceiling.copy,
        bf16_tflop_per_s=ceiling.bf16,
        int8_top_per_s=ceiling.int8,
        fp32_tflop_per_s=ceiling.fp32,
        remark=remark,
        **known,  # type: ignore[arg-type]  # each as its column says
        **bench.origin._asdict(),
    )


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _chosen(case: str, options: argparse.Namespace) -> bool:
    return not options.case or any(part in case for part in options.case)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=270.0, help="until no new provider is begun (default: %(default)g)"
    )
    parser.add_argument(
        "--case", nargs="+", metavar="PART", help="cases whose name holds a PART, as N=64; default: all"
    )
    parser.add_argument(
        "--device", default="cuda", help="cuda, cuda:1, or cpu to try the programme (default: %(default)s)"
    )
    parser.add_argument(
        "--shrink", type=int, default=1, metavar="N", help="divide the sizes by N, to try the programme"
    )
    parser.add_argument(
        "--out", type=Path, metavar="CSV", help="default: gpu-<device>.csv in $OUT or benchmarks/results"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
