"""Samples on their way into a .npy file: what is there already survives an interruption."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Archive:
    """(n, *data) samples for the file `path`, row by row in any order.

    Until all rows are there they lie in `path`.partial, with `path`.partial.json beside it: the settings they were made
    with and the rows that are done. The same settings go on from there, others are refused.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: torch.dtype, settings: dict[str, Any]) -> None:
        self.path = path
        self._data = path.with_name(f"{path.name}.partial")
        self._notes = path.with_name(f"{path.name}.partial.json")
        self._settings = settings
        if path.exists():
            raise FileExistsError(f"{path} exists already: remove it or choose another --out")
        name = str(dtype).removeprefix("torch.")
        if self._notes.exists() and self._data.exists():
            notes = json.loads(self._notes.read_text())
            changed = [k for k in settings if settings[k] != notes["settings"].get(k)]
            if changed:
                was, now = (
                    ", ".join(f"{k}={source.get(k)}" for k in changed) for source in (notes["settings"], settings)
                )
                raise ValueError(f"{self._data} was begun with {was}, not {now}: remove it or choose another --out")
            self.done = np.isin(np.arange(shape[0]), _members(notes["done"]))
            self._samples = np.lib.format.open_memmap(self._data, mode="r+")
        else:
            self.done = np.zeros(shape[0], dtype=bool)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._samples = np.lib.format.open_memmap(self._data, mode="w+", dtype=name, shape=shape)
            self._note()

    def missing(self) -> Tensor:
        """The rows that are not there yet, in order."""
        return torch.from_numpy(np.flatnonzero(~self.done))

    def keep(self, rows: Tensor, samples: Tensor) -> None:
        """Writes rows (b,) of the samples (b, *data), then notes that they are done."""
        self._samples[rows.numpy()] = samples.cpu().numpy()
        self._samples.flush()
        self.done[rows.numpy()] = True
        self._note()

    def finish(self) -> None:
        """Gives the file its name; every row must be done."""
        if not self.done.all():
            raise RuntimeError(f"{int((~self.done).sum())} of {len(self.done)} samples are not done")
        del self._samples
        self._data.replace(self.path)
        self._notes.unlink()

    def _note(self) -> None:
        """Replaces the notes as a whole: they are never half written."""
        text = json.dumps({"settings": self._settings, "done": _ranges(self.done)}, indent=1)
        temporary = self._notes.with_suffix(".new")
        temporary.write_text(text)
        temporary.replace(self._notes)


def _ranges(done: np.ndarray[Any, np.dtype[np.bool_]]) -> list[list[int]]:
    """The half-open ranges of rows that are done."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], done, [False]]).astype(np.int8)))
    ranges: list[list[int]] = edges.reshape(-1, 2).tolist()
    return ranges


def _members(ranges: list[list[int]]) -> np.ndarray[Any, Any]:
    return np.concatenate([np.arange(first, last) for first, last in ranges] or [np.arange(0)])


def digest(path: Path) -> str:
    """Tells one file's content from another's."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha(file)


def _sha(file: Any) -> str:
    """`hashlib.file_digest` before Python 3.11."""
    state = hashlib.sha256()
    while block := file.read(1 << 20):
        state.update(block)
    return state.hexdigest()
