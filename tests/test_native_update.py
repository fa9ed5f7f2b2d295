"""The half steps in C++: the bits of those in PyTorch, whatever the rows, the terms, the layout and the threads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from pfgm_fast import fixed_step, multistep, native_update, update
from pfgm_fast.solution import Record, Status

pytestmark = pytest.mark.usefixtures("native", "threads")


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def record(shape: tuple[int, ...], dtype: torch.dtype) -> Record:
    """States some of whose rows are bad, and two that have ended."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    made = Record.start(x, 3.0)
    made.status[0] = int(Status.NONFINITE)
    made.status[1] = int(Status.SUCCESS)
    return made


def terms(x: Tensor, count: int) -> list[tuple[float, Tensor]]:
    generator = torch.Generator().manual_seed(count)
    made = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for _ in range(count)]
    for number, tensor in enumerate(made):
        tensor[2 + number].view(-1)[-1] = (math.nan, math.inf, -math.inf, math.nan, math.inf)[number]
    return [(0.3 - number, tensor) for number, tensor in enumerate(made)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(9, 1), (9, 3, 5), (40, 1023), (9, 5000)])
@pytest.mark.parametrize("count", range(6))
def test_the_bits_of_pytorch(shape: tuple[int, ...], dtype: torch.dtype, count: int) -> None:
    results: list[list[Tensor]] = []
    for module in (update, native_update):
        r = record(shape, dtype)
        work, out = r.x.new_empty((2, *shape)), torch.empty_like(r.x)
        a = 1.0 if count == 0 else 0.7
        module.attempt(out, r.x, r.status, a, terms(r.x, count), work)
        r.status[:] = record(shape, dtype).status
        module.advance(r.x, r.t, r.accepted, r.status, a, terms(r.x, count), 2.0, 1, work)
        results.append([out, r.x, r.t, r.accepted, r.status])
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)
    assert results[1][4].tolist()[:2] == [Status.NONFINITE, Status.SUCCESS]
    assert (results[1][4] == Status.NONFINITE).sum() == 1 + count


def test_terms_of_other_layouts_and_dtypes() -> None:
    r = record((8, 6, 4), torch.float32)
    other = torch.randn(4, 6, 8, dtype=torch.float64).permute(2, 1, 0)
    out = torch.empty_like(r.x)
    native_update.attempt(out, r.x, r.status, 0.5, [(2.0, other)], out)
    assert torch.equal(out, 0.5 * r.x + 2.0 * other.float())
    with pytest.raises(ValueError, match=r"must be like the state \(8, 6, 4\)"):
        native_update.attempt(out, r.x, r.status, 0.5, [(2.0, other[:4])], out)


@pytest.mark.parametrize("method", multistep.METHODS)
def test_a_solve(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(1)) * 8
    x[4, 2] = math.inf

    def solve(module: ModuleType) -> Record:
        def chosen(x: Tensor) -> Any:
            return module

        monkeypatch.setattr(update, "implementation", chosen)
        made = Record.start(x, 8.0)
        fixed_step.solve(
            multistep.METHODS[method],
            lambda x, sigma: x.tanh() / (1 + sigma),
            made,
            [8.0, 5, 3, 1, 0.4, 0],
            lambda *a: False,
        )
        return made

    ours, theirs = solve(native_update), solve(update)
    assert torch.equal(ours.x[ours.status == 0], theirs.x[theirs.status == 0])
    assert ours.status.tolist() == theirs.status.tolist() == [0, 0, 0, 0, Status.NONFINITE, 0]


def test_it_is_the_one_that_runs() -> None:
    assert update.implementation(torch.ones(2, 3)) is native_update
    assert update.implementation(torch.ones(2, 3, dtype=torch.float16)) is update
    assert update.implementation(torch.ones(3, 2).t()) is update
