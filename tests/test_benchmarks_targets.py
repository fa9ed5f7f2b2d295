"""The benchmark of training targets, on small cases: inputs, truth, the original formulas, and work done in part."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parent.parent))  # benchmarks/ is not installed
from benchmarks import training_target as targets
from benchmarks.checkout import ROOT
from pfgm_fast.bench import ceilings, measure, memory, queries, timing
from pfgm_fast.bench.ceilings import Ceilings
from pfgm_fast.bench.core import Answer, Case
from pfgm_fast.bench.machine import Origin
from pfgm_fast.bench.queries import Shape

CPU = torch.device("cpu")
SMALL = {
    "PFGM": partial(targets.make, Shape(9, 120, 48, 1), 5.0, 120, targets.NOISE, CPU),
    "PFGM++": partial(targets.make, Shape(9, 120, 48, 128), None, 120, targets.NOISE, CPU),
}


@pytest.fixture(params=SMALL.values(), ids=list(SMALL))
def step(request: pytest.FixtureRequest) -> targets.Step:
    made: targets.Step = request.param()
    return made


def oracle_target(step: targets.Step) -> np.ndarray:
    query, data = step.query, (2 * step.pixels.double() - 255) / 255
    mean: np.ndarray = oracle.field(query.x, query.sigma, data, query.D).mean
    if step.gamma is None:
        return mean
    vector = np.hstack([mean - query.x.double().numpy(), -query.sigma.double().numpy()[:, None]])
    lengths: np.ndarray = np.linalg.norm(vector, axis=1, keepdims=True)
    return np.asarray(math.sqrt(mean.shape[1]) * vector / (lengths + step.gamma))


def test_batch_is_perturbed_from_the_reference(step: targets.Step) -> None:
    query = step.query
    assert query.x.dtype == query.data.dtype == torch.float32
    assert step.pixels.unique().numel() > 100
    assert torch.equal(((query.data + 1) * 127.5).round().to(torch.uint8), step.pixels)
    # a row that is hardly perturbed lies next to the image of its own place
    quiet = int(query.sigma.argmin())
    assert int((query.data - query.x[quiet]).norm(dim=1).argmin()) == quiet


def test_batches_take_turns(step: targets.Step) -> None:
    """Each is perturbed anew from the same images, and the error is that of the first."""
    first = step.query.x.clone(), step.query.sigma.clone()
    targets.OPERATION.turn(step)
    assert (step.query.x != first[0]).all(1).all()
    assert (step.query.sigma != first[1]).all()
    assert torch.equal(step.query.x, step.query.sets[1][0])
    before = replace(step, query=replace(step.query, x=first[0], sigma=first[1]))
    assert np.abs(targets.truth(step).numpy() - oracle_target(before)).max() < 1e-11
    few = targets.small(step)
    assert (len(few.query.x), len(few.pixels), len(few.query.data)) == (4, 64, 64)
    assert targets.work(step, Answer(first[0])).pairs == 9 * 120


def test_truth_agrees_with_the_oracle(step: targets.Step) -> None:
    assert np.abs(targets.truth(step).numpy() - oracle_target(step)).max() < 1e-11


def test_providers_compute_the_target(step: targets.Step) -> None:
    exact = targets.truth(step)
    for provider in targets.OPERATION.providers:
        if provider.refuses(step):
            continue
        with provider.within():
            result = provider.prepare(step)()
        assert isinstance(result, Tensor)
        assert result.dtype == torch.float32
        found = targets.error(step, result, exact)
        assert found.bounds is not None
        assert found.largest < 1e-4, provider.name
        assert found.bounds <= 1 or not provider.ours, provider.name


def test_error_is_measured_in_bounds(step: targets.Step) -> None:
    """What a mean that is off by its bound does to the target is at most the target's bound, and not far below it."""
    exact, query = targets.truth(step), step.query
    assert targets.error(step, exact, exact) == (0, 0, 0, 0)
    mean = queries.truth(replace(query, data=step.pixels))
    bound = 1e-4 * (query.x - mean).norm(dim=1) + 4 * 2.0**-23 * torch.maximum(
        query.x.double().norm(dim=1), query.data.norm(dim=1).max().double()
    )
    sideways = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    off = mean + bound[:, None] * torch.nn.functional.normalize(sideways, dim=1)
    if step.gamma is not None:
        vector = torch.cat([off - query.x.double(), -query.sigma.double()[:, None]], 1)
        off = math.sqrt(48) * vector / (vector.norm(dim=1, keepdim=True) + step.gamma)
    bounds = targets.error(step, off, exact).bounds
    assert bounds is not None
    assert 0.8 < bounds <= 1 + 1e-9
    off[3] = math.nan
    assert targets.error(step, off, exact).bounds == math.inf


