"""What holds after a fork: in the child only the thread that forked lives on.

A lock that another thread held stays locked for ever, so the locks here are made anew in the child. What
must not be in use during a fork (SQLite, whose own locks cannot be renewed) is put down before it.
Torch's thread pool is gone as well, and an operation that uses it hangs: with one thread it does not.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from weakref import WeakSet


class ForkSafeLock:
    """A lock, or what `make` makes, that a forked child finds free whoever held it in the parent."""

    def __init__(
        self,
        make: Callable[[], AbstractContextManager[object]] = threading.Lock,
        *,
        before_fork: Callable[[], object] | None = None,
        after_fork: Callable[[], object] | None = None,
    ) -> None:
        self._make = make
        self.before_fork = before_fork
        """Called with the lock held, which then stays held until the fork is over."""
        self._after_fork = after_fork
        self._lock = make()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.__exit__(kind, error, trace)

    def renew(self) -> None:
        """Begin anew in the child, then call `after_fork` for what the lock guards."""
        self._lock = self._make()
        if self._after_fork is not None:
            self._after_fork()


_locks: WeakSet[ForkSafeLock] = WeakSet()
_held: dict[int, list[ForkSafeLock]] = {}  # by the threads that are forking
_loading: list[int] = []  # the threads that are importing or loading
_torch_is_inherited = False
_is_torn = False


@contextmanager
def loading() -> Generator[None]:
    """Mark what a fork in another thread would leave half done: imports, and loading a model."""
    own = threading.get_ident()
    _loading.append(own)
    try:
        yield
    finally:
        _loading.remove(own)


def torch_is_inherited() -> bool:
    """Whether this process was forked from one that had imported torch."""
    return _torch_is_inherited


def is_torn() -> bool:
    """Whether this process was forked while another thread was importing or loading."""
    return _is_torn


def _before_fork() -> None:
    held = _held[threading.get_ident()] = []
    for lock in list(_locks):
        if lock.before_fork is not None:
            lock.__enter__()
            held.append(lock)
            lock.before_fork()


def _in_parent() -> None:
    for lock in _held.pop(threading.get_ident(), []):
        lock.__exit__(None, None, None)


def _in_child() -> None:
    global _torch_is_inherited, _is_torn
    _torch_is_inherited = "torch" in sys.modules
    _is_torn = _is_torn or any(thread != threading.get_ident() for thread in _loading)
    _held.clear()
    for lock in list(_locks):
        lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
