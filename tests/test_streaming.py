"""Data in host memory, evaluated chunk by chunk on the CPU: the merger is the field, to the accuracy that it owes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import cases
import numpy as np
import oracle
import pytest
import torch
from cases import Case
from test_accuracy import check_all
from test_field import every_method
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast import operator, streaming

pytestmark = pytest.mark.usefixtures("poison")

CASES = (
    "mixture-N1-D0.5",
    "mixture-N17-D2048",
    "near_duplicates-N16-Dinf",
    "near_duplicates-N784-D128",
    "duplicates-N64-D1",
    "midpoints-N64-Dinf",
    "offset-N16-D128",
    "outlier-N2-D1",
    "clusters-N64-Dinf",
    "far-N16-Dinf",
    "off_scale-N64-Dinf",
    "off_scale-N784-D1",
    "approaching-N64-D1",
    "one_datum-N64-D128",
    "loud-N64-D1",
    "quiet-N784-Dinf",
    "pixels-N64-D128",
    "pixels-N784-Dinf",
    "weighted-N64-D128",
    "weighted-N2-Dinf",
    "light_neighbours-N64-D1",
    "classes-N64-D1",
    "classes-N784-Dinf",
    "double_data-N64-Dinf",
    "double_queries-N16-D1",
)
Chunks = Callable[[Tensor, int], None]


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> Chunks:
    """Makes fields stream, data like those given in chunks of so many rows."""

    def stream(data: Tensor, rows: int) -> None:
        monkeypatch.setattr(streaming, "free_memory", lambda source, target: 0)
        monkeypatch.setattr(streaming, "CHUNK", rows * data[0].numel() * data.element_size())

    return stream


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()


def equal(got: Tensor | tuple[Tensor, ...], expected: Tensor | tuple[Tensor, ...]) -> bool:
    pairs = zip(*((t,) if isinstance(t, Tensor) else t for t in (got, expected)), strict=True)
    return all(torch.equal(g, e) for g, e in pairs)


@pytest.mark.parametrize("name", CASES)
def test_within_the_promised_bounds(name: str, backend: str, chunks: Chunks) -> None:
    case = cases.make(name)
    chunks(case.data, -(-len(case.data) // 5))
    check_all(case, cases.truth(name), backend)


@pytest.mark.parametrize("rows", [1, 2, 7, 29, 30, 31, 1000])
@pytest.mark.parametrize("name", ["near_duplicates-N16-D128", "weighted-N2-D1"])
def test_any_chunks(name: str, rows: int, backend: str, chunks: Chunks) -> None:
    case = cases.make(name)
    case = Case(case.x, case.sigma, case.data[:30], case.D, None if case.log_weights is None else case.log_weights[:30])
    truth = oracle.field(case.x, case.sigma, case.data, case.D, case.log_weights)
    chunks(case.data, rows)
    check_all(case, truth, backend)


@pytest.mark.parametrize("data", ["float16", "bfloat16", "float32", "float64", "uint8"])
@every_method
def test_one_chunk_is_the_resident_field(
    method: Callable[..., Tensor], data: str, backend: str, chunks: Chunks
) -> None:
    """Up to the rounding of weights that are normalised once more, and of a divergence that float64 means make."""
    points = (randn(40, 3, 5) * 50 + 128).clamp(0, 255).to(getattr(torch, data))
    x, sigma = randn(6, 15, seed=1), torch.linspace(0.1, 30, 6)
    expected = method(pf.EmpiricalField(points, 8.0, backend=backend), x, sigma)
    chunks(points, 40)
    got = method(pf.EmpiricalField(points, 8.0, backend=backend), x, sigma)
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("D", [1, 128, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_do_not_depend_on_the_batch(D: float, dtype: torch.dtype, native: str, chunks: Chunks) -> None:
    data, labels = randn(203, 20).to(dtype), torch.arange(203) % 3
    x, sigma, rows = randn(61, 20, seed=1).to(dtype), torch.logspace(-2, 1.5, 61), torch.arange(61) % 4 - 1
    chunks(data, 30)
    field = pf.EmpiricalField(data, D, labels=labels, backend=native)

    def results(some: slice) -> tuple[Tensor, ...]:
        query = x[some], sigma[some]
        return field(*query, labels=rows[some]), field.log_density(*query)

    whole = results(slice(None))
    for size in (1, 2, 7, 32, 60):
        parts = zip(*(results(slice(start, start + size)) for start in range(0, 61, size)), strict=True)
        assert equal(tuple(torch.cat(part) for part in parts), whole), f"in batches of {size}"


@every_method
def test_labels_and_masses_follow_their_data(method: Callable[..., Tensor], backend: str, chunks: Chunks) -> None:
    """The order of the classes is neither that of the data nor that of the chunks."""
    data, masses, labels = randn(40, 6), randn(40, seed=2), torch.arange(40) * 7 % 4
    x, sigma = randn(5, 6, seed=1), torch.tensor([0.1, 0.5, 1.0, 3.0, 40.0])
    resident = pf.EmpiricalField(data, 8.0, labels=labels, log_weights=masses, backend=backend)
    expected, top = method(resident, x, sigma), resident.top_weights(x, sigma, 9)[1]
    chunks(data, 7)
    field = pf.EmpiricalField(data, 8.0, labels=labels, log_weights=masses, backend=backend)
    torch.testing.assert_close(method(field, x, sigma), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(field.top_weights(x, sigma, 9)[1][:, :3], top[:, :3])


@pytest.mark.parametrize("rows", [1, 7, 100])
def test_a_bad_row_is_nan_alone(rows: int, backend: str, chunks: Chunks) -> None:
    data, labels = randn(30, 20), torch.arange(30) % 3
    x, sigma, seen = randn(8, 20, seed=1), torch.full((8,), 0.5), torch.tensor([0, 1, 2, -1, 0, 1, 2, 5])
    expected = pf.EmpiricalField(data, 2.0, labels=labels, backend=backend)(x[:4], sigma[:4], labels=seen[:4])
    chunks(data, rows)
    field = pf.EmpiricalField(data, 2.0, labels=labels, backend=backend)
    x[4, 3], x[5], sigma[6] = math.nan, math.inf, 0.0  # and the last sees nothing
    mean = field.unchecked(x, sigma, seen)
    assert bool(mean[4:].isnan().all())
    torch.testing.assert_close(mean[:4], expected, rtol=1e-5, atol=1e-5)
    mean = field.unchecked(x, sigma)
    assert mean.isnan().all(1).tolist() == [False, False, False, False, True, True, True, False]


def test_a_chunk_without_weight_spoils_nothing(backend: str, chunks: Chunks) -> None:
    """Data so far away that next to them the others are rounding errors, before and after those."""
    near, far = randn(4, 20), 1e18 * randn(4, 20, seed=1)
    x, expected = randn(3, 20, seed=2), pf.EmpiricalField(near, math.inf, backend=backend)(randn(3, 20, seed=2), 0.5)
    for data in (torch.cat([near, far]), torch.cat([far, near])):
        chunks(data, 4)
        field = pf.EmpiricalField(data, math.inf, backend=backend)
        torch.testing.assert_close(field(x, 0.5), expected, rtol=1e-5, atol=1e-5)
        assert bool(field.log_density(x, 0.5).isfinite().all())
        assert bool(field.divergence(x, 0.5).isfinite().all())


def test_compiled_code_calls_a_streamed_field_but_holds_none(backend: str, chunks: Chunks) -> None:
    torch._dynamo.reset()
    data, x = randn(30, 20), randn(5, 20, seed=1)
    chunks(data, 7)
    field = pf.EmpiricalField(data, 2.0, backend=backend)

    def step(x: Tensor) -> Tensor:
        return x + (field(x, 0.5) - x) / 2

    assert torch.equal(torch.compile(step, backend="eager")(x), step(x))
    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match="cannot be compiled with fullgraph=True"):
        torch.compile(step, backend="eager", fullgraph=True)(x)


def test_no_queries(backend: str, chunks: Chunks) -> None:
    data = randn(30, 4, 5)
    chunks(data, 7)
    field = pf.EmpiricalField(data, 2.0, labels=torch.arange(30) % 3, backend=backend)
    x = torch.zeros(0, 4, 5)
    assert field(x, 1.0, labels=torch.zeros(0, dtype=torch.int64)).shape == x.shape
    assert field.score(x, 1.0).shape == x.shape
    assert field.divergence(x, 1.0).shape == (0,)
    assert field.top_weights(x, 1.0, 9)[0].shape == (0, 9)


def test_when_a_field_streams(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    data = randn(100, 25)
    kept = sum(t.nbytes for t in operator.prepare(data, backend))
    for free, streams in ((None, False), (2 * kept, False), (2 * kept - 1, True)):
        monkeypatch.setattr(streaming, "free_memory", lambda source, target, free=free: free)
        for points in (data, data.half(), data.repeat_interleave(2, 0)[::2]):
            field = pf.EmpiricalField(points, 1.0, backend=backend)
            assert ("streamed from cpu" in repr(field)) == streams
            assert field.device == data.device


def test_where_no_memory_is_asked_for() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda:0")
    assert streaming.free_memory(cpu, cpu) is None
    assert streaming.free_memory(cuda, cuda) is None


@pytest.mark.parametrize("rows", [1, 8, 30])
def test_data_are_checked_chunk_by_chunk(rows: int, chunks: Chunks) -> None:
    data = randn(30, 20)
    data[17, 3] = math.nan
    chunks(data, rows)
    with pytest.raises(ValueError, match=r"data\[\d+:\d+\] must be finite, got 1 NaN"):
        pf.EmpiricalField(data, 2.0)


@pytest.fixture
def mapped(tmp_path: Path) -> Tensor:
    """Images of 48 MiB in a file, mapped into memory."""
    path = tmp_path / "images.npy"
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(4096, 3, 32, 32))
    images[:] = randn(4096, 3, 32, 32).numpy()
    images.flush()
    return torch.from_numpy(np.load(path, mmap_mode="r"))


def resident() -> int:
    """Bytes of this process that are in memory, but for pages of files."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("reads memory as Linux tells it")
    return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("RssAnon:"))


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("classes", [False, True])
def test_a_mapped_file_is_never_whole_in_memory(
    classes: bool, mapped: Tensor, backend: str, chunks: Chunks, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = torch.arange(len(mapped)) * 5 % 7 if classes else None
    x, levels, prepare = mapped[[5, 2000, 4090]], [], operator.prepare

    def watched(data: Tensor, backend: str, precision: str) -> list[Tensor]:
        levels.append(resident())
        return prepare(data, backend, precision)

    chunks(mapped, 64)
    monkeypatch.setattr(operator, "prepare", watched)
    pf.EmpiricalField(mapped[:3], math.inf, backend=backend)(x, 0.01)  # what the first call loads is not counted
    levels.clear()
    before = resident()
    field = pf.EmpiricalField(mapped, math.inf, labels=labels, backend=backend)
    assert torch.allclose(field(x, 0.01), x, atol=1e-5)
    assert len(levels) == 1 + 64  # to know how much memory it takes, and once for each chunk
    assert max(levels) - before < mapped.nbytes / 2


@pytest.mark.parametrize("classes", [False, True])
def test_chunks_take_turns_in_two_buffers(classes: bool, chunks: Chunks, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way to a GPU, with stand-ins for its streams: every chunk arrives whole, the last and shorter one too."""
    data = randn(30, 4, 5)
    chunks(data, 7)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1)) if classes else None
    host, empty = streaming.HostData(data, order, torch.device("cpu"), "torch"), torch.empty
    for name in ("Stream", "Event", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(torch.cpu, name))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **kinds: empty(*shape, **kinds))
    places, rows = [], []
    for chunk in host._copied():
        places.append(chunk.data_ptr())
        rows.append(chunk.clone())
    assert torch.equal(torch.cat(rows), data if order is None else data[order])
    assert len(set(places)) == 2
    assert all(a != b for a, b in itertools.pairwise(places))
