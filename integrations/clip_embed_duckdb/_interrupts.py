"""What ends calls that run: Ctrl-C as any thread sees it, and `interrupt`.

Python raises KeyboardInterrupt in the main thread alone. DuckDB's other threads, which run the functions
of an ordinary table, learn of it only from DuckDB, between two chunks of 2,048 images, and the main thread
waits for them. But Python also writes the number of each signal to a descriptor, where one is set.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial

_lock = threading.Lock()
_pair: tuple[socket.socket, socket.socket] | None = None
_count = 0


def watch() -> None:
    """Have signals written down, unless the program has its own use for that; only in the main thread."""
    global _pair
    if threading.current_thread() is not threading.main_thread():
        return
    if _pair is None:
        _pair = socket.socketpair()
        for end in _pair:
            end.setblocking(False)
        atexit.register(_leave)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_leave)
    own = _pair[1].fileno()
    before = signal.set_wakeup_fd(own, warn_on_full_buffer=False)
    if before not in (-1, own):
        signal.set_wakeup_fd(before)


def count() -> int:
    """Return how often Ctrl-C came as a KeyboardInterrupt since `watch`."""
    global _count
    if _pair is not None:
        with _lock:
            try:
                written = _pair[0].recv(4096)
            except (BlockingIOError, InterruptedError):
                return _count
            if signal.SIGINT in written and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                _count += 1
    return _count


def _leave() -> None:
    """Let go at exit; also in a child, whose signals would be written down for its parent."""
    global _pair, _lock
    if _pair is not None:
        own = _pair[1].fileno()
        before = signal.set_wakeup_fd(-1)
        if before not in (-1, own):
            signal.set_wakeup_fd(before)
        for end in _pair:
            end.close()
    _pair, _lock = None, threading.Lock()


class Stops:
    """Ends the calls that run when Ctrl-C or `stop` comes, and no later ones."""

    def __init__(self) -> None:
        self._stops = 0
        self._running = 0
        self._interrupts = 0
        self._lock = threading.Lock()

    @contextmanager
    def running(self) -> Generator[Callable[[], None]]:
        """Mark one call; gives what raises Stopped once the call is to end."""
        with self._lock:
            if not self._running:
                self._interrupts = count()  # what came before was for something else
            begun = self._stops
            self._running += 1
        try:
            yield partial(self._check, begun)
        except Stopped:
            raise
        except KeyboardInterrupt:
            self.stop()
            raise
        finally:
            with self._lock:
                self._running -= 1

    def stop(self) -> None:
        """End the calls that are running now."""
        with self._lock:
            self._stops += 1

    def _check(self, begun: int) -> None:
        with self._lock:
            if (interrupts := count()) != self._interrupts:
                self._interrupts = interrupts
                self._stops += 1
            if self._stops != begun:
                raise Stopped("the query was interrupted")


class Stopped(KeyboardInterrupt):
    """What was interrupted was a call beside this one, or all of them."""
