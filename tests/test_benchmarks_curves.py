"""Curves of the benchmarks: sizes, exponents, errors by noise level, and the figures drawn of them."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent))  # benchmarks/ is not installed
from benchmarks import accuracy, plot, scaling
from benchmarks.registry import OPERATIONS
from benchmarks.solvers import nfe, peers, poisson
from pfgm_fast.bench import posterior_mean as pm
from pfgm_fast.bench import queries
from pfgm_fast.bench import rows as results
from pfgm_fast.bench.core import Operation
from pfgm_fast.bench.queries import SPREAD, Shape
from pfgm_fast.bench.rows import Row, Table

CPU = torch.device("cpu")
SOLVES: tuple[Operation[Any], ...] = (poisson.OPERATION, nfe.OPERATION)
ROW = Row("", "", SPREAD, pm.NATIVE, "", 1, "ok", 4.0, memory_mb=2.0, error_bounds=0.5, tests="passed")


def along(name: str, provider: str, exponent: float, **others: Any) -> list[Row]:
    """Rows of an exact power law."""
    return [
        replace(ROW, operation=name, case=shape.name, provider=provider, median_ms=0.01 * size**exponent, **others)
        for size, shape in scaling.SCALING[name].shapes().items()
    ]


def everything() -> Table:
    """Rows for every picture."""
    rows = [
        row
        for name, sizes in scaling.SCALING.items()
        for place, provider in enumerate((*scaling.PROVIDERS, *([scaling.MAPPED] if sizes.letter == "M" else [])))
        for row in along(name, provider, 0.5 + 0.1 * place)
    ]
    rows += [
        replace(ROW, operation=accuracy.NAME, case=shape.name, variant=accuracy.variant(level), provider=provider,
                error_bounds=level + place)
        for shape in accuracy.SHAPES for level in accuracy.LEVELS for place, provider in enumerate(accuracy.PROVIDERS)
    ]  # fmt: skip
    rows += [
        replace(ROW, operation=operation.name, case=next(iter(operation.cases)), variant=operation.variants[0],
                provider=provider.name, setting=provider.setting, error_p99=0.1 / place, error_median=0.2 / place,
                evaluations=10.0 * place)
        for operation in SOLVES for place, provider in enumerate(operation.providers, 1)
    ]  # fmt: skip
    return Table(rows)


# ---- sizes


@pytest.mark.parametrize(("name", "sizes"), scaling.SCALING.items(), ids=list(scaling.SCALING))
def test_sizes_lie_along_one_letter(name: str, sizes: scaling.Sizes) -> None:
    shapes = sizes.shapes()
    assert list(shapes) == sorted(shapes)
    assert max(shapes) >= 1000 * min(shapes)
    for size, shape in shapes.items():
        assert getattr(shape, sizes.letter) == size
        assert replace(shape, **{sizes.letter: getattr(sizes.base, sizes.letter)}) == sizes.base
    operation = OPERATIONS[name]
    assert list(operation.cases) == [shape.name for shape in shapes.values()]
    assert {case.threads for case in operation.cases.values()} == {sizes.threads}
    assert operation.variants == (SPREAD,)
    named = {provider.name for provider in operation.providers}
    extra = {scaling.MAPPED, scaling.STREAMED} if sizes.letter == "M" else set()
    assert named == {*scaling.PROVIDERS, *extra}


def test_a_field_of_a_mapped_file_has_the_same_bits(native: str) -> None:
    for query in (queries.make(Shape(9, 300, 16, 128, pixels), SPREAD, CPU) for pixels in (False, True)):
        calls = [OPERATIONS["scaling_data"].provider(name).prepare(query) for name in (scaling.MAPPED, pm.NATIVE)]
        for _ in range(2):
            mapped, in_memory = (call() for call in calls)
            assert isinstance(mapped, torch.Tensor)
            assert isinstance(in_memory, torch.Tensor)
            assert torch.equal(mapped, in_memory)
            query.turn()


# ---- curves


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_found(exponent: float) -> None:
    for name in scaling.SCALING:
        (curve,) = scaling.curves(name, Table(along(name, pm.NATIVE, exponent)))
        assert curve.exponent() == pytest.approx(exponent, abs=1e-9)
        assert curve.exponent("memory_mb") == pytest.approx(0, abs=1e-9)


def test_the_exponent_is_that_of_the_last_two_decades() -> None:
    rows = along("scaling_data", pm.NATIVE, 1.0)
    flat = [replace(row, median_ms=rows[2].median_ms) for row in rows[:2]]  # overhead, as small sizes have it
    (curve,) = scaling.curves("scaling_data", Table([*flat, *rows[2:]]))
    assert curve.exponent() == pytest.approx(1, abs=1e-9)


def test_curves_are_of_measured_rows() -> None:
    name = "scaling_queries"
    whole = along(name, pm.NATIVE, 1.0)
    none = [replace(row, status="skipped", median_ms=None, memory_mb=None) for row in along(name, pm.KEOPS, 1.0)]
    cut = [*along(name, pm.ORIGINAL, 1.0)[:3], *(replace(row, provider=pm.ORIGINAL) for row in none[3:])]
    single = along(name, pm.CHUNKED, 1.0)[:1]
    other = along("scaling_data", pm.PRODUCTS, 1.0)
    two = along(name, pm.TRITON, 1.0, threads=2)
    table = Table([*whole[::-1], *none, *cut, *single, *other, *two])
    found = {curve.provider: curve for curve in scaling.curves(name, table)}
    assert set(found) == {pm.NATIVE, pm.ORIGINAL}
    assert list(found[pm.NATIVE].points) == [1, 10, 100, 1000, 10_000]
    assert list(found[pm.ORIGINAL].points) == [1, 10, 100]
    assert found[pm.NATIVE].line("median_ms") == [(float(size), 0.01 * size) for size in found[pm.NATIVE].points]
    assert [curve.provider for curve in scaling.curves(name, table, threads=2)] == [pm.TRITON]
    unknown = scaling.Curve(pm.NATIVE, {size: replace(row, memory_mb=None) for size, row in enumerate(whole)})
    assert unknown.line("memory_mb") == []
    assert unknown.exponent("memory_mb") is None


# ---- errors by noise level


def test_errors_are_measured_at_levels_from_the_least_to_the_largest() -> None:
    operation = accuracy.OPERATION
    assert operation.variants == tuple(f"sigma {level:g}" for level in accuracy.LEVELS)
    assert list(accuracy.LEVELS) == sorted(accuracy.LEVELS)
    assert (accuracy.LEVELS[0], accuracy.LEVELS[-1]) == (queries.LOWEST, queries.HIGHEST)
    assert {shape.pixels for shape in accuracy.SHAPES} == {False, True}
    assert list(operation.cases) == [shape.name for shape in accuracy.SHAPES]
    assert {provider.name for provider in operation.providers} == set(accuracy.PROVIDERS)
    assert operation.interpreted


def test_kernels_join_interpreted_on_a_cpu() -> None:
    devices = {provider.name: set(provider.devices) for provider in accuracy.OPERATION.providers}
    assert {name for name, found in devices.items() if "cpu" in found} == set(accuracy.PROVIDERS) - {pm.PRODUCTS_TF32}
    assert {name for name, found in devices.items() if "cuda" in found} == set(accuracy.PROVIDERS) - {pm.NATIVE}
    assert [name for name in OPERATIONS if OPERATIONS[name].interpreted] == [accuracy.NAME]


# ---- figures


def test_there_is_a_picture_of_everything_measured() -> None:
    found = {picture.name: picture for picture in plot.pictures(everything())}
    assert list(found) == [
        "scaling-data", "scaling-queries", "scaling-dimensions", "error-by-sigma", "solvers-time-error", "solvers-nfe"
    ]  # fmt: skip
    assert [panel.title for panel in found["error-by-sigma"].panels] == [shape.name for shape in accuracy.SHAPES]
    assert all(panel.level == (1, "accuracy contract") for panel in found["error-by-sigma"].panels)
    assert set(found["solvers-time-error"].panels[0].lines) == {poisson.OURS, *peers.NAMES, poisson.PUBLISHED}
    assert set(found["solvers-nfe"].panels[0].lines) == set(nfe.SOLVERS)
    assert found["scaling-queries"].panels[0].title == "M = 20000, N = 64, D = 128"
    for picture in found.values():
        for panel in picture.panels:
            assert all(line == sorted(line) for line in panel.lines.values())
    assert plot.pictures(Table([replace(ROW, operation="scaling_data", case="B=32 M=1000 N=16 D=128")])) == []


def test_figures_are_drawn_as_png_and_svg(tmp_path: Path) -> None:
    for picture in plot.pictures(everything())[3:4]:
        png, svg = plot.draw(picture, tmp_path / "figures", "a-device")
        assert (png.name, svg.name) == (f"a-device-{picture.name}.png", f"a-device-{picture.name}.svg")
        assert png.read_bytes().startswith(b"\x89PNG")
        assert png.stat().st_size > 10_000
        first = svg.read_text()
        assert picture.digest in first
        plot.draw(picture, tmp_path / "figures", "a-device")
        assert svg.read_text() == first


def test_a_digest_is_that_of_the_numbers() -> None:
    table = everything()
    first, again = plot.pictures(table)[0], plot.pictures(table)[0]
    assert first.digest == again.digest
    moved = Table(replace(row, median_ms=(row.median_ms or 0) * 1.01) for row in table)
    assert plot.pictures(moved)[0].digest != first.digest


def gray(color: str) -> float:
    """The luminance of #rrggbb, from 0 to 1."""
    red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("picture", plot.pictures(everything()), ids=lambda picture: picture.name)
