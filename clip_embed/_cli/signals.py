"""Ctrl-C and SIGTERM end a command of the command line in order, within about a second.

The library itself installs no handlers. The handler raises `Stopped` in the main thread, which unwinds
like any error: streams close, what is done is kept. Where that takes longer than a second (a long call in
C, a library that swallows the exception), the process ends all the same, but never while it is `keeping`.
"""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

_GRACE = 1.0  # seconds
_SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
STOPPED = frozenset(128 + number for number in _SIGNALS)
"""The exit codes of commands that a signal ended."""
_keeping = threading.Lock()
_put_off: list[int] = []  # a signal that came while something was kept


class Stopped(BaseException):
    """A signal asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(_SIGNALS[signal.Signals(number)])
        self.exit_code = 128 + number


@contextmanager
def orderly_end() -> Generator[None]:
    """Turn the first signal into `Stopped`, whatever becomes of it inside; further ones change nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        if not received:
            received.append(number)
            line = f"clip-embed: {_SIGNALS[signal.Signals(number)]}\n"
            os.write(
                2, f"\n{line}".encode() if os.isatty(2) else line.encode()
            )  # a progress bar has the line
            # Not threading.Thread: the lock that it takes may be held by what was interrupted.
            _thread.start_new_thread(_end_at_last, (number,))
            if not _keeping.locked():
                raise Stopped(number)
            _put_off.append(number)

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    finally:
        if received:
            raise Stopped(received[0])
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def keeping() -> Generator[None]:
    """What is in here is written to its end before a signal ends the process."""
    with _keeping:
        yield
    if _put_off:
        raise Stopped(_put_off[0])


@contextmanager
def plain_interrupts() -> Generator[None]:
    """Let Ctrl-C be a KeyboardInterrupt in here, as at a prompt."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end_at_last(number: int) -> None:
    time.sleep(_GRACE)
    with _keeping:
        os._exit(128 + number)