def test_formula_in_chunks_is_the_formula(step: targets.Step, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, chunked = (targets.OPERATION.provider(name) for name in (targets.ORIGINAL, targets.KEPT))
    size = 8 if step.gamma is None else 4
    monkeypatch.setattr(targets, "CHUNK_BYTES", 4.5 * 120 * 48 * size)
    assert chunked.remark(step) == f"float{8 * size}; rows at a time: 4"
    torch.testing.assert_close(chunked.prepare(step)(), whole.prepare(step)(), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(targets._memory_not_kept() is not None, reason="no GNU C library")
def test_memory_given_back_is_not_fetched_again() -> None:
    """In a process of its own: how the C library keeps memory is one setting for all."""
    code = """
import resource, torch
from benchmarks import training_target as targets
def faults(call):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    call()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
fill = lambda: torch.ones(25_000_000)
fill()
assert faults(fill) > 10_000
with targets.OPERATION.provider(targets.KEPT).within():
    assert faults(fill) < 1_000
assert faults(fill) > 10_000
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_what_does_not_fit_is_done_in_part_and_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    part = replace(SMALL["PFGM++"](), fitting=30)
    whole = replace(part, fitting=120)
    original = targets.OPERATION.provider(targets.ORIGINAL)
    assert original.remark(whole) == "float64"
    assert original.remark(part) == "float64; on 30 of the 120 images, time and memory × 4"
    cut = replace(whole, query=replace(whole.query, data=whole.query.data[:30]), pixels=whole.pixels[:30])
    results = [original.prepare(one)() for one in (part, cut)]
    torch.testing.assert_close(*results, rtol=0, atol=0)

    cases = {"whole": Case(lambda *_: whole), "part": Case(lambda *_: part)}
    operation = replace(targets.OPERATION, cases=cases)
    monkeypatch.setattr(ceilings, "measure", lambda *_: Ceilings(1, 1))
    monkeypatch.setattr(timing, "interleaved", lambda calls, *rest: {name: [1.0, 3.0] for name in calls})
    monkeypatch.setattr(memory, "peak", lambda make: 5.0)
    monkeypatch.setattr(memory, "unavailable", lambda: None)
    setup = measure.Setup(CPU, 1, Origin(*["of the test"] * 6), "passed")
    for case, times in (("whole", 1), ("part", 4)):
        rows = measure.measure(measure.Block(lambda: operation, case, targets.NOISE), setup)
        row = next(row for row in rows if row.provider == targets.ORIGINAL)
        assert (row.median_ms, row.memory_mb) == (2000 * times, 5 * times)
        assert (row.status == "part") == (row.error_bounds is None) == (times == 4)
        for other in (row for row in rows if row.provider != targets.ORIGINAL):
            assert (other.median_ms, other.memory_mb, other.status) == (2000, 5, "ok")


def test_cases_are_those_of_the_papers() -> None:
    assert list(targets.OPERATION.cases) == [targets.PFGM, targets.PFGMPP]
    assert (targets.CIFAR.N, targets.CIFAR.D) == (3 * 32 * 32, 1)
    assert (targets.FFHQ.N, targets.FFHQ.D) == (3 * 64 * 64, 128)
