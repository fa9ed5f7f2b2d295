"""The demonstration: its mathematics, its measurements, and one quick run from end to end."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from pfgm_fast import EmpiricalField, cli
from pfgm_fast.bench import memory, queries

pytest.importorskip("matplotlib", reason='pip install "pfgm-fast[demo]"')
pytest.importorskip("sklearn", reason='pip install "pfgm-fast[demo]"')

import matplotlib as mpl
from matplotlib import image

from pfgm_fast.demo import digits, heart, hemisphere, timing


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def test_charges_fill_the_heart_evenly(generator: torch.Generator) -> None:
    x = heart.charges(40000, generator)
    assert x.shape == (40000, 2)
    curve = torch.from_numpy(heart.outline())
    assert (x.abs().amax(0) <= curve.abs().amax(1) + 1e-6).all()
    # The area of the heart, by Green's theorem, gives the share that falls into a box inside it.
    (a, b), (c, d) = curve[:, :-1], curve[:, 1:]
    area = float((a * d - c * b).sum().abs()) / 2
    box = ((x[:, 0].abs() < 0.3) & (x[:, 1].abs() < 0.2)).float().mean()
    assert float(box) == pytest.approx(0.24 / area, rel=0.1)


def test_even_directions_are_uniform_unit_vectors() -> None:
    u = heart.even_directions(500)
    torch.testing.assert_close(u.norm(dim=1), torch.ones(500))
    assert hemisphere.distance_to_uniform(u[:, 2]) < 0.002
    assert u[:, :2].mean(0).abs().max() < 0.01


def test_clipped_lines_end_on_the_hemisphere() -> None:
    directions = heart.even_directions(10).double()
    line = torch.tensor([1.7, 0.9, 0.1])[:, None, None] * heart.RADIUS * directions
    pad = torch.full((1, 10, 3), math.nan, dtype=torch.float64)
    segments, ends = heart.clipped(torch.cat([line, pad]).numpy())
    assert segments.shape == (20, 2, 3)
    torch.testing.assert_close(torch.from_numpy(ends), heart.RADIUS * directions)


def test_rising_inverts_sampling(generator: torch.Generator) -> None:
    field = EmpiricalField(torch.zeros(1, 2), D=1)  # one charge: straight lines from it
    start = torch.randn(50, 2, generator=generator)
    for x, level in zip(hemisphere.rise(field, start, 10), hemisphere.LEVELS, strict=True):
        torch.testing.assert_close(x, start * level / hemisphere.START, rtol=1e-3, atol=0)


def test_distance_to_uniform() -> None:
    assert hemisphere.distance_to_uniform(torch.full((100,), 0.25)) == pytest.approx(0.75)
    assert hemisphere.distance_to_uniform((torch.arange(100).double() + 0.5) / 100) == pytest.approx(0.005)


def test_digits_are_scaled(generator: torch.Generator) -> None:
    data, classes = digits.load()
    assert data.shape == (1797, 8, 8)
    assert (float(data.min()), float(data.max())) == (-1, 1)
    assert classes.unique().tolist() == list(range(10))


def test_peers_compute_the_same(generator: torch.Generator) -> None:
    data = torch.randn(200, 5, generator=generator)
    query = timing.Case.draw("noise", data, 8.0, 30, generator).query
    query.sigma.clamp_min_(0.1)
    expected = EmpiricalField(data.double(), 8.0)(query.x.double(), query.sigma)
    for name, make in timing.METHODS.items():
        torch.testing.assert_close(make(query)().double(), expected, rtol=1e-3, atol=1e-4, msg=name)


def test_errors_are_those_of_every_row(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    case = timing.Case.draw("noise", torch.randn(200, 5, generator=generator), 8.0, 100, generator)

    def off(query: queries.Query) -> timing.Call:
        change = torch.zeros_like(query.x)
        change[99] = 1e-2 * query.x[99]
        return lambda: timing.exact_field(query)() + change

    monkeypatch.setattr(timing, "METHODS", {"pfgm_fast": timing.exact_field, "off": off})
    monkeypatch.setattr(memory, "unavailable", lambda: "not here")
    results = timing.measure(case, 1)
    exact = EmpiricalField(case.query.data.double(), 8.0)(case.query.x[99:].double(), case.query.sigma[99:])[0]
    x, sigma = case.query.x[99].double(), float(case.query.sigma[99])
    length = math.sqrt(float((x - exact).square().sum()) + 8 * sigma**2)
    assert results["off"].error == pytest.approx(1e-2 * float(x.norm()) / length, rel=1e-2)
    assert results["pfgm_fast"].error < 1e-4


@pytest.mark.skipif(memory.unavailable() is not None, reason=str(memory.unavailable()))
def test_peak_memory_sees_the_large_tensors(generator: torch.Generator) -> None:
    case = timing.Case.draw("noise", torch.randn(3000, 20, generator=generator), 8.0, 200, generator)
    tensor = 4 * 200 * 3000 * 21 / 1e6
    peaks = {name: timing.peak_memory(name, case) for name in timing.METHODS}
    assert (peaks["original B x M x (N+1) formula"] or 0) > 1.5 * tensor
    assert (peaks["pfgm_fast"] or 0) < tensor / 5


def test_a_system_that_does_not_tell_memory(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "unavailable", lambda: "not here")
    case = timing.Case.draw("noise", torch.randn(100, 2, generator=generator), 1.0, 8, generator)
    results = timing.measure(case, 1)
    assert {result.memory for result in results.values()} == {None}
    text = timing.table(case, results)
    assert "MiB" not in text
    assert all(name in text for name in timing.METHODS)


def test_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = dict(mpl.rcParams)
    assert cli.main(["demo", "--quick", "--seed", "3", "--out", str(tmp_path / "out")]) == 0
    assert dict(mpl.rcParams) == before

    text = capsys.readouterr().out
    names = ["heart-field-lines.png", "heart-cuts.png", "hemisphere.png", "digits.png", "timing.txt"]
    assert text.splitlines()[-len(names) :] == [f"  {tmp_path / 'out' / name}" for name in names]
    assert f"backend: {timing.backend_in_use()}" in text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    table = (tmp_path / "out" / "timing.txt").read_text()
    assert all(table.count(name) >= 2 for name in timing.METHODS)
    for name in names[:-1]:
        pixels = image.imread(tmp_path / "out" / name)
        assert min(pixels.shape[:2]) >= 800, name
        assert 0.02 < float((pixels[:, :, :3].min(2) < 0.9).mean()) < 0.9, f"{name} is blank or full"
