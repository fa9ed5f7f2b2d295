"""What the library is to show, and whether it does: on one thread of a CPU, or on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from benchmarks import shapes
from benchmarks import training_target as target
from benchmarks.registry import OPERATIONS
from benchmarks.solvers import linear, nfe, overhead, peers, poisson
from benchmarks.solvers.solve import setting
from pfgm_fast.bench import posterior_mean as pm
from pfgm_fast.bench.cells import Line, number
from pfgm_fast.bench.queries import ALL_80, SPREAD, Shape
from pfgm_fast.bench.rows import Key, RefusedError, Row, Table, memory_saved, speed_up

HEADER = ("operation", "what", "goal", "measured", "verdict")


@dataclass(frozen=True)
class Bar:
    """`got` is to be at least, or at most, `value`; it is None where something was not measured.

    `device` is cpu or cuda: what the goal was set for.
    """

    operation: str
    what: str
    device: str
    value: float
    at_least: bool
    got: Callable[[Table], float | None]

    def verdict(self, table: Table) -> tuple[float | None, str]:
        try:
            got = self.got(table)
        except RefusedError as refused:
            return None, refused.word
        if got is None:
            return None, "not measured"
        return got, "PASS" if (got >= self.value if self.at_least else got <= self.value) else "short"


def lines(table: Table) -> list[Line]:
    """Of the bars set for the device of a table, as `HEADER` says."""
    device = "cuda" if on_gpu(table) else "cpu"
    found: list[Line] = []
    for bar in ALL:
        if bar.device == device:
            got, verdict = bar.verdict(table)
            goal = f"{'≥' if bar.at_least else '≤'} {number(bar.value)}"
            found.append((bar.operation, bar.what, goal, "–" if got is None else number(got), verdict))
    return found


def on_gpu(table: Table) -> bool:
    return any("cuda " in versions for versions in table.values("versions"))


def _ratio(
    ratio: Callable[[Row | None, Row | None], float | None], ours: Key, baseline: Key
) -> Callable[[Table], float | None]:
    return lambda table: ratio(table.get(*ours), table.get(*baseline))


def _right(row: Row | None) -> Row | None:
    """A figure of a wrong or untested row is refused as its speed-up is."""
    speed_up(row, row)
    return row


def _column(key: Key, column: str) -> Callable[[Table], float | None]:
    def got(table: Table) -> float | None:
        row = _right(table.get(*key))
        return None if row is None else getattr(row, column)

    return got


def _faster(
    operation: str, case: str, variant: str, ours: str, baseline: str, times: float, device: str = "cpu"
) -> Bar:
    keys = (Key(operation, case, variant, name) for name in (ours, baseline))
    what = f"{case}, {variant}: times faster than {baseline}"
    return Bar(operation, what, device, times, True, _ratio(speed_up, *keys))


def _leaner(operation: str, case: str, variant: str, ours: str, baseline: str, times: float) -> Bar:
    keys = (Key(operation, case, variant, name) for name in (ours, baseline))
    what = f"{case}: times less memory than {baseline}"
    return Bar(operation, what, "cpu", times, True, _ratio(memory_saved, *keys))


# Against the original formula, and against the two products; where nothing can be skipped, 0.9 of it.
ON_CPU = {
    shapes.SMALL_TOY: (80, 15),
    shapes.SMALL_LATENTS: (100, 1.8),
    shapes.MNIST: (120, 1.25),
    shapes.PFGMPP: (120, 1.5),
    shapes.PFGM: (80, 1.3),
}


def _means() -> Iterator[Bar]:
    name = "posterior_mean"
    for shape, times in ON_CPU.items():
        for variant, factor in ((SPREAD, 1.0), (ALL_80, 0.9)):
            for baseline, value in zip((pm.ORIGINAL, pm.PRODUCTS), times, strict=True):
                yield _faster(name, shape.name, variant, pm.NATIVE, baseline, factor * value)
    yield _leaner(name, shapes.PFGM.name, SPREAD, pm.NATIVE, pm.ORIGINAL, 20)


def _targets() -> Iterator[Bar]:
    for case, times in ((target.PFGM, 80), (target.PFGMPP, 40)):
        for baseline in (target.ORIGINAL, target.KEPT):
            yield _faster("training_target", case, target.NOISE, target.BATCH, baseline, times)
        yield _leaner("training_target", case, target.NOISE, target.BATCH, target.ORIGINAL, 20)


def _matched(peer: str, table: Table) -> float | None:
    """Against a peer at the tolerance of the bar, at no worse a p99 error."""
    row = table.get(poisson.NAME, poisson.CASE, poisson.VARIANT, peer, setting(poisson.BAR))
    block = table.where(operation=poisson.NAME, threads=1)
    return None if row is None else speed_up(poisson.match(block, row), row)


def _stiff(table: Table) -> Row | None:
    return linear.best(table.where(operation=linear.NAME, threads=1))


def _units(table: Table) -> float | None:
    ours = _right(_stiff(table))
    return None if ours is None else ours.error_max


def _host_time(provider: str, table: Table) -> float | None:
    row = _right(table.get(overhead.NAME, overhead.CASE, overhead.VARIANT, provider))
    return None if row is None else overhead.per_call(row)


def _solves() -> Iterator[Bar]:
    for peer in peers.NAMES:
        what = f"times faster than {peer} at {poisson.BAR:g}, p99 error no worse"
        yield Bar(poisson.NAME, what, "cpu", 10, True, partial(_matched, peer))
    what = f"times faster than {peers.DIFFRAX}"
    diffrax = Key(linear.NAME, linear.CASE, linear.SETTING, peers.DIFFRAX)
    yield Bar(linear.NAME, what, "cpu", 1, True, lambda table: speed_up(_stiff(table), table.get(*diffrax)))
    yield Bar(linear.NAME, "worst error in units of the tolerance", "cpu", 10, False, _units)
    for provider in overhead.OURS:
        yield Bar(overhead.NAME, f"ms an evaluation, {provider}", "cpu", 1, False, partial(_host_time, provider))
    for evaluations, value in (("20", 5e-3), ("40", 5e-4)):
        key = Key(nfe.NAME, nfe.CASE, nfe.VARIANT, "unipc", evaluations)
        yield Bar(
            nfe.NAME, f"median error of unipc at {evaluations}", "cpu", value, False, _column(key, "error_median")
        )


@dataclass(frozen=True)
class Goal:
    """Of one size on a GPU: times faster than a baseline, at most so many ms, or at least so many Gpairs/s."""

    shape: Shape
    value: float
    baseline: str = ""
    column: str = "median_ms"
    provider: str = pm.TRITON


ON_GPU = (
    Goal(shapes.PFGM, 200, pm.ORIGINAL),
    Goal(shapes.PFGM, 2, pm.PRODUCTS),
    Goal(shapes.CIFAR, 0.3),
    Goal(shapes.CIFAR_MANY, 4, pm.PRODUCTS),
    Goal(shapes.IMAGENET, 40),
    Goal(shapes.TOY, 5, pm.PRODUCTS),
    Goal(shapes.TOY_GAUSSIAN, 10, pm.PRODUCTS),
    Goal(shapes.LATENTS, 350, column="gpairs_per_s"),
    Goal(shapes.LATENTS, 600, column="gpairs_per_s", provider=pm.TRITON_HIGH),
)


def _gpus() -> Iterator[Bar]:
    """Of an eager call, in both variants."""
    name = "posterior_mean"
    for goal in ON_GPU:
        for variant in OPERATIONS[name].variants:
            case = goal.shape.name
            if goal.baseline:
                yield _faster(name, case, variant, goal.provider, goal.baseline, goal.value, "cuda")
                continue
            at_least = goal.column == "gpairs_per_s"
            what = f"{case}, {variant}: {'Gpairs/s' if at_least else 'ms'}, {goal.provider}"
            got = _column(Key(name, case, variant, goal.provider), goal.column)
            yield Bar(name, what, "cuda", goal.value, at_least, got)


ALL = (*_means(), *_targets(), *_solves(), *_gpus())
