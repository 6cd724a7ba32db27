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


def in_notebook() -> bool:
    """Whether the code runs in a kernel that shows HTML."""
    return "ipykernel" in sys.modules and type(_shell()).__name__ == "ZMQInteractiveShell"


def _shell() -> object:
    ipython: Any = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython else None


@contextmanager
def progress(total: int, label: str) -> Generator[Callable[[int], object]]:
    """Give a function that is told how many more are done; the bar goes away when all are."""
    if in_notebook():
        page = _NotebookBar(total, label)
        try:
            yield page.update
        finally:
            page.close()
    elif sys.stderr is not None and sys.stderr.isatty():
        with click.progressbar(length=total, label=label, file=sys.stderr) as bar:
            yield bar.update
    else:
        yield lambda _: None


class _NotebookBar:
    """An HTML progress element in the output of the cell; needs no widgets."""

    def __init__(self, total: int, label: str) -> None:
        self._total, self._label, self._done = total, label, 0
        self._started = self._shown = time.perf_counter()
        self._handle: Any = None

    def update(self, count: int) -> None:
        """Show that so many more are done, at most five times a second."""
        self._done += count
        now = time.perf_counter()
        if now - self._started < _PATIENCE or now - self._shown < 0.2:
            return
        self._shown = now
        left = (now - self._started) / max(self._done, 1) * (self._total - self._done)
        self._show(
            f'<div><progress value="{self._done}" max="{self._total}"></progress> {self._label}: '
            f"{self._done:,} of {self._total:,}, {left:,.0f} s left</div>"
        )

    def close(self) -> None:
        """Take the bar away."""
        if self._handle is not None:
            self._show("")

    def _show(self, markup: str) -> None:
        shown: Any = import_module("IPython.display")
        if self._handle is None:
            self._handle = shown.display(shown.HTML(markup), display_id=True)
        else:
            self._handle.update(shown.HTML(markup))
