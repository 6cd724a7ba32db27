"""A progress bar for people: in a notebook and on a terminal, and none anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

_PATIENCE = 0.5  # seconds without a bar: what takes no longer needs none
_PAUSE = 0.2


def in_notebook() -> bool:
    """Whether the code runs in a kernel that shows HTML."""
    return "ipykernel" in sys.modules and type(_shell()).__name__ == "ZMQInteractiveShell"


def _shell() -> object:
    ipython: Any = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython else None


@contextmanager
def progress(total: int, label: str) -> Generator[Callable[[int], object]]:
    """Give a function that is told how many more are done; what is quick shows no bar."""
    if in_notebook():
        bar: _Bar = _NotebookBar(total, label)
    elif sys.stderr is not None and sys.stderr.isatty():
        bar = _TerminalBar(total, label)
    else:
        bar = _Bar(total, label)
    try:
        yield bar.update
    finally:
        bar.close()


class _Bar:
    """Counts what is done; this one shows nothing."""

    def __init__(self, total: int, label: str) -> None:
        self._total, self._label, self._done = total, label, 0
        self._started = self._shown = time.perf_counter()

    def update(self, count: int) -> None:
        """Take note that so many more are done, and show it at most five times a second."""
        self._done += count
        now = time.perf_counter()
        if now - self._started >= _PATIENCE and now - self._shown >= _PAUSE:
            self._shown = now
            self._show((now - self._started) / max(self._done, 1) * (self._total - self._done))

    def close(self) -> None:
        """End the bar."""

    def _show(self, seconds_left: float) -> None:
        pass


class _TerminalBar(_Bar):
    """click's bar, on stderr."""

    _bar: Any = None

    def close(self) -> None:
        if self._bar is not None:
            self._bar.update(self._done - self._bar.pos)
            self._bar.__exit__(None, None, None)

    def _show(self, seconds_left: float) -> None:
        if self._bar is None:
            self._bar = click.progressbar(length=self._total, label=self._label, file=sys.stderr).__enter__()
        self._bar.update(self._done - self._bar.pos)


class _NotebookBar(_Bar):
    """An HTML progress element in the output of the cell; needs no widgets, and goes away."""

    _handle: Any = None

    def close(self) -> None:
        if self._handle is not None:
            self._write("")

    def _show(self, seconds_left: float) -> None:
        self._write(
            f'<div><progress value="{self._done}" max="{self._total}"></progress> {self._label}: '
            f"{self._done:,} of {self._total:,}, {seconds_left:,.0f} s left</div>"
        )

    def _write(self, markup: str) -> None:
        shown: Any = import_module("IPython.display")
        if self._handle is None:
            self._handle = shown.display(shown.HTML(markup), display_id=True)
        else:
            self._handle.update(shown.HTML(markup))
