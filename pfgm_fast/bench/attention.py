"""The posterior mean by PyTorch's FlexAttention: queries attend to the data, the log weight is a modified score."""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from pfgm_fast.bench.expressions import Centred

TILE = (128, 256)  # queries and data at a time on a CPU: the best or nearly so of those tried

Score = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def flex(x: Tensor, sigma: Tensor, data: Tensor, D: float) -> Callable[[], Tensor]:
    """The call that computes it; its first one compiles, about 5 s. x (B, N) and sigma (B,) are read again at each.

    On NVIDIA GPUs the products are TF32 where torch.get_float32_matmul_precision() is not "highest"; to change that
    between calls compiles anew. On a CPU they are float32.
    """
    torch._dynamo.config.recompile_limit = 100  # as there is one compilation for each shape and D
    # flex_attention alone, as its lowering for CPUs fails on queries that the same graph computes.
    attend = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    centred = Centred.of(data)
    pad = _head(data.shape[1]) - data.shape[1]
    y = torch.nn.functional.pad(centred.data, (0, pad))[None, None]
    mask = None if data.is_cuda else _tiles(len(x), len(data))

    @torch.no_grad()
    def call() -> Tensor:
        a = x - centred.center
        q = torch.nn.functional.pad(a, (0, pad))[None, None]
        score = _log_weight((a * a).sum(1), sigma, centred.norms, a.shape[1], D)
        mean: Tensor = attend(q, y, y, score_mod=score, scale=-2.0, block_mask=mask)
        return mean[0, 0, :, : a.shape[1]] + centred.center

    return call


def flex_refuses(N: int, M: int, D: float, device: torch.device) -> str | None:
    """Why it cannot serve N dimensions and M data on a device, or None; any D will do."""
    if device.type == "cuda":
        return _gpu_refuses(N, M, device)
    if device.type != "cpu":
        return f"it is not written for {device.type} tensors here"
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return "its kernel for CPUs needs AVX2"
    compiler = os.environ.get("CXX", "g++")
    return None if shutil.which(compiler) else f"it is compiled by {compiler}, which was not found"


def _gpu_refuses(N: int, M: int, device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "it needs Triton, which is not installed"
    head = _head(N)
    if head > 512 or (head > 64 and head > _widest(device)):
        return f"a tile of its kernel does not fit the GPU's shared memory in {head} dimensions"
    return "its kernel indexes the data in 32 bits" if M * head >= 1 << 31 else None


def _widest(device: torch.device) -> int:
    """Up to which head dimension PyTorch's own tiles of float32 fit."""
    capability = torch.cuda.get_device_capability(device)
    if capability in ((8, 6), (8, 9)):  # use the tiles of 8.0 with less shared memory
        return 64
    return 512 if capability[0] in (9, 10) else 256


def _head(N: int) -> int:
    """The head dimension with its zeros: PyTorch has tuned tiles for powers of two, Triton no product below 16."""
    return max(16, 1 << (N - 1).bit_length())


def _log_weight(squares: Tensor, sigma: Tensor, norms: Tensor, N: int, D: float) -> Score:
    """The score to begin with is -2 x.y, as the scale is -2."""
    norms = _no_single(norms)
    if math.isinf(D):
        squares, factor = _no_single(squares), _no_single(-0.5 / sigma**2)
        return lambda score, batch, head, i, j: (squares[i] + norms[j] + score) * factor[i]
    base, power = _no_single(squares + D * sigma**2), -(N + D) / 2
    return lambda score, batch, head, i, j: (base[i] + norms[j] + score).clamp_min(1e-30).log() * power


def _no_single(values: Tensor) -> Tensor:
    """Values, repeated where there is one: the lowering for CPUs fails on captured tensors of one element."""
    return values.repeat(2) if len(values) == 1 else values


def _tiles(B: int, M: int) -> BlockMask:
    """A mask that hides nothing; without one the kernel for CPUs makes all B x M scores at once."""
    rows, columns = math.ceil(B / TILE[0]), math.ceil(M / TILE[1])
    indices = torch.arange(columns, dtype=torch.int32).expand(1, 1, rows, columns).contiguous()
    every = torch.full((1, 1, rows), columns, dtype=torch.int32)
    none, unused = torch.zeros_like(every), torch.zeros_like(indices)
    return BlockMask.from_kv_blocks(none, unused, every, indices, BLOCK_SIZE=TILE, seq_lengths=(B, M))
