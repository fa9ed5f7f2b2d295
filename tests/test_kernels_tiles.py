"""Which tiles the kernels get, and how better ones are found and kept. A GPU is only pretended."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pfgm_fast.kernels import tiles
from pfgm_fast.kernels.tiles import Tile

GPU = torch.device("cuda", 0)
WEIGH = ("wide.weigh", "")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tiles.forget()
    path: Path = tiles.cache_file()
    return path


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, major=9, minor=0, name="NVIDIA H200")


def pretend(monkeypatch: pytest.MonkeyPatch, name: str, **properties: object) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(**properties))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    tiles.forget()


def test_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tiles.target(torch.device("cpu")) == "interpreter"
    assert tiles.target(torch.device("xpu")) == "unknown"
    pretend(monkeypatch, "NVIDIA B200", major=10, minor=0)
    assert tiles.target(GPU) == "sm_100"
    pretend(monkeypatch, "AMD Instinct MI300X", gcnArchName="gfx942:sramecc+:xnack-", major=9, minor=4)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert tiles.target(GPU) == "gfx942"


def test_meta_tensors_are_what_is_assumed() -> None:
    meta = torch.device("meta")
    assert tiles.target(meta) == "unknown"
    with tiles.assume("gfx942"):
        assert tiles.choose("wide.weigh", meta) == tiles.DEFAULTS[WEIGH]["gfx942"]
        with tiles.assume("sm_90"):
            assert tiles.choose("wide.weigh", meta) == tiles.DEFAULTS[WEIGH]["sm_90"]
        assert tiles.target(meta) == "gfx942"
    assert tiles.target(meta) == "unknown"


@pytest.mark.parametrize("key", tiles.DEFAULTS)
def test_an_unknown_gpu_gets_the_smallest_tile(monkeypatch: pytest.MonkeyPatch, key: tiles.Key) -> None:
    pretend(monkeypatch, "GPU of the future", major=42, minor=0)
    chosen = tiles.choose(key[0], GPU, key[1])
    known = tiles.DEFAULTS[key[0], ""]
    assert chosen == known["unknown"]
    gpus = [tile for target, tile in known.items() if target != "interpreter"]
    assert all(chosen.rows <= tile.rows and chosen.stages <= tile.stages for tile in gpus)


def test_a_class_without_defaults_gets_those_of_its_kernel(gpu: None) -> None:
    assert tiles.choose("wide.weigh", GPU, "of its own") == tiles.choose("wide.weigh", GPU)
    with pytest.raises(KeyError, match=r"wide\.wiegh"):
        tiles.choose("wide.wiegh", GPU)


def test_shape_classes() -> None:
    assert tiles.shape_class(B=100, N=3072) == tiles.shape_class(B=128, N=4096) == "B128 N4096"
    assert tiles.shape_class(B=129, N=1) == "B256 N1"


@pytest.mark.parametrize(
    ("rows", "warps", "stages", "message"),
    [
        (48, 4, 3, "rows must be a power of two, got 48"),
        (8, 4, 3, "rows must be an integer from 16 to 1024, got 8"),
        (64, 4.0, 3, "warps must be an integer"),
        (64, 4, True, "stages must be an integer"),
    ],
)
def test_impossible_tiles(rows: int, warps: int, stages: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tile(rows, warps, stages)


def test_what_was_tuned_is_chosen(gpu: None, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    default = tiles.choose("wide.weigh", GPU)
    tuned = Tile(128, 4, 5)
    tiles.write(cache, "NVIDIA H200", {WEIGH: Tile(16, 4, 1)})
    tiles.write(cache, "NVIDIA H200", {("wide.weigh", "B128"): tuned})
    tiles.write(cache, "NVIDIA A100", {("wide.weigh", "B256"): tuned})
    assert tiles.choose("wide.weigh", GPU) == Tile(16, 4, 1)
    assert tiles.choose("wide.weigh", GPU, "B128") == tuned
    assert tiles.choose("wide.weigh", GPU, "B256") == default
    assert tiles.choose("wide.weigh", torch.device("cpu"), "B128") == tiles.DEFAULTS[WEIGH]["interpreter"]
    assert {path.name for path in cache.parent.iterdir()} == {"tiles.json"}
    pretend(monkeypatch, "NVIDIA A100", major=8, minor=0)
    assert tiles.choose("wide.weigh", GPU, "B256") == tuned


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not a file of tiles"),
        (b"\xff\xfe", "utf-8"),
        (b'{"version": ', "not a file of tiles"),
        (b"[1, 2]", "not a file of tiles"),
        (b'{"version": "0.0.1", "tiles": {}}', "belongs to pfgm_fast 0.0.1"),
        (b'{"version": "VERSION", "tiles": []}', "not a file of tiles"),
        (b'{"version": "VERSION", "tiles": {"NVIDIA H200": [["wide.weigh", "", 64]]}}', "not a file of tiles"),
        (
            b'{"version": "VERSION", "tiles": {"NVIDIA H200": [["wide.weigh", "", 63, 4, 2]]}}',
            "rows must be a power of two",
        ),
        (b'{"version": "VERSION", "tiles": {"NVIDIA H200": [[["wide"], "", 64, 4, 2]]}}', "not a file of tiles"),
    ],
)
def test_a_broken_cache_is_warned_of_and_ignored(gpu: None, cache: Path, content: bytes, why: str) -> None:
    cache.parent.mkdir()
    cache.write_bytes(content.replace(b"VERSION", tiles.__version__.encode()))
    with pytest.warns(UserWarning, match=why) as warned:
        chosen = [tiles.choose("wide.weigh", GPU, shape_class) for shape_class in ("", "B128")]
    assert chosen == [tiles.DEFAULTS[WEIGH]["sm_90"]] * 2
    assert len(warned) == 1
    assert str(cache) in str(warned[0].message)
    assert "pfgm-fast tune" in str(warned[0].message)


def test_an_unreadable_cache_is_warned_of_and_ignored(gpu: None, cache: Path) -> None:
    cache.mkdir(parents=True)
    with pytest.warns(UserWarning, match="is ignored"):
        assert tiles.choose("wide.weigh", GPU) == tiles.DEFAULTS[WEIGH]["sm_90"]


def test_an_interrupted_write_leaves_the_old_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles.write(cache, "NVIDIA H200", {WEIGH: Tile(16, 4, 1)})
    before = cache.read_bytes()

    def interrupted(content: object, file: object, **_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(json, "dump", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiles.write(cache, "NVIDIA H200", {WEIGH: Tile(32, 4, 1)})
    assert cache.read_bytes() == before
    assert os.listdir(cache.parent) == ["tiles.json"]


class Search:
    """A pretended operator with two kernels, and a clock that knows how long their tiles take."""

    def __init__(self, seconds: Callable[[str, Tile], float]) -> None:
        self.seconds = seconds
        self.calls = 0

    def operator(self) -> float:
        self.calls += 1
        times: list[float] = [
            self.seconds(kernel, tiles.choose(kernel, GPU, shape_class)) for kernel, shape_class in BOTH
        ]
        return sum(times)

    def tune(self, **options: object) -> dict[tiles.Key, Tile]:
        tune = pytest.importorskip("pfgm_fast.kernels.tune")
        found: dict[tiles.Key, Tile] = tune.tune(
            [self.operator], GPU, candidates=CANDIDATES, time=lambda call: call(), progress=False, **options
        )
        return found


CANDIDATES = [Tile(rows, warps, 2) for rows, warps in itertools.product((32, 64, 128), (4, 8))]
BOTH = [("wide.weigh", "pixels"), ("wide.blend", "pixels")]


def test_tuning_finds_the_fastest_and_keeps_it(gpu: None, cache: Path) -> None:
    search = Search(lambda kernel, tile: 1 + (tile.rows != 32) if kernel == "wide.weigh" else 1 + (tile.warps != 4))
    found = search.tune()
    assert list(found) == BOTH
    assert found[BOTH[0]].rows == 32
    assert found[BOTH[1]].warps == 4
    assert tiles.read(cache) == {"NVIDIA H200": found}
    assert [tiles.choose(kernel, GPU, shape_class) for kernel, shape_class in BOTH] == list(found.values())


def test_tuning_keeps_the_default_against_noise(gpu: None) -> None:
    assert Search(lambda kernel, tile: 1 - 1e-4 * tile.rows).tune() == {
        key: tiles.default(*key, "sm_90") for key in BOTH
    }


def test_tuning_passes_over_impossible_tiles(gpu: None) -> None:
    errors = pytest.importorskip("triton.runtime.errors")

    def seconds(kernel: str, tile: Tile) -> float:
        if tile.rows == 32:
            raise errors.OutOfResources(300_000, 232_448, "shared memory")
        return float(tile.rows)

    assert Search(seconds).tune()[BOTH[1]].rows == 64


def test_interrupted_tuning_goes_on_where_it_was(gpu: None, cache: Path) -> None:
    def seconds(kernel: str, tile: Tile) -> float:
        if kernel == "wide.blend" and tile.rows == 64:
            raise KeyboardInterrupt
        return float(tile.rows)

    with pytest.raises(KeyboardInterrupt):
        Search(seconds).tune()
    assert list(tiles.read(cache)["NVIDIA H200"]) == BOTH[:1]
    resumed = Search(lambda kernel, tile: float(tile.rows))
    assert resumed.tune()[BOTH[1]].rows == 32
    assert resumed.calls == 1 + 1 + len(CANDIDATES)
    done = Search(lambda kernel, tile: float(tile.rows))
    assert list(done.tune()) == BOTH
    assert done.calls == 1
    done.tune(again=True)
    assert done.calls == 2 + 2 * (1 + len(CANDIDATES))
