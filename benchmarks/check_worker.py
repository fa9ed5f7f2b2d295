"""The process of one revision: `python -m benchmarks.check_worker LIBRARY`, asked by `benchmarks.check`.

It imports the library from a folder, and the benchmarks from this tree.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from benchmarks.checkout import ROOT


def adopt(library: Path) -> None:
    """`pfgm_fast` will be that of the folder, with the measuring machinery of this tree."""
    sys.path.insert(0, str(library))
    importlib.import_module("pfgm_fast")
    folder = ROOT / "pfgm_fast" / "bench"
    spec = spec_from_file_location("pfgm_fast.bench", folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec is not None
    assert spec.loader is not None
    sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])


def main() -> None:
    adopt(Path(sys.argv[1]).resolve())
    import torch

    from benchmarks.registry import find
    from benchmarks.worker import pin
    from pfgm_fast.bench import timing
    from pfgm_fast.bench.measure import error_of, status_of
    from pfgm_fast.bench.rows import WRONG

    pin(1)
    torch.set_num_threads(1)
    device = torch.device("cpu")
    stopwatch = timing.stopwatch(device)
    calls: dict[str, Callable[[], float]] = {}

    def prepare(operation: str, case: str, variant: str) -> dict[str, bool]:
        """The calls of our providers, each made once, and whether their results are right."""
        found = find(operation)
        inputs = found.cases[case].make(variant, device)
        truth, right = found.truth(inputs), {}
        calls.clear()
        for provider in found.providers:
            if provider.ours and device.type in provider.devices and provider.refuses(inputs) is None:
                with provider.within():
                    call = provider.prepare(inputs)
                    error = error_of(found, provider, inputs, call(), truth)
                right[provider.label] = status_of(provider, error) != WRONG
                calls[provider.label] = partial(seconds, found, inputs, provider, call)
        return right

    def seconds(found: Any, inputs: Any, provider: Any, call: Callable[[], Any]) -> float:
        found.turn(inputs)
        with provider.within():
            return stopwatch(call)

    torch.set_grad_enabled(False)
    for line in sys.stdin:
        asked = json.loads(line)
        answer: Any = prepare(**asked["prepare"]) if "prepare" in asked else calls[asked["call"]]()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
