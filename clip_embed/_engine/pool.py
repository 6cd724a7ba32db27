"""Threads for one stream. They end with it, and with the program, and never keep it from ending.

Those of concurrent.futures refuse work as soon as the main thread has ended, though a thread of the
user's may still be embedding.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import TypeAlias, TypeVar

T = TypeVar("T")
_Prepare: TypeAlias = "Callable[[], object] | None"
_Tasks: TypeAlias = "SimpleQueue[Callable[[_Prepare], None] | None]"


class Pool:
    """At most `size` threads, started as they are needed; `prepare` runs first in each of them."""

    def __init__(self, size: int, prepare: Callable[[], object]) -> None:
        self._size = size
        self._prepare = prepare
        self._tasks: _Tasks = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._stop = weakref.finalize(self, _stop, self._tasks, self._threads)  # at the latest at exit

    def submit(self, work: Callable[[], T], then: Callable[[Future[T]], None]) -> None:
        """Do the work in a thread, and hand its result to `then` in the same thread; from one thread only.

        Once the program is ending, nothing is begun any more.
        """
        if not self._stop.alive:
            return
        self._tasks.put(partial(_do, work, then))
        if len(self._threads) < self._size:
            name = f"clip-embed_{len(self._threads)}"
            thread = threading.Thread(
                target=_serve, args=(self._tasks, self._prepare), name=name, daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """Drop what is not begun and wait for the rest; idempotent."""
        self._stop()


def _serve(tasks: _Tasks, prepare: _Prepare) -> None:
    while (task := tasks.get()) is not None:
        task(prepare)
        prepare = None
        del task  # it keeps its image alive, also while this thread is idle
    tasks.put(None)  # for the next thread, also for one that is being started just now


def _do(work: Callable[[], T], then: Callable[[Future[T]], None], prepare: _Prepare) -> None:
    done: Future[T] = Future()
    try:
        if prepare is not None:
            prepare()
        done.set_result(work())
    except BaseException as error:  # noqa: BLE001 - raised again in the thread that asks for the result
        done.set_exception(error)
    then(done)


def _stop(tasks: _Tasks, threads: list[threading.Thread]) -> None:
    with suppress(Empty):
        while True:
            tasks.get_nowait()
    tasks.put(None)
    for thread in list(threads):
        if thread.ident is not None:  # else an interrupt came before its start
            thread.join()
