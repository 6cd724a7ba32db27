"""From a source into a store: what is stored already is skipped, the rest is embedded and written.

The thread that calls lists the source, asks the store in groups which images it has in their present
state, and hands the others to the embedder's stream; decoding, the forward pass and the uploads go on
beside it. A point is acknowledged before it counts as written; ids follow from keys, so a point that
is written twice is the same point. Memory is bounded whatever the length of the source.
"""

from __future__ import annotations

import tarfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import cast

import numpy as np
import pyarrow as pa

from clip_embed import ClipEmbedder, EmbeddedBatch
from clip_embed._cli.signals import keeping
from clip_embed._images.source import ImageInput
from clip_embed._types import Float32
from clip_embed.errors import ImageError
from clip_embed_qdrant._entries import (
    Entry,
    Source,
    etag,
    fetch,
    in_groups,
    in_shard,
    payload_bytes,
    point_id,
)
from clip_embed_qdrant._errors import IngestStopped, StoreError
from clip_embed_qdrant._facts import read_facts
from clip_embed_qdrant._options import Job, Options
from clip_embed_qdrant._report import Failures, IngestFailure, IngestReport
from clip_embed_qdrant._sink import ETAG, KEY, Payload, Points, Sink
from clip_embed_qdrant._upload import Outcome, Patience, Uploader, split

_POINTS = 256  # in one request
_BYTES = 16 * 1024 * 1024
_FLOAT_BYTES = 12  # of one number in JSON; 4 in gRPC
_LONGEST_WAIT = 2.0  # seconds until a vector is on its way to the store, full request or not
_FETCHES = 16  # threads that read remote files and headers
_BETWEEN_REPORTS = 0.2
# A source that breaks in the middle: the disk, the network, a torn file.
_BROKEN = (OSError, EOFError, pa.ArrowException, tarfile.TarError)


@dataclass(frozen=True, slots=True)
class _Pending:
    """An entry that is to be embedded."""

    id: str
    etag: str
    entry: Entry


@dataclass(frozen=True, slots=True)
class _Ready:
    """A point that is to be written."""

    id: str
    vector: Float32
    payload: Payload
    size: int