def test_lines_are_told_apart_without_colour(picture: plot.Picture) -> None:
    names = list(dict.fromkeys(name for panel in picture.panels for name in panel.lines))
    styles = dict(zip(names, plot._styles(names), strict=True))
    for key in ("marker", "linestyle"):
        assert len({style[key] for style in styles.values()}) == len(names)
    shades = sorted(gray(style["color"]) for style in styles.values())
    assert all(after - before > 0.005 for before, after in pairwise(shades))
    assert shades[-1] < 0.7, "too light for white paper"
    for name, style in styles.items():
        ours = name.startswith("pfgm_fast") or name in nfe.SOLVERS
        assert (style["linewidth"] > 2) == ours
        red, green, blue = (int(style["color"][i : i + 2], 16) for i in (1, 3, 5))
        assert (red > 1.5 * max(green, blue)) == ours, name


def test_figures_follow_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, figures = plot.tables, tmp_path / "figures"
    monkeypatch.setattr(plot, "tables", lambda: read(tmp_path))
    monkeypatch.setattr(plot, "FOLDER", figures)
    assert plot.stale() == []
    results.update(tmp_path / "mine.csv", along("scaling_queries", pm.NATIVE, 1.0))
    assert plot.stale() == ["mine-scaling-queries"]
    for stem, table in plot.tables().items():
        for picture in plot.pictures(table):
            plot.draw(picture, figures, stem)
    assert plot.stale() == []
    results.update(tmp_path / "mine.csv", along("scaling_queries", pm.NATIVE, 1.1))
    assert plot.stale() == ["mine-scaling-queries"]


def test_figures_are_of_the_numbers_in_the_files() -> None:
    assert plot.stale() == [], "run python -m benchmarks.plot"
