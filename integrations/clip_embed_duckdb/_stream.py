"""The images of all calls on their way through one stream of the embedder.

DuckDB calls a function from several threads, each with rows of its own: 100 of them where a Parquet
file has small row groups. One stream for all of them keeps the batches of the model full, the threads
that decode as many as there are cores, and the images in memory within one limit.

A thread serves the calls while there are any, and ends. What waits is served shortest first, so that
one image does not wait for a thousand. The threads of DuckDB only wait: an interrupt reaches them at
once, and takes their call along.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, Protocol, cast

from clip_embed import ClipEmbedder, EmbeddedBatch
from clip_embed._engine.pipeline import LATER
from clip_embed._images.source import ImageInput
from clip_embed._types import Float32

_LOOK_AROUND = 0.1  # seconds between two looks for an interrupt
_PATIENCE = 0.5  # seconds for what is under way when a call ends early
_TURN = 16  # images of one call, before it is seen which one is the shortest


class Work(Protocol):
    """The images of one call, and what comes of them."""

    @property
    def left(self) -> int:
        """How many images have no outcome yet."""
        ...

    def items(self) -> Generator[tuple[object, ImageInput]]:
        """Yield (key, image) for each image without an outcome."""
        ...

    def embedded(self, key: object, vector: Float32) -> None:
        """Take the vector (d,) of an image."""
        ...

    def failed(self, key: object, reason: str) -> None:
        """Note why an image failed; what it raises ends the call."""
        ...


class _Job:
    """One call's work; all but `close` is for the serving thread."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.error: BaseException | None = None
        self.alone = False
        self.under_way = 0
        self.exhausted = False
        self._items = work.items()
        self._lock = threading.Lock()

    @property
    def finished(self) -> bool:
        return self.error is not None or (self.exhausted and not self.under_way)

    def next(self) -> tuple[object, ImageInput] | None:
        """Return the next image, None where there is none any more."""
        with self._lock:
            try:
                entry = next(self._items, None)
            except Exception as error:  # noqa: BLE001 - raised again in the thread whose call it is
                self.end(error)
                return None
        self.under_way += entry is not None
        self.exhausted = entry is None
        return entry

    def end(self, error: BaseException) -> None:
        """Have the call raise an error."""
        self.error = error
        self.exhausted = True

    def begin_again(self) -> None:
        """Embed what has no outcome yet in a stream of its own."""
        with self._lock:
            self._items.close()
            self._items = self.work.items()
        self.alone, self.under_way, self.exhausted = True, 0, False

    def close(self) -> None:
        """Let go of the images, and of the connection that reads them, unless a read takes too long."""
        if self._lock.acquire(timeout=_PATIENCE):
            try:
                self._items.close()
            finally:
                self._lock.release()


class SharedStream:
    """Embeds the images of several calls at once."""

    def __init__(self, embedder: ClipEmbedder) -> None:
        self._embedder = embedder
        self._changed = threading.Condition()
        self._jobs: list[_Job] = []
        self._server: threading.Thread | None = None

    def run(self, work: Work, check: Callable[[], object]) -> None:
        """Return when each image of a call has its outcome. Raises what `check` or its images raise."""
        job = _Job(work)
        try:
            with self._changed:
                self._jobs.append(job)
                while not job.finished:
                    if self._server is None or not self._server.is_alive():  # none is after a fork
                        # No daemon, as DuckDB's threads are: the program's end waits for it.
                        serve = threading.Thread(target=self._serve, name="clip-embed-duckdb", daemon=False)
                        self._server = serve
                        serve.start()
                    self._changed.wait(_LOOK_AROUND)
                    check()
        finally:
            with self._changed:
                self._jobs.remove(job)
            job.close()
            self._settle()
        if (error := job.error) is not None:
            job.error = None
            try:
                raise error
            finally:
                del error  # its traceback holds this frame, and the connection that read the files

    def _settle(self) -> None:
        """Let the serving thread end where it has no call: one that runs at the program's end makes noise.

        It has nothing under way but after an error or an interrupt, and there a batch at the most.
        """
        with self._changed:
            server = self._server
            if server is None or self._jobs:
                return
            self._changed.wait_for(lambda: self._jobs or self._server is not server, _PATIENCE)
            ended = self._server is not server
        if ended:
            server.join()

    def _serve(self) -> None:
        while (chosen := self._choose()) is not None:
            try:
                with (
                    closing(self._items(chosen)) as items,
                    self._embedder.stream_images(items) as batches,
                ):
                    for batch in batches:
                        self._hand_out(batch)
                        if all(job.finished for job in list(self._jobs)):
                            break  # those whose images are still under way have been interrupted
            except BaseException as error:  # noqa: BLE001 - raised again in the thread whose call it is
                self._blame(error)
            self._tell()

    def _choose(self) -> list[_Job] | None:
        """Return the job that is to be alone, none for all together; None where nothing is to do."""
        with self._changed:
            if not (waiting := [job for job in self._jobs if not job.exhausted]):
                self._server = None
                self._changed.notify_all()
                return None
            return [job for job in waiting if job.alone][:1]

    def _items(self, alone: list[_Job]) -> Generator[Any]:
        """Yield ((job, key), image); where some are under way, wait for calls that come meanwhile."""
        while (job := self._shortest(alone)) is not None or self._under_way():
            if job is None:
                yield LATER
                continue
            for _ in range(_TURN):
                if job.exhausted or (entry := job.next()) is None:
                    break
                yield (job, entry[0]), entry[1]
            if job.finished:
                self._tell()

    def _under_way(self) -> bool:
        with self._changed:
            return any(job.under_way for job in self._jobs)

    def _shortest(self, alone: list[_Job]) -> _Job | None:
        with self._changed:
            jobs = [job for job in self._jobs if not alone or job in alone]
            waiting = [job for job in jobs if not job.exhausted and job.alone == bool(alone)]
        return min(waiting, key=lambda job: job.work.left, default=None)

    def _hand_out(self, batch: EmbeddedBatch) -> None:
        jobs = set[_Job]()
        for key, vector in zip(batch.keys, batch.vectors, strict=True):
            job, name = cast("tuple[_Job, object]", key)
            job.work.embedded(name, vector)
            job.under_way -= 1  # last: with none under way the call returns what it has
            jobs.add(job)
        for failure in batch.failures:
            job, name = cast("tuple[_Job, object]", failure.key)
            try:
                job.work.failed(name, failure.reason)
            except Exception as error:  # noqa: BLE001 - raised again in the thread whose call it is
                job.end(error)
            job.under_way -= 1
            jobs.add(job)
        if any(job.finished for job in jobs):  # the others need not look: a thread that wakes takes the lock
            self._tell()

    def _blame(self, error: BaseException) -> None:
        """End the call whose images broke the stream; of several, each is tried alone."""
        with self._changed:
            hit = [job for job in self._jobs if job.under_way and not job.error]
            if len(hit) > 1 and isinstance(error, Exception):
                for job in hit:
                    job.begin_again()
                return
            for job in hit or self._jobs:
                job.end(error)

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()
