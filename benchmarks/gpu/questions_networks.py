"""What the experiments solve: equations with networks of PyTorch's libraries, and with an empirical field."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import pfgm_fast as pf

GPU = torch.device("cuda", 0)
Slope = Callable[[Tensor, Tensor, Tensor], Tensor]


class Equation(NamedTuple):
    name: str
    y0: Tensor
    slope: Slope  # as cuda.solve takes it


class Block(nn.Module):
    """A residual block of a diffusion network, with its group norms and its time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(8, channels) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.time = nn.Linear(1, channels)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.convolutions[0](nn.functional.silu(self.norms[0](x)))
        h = h + self.time(t)[:, :, None, None]
        return x + self.convolutions[1](nn.functional.silu(self.norms[1](h)))  # type: ignore[no-any-return]


class Images(nn.Module):
    """Blocks between two convolutions."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, 3, 3, padding=1)
        self.blocks = nn.ModuleList(Block(channels) for _ in range(blocks))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.enter(x)
        for block in self.blocks:
            h = block(h, t)
        return self.leave(h)  # type: ignore[no-any-return]


class Tokens(nn.Module):
    """Self-attention over the second dimension."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.enter, self.leave = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.enter(x).chunk(3, -1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.leave(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Layers(nn.Module):
    """Linear layers."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


def towards(network: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> Slope:
    """y' = tanh(network(y, t)) - y: its rows stay bounded for ever."""

    def slope(t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        return torch.tanh(network(y.to(dtype), t.to(dtype)[:, None])).to(y.dtype) - y

    return slope


def equation(name: str, network: nn.Module, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Equation:
    generator = torch.Generator().manual_seed(0)
    y0 = torch.randn(*shape, generator=generator).to(GPU)
    ready = network.to(GPU, dtype).eval().requires_grad_(False)
    if len(shape) == 4 and dtype == torch.bfloat16:
        ready = ready.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Equation(name, y0, towards(ready, dtype))


def linear() -> Equation:
    torch.manual_seed(0)
    return equation("linear layers, float32", Layers(256, 512), (64, 256))


def half_linear() -> Equation:
    torch.manual_seed(0)
    return equation("linear layers, bfloat16", Layers(256, 512), (64, 256), torch.bfloat16)


def convolution() -> Equation:
    torch.manual_seed(0)
    return equation("convolutions, float32", Images(32, 2), (8, 3, 32, 32))


def half_convolution() -> Equation:
    torch.manual_seed(0)
    return equation("convolutions, bfloat16", Images(32, 2), (8, 3, 32, 32), torch.bfloat16)


def attention() -> Equation:
    torch.manual_seed(0)
    return equation("attention, bfloat16", Tokens(128, 4), (8, 64, 128), torch.bfloat16)


def field() -> Equation:
    """The way from noise level 10 down to 0.5, t = -log(sigma) being counted from its start."""
    data = torch.rand(1000, 784, generator=torch.Generator().manual_seed(0))
    empirical = pf.EmpiricalField(data, 128.0, backend="triton", device=GPU)

    def slope(t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        return empirical.unchecked(y, (10 * torch.exp(-t)).float()) - y

    return Equation("empirical field, N = 784", pf.prior((64, 784), 10.0, 128.0, seeds=range(64), device=GPU), slope)


def compiled() -> Equation:
    torch.manual_seed(0)
    network = Images(32, 1)
    plain = equation("convolutions, float32, by torch.compile", network, (8, 3, 32, 32))
    return plain._replace(slope=towards(torch.compile(network), torch.float32))


def by_size() -> tuple[Equation, ...]:
    torch.manual_seed(0)
    return (
        equation("small: 2 linear layers of 128, 256 rows of 64", Layers(64, 128), (256, 64)),
        equation("mid-size: 8 blocks of 64 channels, 16 images of 16 x 16", Images(64, 8), (16, 3, 16, 16)),
        equation(
            "large: 12 blocks of 256 channels in bfloat16, 32 images of 32 x 32",
            Images(256, 12),
            (32, 3, 32, 32),
            torch.bfloat16,
        ),
    )
