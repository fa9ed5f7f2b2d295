"""What users hand to a solver beside the state: functions called on some rows, and what travels with the rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pfgm_fast import _checks
from pfgm_fast.solution import per_row, shown


class RowArguments:
    """Values by key, of which the tensors with dimensions have a row for each of B rows and travel with them.

    0-d tensors and all other values are the same for every row. `name` is that of the user's argument.
    """

    def __init__(self, name: str, values: Mapping[Any, Any], B: int, device: torch.device) -> None:
        self.values = dict(values)
        for key, value in self.values.items():
            if not _has_rows(value):
                continue
            if len(value) != B:
                got = tuple(value.shape)
                raise ValueError(f"{name}[{key!r}] must have a row for each of the {B} samples, got shape {got}")
            if value.device != device:
                raise ValueError(f"{name}[{key!r}] must be on {device} like the state, got {value.device}")
        self._gathered = any(map(_has_rows, self.values.values()))
        self._rows: Tensor | None = None
        self._selected = self.values

    def of(self, rows: Tensor | None) -> dict[Any, Any]:
        """The values for these rows (b,), None being all; gathered again only where `rows` is another tensor."""
        if rows is None or not self._gathered:
            return self.values
        if rows is not self._rows:
            self._rows = rows
            self._selected = {k: v[rows] if _has_rows(v) else v for k, v in self.values.items()}
        return self._selected


def _has_rows(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def called_in(dtype: torch.dtype, who: str, function: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """function(x) in the dtype of x, where the user's function is shown x in its own dtype.

    Where a row is not finite in that dtype, as a long step may leave it in float16, the answer is NaN.
    """
    if x.dtype == dtype:
        return answer_like(who, function(x), x)
    seen, good = shown(x.to(dtype))
    return answer_like(who, function(seen), x).where(per_row(good, x), math.nan)


def answer_like(who: str, answer: Any, x: Tensor) -> Tensor:
    """What the user's function returned for x, in the dtype of x, if it is a floating tensor of that shape there."""
    _checks.tensor(f"{who}'s result", answer)
    if answer.shape != x.shape:
        got = tuple(answer.shape)
        raise ValueError(f"{who} must return a tensor like x, of shape {tuple(x.shape)}, got shape {got}")
    if answer.device != x.device:
        raise ValueError(f"{who} must return a tensor on {x.device} like x, got one on {answer.device}")
    result: Tensor = answer.to(x.dtype)
    return result
