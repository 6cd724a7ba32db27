"""What holds after a fork: in the child only the thread that forked lives on.

A lock that another thread held stays locked for ever, so whoever has locks makes them anew in the child.
What must not be in use during a fork (SQLite, whose own locks cannot be renewed) is put down before it.
Torch's thread pool is gone as well, and an operation that uses it hangs: with one thread it does not. Where
torch has computed before the fork, not even that helps: the allocator of MKL, which is part of it, keeps
lists by thread and may search them for ever. Such a child is told.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable
from weakref import ReferenceType, ref


class Forkable(Protocol):
    """Something with locks."""

    def begin_child(self) -> None:
        """Make the locks anew, in the child, where no other thread runs yet."""
        ...


@runtime_checkable
class Rested(Forkable, Protocol):
    """Something that no thread may be using during a fork."""

    def begin_fork(self) -> None:
        """Wait until no thread uses it, and let none begin."""
        ...

    def end_fork(self) -> None:
        """Let threads use it again, in the parent."""
        ...


_things: dict[int, ReferenceType[Forkable]] = {}  # a WeakSet cannot be read while threads add to it
_resting: dict[int, list[Rested]] = {}  # by the threads that are forking
_loading: list[int] = []  # the threads that are importing or loading
_torch_is_inherited = False
_is_torn = False
_computed = False  # by torch, in this process: a model, or whoever else
_is_spent = False


def outlive_forks(thing: Forkable) -> None:
    """Have something prepared for each fork, as long as it is alive."""
    name = id(thing)
    _things[name] = ref(thing, lambda _: _things.pop(name, None))


def _alive() -> list[Forkable]:
    return [thing for each in list(_things.values()) if (thing := each()) is not None]


class Locks:
    """The locks of a module: `with locks[number]:` takes one of `count`, whatever the number."""

    def __init__(self, count: int = 1) -> None:
        self._count = count
        self.begin_child()
        outlive_forks(self)

    def begin_child(self) -> None:
        """Make them, anew after a fork."""
        self._locks = [threading.Lock() for _ in range(self._count)]

    def __getitem__(self, number: int) -> threading.Lock:
        return self._locks[number % self._count]


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


def computing() -> None:
    """Note that a model computes in this process."""
    global _computed
    _computed = _computed or "torch" in sys.modules


def is_spent() -> bool:
    """Whether this process was forked from one in which torch had computed."""
    return _is_spent


def is_torn() -> bool:
    """Whether this process was forked while another thread was importing or loading."""
    return _is_torn


def _mkl_holds_memory() -> bool:
    """Whether anybody has computed by MKL in this process, also without us."""
    if (file := getattr(sys.modules.get("torch"), "__file__", None)) is None:
        return False
    try:
        held = ctypes.CDLL(str(Path(file).with_name("lib") / "libtorch_cpu.so")).mkl_serv_mem_stat
    except (OSError, AttributeError):  # another system, or a torch without MKL
        return False
    held.restype = ctypes.c_longlong
    return bool(held(ctypes.byref(ctypes.c_int())) > 0)


def _before_fork() -> None:
    global _computed
    _computed = _computed or _mkl_holds_memory()
    resting = _resting[threading.get_ident()] = []
    for thing in _alive():
        if isinstance(thing, Rested):
            thing.begin_fork()
            resting.append(thing)


def _in_parent() -> None:
    for thing in _resting.pop(threading.get_ident(), []):
        thing.end_fork()


def _in_child() -> None:
    global _torch_is_inherited, _is_torn, _is_spent
    _is_spent = _is_spent or _computed
    _torch_is_inherited = "torch" in sys.modules
    _is_torn = _is_torn or any(thread != threading.get_ident() for thread in _loading)
    _resting.clear()
    for thing in _alive():
        thing.begin_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
