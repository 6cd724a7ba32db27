"""A line that says how far a long query is: on a terminal, or below a cell of a notebook."""

from __future__ import annotations

import sys
import threading
import time
from importlib import import_module
from typing import Any, Self

_QUIET = 2.0  # seconds, in which a query needs no line
_PAUSE = 1.0  # seconds after which a call begins another query


class Progress:
    """Counts the images of one database's queries: "1,234 images [00:04, 305.1 images/s]" on stderr.

    There is no line before two seconds, none where stderr goes to a file, and none once the query is
    over. Nobody tells where a query begins: calls that follow each other within a second are one.
    """

    def __init__(self) -> None:
        self.enabled = True
        self._lock = threading.Lock()
        self._bar: Any = None
        self._calls = 0
        self._images = 0
        self._began = self._ended = 0.0

    def begin(self) -> None:
        """Note that a call begins."""
        with self._lock:
            if not self._calls and time.monotonic() > self._ended + _PAUSE:
                self._began, self._images = time.monotonic(), 0
            self._calls += 1

    def add(self, images: int) -> None:
        """Note that so many images are done."""
        with self._lock:
            self._images += images
            if self._bar is None and self.enabled and self._calls:
                self._bar = self._open()
            if self._bar is not None:
                self._bar.update(self._images - self._bar.n)

    def end(self) -> None:
        """Note that a call is over; the line goes with the last."""
        with self._lock:
            self._calls -= 1
            if not self._calls:
                self._ended = time.monotonic()
                if self._bar is not None:
                    self._bar.close()
                    self._bar = None

    def _open(self) -> Any:  # noqa: ANN401 - a tqdm, whose stubs name no types
        seconds = time.monotonic() - self._began
        if seconds < _QUIET or not _is_watched():
            return None
        bar = _make_bar("clip-embed", None)
        bar.start_t -= seconds
        return bar


class Bar(Progress):
    """A bar for a known number of images: share, images/s, time left and failures; closed as a context."""

    def __init__(self, label: str, total: int, *, enabled: bool) -> None:
        super().__init__()
        self._failed = 0
        if enabled and total and _is_watched():
            self._bar = _make_bar(label, total)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def begin(self) -> None:
        """Nothing: the bar is open all the time."""

    def add(self, images: int) -> None:
        """Note that so many images are done."""
        if self._bar is not None:
            self._bar.update(images)

    def fail(self, images: int) -> None:
        """Note that so many of them failed."""
        self._failed += images
        if self._bar is not None:
            self._bar.set_postfix(failed=self._failed, refresh=False)

    def end(self) -> None:
        """Nothing: the bar is open all the time."""


def _make_bar(label: str, total: int | None) -> Any:  # noqa: ANN401 - a tqdm, whose stubs name no types
    tqdm = import_module("tqdm").tqdm  # of sentence-transformers, and slow to import
    looks = {"desc": label, "unit": " images", "file": sys.stderr, "leave": False, "mininterval": 0.2}
    if total is None:
        return tqdm(**looks, smoothing=0, delay=_QUIET)  # no line of zeros to begin with
    return tqdm(**looks, total=total)


def _is_watched() -> bool:
    """Whether somebody sees stderr: it is a terminal, or ipykernel's."""
    stream: Any = sys.stderr
    return stream is not None and (stream.isatty() or type(stream).__module__ == "ipykernel.iostream")
