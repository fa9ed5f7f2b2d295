"""The fused half steps against PyTorch's, bit for bit: short and long rows, both dtypes, rows that end."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pfgm_fast import fixed_step, multistep, update
from pfgm_fast.solution import Record, Status

pytest.importorskip("triton")
kernel = pytest.importorskip("pfgm_fast.kernels.update")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# What is not finite is computed all the same, and then not used. NumPy, the interpreter's engine, warns.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")
FACTORS = (0.7, -0.3, 1 / 3, 1e-3, -2.1)
SHAPES = [(70, 1), (5, 2), (3, 3, 5), (2, 1, 8, 8), (3, 1000), (2, 8192), (2, 8193), (3, 3, 50, 60)]


def inputs(shape: tuple[int, ...], dtype: torch.dtype, terms: int) -> tuple[Record, list[tuple[float, Tensor]]]:
    """A record and terms; where there are rows enough, some that had ended, and one of each way to end now."""
    g = torch.Generator().manual_seed(len(shape) + shape[-1])
    record = Record.start(torch.randn(shape, generator=g, dtype=torch.float64).to(dtype), 2.0)
    denoised = [torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for _ in range(terms)]
    if terms:
        denoised[-1][0].view(-1)[-1] = math.nan
    if shape[0] > 4:
        record.status[2] = Status.NONFINITE
        record.x[3].view(-1)[0] = -math.inf
    if terms > 1 and shape[0] > 4:
        denoised[0][4] = torch.finfo(dtype).max
        denoised[1][4] = -torch.finfo(dtype).max
    return record, list(zip(FACTORS[:terms], denoised, strict=True))


def there(record: Record, terms: list[tuple[float, Tensor]]) -> tuple[Record, list[tuple[float, Tensor]]]:
    moved = {name: getattr(record, name).to(DEVICE, copy=True) for name in ("x", "t", "status", "accepted")}
    return Record(**moved, nfe=record.nfe, rejected=record.rejected, steps=None, dtype=record.dtype), [
        (factor, tensor.to(DEVICE)) for factor, tensor in terms
    ]


def work(x: Tensor) -> Tensor:
    return torch.full((2, *x.shape), math.nan, dtype=x.dtype, device=x.device)


def ended(record: Record, row: int) -> tuple[int, int, float]:
    return int(record.status[row]), int(record.accepted[row]), float(record.t[row])


def same(a: Tensor, b: Tensor) -> bool:
    integers = {4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.cpu().view(integers), b.cpu().view(integers))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("terms", [0, 1, 3, 5])
@pytest.mark.parametrize("shape", SHAPES)
class TestHalfSteps:
    def test_advance(self, shape: tuple[int, ...], terms: int, dtype: torch.dtype, poison: None) -> None:
        expected, tensors = inputs(shape, dtype, terms)
        before = expected.x.clone()
        record, moved = there(expected, tensors)
        for module, one, those in ((update, expected, tensors), (kernel, record, moved)):
            module.advance(one.x, one.t, one.accepted, one.status, 1.3, those, 0.7, 2, work(one.x))
        assert same(record.x, expected.x)
        assert torch.equal(record.t.cpu(), expected.t)
        assert torch.equal(record.accepted.cpu(), expected.accepted)
        assert torch.equal(record.status.cpu(), expected.status)
        if terms:  # and PyTorch's does what it says
            assert torch.equal(expected.x[0], before[0])
            assert ended(expected, 0) == (Status.NONFINITE, 0, 2.0)
        assert ended(expected, 1) == (Status.STOPPED, 2, 0.7)
        value = 1.3 * before[1].double() + sum(factor * tensor[1].double() for factor, tensor in tensors)
        torch.testing.assert_close(expected.x[1], value.to(dtype), rtol=1e-5, atol=1e-6)
        if shape[0] > 4:
            assert torch.equal(expected.x[2:4], before[2:4])
            assert expected.accepted[2:4].tolist() == [0, 0]

    def test_attempt(self, shape: tuple[int, ...], terms: int, dtype: torch.dtype, poison: None) -> None:
        expected, tensors = inputs(shape, dtype, terms)
        before = expected.x.clone()
        record, moved = there(expected, tensors)
        out, shown = torch.empty_like(expected.x), torch.empty_like(record.x)
        update.attempt(out, expected.x, expected.status, 1.0, tensors, work(out))
        kernel.attempt(shown, record.x, record.status, 1.0, moved, work(out))
        assert same(shown, out)
        assert out.isfinite().all()
        assert torch.equal(record.status.cpu(), expected.status)
        assert same(record.x, before)
        assert same(expected.x, before)
        assert expected.t.eq(2.0).all()
        if terms:
            assert out[0].eq(0).all()
            assert expected.status[0] == Status.NONFINITE
        if not terms:
            assert same(out[1], before[1])


def test_empty() -> None:
    for shape in ((0, 3), (3, 0)):
        record = Record.start(torch.empty(shape, device=DEVICE), 1.0)
        kernel.attempt(torch.empty_like(record.x), record.x, record.status, 1.0, [], work(record.x))


def test_refusals() -> None:
    x = torch.ones(4, 4, device=DEVICE)
    status = torch.zeros(4, dtype=torch.int8, device=DEVICE)
    with pytest.raises(ValueError, match="at most 5 terms, got 6"):
        kernel.attempt(torch.empty_like(x), x, status, 1.0, [(1.0, x)] * 6, work(x))
    with pytest.raises(ValueError, match="contiguous"):
        kernel.attempt(torch.empty_like(x), x.t(), status, 1.0, [], work(x))


@pytest.mark.parametrize("method", multistep.METHODS)
def test_a_solve_has_the_same_bits(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one row that ends on the way and one that never begins."""
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(1)) * 8
    x[4, 2] = math.inf

    def denoise(x: Tensor, sigma: float) -> Tensor:
        assert x.isfinite().all()
        out = x.tanh() / (1 + sigma)
        out[1] += math.nan if sigma < 2 else 0.0
        return out

    results = []
    for module in (update, kernel):
        monkeypatch.setattr(update, "implementation", lambda x, module=module: module)
        record = Record.start(x.to(DEVICE), 8.0)
        fixed_step.solve(multistep.METHODS[method], denoise, record, [8.0, 5, 3, 1.5, 1, 0.4, 0], lambda *a: False)
        results.append(record)
    ours, theirs = results
    assert same(theirs.x, ours.x)
    assert ours.status.tolist() == theirs.status.tolist() == [0, Status.NONFINITE, 0, 0, Status.NONFINITE]
    assert ours.accepted.tolist() == theirs.accepted.tolist()
