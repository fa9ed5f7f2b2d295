"""Recorded random numbers in place of drawn ones, and how far results are from recorded ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfgm_fast.compat._draws import Draws

Array = NDArray[Any]
Golden = dict[str, Array]
DATA = Path(__file__).parent / "data"


class Deviation(NamedTuple):
    """How far one result is from the recorded one, in the measure of its tolerance."""

    case: str
    value: float
    tolerance: float

    @property
    def share(self) -> float:
        """Of the tolerance; NaN counts as infinite."""
        return self.value / self.tolerance if self.value == self.value else np.inf


class Replay(Draws):
    """Hands out recorded draws, each once, in the order in which the original drew them."""

    def __init__(self, *recorded: tuple[str, Array]) -> None:
        self.recorded = list(recorded)

    def _next(self, kind: str, size: Sequence[int]) -> Array:
        expected, value = self.recorded.pop(0)
        assert expected == kind, f"{kind} was drawn where the original drew {expected}"
        assert tuple(value.shape) == tuple(size), f"{kind} of {tuple(size)} was drawn, not of {value.shape}"
        return value

    def rand(self, size: Sequence[int], device: torch.device | str | None = None) -> Tensor:
        return torch.from_numpy(self._next("rand", size))

    def randn(self, size: Sequence[int], device: torch.device | str | None = None) -> Tensor:
        return torch.from_numpy(self._next("randn", size))

    def randn_like(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self._next("randn_like", x.shape)).to(x.dtype)

    def signs_like(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self._next("signs_like", x.shape)).to(x.dtype)

    def beta(self, a: float, b: float, size: int) -> Array:
        return self._next("beta", (size,))

    def all_used(self) -> bool:
        return not self.recorded


def read(name: str, folder: Path = DATA) -> Golden:
    with np.load(folder / f"{name}.npz") as archive:
        return dict(archive)


def tensor(array: Array) -> Tensor:
    return torch.from_numpy(array)


def pixels(array: Array, N: int = 64) -> Tensor:
    """The original data spaces: floats as they are, digits u/8 - 1, 8-bit images u/127.5 - 1 in float32."""
    if array.dtype != np.uint8:
        return torch.from_numpy(array)
    return torch.from_numpy(array.astype(np.float32) / np.float32(8 if N == 64 else 127.5) - 1)


def absolute(got: Tensor | float, recorded: Array) -> float:
    return float((torch.as_tensor(got).double() - torch.as_tensor(recorded).double()).abs().max())


def relative(got: Tensor | float, recorded: Array, floor: float = 0.0) -> float:
    """The largest error of a row over the length of the row, or over the floor where that is more."""
    got, wanted = torch.as_tensor(got).double(), torch.as_tensor(recorded).double()
    got, wanted = (t.reshape(len(t), -1) if t.ndim else t.reshape(1, 1) for t in (got, wanted))
    return float(((got - wanted).norm(dim=1) / wanted.norm(dim=1).clamp(min=floor)).max())


def scaled(got: Tensor, recorded: Array) -> float:
    """The largest error of a component over 1 + its size."""
    wanted = torch.as_tensor(recorded).double()
    return float(((got.double() - wanted).abs() / (1 + wanted.abs())).max())
