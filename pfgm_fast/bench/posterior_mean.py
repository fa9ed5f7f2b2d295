"""The operation `posterior_mean`: one evaluation of the field, by this library and by others."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast import operator
from pfgm_fast.bench import attention, expressions, memory, packages, queries
from pfgm_fast.bench.core import Case, Operation, Provider, first_of
from pfgm_fast.bench.expressions import Centred
from pfgm_fast.bench.queries import ALL_80, SPREAD, Query, Shape

NATIVE = "pfgm_fast native"
NATIVE_UNPREPARED = "pfgm_fast native, unprepared"
NATIVE_AVX2 = "pfgm_fast native avx2"
TRITON = "pfgm_fast triton"
TRITON_HIGH = "pfgm_fast triton, high"
GRAPH = "pfgm_fast triton, CUDA graph"
TORCH = "pfgm_fast torch"
BARE = "two bare matrix products"
PRODUCTS = "two products"
PRODUCTS_FLUSHED = "two products, subnormals flushed"
PRODUCTS_UNPREPARED = "two products, centring included"
PRODUCTS_TF32 = "two products, TF32"
COMPILED = "two products, compiled"
COMPILED_TF32 = "two products, compiled, TF32"
CDIST = "cdist + softmax + mm"
CHUNKED = "cdist in chunks"
FLEX = "FlexAttention"
FLEX_TF32 = "FlexAttention, TF32"
KEOPS = "PyKeOps"
SINKHORN = "FlashSinkhorn"
ORIGINAL = "original formula"

Call = Callable[[], Tensor]
Expression = Callable[[Tensor, Tensor, Centred, float], Tensor]

# Of a peer's tensors, which are made in chunks of rows beyond it: bytes. And how long one call of it may take: seconds.
ROOM = {"cpu": expressions.ORIGINAL_BYTES, "cuda": 1.6e10}
PATIENCE = {"cpu": 60.0, "cuda": 3.0}
SINKHORN_N = 150
NUMBERS_PER_SECOND = {"cpu": 8e7, "cuda": 1e11}  # of the original formula, roughly


def operation(
    shapes: Mapping[str, Case[Query]], extra: tuple[Provider[Query], ...] = (), name: str = "posterior_mean"
) -> Operation[Query]:
    """One evaluation of the field over cases."""
    return Operation(
        name=name,
        cases=shapes,
        variants=(SPREAD, ALL_80),
        providers=(*PROVIDERS, *extra),
        truth=queries.truth,
        error=queries.error,
        work=queries.work,
        small=queries.small,
        turn=Query.turn,
        tests=("tests/test_accuracy.py", "tests/test_native.py", "tests/test_field.py"),
        rival=first_of(NATIVE, TRITON, TORCH),
        error_unit="of |x - x_hat|",
    )


def case(shape: Shape, *devices: str, threads: tuple[int, ...] = (1, 2)) -> Case[Query]:
    """Inputs of a shape, on these devices or on all."""
    return Case(partial(queries.make, shape), devices or ("cpu", "cuda"), threads)


def of_data(load: Callable[[], Tensor], name: str, D: float, B: int) -> Operation[Query]:
    """The operation on a user's data, `load()` (M, N), as the case `name`; its only variant has all noise levels."""
    only = Case(lambda variant, device: queries.of_data(load().to(device), D, B))
    return replace(operation({name: only}), variants=(SPREAD,))


# ---- ours


def _field(backend: str, query: Query, precision: str = "highest") -> Call:
    field = pf.EmpiricalField(query.data, query.D, backend=backend, precision=precision)
    return lambda: field(query.x, query.sigma)


def _unprepared(query: Query) -> Call:
    return lambda: pf.posterior_mean(query.x, query.sigma, query.data, query.D, backend="native")


def _graph(query: Query) -> Call:
    """Replays one captured call."""
    eager = _field("triton", query)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        eager()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = eager()

    def call() -> Tensor:
        graph.replay()
        return result

    return call


def _backend(name: str, query: Query) -> str | None:
    return operator.BACKENDS[name].refuses(query.x.device)


def _no_avx2(query: Query) -> str | None:
    why = _backend("native", query)
    if why is not None:
        return why
    with _instruction_set("avx2"):
        taken = importlib.import_module("pfgm_fast._C").instruction_set()
    return None if taken == "avx2" else "this machine or build has no AVX2"


