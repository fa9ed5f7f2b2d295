"""Replacing functions in the modules of a checkout, and putting them back."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any


class Installation:
    """What was replaced: (owner, name, original) each. A context manager, which undoes it at the end."""

    def __init__(self) -> None:
        self.replaced: list[tuple[Any, str, Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Replaces one attribute of a module or class."""
        self.replaced.append((owner, name, vars(owner)[name]))
        setattr(owner, name, value)

    def undo(self) -> None:
        """Puts the originals back; a second call does nothing."""
        while self.replaced:
            setattr(*self.replaced.pop())

    def __enter__(self) -> Installation:
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()


def replace(changes: Sequence[tuple[str, str, Callable[[Any], Any]]]) -> Installation:
    """Replaces `name` or `class.name` in each module by what the function makes of the original: all, or none."""
    found = []
    for module, path, make in changes:
        try:
            owner: Any = importlib.import_module(module)
        except ImportError as error:
            raise ImportError(
                f"module {module!r} of the checkout cannot be imported ({error}): is it on sys.path?"
            ) from error
        *outer, name = path.split(".")
        for part in outer:
            owner = getattr(owner, part, None)
        if owner is None or name not in vars(owner):
            raise ImportError(f"module {module!r} has no {path!r}: the checkout's own was expected on sys.path")
        found.append((owner, name, make))
    done = Installation()
    for owner, name, make in found:
        done.set(owner, name, make(vars(owner)[name]))
    return done
