"""The pipe from images to vectors: decode in threads beside the forward pass, order kept.

The thread that iterates reads the input and runs the model; a pool of threads reads files and
decodes. Batches form in the order in which images become ready, and the input's order is
restored on the vectors, which are small: one slow image does not hold the others up. What is
under way is bounded in number and in bytes, so memory does not grow with the input.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Self, TypeGuard, cast

import numpy as np
from PIL import Image

from clip_embed._images import describe
from clip_embed._types import EmbeddedBatch, Float32, ImageFailure, UInt8
from clip_embed.errors import ImageError

_MAX_WAITING_BYTES = 256 * 1024 * 1024  # of images handed in by value
_MAX_WAITING_VECTORS = 8192  # finished, but behind a slow image


@dataclass(frozen=True, slots=True)
class Prepared:
    """One decoded image: its pixels, or the vector (d,) where it is known already."""

    content: bytes
    """Digest of what the vector depends on."""
    pixels: UInt8 | None
    vector: Float32 | None = None


@dataclass(frozen=True, slots=True)
class _Item:
    index: int
    key: object
    name: str
    size: int
    """Bytes that the image keeps in memory until it is decoded."""


class ImageStream(Iterator[EmbeddedBatch]):
    """Iterator of `EmbeddedBatch` in input order; closing it leaves no thread behind.

    Use it as a context manager where the loop may be left early.
    """

    def __init__(
        self,
        images: Iterable[object],
        *,
        prepare: Callable[[object], Prepared],
        forward: Callable[[list[Prepared]], list[Float32 | ImageError]],
        dim: int,
        batch_size: int,
        workers: int,
    ) -> None:
        self._source = enumerate(images)
        self._prepare = prepare
        self._forward = forward
        self._dim = dim
        self._batch_size = batch_size
        self._workers = workers
        self._window = 2 * batch_size + 2 * workers
        self._pending: dict[Future[Prepared], _Item] = {}
        self._finished: SimpleQueue[Future[Prepared]] = SimpleQueue()
        self._ready: list[tuple[_Item, Prepared]] = []
        self._done: dict[int, tuple[_Item, Float32 | ImageError]] = {}
        self._waiting_bytes = 0
        self._emitted = 0
        self._exhausted = False
        self._batches = self._run()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> EmbeddedBatch:
        return next(self._batches)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading the input and wait for the decode threads to end; idempotent."""
        self._batches.close()

    def _run(self) -> Generator[EmbeddedBatch]:
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="clip-embed-decode")
        try:
            while True:
                self._fill(pool)
                if self._pending and len(self._ready) < self._batch_size:
                    self._collect()
                elif self._ready:
                    self._embed()
                elif self._exhausted:
                    break
                if len(self._done) >= self._batch_size and (batch := self._take()):
                    yield batch
            if batch := self._take():
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _fill(self, pool: ThreadPoolExecutor) -> None:
        """Hand images to the decode threads until enough are under way."""
        while (
            not self._exhausted
            and len(self._pending) + len(self._ready) < self._window
            and len(self._done) < max(_MAX_WAITING_VECTORS, self._window)
            and self._waiting_bytes < _MAX_WAITING_BYTES
        ):
            entry = next(self._source, None)
            if entry is None:
                self._exhausted = True
                return
            index, value = entry
            key, source = value if _is_keyed(value) else (None, value)
            item = _Item(index, key, describe(source), _held_bytes(source))
            self._waiting_bytes += item.size
            future = pool.submit(self._prepare, source)
            self._pending[future] = item
            future.add_done_callback(self._finished.put)

    def _collect(self) -> None:
        """Wait for one decoded image."""
        future = self._finished.get()
        item = self._pending.pop(future)
        self._waiting_bytes -= item.size
        try:
            prepared = future.result()
        except ImageError as error:
            # A fresh error: the traceback of this one keeps the encoded image alive.
            self._done[item.index] = (item, ImageError(str(error), retryable=error.retryable))
            return
        if prepared.vector is not None:
            self._done[item.index] = (item, prepared.vector)
        else:
            self._ready.append((item, prepared))

    def _embed(self) -> None:
        """Run the model over one batch, in the order in which its images became ready."""
        batch, self._ready = self._ready[: self._batch_size], self._ready[self._batch_size :]
        for (item, _), outcome in zip(batch, self._forward([prepared for _, prepared in batch]), strict=True):
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


def _is_keyed(value: object) -> TypeGuard[tuple[object, object]]:
    """Whether an item of the input is a (key, image) pair."""
    return isinstance(value, tuple) and len(cast("tuple[object, ...]", value)) == 2


def _held_bytes(source: object) -> int:
    """Size of an image that is handed in by value."""
    if isinstance(source, Mapping):
        source = cast("Mapping[str, object]", source).get("bytes")
    if isinstance(source, Image.Image):
        return source.width * source.height * len(source.getbands())
    if isinstance(source, np.ndarray):
        return cast("UInt8", source).nbytes
    return len(source) if isinstance(source, bytes) else 0