@contextmanager
def _instruction_set(name: str) -> Iterator[None]:
    extension = importlib.import_module("pfgm_fast._C")
    before = extension.instruction_set()
    extension.select_instruction_set(name)
    try:
        yield
    finally:
        extension.select_instruction_set(before)


def _reference_refuses(query: Query) -> str | None:
    """It works in small blocks, and what they take bounds it from below."""
    M, N = query.data.shape
    blocks = math.ceil(len(query.x) * M / (1 << 20)) * math.ceil(M * N / (1 << 20))
    return _too_long(query, blocks * (5e-5 if query.x.is_cuda else 1e-3))


# ---- expressions


def _in_rows(expression: Callable[[Tensor, Tensor], Tensor], query: Query) -> Call:
    """The expression on as many rows at a time as fit."""
    rows = _rows(query)

    def call() -> Tensor:
        parts = zip(query.x.split(rows), query.sigma.split(rows), strict=True)
        results = [expression(x, sigma) for x, sigma in parts]
        return results[0] if len(results) == 1 else torch.cat(results)

    return call


def _products(query: Query, expression: Expression = expressions.two_products) -> Call:
    return _in_rows(lambda x, sigma: expression(x, sigma, query.centred, query.D), query)


def _products_unprepared(query: Query) -> Call:
    data = query.values

    def call() -> Tensor:
        centred = Centred.of(data)
        return _in_rows(lambda x, sigma: expressions.two_products(x, sigma, centred, query.D), query)()

    return call


def _compiled(query: Query) -> Call:
    """For every shape and D anew; fullgraph makes it an error, not an eager call, to pass the limit of compilations."""
    torch._dynamo.config.recompile_limit = 100
    return _products(query, torch.compile(expressions.two_products, dynamic=False, fullgraph=True))


def _cdist(query: Query) -> Call:
    data = query.values
    return _in_rows(lambda x, sigma: expressions.cdist(x, sigma, data, query.D), query)


def _chunked(query: Query) -> Call:
    data = query.values
    return lambda: expressions.chunked_cdist(query.x, query.sigma, data, query.D)


def _original(query: Query) -> Call:
    data = query.values
    return lambda: expressions.original(query.x, query.sigma, data, query.D, ROOM[query.x.device.type])


def _bare(query: Query) -> Call:
    data = query.values
    return _in_rows(lambda x, sigma: expressions.bare_products(x, data), query)


