"""Measures the registry and writes benchmarks/results/<machine>.csv: `python -m benchmarks.run`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from benchmarks import ceilings, compare, machine, memory, results, table, timing
from benchmarks.ceilings import Ceilings
from benchmarks.core import Error, Operation, Provider, Work
from benchmarks.machine import Origin
from benchmarks.registry import OPERATIONS
from benchmarks.results import Row


class Effort(NamedTuple):
    """How long to measure: seconds for the repeats of a slow provider, and how often at least and at most."""

    budget: float
    least: int
    most: int


FULL, QUICK = Effort(0.6, 2, 25), Effort(0.2, 1, 7)


class Block(NamedTuple):
    """What is measured together: one case in one variant with so many threads."""

    operation: Operation[Any]
    case: str
    variant: str
    threads: int

    def __str__(self) -> str:
        return f"{self.case}, {self.variant}, {self.threads} thread{'s' * (self.threads > 1)}"


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    origin = machine.origin()
    out = options.out or results.FOLDER / machine.file_name(origin.machine)
    blocks = [
        Block(operation, case, variant, threads)
        for operation in _operations(options.operation, options.provider)
        for case in operation.cases
        if _chosen(case, options.case)
        for variant in operation.variants
        for threads in options.threads
    ]
    if not blocks:
        known = [name for operation in OPERATIONS.values() for name in operation.cases]
        print(f"no case matches {options.case}; known: {', '.join(known)}")
        return 2
    _print_skipped(blocks)
    done, interrupted = [], False
    try:
        with tqdm(blocks, unit="block", file=sys.stderr) as bar:
            for block in bar:
                bar.set_description(str(block))
                results.update(out, measure(block, QUICK if options.quick else FULL, origin, bar), Row)
                done.append(block)
    except KeyboardInterrupt:
        interrupted = True
    _print_tables(done, compare.by_key(results.read(out, Row)))
    print(f"\n{'interrupted: finished rows' if interrupted else 'rows'} are in {out}")
    return 130 if interrupted else 0


def measure(block: Block, effort: Effort, origin: Origin, bar: tqdm[Any] | None = None) -> list[Row]:
    """The rows of a block; the first call of each provider is checked against the truth and not timed."""
    operation, now = block.operation, timing.clock(block.threads)
    inputs = operation.cases[block.case](block.variant)
    exact = operation.truth(inputs)
    timed: dict[str, timing.Timed] = {}
    errors: dict[str, Error | None] = {}
    shares = {provider.name: provider.share(inputs) for provider in operation.providers}
    peaks = {name: peak / shares[name] for name, peak in _peaks(block, bar).items()}
    with timing.torch_threads(block.threads):
        for provider in _available(operation):
            _show(bar, provider.name)
            with provider.within():
                call = provider.prepare(inputs)
                result = call()
            checked = provider.complete and shares[provider.name] == 1
            errors[provider.name] = operation.error(inputs, result, exact) if checked else None
            timed[provider.name] = timing.Timed(call, provider.within)
            del result
        _show(bar, "timing")
        ceiling = ceilings.measure(now)
        taken = timing.interleaved(timed, timing.by_clock(now), *effort)
    seconds = {name: [repeat / shares[name] for repeat in repeats] for name, repeats in taken.items()}
    return [
        row(block, provider, seconds[provider.name], errors[provider.name], peaks.get(provider.name),
            operation.work(inputs), ceiling, provider.remark(inputs), origin)
        for provider in _available(operation)
    ]  # fmt: skip


def row(
    block: Block,
    provider: Provider[Any],
    seconds: list[float],
    error: Error | None,
    peak: float | None,
    work: Work,
    ceiling: Ceilings,
    remark: str,
    origin: Origin,
) -> Row:
    low, median, high = (float(q) for q in np.quantile(seconds, (0.1, 0.5, 0.9)))
    bound, least = ceiling.bound(work)
    gflop = work.flop / median / 1e9
    return Row(
        operation=block.operation.name,
        case=block.case,
        variant=block.variant,
        provider=provider.name,
        threads=block.threads,
        status="part" if error is None else "ok" if error.bounds <= 1 else "wrong",
        median_ms=1e3 * median,
        p10_ms=1e3 * low,
        p90_ms=1e3 * high,
        repeats=len(seconds),
        memory_mb=peak,
        error_bounds=None if error is None else error.bounds,
        error_relative=None if error is None else error.relative,
        gpairs_per_s=work.pairs / median / 1e9,
        gflop_per_s=gflop,
        matrix_share=gflop / ceiling.matrix,
        bound=bound,
        bound_share=least / median,
        matrix_gflop_per_s=ceiling.matrix,
        copy_gb_per_s=ceiling.copy,
        log_exp_g_per_s=ceiling.log_exp,
        remark=remark,
        **origin._asdict(),
    )


def _peaks(block: Block, bar: tqdm[Any] | None) -> dict[str, float]:
    """MB by provider; measured once a case, in the first variant, on one thread."""
    if block.threads != 1 or block.variant != next(iter(block.operation.variants)) or memory.unavailable():
        return {}
    _show(bar, "memory")
    names = [provider.name for provider in _available(block.operation)]
    return memory.measure(block.operation.name, block.case, names)


def _show(bar: tqdm[Any] | None, what: str) -> None:
    if bar is not None:
        bar.set_postfix_str(what)


def _available(operation: Operation[Any]) -> list[Provider[Any]]:
    return [provider for provider in operation.providers if provider.unavailable() is None]


def _operations(names: list[str] | None, parts: list[str] | None) -> Iterator[Operation[Any]]:
    """The operations of these names, with those of their providers whose name holds a part."""
    for operation in (OPERATIONS[name] for name in names or OPERATIONS):
        yield replace(operation, providers=tuple(p for p in operation.providers if _chosen(p.name, parts)))


def _chosen(name: str, parts: list[str] | None) -> bool:
    return not parts or any(part in name for part in parts)


def _print_skipped(blocks: list[Block]) -> None:
    for operation in {block.operation.name: block.operation for block in blocks}.values():
        for provider in operation.providers:
            if why := provider.unavailable():
                print(f"skipped: {provider.name}: {why}")
    if why := memory.unavailable():
        print(f"skipped: {why}")


def _print_tables(done: list[Block], rows: compare.Rows) -> None:
    for block in done:
        print(f"\n{block}\n{table.block_table(block.operation, rows, block.case, block.variant, block.threads)}")
    for name in dict.fromkeys(block.operation.name for block in done):
        cases = {block.case for block in done}
        chosen = {key: row for key, row in rows.items() if row.case in cases}
        print(f"\n{table.goals(OPERATIONS[name], chosen)}")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--operation", nargs="+", choices=list(OPERATIONS), help="default: all")
    parser.add_argument(
        "--case", nargs="+", metavar="PART", help="cases whose name holds a PART, as N=64; default: all"
    )
    parser.add_argument("--provider", nargs="+", metavar="PART", help="providers whose name holds a PART; default: all")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="N", help="default: 1 2")
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--out", type=Path, metavar="CSV", help="default: benchmarks/results/<machine>.csv")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
