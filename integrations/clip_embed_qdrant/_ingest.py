"""From a source into a store: what is stored already is skipped, the rest is embedded and written.

The thread that calls lists the source, asks the store in groups which images it has in their present
state, and hands the others to the embedder's stream; decoding, the forward pass and the uploads go on
beside it. A point is acknowledged before it counts as written; ids follow from keys, so a point that
is written twice is the same point. Memory is bounded whatever the length of the source.
"""

from __future__ import annotations

import tarfile
import time
from collections.abc import Callable, Iterator
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
from clip_embed_qdrant._duplicates import Duplicates
from clip_embed_qdrant._entries import Entry, Source, in_groups, in_shard, payload_bytes, point_id
from clip_embed_qdrant._errors import IngestStopped, StoreError
from clip_embed_qdrant._options import Job, Options
from clip_embed_qdrant._reader import AHEAD, Pending, Reader
from clip_embed_qdrant._report import Failures, IngestFailure, IngestReport
from clip_embed_qdrant._seen import Seen
from clip_embed_qdrant._sink import CONTENT, ETAG, KEY, SAME_AS, Payload, Points
from clip_embed_qdrant._target import Target
from clip_embed_qdrant._upload import Outcome, Patience, Uploader, split

_POINTS = 256  # in one request
_BYTES = 16 * 1024 * 1024
_FLOAT_BYTES = 12  # of one number in JSON; 4 in gRPC
_LONGEST_WAIT = 2.0  # seconds until a vector is on its way to the store, full request or not
_BETWEEN_REPORTS = 0.2
# A source that breaks in the middle: the disk, the network, a torn file.
_BROKEN = (OSError, EOFError, pa.ArrowException, tarfile.TarError)


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
        target: Target,
        embedder: ClipEmbedder,
        source: Source,
        options: Options,
        progress: Callable[[IngestReport], object] | None = None,
    ) -> None:
        self._target = target
        self._sink = target.sink
        self._embedder = embedder
        self._source = source
        self._options = options
        self._progress = progress
        self._patience = Patience(options.patience)
        self._uploader = Uploader(target, self._patience, self._uploaded)
        self._duplicates: Duplicates[Pending] = Duplicates(target.sink)
        self._reader = Reader(options, embedder.policy)
        self._seen = None if source.keys_differ else Seen()
        self._failures = Failures()
        self._counts = IngestReport(failed=self._failures, job=Job(source, options))
        self._ready: list[_Ready] = []
        self._ready_since = 0.0
        self._begun = time.monotonic()
        self._told = 0.0
        self._broken: Exception | None = None

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
            images = ((item, cast("ImageInput", item.entry.image)) for item in self._without_duplicates())
            stream = self._embedder.stream_images(images)
            stack.callback(stream.close)  # after what is embedded is written: it waits for its threads
            try:
                for batch in stream:
                    self._take(batch)
                report = self._finish(orderly=True)
            except StoreError as error:
                raise IngestStopped(str(error), self._finish(orderly=False)) from error
            except BaseException:
                self._finish(orderly=False)
                raise
            if self._broken:
                reason = f"{self._source.name} cannot be read further: {self._broken}"
                raise IngestStopped(reason, report) from self._broken
            return report

    def _shut_down(self) -> None:
        self._reader.close()
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

    def _listed(self) -> Iterator[Entry]:
        """Yield the entries; where the source breaks, that is noted, and what was listed is still done."""
        try:
            yield from self._source.entries()
        except _BROKEN as error:
            self._broken = error

    def _own_share(self) -> Iterator[Entry]:
        """Yield the entries to look at."""
        options = self._options
        index, of = options.shard
        for found in self._listed():
            entry = replace(found, key=options.prefix + found.key) if options.prefix else found
            if (of == 1 or entry.is_file or in_shard(entry.key, index, of)) and options.is_wanted(entry.key):
                yield entry

    def _wanted(self) -> Iterator[Pending]:
        """Yield what is not in the store in its present state."""
        for group in in_groups(self._own_share()):
            self._count(seen=len(group))
            entries = self._first_of_each([entry for entry in group if not self._is_problem(entry)])
            tags = self._reader.etags(entries)
            ids = [point_id(entry.key) for entry in entries]
            known = [tag if isinstance(tag, str) else "" for tag in tags]
            standing = self._patience.ask(partial(self._target.standing, ids, known)) if ids else []
            skipped = 0
            for entry, tag, id_, stands in zip(entries, tags, ids, standing, strict=True):
                if isinstance(tag, ImageError):
                    self._fail(entry.key, entry.source, str(tag), retryable=tag.retryable)
                elif isinstance(stands, str):
                    self._fail(entry.key, entry.source, stands, retryable=True)
                elif stands:
                    skipped += 1
                else:
                    yield Pending(id_, tag, entry)
            self._count(skipped=skipped)
            self._tell(_BETWEEN_REPORTS)

    def _first_of_each(self, entries: list[Entry]) -> list[Entry]:
        """Leave out, as failed, images whose key another one of the source had: they would replace it."""
        if self._seen is None:
            return entries
        again = self._seen.again([point_id(entry.key) for entry in entries])
        for entry, is_repeated in zip(entries, again, strict=True):
            if is_repeated:
                reason = f"another image of this source has the key {entry.key!r} too: give each its own"
                self._fail(entry.key, entry.source, reason, retryable=False)
        return [entry for entry, is_repeated in zip(entries, again, strict=True) if not is_repeated]

    def _is_problem(self, entry: Entry) -> bool:
        if entry.problem is not None:
            self._fail(entry.key, entry.source, entry.problem, retryable=entry.retryable)
        return entry.problem is not None

    def _read(self) -> Iterator[Pending]:
        """Yield what is wanted, with what has to be read of it."""
        for pending in self._reader.read(self._wanted()):
            if pending.problem is None:
                yield pending
            else:
                entry, problem = pending.entry, pending.problem
                self._fail(entry.key, entry.source, str(problem), retryable=problem.retryable)

    def _without_duplicates(self) -> Iterator[Pending]:
        """Yield what is to be embedded; an image whose content is known takes the vector that is there."""
        if not self._options.links:
            yield from self._read()
            return
        read = self._read()
        while group := list(islice(read, AHEAD)):
            contents = [item.content for item in group if item.content is not None]
            known = self._patience.ask(partial(self._duplicates.known, contents))
            for item in group:
                content = item.content or ""
                first, vector = known.get(content, ("", self._duplicates.recent(content)))
                if vector is not None:
                    self._count(linked=1)
                    self._add(item, vector, CONTENT if first == item.id else SAME_AS)
                elif not self._duplicates.wait(content, item):
                    yield item
            self._send(_POINTS)

    def _take(self, batch: EmbeddedBatch) -> None:
        """Note the failures of a batch and bring its vectors on their way."""
        for failure in batch.failures:
            if isinstance(failure.key, Pending):
                for item in [failure.key, *self._alike(failure.key, None)]:
                    entry = item.entry
                    self._fail(entry.key, entry.source, failure.reason, retryable=failure.retryable)
        self._count(embedded=len(batch.vectors))
        for key, vector in zip(batch.keys, batch.vectors, strict=True):
            if isinstance(key, Pending):
                self._add(key, vector, CONTENT)
                for item in self._alike(key, vector):
                    self._count(linked=1)
                    self._add(item, vector, SAME_AS)
        overdue = time.monotonic() - self._ready_since > _LONGEST_WAIT
        self._send(0 if overdue else _POINTS)
        self._uploader.look()
        self._tell(_BETWEEN_REPORTS)

    def _alike(self, item: Pending, vector: Float32 | None) -> list[Pending]:
        """Return the images of the same content that waited for this one."""
        return [] if item.content is None else self._duplicates.done(item.content, vector)

    def _add(self, item: Pending, vector: Float32, field: str) -> None:
        """Make a point ready; its content, where it is known, stands in that field of the payload."""
        payload = {**item.entry.payload, KEY: item.entry.key, ETAG: item.etag}
        if item.content is not None:
            payload[field] = item.content
        if not self._ready:
            self._ready_since = time.monotonic()
        size = payload_bytes(payload) + _FLOAT_BYTES * len(vector)
        self._ready.append(_Ready(item.id, vector, payload, size))

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

    def _count(self, **more: int) -> None:
        """Add to fields of the report."""
        counts = self._counts
        self._counts = replace(counts, **{name: getattr(counts, name) + by for name, by in more.items()})

    def _tell(self, pause: float) -> None:
        """Call `progress`, unless it was called just now."""
        now = time.monotonic()
        if self._progress and now - self._told >= pause:
            self._told = now
            self._progress(self.report)