@contextmanager
def _flushed() -> Iterator[None]:
    """Of the calling thread alone: PyTorch's other threads go on with subnormal numbers."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def _tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _rows(query: Query) -> int:
    """A power of two of rows whose logits fit, or all."""
    fit = int(ROOM[query.x.device.type] // (4 * len(query.data)))
    return len(query.x) if fit >= len(query.x) else 1 << (fit.bit_length() - 1)


def _chunks(query: Query) -> str:
    rows = _rows(query)
    return f"{rows} rows at a time" if rows < len(query.x) else ""


def _bare_part(query: Query) -> str:
    return "; ".join(filter(None, ("a part of the work", _chunks(query))))


def _original_chunks(query: Query) -> str:
    rows = expressions.original_rows(query.x, query.values, ROOM[query.x.device.type])
    return f"{rows} rows at a time" if rows < len(query.x) else ""


def _original_refuses(query: Query) -> str | None:
    (B, N), M = query.x.shape, len(query.data)
    row = 4 * M * (N + 1)
    room = ROOM[query.x.device.type]
    if row > room:
        return f"one row of its tensor takes {row / 1e9:.0f} GB, several times"
    taken = 3 * row * min(B, max(1, int(room // row)))
    return _too_long(query, B * M * (N + 1) / NUMBERS_PER_SECOND[query.x.device.type]) or _lacking(query, taken)


def _too_long(query: Query, seconds: float) -> str | None:
    patience = PATIENCE[query.x.device.type]
    return f"one call would take some {seconds:.0f} s" if seconds > patience else None


def _too_large(query: Query) -> str | None:
    """Of the data in float32, plain and centred, which are made once for all peers, beside two tensors of logits."""
    kept = {"centred"} if query.data.dtype == torch.float32 else {"centred", "values"}
    made = 4 * query.data.numel() * len(kept - query.__dict__.keys())
    return _lacking(query, made + 2 * 4 * len(query.data) * _rows(query))


def _lacking(query: Query, needed: float) -> str | None:
    free = memory.available()
    if query.x.is_cuda:
        free, _ = torch.cuda.mem_get_info(query.x.device)
        free += torch.cuda.memory_reserved(query.x.device) - torch.cuda.memory_allocated(query.x.device)
    return f"it needs {needed / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB are free" if needed > free else None


# ---- packages


def _flex(query: Query) -> Call:
    return attention.flex(query.x, query.sigma, query.values, query.D)


def _flex_refuses(query: Query) -> str | None:
    M, N = query.data.shape
    return attention.flex_refuses(N, M, query.D, query.x.device) or _too_large(query)


def _keops(query: Query) -> Call:
    return packages.keops(query.x, query.sigma, query.centred, query.D)


def _keops_refuses(query: Query) -> str | None:
    return packages.missing("pykeops", "pykeops") or _too_large(query)


def _sinkhorn(query: Query) -> Call:
    return packages.sinkhorn(query.x, query.level or math.nan, query.centred)


def _sinkhorn_refuses(query: Query) -> str | None:
    if not math.isinf(query.D):
        return "it has no kernel for finite D"
    if query.level is None:
        return "it has one sigma for all rows"
    if query.data.shape[1] > SINKHORN_N:
        return f"its plan, which is not normalised, underflows for more than some {SINKHORN_N} dimensions"
    return packages.missing("flash_sinkhorn", "flash-sinkhorn") or _too_large(query)


CPU, GPU = ("cpu",), ("cuda",)
_native, _triton = partial(_field, "native"), partial(_field, "triton")
_no_native, _no_triton = partial(_backend, "native"), partial(_backend, "triton")
_avx2 = partial(_instruction_set, "avx2")

# By priority: what comes last is skipped first where time is short.
PROVIDERS: tuple[Provider[Query], ...] = (
    Provider(NATIVE, _native, ours=True, devices=CPU, refuses=_no_native),
    Provider(NATIVE_UNPREPARED, _unprepared, ours=True, devices=CPU, refuses=_no_native),
    Provider(NATIVE_AVX2, _native, ours=True, devices=CPU, refuses=_no_avx2, within=_avx2),
    Provider(TRITON, _triton, ours=True, devices=GPU, refuses=_no_triton),
    Provider(
        TRITON_HIGH, partial(_triton, precision="high"), ours=True, contract=False, devices=GPU, refuses=_no_triton
    ),
    Provider(GRAPH, _graph, ours=True, devices=GPU, refuses=_no_triton),
    Provider(PRODUCTS, _products, refuses=_too_large, remark=_chunks),
    Provider(PRODUCTS_TF32, _products, devices=GPU, refuses=_too_large, within=_tf32, remark=_chunks),
    Provider(PRODUCTS_FLUSHED, _products, devices=CPU, within=_flushed, remark=_chunks),
    Provider(PRODUCTS_UNPREPARED, _products_unprepared, refuses=_too_large, remark=_chunks),
    Provider(ORIGINAL, _original, refuses=_original_refuses, remark=_original_chunks),
    Provider(BARE, _bare, complete=False, refuses=_too_large, remark=_bare_part),
    Provider(CDIST, _cdist, refuses=_too_large, remark=_chunks),
    Provider(CHUNKED, _chunked, refuses=_too_large),
    Provider(SINKHORN, _sinkhorn, devices=GPU, refuses=_sinkhorn_refuses),
    Provider(KEOPS, _keops, refuses=_keops_refuses),
    Provider(FLEX, _flex, refuses=_flex_refuses),
    Provider(FLEX_TF32, _flex, devices=GPU, refuses=_flex_refuses, within=_tf32),
    Provider(COMPILED, _compiled, refuses=_too_large, remark=_chunks),
    Provider(COMPILED_TF32, _compiled, devices=GPU, refuses=_too_large, within=_tf32, remark=_chunks),
    Provider(TORCH, partial(_field, "torch"), ours=True, refuses=_reference_refuses),
)
