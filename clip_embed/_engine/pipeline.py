"""The pipe from images to vectors: reading, decoding, the forward pass and the caller overlap.

The thread that iterates reads the input and decides what happens next. Threads of a pool read files, decode
and run the model, also while the caller deals with a batch. They share no state: each gets its work as a
future, whose result comes back through one queue.

A model that may be called by several threads at once runs in the pool, one core for each batch: no core is
idle and none is fought over. (Threads of torch that wait for each other spin: with other work on the cores
that took 4 times the CPU time.) Any other has a thread to itself, one on GPUs a thread for each lane.

Batches form in the order in which images become ready, and the input's order is restored on the vectors,
which are small: one slow image does not hold the others up. What is under way is bounded in number and
bytes, so memory does not grow with the input.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Self, TypeAlias, TypeGuard, TypeVar, cast

import numpy as np

from clip_embed._engine.cores import limit_torch, usable_cores
from clip_embed._engine.pool import Pool
from clip_embed._engine.prepared import Prepare, Prepared
from clip_embed._images.source import bytes_held, describe
from clip_embed._types import EmbeddedBatch, Float32, ImageFailure
from clip_embed.errors import ImageError, ModelForked

T = TypeVar("T")

LATER = object()
"""What an input yields that has nothing at the moment: it gets what is done, and is asked again then."""

_MAX_HELD_BYTES = 256 * 1024 * 1024
"""Of images handed in by value and of pixels for the model, or as many more as its batches under way take:
eight lanes of 256 images want 385 MB."""
_MAX_AHEAD_BYTES = 32 * 1024 * 1024  # of them, beyond which no more is read than is needed to go on
_MAX_WAITING_VECTORS = 8192  # finished, but behind a slow image
AT_ONCE = 16
"""Images that a thread takes at a time, at most."""
_TASK_SECONDS = 0.04  # that they should take: then handing over costs little, and so does the end of an input
_TASK_BYTES = 4 * 1024 * 1024  # that they may keep in memory together
_FIRST = 4  # images for each thread, one by one, until it is known how long they take
_LAST = 8  # images of a pass at the end of an input, where there are as many for each core


@dataclass(frozen=True, slots=True)
class _Item:
    index: int
    key: object
    name: str
    size: int
    """Bytes that the image keeps in memory until it is decoded."""


_Batch: TypeAlias = list[tuple[_Item, Prepared]]


class ImageStream(Iterator[EmbeddedBatch]):
    """Iterator of `EmbeddedBatch` in input order; closing it leaves no thread behind.

    Use it as a context manager where the loop may be left early.
    """

    def __init__(
        self,
        images: Iterable[object],
        *,
        prepare: Prepare,
        forward: Callable[[Sequence[Prepared], bool], list[Float32 | ImageError]],
        finish: Callable[[], None] | None = None,
        streams: int,
        dim: int,
        batch_size: int,
        workers: int,
        own_threads: bool = False,
    ) -> None:
        self._source = iter(images)
        self._prepare = prepare
        self._forward = forward
        self._finish_up = finish
        self._dim = dim
        self._batch_size = batch_size
        self._workers = workers
        self._streams = streams
        self._own_threads = own_threads or streams == 1
        self._max_forwards = streams + 1  # one more follows while the caller is busy
        self._seconds_each: float | None = None  # of late, for an image in its thread
        self._finished: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._preparing = 0
        self._ready: _Batch = []
        self._forwards = 0
        self._alone = True  # no batch has been sent to another thread
        self._done: dict[int, tuple[_Item, Float32 | ImageError]] = {}
        self._taken = 0  # images read
        self._under_way = 0  # of them, not done
        self._held_bytes = 0
        self._largest = 0  # bytes of the pixels of an image
        self._emitted = 0
        self._ended = False  # the input
        self._dry = False  # it had nothing at the moment when it was last asked
        self._process: int | None = None  # in which the threads are
        self._batches = self._run()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> EmbeddedBatch:
        if self._process not in (None, os.getpid()):
            raise ModelForked("this stream was begun before a fork: its threads are in the parent process")
        return next(self._batches)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading the input and wait for the threads to end; idempotent."""
        self._batches.close()

    def _run(self) -> Generator[EmbeddedBatch]:
        with ExitStack() as threads:
            if self._finish_up:
                threads.callback(self._finish_up)  # after the last thread
            self._process = os.getpid()
            pool = runner = _open_pool(threads, self._workers, torch_threads=1)
            if self._own_threads:
                runner = _open_pool(threads, self._streams, torch_threads=usable_cores())
            while True:
                self._read(pool)
                self._launch(runner)
                if (self._dry or len(self._done) >= self._batch_size) and (batch := self._take()):
                    yield batch
                elif self._under_way:
                    self._finished.get()()
                else:
                    break
            if batch := self._take():
                yield batch

    def _read(self, pool: Pool) -> None:
        """Hand images to the decode threads until enough are under way."""
        while not self._ended:
            at_once, window = self._rhythm()
            if self._held_bytes >= max(_MAX_HELD_BYTES, self._images_in_batches * self._largest):
                return
            if self._under_way >= window or len(self._done) >= max(_MAX_WAITING_VECTORS, window):
                return
            items, sources = self._take_sources(at_once)
            self._dry = not items and not self._ended
            if not items:
                return
            self._under_way += len(items)
            self._preparing += len(items)
            self._held_bytes += sum(item.size for item in items)
            self._submit(pool, partial(self._prepare_timed, sources), partial(self._prepared, items))

    def _rhythm(self) -> tuple[int, int]:
        """Return how many images a thread takes at a time, and how many may be under way."""
        if self._seconds_each is None:
            return 1, _FIRST * self._workers
        at_once = max(1, min(AT_ONCE, int(_TASK_SECONDS / self._seconds_each)))
        ahead = at_once if self._held_bytes < _MAX_AHEAD_BYTES else 1
        return at_once, self._images_in_batches + 2 * self._workers * ahead

    @property
    def _images_in_batches(self) -> int:
        """How many images the model's batches have, with one that forms meanwhile."""
        return (self._max_forwards + 1) * self._batch_size

    def _take_sources(self, most: int) -> tuple[list[_Item], list[object]]:
        """Take what one thread decodes at a time, as far as the input gives it soon."""
        items: list[_Item] = []
        sources: list[object] = []
        room, end = _TASK_BYTES, time.monotonic() + _TASK_SECONDS
        for value in self._source:
            if value is LATER:
                break
            key, source = value if _is_keyed(value) else (None, value)
            items.append(item := _Item(self._taken, key, describe(source), bytes_held(source)))
            sources.append(source)
            self._taken += 1
            room -= item.size
            if len(items) == most or room <= 0 or time.monotonic() > end:
                break
        else:
            self._ended = True
        return items, sources

    def _prepare_timed(self, sources: Sequence[object]) -> tuple[list[Prepared | ImageError], float]:
        """Prepare images in a pool's thread; also how many seconds each took."""
        start = time.perf_counter()
        outcomes = self._prepare(sources)
        return outcomes, max(1e-9, time.perf_counter() - start) / len(sources)

    def _submit(self, pool: Pool, work: Callable[[], T], then: Callable[[Future[T]], None]) -> None:
        """Do the work in the pool, and then the rest in the thread that iterates."""
        finished = self._finished
        pool.submit(work, lambda done: finished.put(partial(then, done)))

    def _prepared(
        self, items: Sequence[_Item], done: Future[tuple[list[Prepared | ImageError], float]]
    ) -> None:
        """Put decoded images where they belong. Raises what stopped the thread that decoded them."""
        self._preparing -= len(items)
        self._held_bytes -= sum(item.size for item in items)
        outcomes, seconds_each = done.result()
        known = seconds_each if self._seconds_each is None else self._seconds_each
        self._seconds_each = (3 * known + seconds_each) / 4
        for item, prepared in zip(items, outcomes, strict=True):
            if isinstance(prepared, ImageError):
                self._finish(item, prepared)
            elif prepared.vector is not None:
                self._finish(item, prepared.vector)
            else:
                self._held_bytes += prepared.size
                self._largest = max(self._largest, prepared.size)
                self._ready.append((item, prepared))

    def _launch(self, runner: Pool) -> None:
        """Send batches to the model, in the order in which their images became ready."""
        while (
            self._ready
            and self._forwards < self._max_forwards
            and (len(self._ready) >= self._batch_size or not self._preparing)
        ):
            size = self._images_per_pass()
            batch, self._ready = self._ready[:size], self._ready[size:]
            work = partial(self._forward, [prepared for _, prepared in batch])
            if self._alone and self._nothing_follows and self._under_way == len(batch):
                self._embedded(batch, work(True))  # nothing to overlap with: here, with all cores
                return
            self._alone = False
            self._forwards += 1
            self._submit(runner, partial(work, False), partial(self._returned, batch))

    @property
    def _nothing_follows(self) -> bool:
        return self._ended or self._dry

    def _images_per_pass(self) -> int:
        """Return how many images run at once: ever fewer towards the end, so that all cores end together."""
        if self._own_threads or self._preparing or not self._nothing_follows:
            return self._batch_size
        each = -(-len(self._ready) // self._streams)
        return min(self._batch_size, max(-(-each // 2), min(_LAST, each)))

    def _returned(self, batch: _Batch, done: Future[list[Float32 | ImageError]]) -> None:
        """Note the outcome of a batch. Raises what the model raised."""
        self._forwards -= 1
        self._embedded(batch, done.result())

    def _embedded(self, batch: _Batch, outcomes: list[Float32 | ImageError]) -> None:
        for (item, prepared), outcome in zip(batch, outcomes, strict=True):
            self._held_bytes -= prepared.size
            self._finish(item, outcome)

    def _finish(self, item: _Item, outcome: Float32 | ImageError) -> None:
        self._under_way -= 1
        self._done[item.index] = (item, outcome)

    def _take(self) -> EmbeddedBatch | None:
        """Take what is finished and next in order; None where the next image is still under way."""
        rows: list[tuple[_Item, Float32]] = []
        failures: list[ImageFailure] = []
        while (entry := self._done.pop(self._emitted, None)) is not None:
            item, outcome = entry
            self._emitted += 1
            if isinstance(outcome, ImageError):
                failures.append(
                    ImageFailure(item.index, item.name, str(outcome), outcome.retryable, item.key)
                )
            else:
                rows.append((item, outcome))
        if not rows and not failures:
            return None
        return EmbeddedBatch(
            indices=np.array([item.index for item, _ in rows], np.int64),
            vectors=np.stack([vector for _, vector in rows])
            if rows
            else np.empty((0, self._dim), np.float32),
            failures=tuple(failures),
            keys=tuple(item.key for item, _ in rows),
        )


def _open_pool(stack: ExitStack, size: int, *, torch_threads: int) -> Pool:
    """Return a pool that ends with the stack; what nobody has begun by then is dropped."""
    pool = Pool(size, partial(limit_torch, torch_threads))
    stack.callback(pool.close)
    return pool


def _is_keyed(value: object) -> TypeGuard[tuple[object, object]]:
    """Whether an item of the input is a (key, image) pair."""
    return isinstance(value, tuple) and len(cast("tuple[object, ...]", value)) == 2