class Ingest:
    """One run; call `run` once. `report` tells how far it is."""

    def __init__(
        self,
        sink: Sink,
        embedder: ClipEmbedder,
        source: Source,
        options: Options,
        progress: Callable[[IngestReport], object] | None = None,
    ) -> None:
        self._sink = sink
        self._embedder = embedder
        self._source = source
        self._options = options
        self._progress = progress
        self._patience = Patience(options.patience)
        self._uploader = Uploader(sink, self._patience, self._uploaded)
        self._fetchers: ThreadPoolExecutor | None = None
        self._failures = Failures()
        self._counts = IngestReport(failed=self._failures, job=Job(source, options))
        self._ready: list[_Ready] = []
        self._ready_since = 0.0
        self._begun = time.monotonic()
        self._told = 0.0

    @property
    def report(self) -> IngestReport:
        """How far it is."""
        seconds = time.monotonic() - self._begun
        return replace(self._counts, retries=self._patience.retries, seconds=seconds)

    def run(self) -> IngestReport:
        """Go through the source. Raises IngestStopped where it cannot be finished."""
        with ExitStack() as stack:
            stack.callback(self._shut_down)
            self._patience.ask(self._sink.open_for_writing)  # before anything is computed
            images = ((item, cast("ImageInput", item.entry.image)) for item in self._fetched())
            stream = self._embedder.stream_images(images)
            stack.callback(stream.close)  # after what is embedded is written: it waits for its threads
            try:
                for batch in stream:
                    self._take(batch)
                return self._finish(orderly=True)
            except StoreError as error:
                raise IngestStopped(str(error), self._finish(orderly=False)) from error
            except _BROKEN as error:
                report = self._finish(orderly=False)
                raise IngestStopped(f"{self._source.name} cannot be read further: {error}", report) from error
            except BaseException:
                self._finish(orderly=False)
                raise

    def _shut_down(self) -> None:
        if self._fetchers:
            self._fetchers.shutdown(wait=True, cancel_futures=True)
        self._uploader.close()

    def _finish(self, *, orderly: bool) -> IngestReport:
        """Write what is embedded; when the job is over early, no longer than one try takes."""
        with keeping():
            if not orderly:
                self._patience.stop()
            try:
                self._send(0)
                self._uploader.drain()
                self._sink.flush()
            except StoreError:
                if orderly:
                    raise
            self._tell(0.0)
        return self.report

    def _own_share(self) -> Iterator[Entry]:
        """Yield the entries to look at."""
        options = self._options
        index, of = options.shard
        for found in self._source.entries():
            entry = replace(found, key=options.prefix + found.key) if options.prefix else found
            if (of == 1 or in_shard(entry.key, index, of)) and options.is_wanted(entry.key):
                yield entry

    def _wanted(self) -> Iterator[_Pending]:
        """Yield what is not in the store in its present state."""
        for group in in_groups(self._own_share()):
            self._count(seen=len(group))
            entries = [entry for entry in group if not self._is_problem(entry)]
            tags = self._etags(entries)
            ids = [point_id(entry.key) for entry in entries]
            stored = self._patience.ask(partial(self._sink.etags, ids)) if ids else {}
            skipped = 0
            for entry, tag, id_ in zip(entries, tags, ids, strict=True):
                if isinstance(tag, ImageError):
                    self._fail(entry.key, entry.source, str(tag), retryable=tag.retryable)
                elif stored.get(id_) == tag:
                    skipped += 1
                else:
                    yield _Pending(id_, tag, entry)
            self._count(skipped=skipped)
            self._tell(_BETWEEN_REPORTS)

    def _is_problem(self, entry: Entry) -> bool:
        if entry.problem is not None:
            self._fail(entry.key, entry.source, entry.problem, retryable=entry.retryable)
        return entry.problem is not None

    def _etags(self, entries: list[Entry]) -> list[str | ImageError]:
        """Return the etags, in order; content is read by several threads."""
        if self._options.etag == "stat" and all(entry.state is not None for entry in entries):
            return [entry.state or "" for entry in entries]
        return list(self._threads().map(self._etag, entries))

    def _etag(self, entry: Entry) -> str | ImageError:
        try:
            return etag(entry, self._options.etag, self._embedder.policy)
        except ImageError as error:
            return error

    def _fetched(self) -> Iterator[_Pending]:
        """Yield what is wanted, remote files and headers read by threads, some images ahead."""
        waiting: deque[tuple[_Pending, Future[Entry]]] = deque()
        for pending in self._wanted():
            if pending.entry.read is None and not self._options.facts:
                yield pending
                continue
            waiting.append((pending, self._threads().submit(self._completed, pending.entry)))
            if len(waiting) >= 2 * _FETCHES:
                yield from self._settled(*waiting.popleft())
        for each in waiting:
            yield from self._settled(*each)

    def _completed(self, entry: Entry) -> Entry:
        if entry.read is not None:
            entry = replace(entry, image=fetch(entry), read=None)
        if self._options.facts:
            facts = read_facts(entry.image, self._options.facts, self._embedder.policy)
            entry = replace(entry, payload=entry.payload | facts)
        return entry

    def _settled(self, pending: _Pending, done: Future[Entry]) -> Iterator[_Pending]:
        try:
            yield replace(pending, entry=done.result())
        except ImageError as error:
            self._fail(pending.entry.key, pending.entry.source, str(error), retryable=error.retryable)

    def _threads(self) -> ThreadPoolExecutor:
        if self._fetchers is None:
            self._fetchers = ThreadPoolExecutor(_FETCHES, "clip-embed-fetch")
        return self._fetchers

    def _take(self, batch: EmbeddedBatch) -> None:
        """Note the failures of a batch and bring its vectors on their way."""
        for failure in batch.failures:
            entry = failure.key.entry if isinstance(failure.key, _Pending) else Entry("")
            self._fail(entry.key, entry.source, failure.reason, retryable=failure.retryable)
        self._count(embedded=len(batch.vectors))
        if not self._ready:
            self._ready_since = time.monotonic()
        for key, vector in zip(batch.keys, batch.vectors, strict=True):
            if isinstance(key, _Pending):
                payload = {**key.entry.payload, KEY: key.entry.key, ETAG: key.etag}
                size = payload_bytes(payload) + _FLOAT_BYTES * len(vector)
                self._ready.append(_Ready(key.id, vector, payload, size))
        overdue = time.monotonic() - self._ready_since > _LONGEST_WAIT
        self._send(0 if overdue else _POINTS)
        self._uploader.look()
        self._tell(_BETWEEN_REPORTS)

    def _send(self, at_least: int) -> None:
        """Submit what is ready, in requests of bounded size, as long as `at_least` points are left."""
        while self._ready and len(self._ready) >= at_least:
            part = split([point.size for point in islice(self._ready, _POINTS)], _POINTS, _BYTES)[0]
            points, self._ready = self._ready[part], self._ready[part.stop :]
            vectors = np.stack([point.vector for point in points])
            self._uploader.submit(
                Points([point.id for point in points], vectors, [point.payload for point in points])
            )

    def _uploaded(self, outcome: Outcome) -> None:
        self._count(written=outcome.written)
        for key, reason in outcome.rejected:
            self._fail(key, key, f"the store refused it: {reason}", retryable=False)

    def _fail(self, key: str, source: str, reason: str, *, retryable: bool) -> None:
        failure = IngestFailure(key, source, reason, retryable)
        self._failures.add(failure)
        if self._options.on_error == "raise":
            raise StoreError(f'{failure} (on_error="raise")')

    def _count(self, *, seen: int = 0, skipped: int = 0, embedded: int = 0, written: int = 0) -> None:
        counts = self._counts
        self._counts = replace(
            counts,
            seen=counts.seen + seen,
            skipped=counts.skipped + skipped,
            embedded=counts.embedded + embedded,
            written=counts.written + written,
        )

    def _tell(self, pause: float) -> None:
        """Call `progress`, unless it was called just now."""
        now = time.monotonic()
        if self._progress and now - self._told >= pause:
            self._told = now
            self._progress(self.report)
