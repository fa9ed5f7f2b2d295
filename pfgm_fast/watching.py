"""What the user sees of a running solve: the callback and the progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Callback = Callable[[dict[str, Any]], object]

SHARE_BAR = {"total": 100, "bar_format": "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"}
"""The style of a bar that shows a percentage."""


class Monitor:
    """Calls the user's callback and moves the bar, if they were asked for."""

    def __init__(self, callback: Callback | None, progress: bool) -> None:
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be callable, got {type(callback).__name__}")
        self.callback = callback
        self.progress = progress
        self._bar: Any = None

    @property
    def idle(self) -> bool:
        """Whether nobody watches."""
        return self.callback is None and not self.progress

    @contextmanager
    def bar(self, **style: Any) -> Iterator[None]:
        """Shows a bar, if one was asked for, until the block is left."""
        if not self.progress:
            yield
            return
        from tqdm.auto import tqdm  # only those who ask for a bar pay for its import

        with tqdm(**style) as self._bar:
            yield

    def reached(self, position: Callable[[], float], note: Callable[[], str] | None = None) -> None:
        """Moves the bar; position and note are asked for only if there is one."""
        if self._bar is not None:
            if note is not None:
                self._bar.set_postfix_str(note(), refresh=False)
            self._bar.update(position() - self._bar.n)

    def stops(self, info: dict[str, Any]) -> bool:
        """Shows the callback `info`; whether it asks to stop."""
        return self.callback is not None and self.callback(info) is True
