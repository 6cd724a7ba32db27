"""A line that says how far a long query is: on a terminal, or below a cell of a notebook."""

from __future__ import annotations

import sys
import threading
import time
from importlib import import_module
from typing import Any

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
        tqdm = import_module("tqdm").tqdm  # of sentence-transformers, and slow to import
        looks = {"desc": "clip-embed", "unit": " images", "file": sys.stderr, "leave": False}
        bar = tqdm(**looks, smoothing=0, mininterval=0.2, delay=_QUIET)  # no line of zeros to begin with
        bar.start_t -= seconds
        return bar


def _is_watched() -> bool:
    """Whether somebody sees stderr: it is a terminal, or ipykernel's."""
    stream: Any = sys.stderr
    return stream is not None and (stream.isatty() or type(stream).__module__ == "ipykernel.iostream")
