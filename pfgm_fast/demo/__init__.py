"""The demonstration behind `pfgm-fast demo`: real charges, their exact field, pictures, speed and memory."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pfgm_fast import EmpiricalField, sample

EXTRAS = ("matplotlib", "scikit-learn")
_MODULES = ("matplotlib", "sklearn")


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    charges: int = 10000
    field_lines: int = 220
    samples: int = 2000
    rising: int = 2000
    rising_steps: int = 20
    digits: int = 1000
    queries: tuple[int, int] = (1024, 256)
    repeats: int = 5


FULL = Scale()
QUICK = Scale(
    charges=3000, field_lines=60, samples=150, rising=300, rising_steps=6, digits=60, queries=(512, 128), repeats=3
)


@dataclass(frozen=True)
class Demo:
    """One run: the folder of its files, the reader's ear, the random numbers, the scale."""

    out: Path
    say: Callable[[str], None]
    generator: torch.Generator
    scale: Scale


def missing() -> str | None:
    """What has to be installed before the demonstration can run, in one line, or None."""
    found = zip(EXTRAS, _MODULES, strict=True)
    absent = [name for name, module in found if importlib.util.find_spec(module) is None]
    return f'{" and ".join(absent)} not installed; run: pip install "pfgm-fast[demo]"' if absent else None


def run(out: Path, say: Callable[[str], None], *, seed: int = 0, scale: Scale = FULL) -> list[Path]:
    """Draws samples from the exact fields of a heart and of handwritten digits, and measures them.

    Args:
        out: folder of the figures and the table, created if need be.
        say: takes each line or block of text for the reader.
        seed: of every random number.
        scale: FULL or QUICK.
    Returns:
        the files written.
    """
    from pfgm_fast.demo import digits, heart, timing

    demo = Demo(out, say, torch.Generator().manual_seed(seed), scale)
    out.mkdir(parents=True, exist_ok=True)
    say(f"backend: {timing.backend_in_use()}; {torch.get_num_threads()} threads")
    charges = heart.charges(scale.charges, demo.generator)
    images, classes = digits.load()
    files = [*_heart(demo, charges), _hemisphere(demo, charges), _digits(demo, images, classes)]
    cases = (("heart", charges, 1.0), ("digits", images, digits.D))
    return [*files, _timing(demo, cases)]


def _heart(demo: Demo, data: Tensor) -> list[Path]:
    from pfgm_fast.demo import heart

    scale, field = demo.scale, EmpiricalField(data, D=1)
    lines, cuts = demo.out / "heart-field-lines.png", demo.out / "heart-cuts.png"
    demo.say(f"\nA heart of {len(data)} charges in the plane, D = 1 (PFGM)")
    demo.say(f"{scale.field_lines} field lines from the far hemisphere down to the charges, by rk45:")
    heart.draw_field_lines(heart.field_lines(field, scale.field_lines), data, lines)
    demo.say(f"{scale.samples} samples from the prior at z = 80, by rk45:")
    drawn = sample(
        field, (scale.samples, 2), solver="rk45", sigma_min=heart.NEAR, generator=demo.generator, progress=True
    ).raise_for_status()
    demo.say(f"  {drawn.nfe.double().mean():.0f} evaluations of the field for a sample, each with its own step size")
    heart.draw_cuts(field, data, drawn.samples, cuts)
    return [lines, cuts]


def _hemisphere(demo: Demo, data: Tensor) -> Path:
    from pfgm_fast.demo import hemisphere

    count, path = demo.scale.rising, demo.out / "hemisphere.png"
    demo.say(f"{count} field lines upwards from the charges:")
    start = hemisphere.start(data, count, demo.generator)
    reached = hemisphere.rise(EmpiricalField(data, D=1), start, demo.scale.rising_steps)
    heights = list(zip(reached, hemisphere.LEVELS, strict=True))
    units = [hemisphere.directions(x, data.mean(0), level) for x, level in heights]
    hemisphere.draw(units, path)
    distances = [f"{hemisphere.distance_to_uniform(unit[:, 2]):.3f}" for unit in units]
    at = [f"{distance} at z = {level:g}" for distance, level in zip(distances, hemisphere.LEVELS, strict=True)]
    demo.say(f"  Kolmogorov's distance of cos(theta) from uniform: {', '.join(at)}")
    demo.say(f"  (chance alone exceeds {1.36 / count**0.5:.3f} once in twenty)")
    return path


def _digits(demo: Demo, data: Tensor, classes: Tensor) -> Path:
    from pfgm_fast.demo import digits

    count, path = demo.scale.digits, demo.out / "digits.png"
    demo.say(f"\n{len(data)} handwritten digits of 8 x 8 pixels, D = {digits.D:g} (PFGM++)")
    demo.say(f"{count} samples, by heun on {digits.STEPS} levels:")
    journey = digits.travel(EmpiricalField(data, digits.D), count, demo.generator)
    digits.draw(journey, data, path)
    counts = classes[journey.nearest].bincount(minlength=10).tolist()
    demo.say("  digits drawn: " + ", ".join(f"{n} x {digit}" for digit, n in enumerate(counts)))
    apart = float((journey.samples - data[journey.nearest]).abs().max())
    demo.say(
        f"  They are {len(journey.nearest.unique())} of the data, reached to {apart:.0e} in every pixel. So it must be:"
    )
    demo.say("  the exact field has no charges but the data, and its lines end there. A trained network generalises.")
    return path


def _timing(demo: Demo, cases: tuple[tuple[str, Tensor, float], ...]) -> Path:
    from pfgm_fast.demo import timing

    demo.say("\nOne evaluation of the field in float32: median time, peak memory that the call adds, and the largest")
    demo.say("error of the field's direction against float64")
    tables = [f"backend: {timing.backend_in_use()}"]
    for (name, data, D), B in zip(cases, demo.scale.queries, strict=True):
        case = timing.Case.draw(name, data, D, B, demo.generator)
        tables.append(timing.table(case, timing.measure(case, demo.scale.repeats)))
        demo.say("\n" + tables[-1])
    warning = timing.busy()
    if warning is not None:
        tables.append(warning)
        demo.say("\n" + warning)
    path = demo.out / "timing.txt"
    path.write_text("\n\n".join(tables) + "\n")
    return path
