"""How far long work is: a line on a terminal, a bar in a notebook, and nothing anywhere else."""

from __future__ import annotations

import html
import sys
import threading
import time
from importlib import import_module
from typing import Any, Self

from tqdm import tqdm  # type: ignore[import-untyped]

_PATIENCE = 0.5  # seconds without a bar: what takes no longer needs none
_PAUSE = 1.0  # seconds after which a call begins other work
_BETWEEN = 0.2  # seconds between two looks of the bar


def in_notebook() -> bool:
    """Whether the code runs in a kernel that shows HTML."""
    ipython: Any = sys.modules.get("IPython")
    shell: Any = ipython.get_ipython() if ipython and "ipykernel" in sys.modules else None
    return "ZMQInteractiveShell" in {kind.__name__ for kind in type(shell).__mro__}


class Progress:
    """Counts images, or another unit: share of the total where there is one, images/s, failures, time left.

    >>> with Progress("Embedding", 1000) as progress:
    ...     progress.add(32)

    What takes less than `patience` seconds, half a one by default, shows nothing, and the bar goes when the
    work is over. Work is what lies between `begin` and `end`, which a `with` calls; they nest. Work that
    begins within a second of the end of the last counts on, so that many short calls can be one work.
    Thread-safe.
    """

    def __init__(
        self,
        label: str = "clip-embed",
        total: int | None = None,
        *,
        enabled: bool = True,
        patience: float | None = None,
        unit: str = "images",
    ) -> None:
        self.enabled = enabled
        self._label, self._total, self._unit = label, total, unit
        self._patience = _PATIENCE if patience is None else patience
        self._lock = threading.Lock()
        self._bar: Any = None
        self.done = self.failed = self._works = 0
        self._began = self._ended = 0.0

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def begin(self) -> None:
        """Note that a piece of work begins."""
        with self._lock:
            if not self._works and time.monotonic() > self._ended + _PAUSE:
                self._began, self.done, self.failed = time.monotonic(), 0, 0
            self._works += 1

    def leave_out(self) -> None:
        """Leave the time so far out of the rate: it went into loading a model. Not once images are done."""
        with self._lock:
            if self._works and not self.done:
                self._began = time.monotonic()

    def add(self, images: int, failed: int = 0) -> None:
        """Note that so many more images are done, those that failed included."""
        with self._lock:
            self.done += images
            self.failed += failed
            if self._bar is None and self._works and self.enabled:
                self._bar = self._open(time.monotonic() - self._began)
            if self._bar is not None:
                if self.failed:
                    self._bar.set_postfix(failed=self.failed, refresh=False)
                self._bar.update(self.done - self._bar.n)

    def fail(self, images: int) -> None:
        """Note that so many of the images that are done failed."""
        self.add(0, images)

    def end(self) -> None:
        """Note that a piece of work is over; the bar goes with the last."""
        with self._lock:
            self._works -= 1
            if not self._works:
                self._ended = time.monotonic()
                if self._bar is not None:
                    self._bar.close()
                    self._bar = None

    def _open(self, seconds: float) -> Any:  # noqa: ANN401 - a tqdm, whose stubs name no types
        """Return a bar for work that has run so long, None where nobody wants to see one."""
        if seconds < self._patience:
            return None
        if in_notebook():
            kind: Any = _NotebookBar
        elif sys.stderr is not None and sys.stderr.isatty():
            kind = _TerminalBar
        else:
            return None
        # A delay, so that there is no line of zeros to begin with.
        looks = {"delay": 1e-9, "leave": False, "mininterval": _BETWEEN, "miniters": 1}
        bar = kind(desc=self._label, total=self._total, unit=f" {self._unit}", file=sys.stderr, **looks)
        bar.start_t -= seconds
        bar.last_print_t = bar.start_t
        return bar


class _TerminalBar(tqdm):  # type: ignore[misc]  # pyright: ignore[reportMissingTypeArgument]
    """A line on stderr."""

    monitor_interval = 0  # no thread


class _NotebookBar(_TerminalBar):
    """An HTML element in the output of the cell: needs no widgets."""

    _handle: Any = None

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Show the numbers as they are now, or nothing any more where `msg` is empty."""
        if msg is not None:
            self._write("")
            return
        share = f' value="{self.n}" max="{self.total}"' if self.total else ""
        facts: dict[str, Any] = {**self.format_dict, "ncols": 0}  # pyright: ignore[reportUnknownMemberType]
        text = html.escape(tqdm.format_meter(**facts))  # pyright: ignore[reportUnknownMemberType]
        self._write(f"<div><progress{share}></progress> {text}</div>")

    def _write(self, markup: str) -> None:
        shown: Any = import_module("IPython.display")
        if self._handle is None:
            self._handle = shown.display(shown.HTML(markup), display_id=True)
        else:
            self._handle.update(shown.HTML(markup))
