"""What has to be read of an image before it is embedded: etags, remote files, headers, digests."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from clip_embed._types import ImagePolicy
from clip_embed.errors import ImageError
from clip_embed_qdrant._entries import Entry, etag, fetch
from clip_embed_qdrant._facts import read_facts
from clip_embed_qdrant._options import Options

_THREADS = 16
AHEAD = 2 * _THREADS  # images


@dataclass(frozen=True, slots=True)
class Pending:
    """An entry that is to be embedded."""

    id: str
    etag: str
    entry: Entry
    content: str | None = None
    """Digest of its bytes, where duplicates share a vector."""
    problem: ImageError | None = None
    """Why it could not be read."""


class Reader:
    """Reads by several threads, some images ahead."""

    def __init__(self, options: Options, policy: ImagePolicy) -> None:
        self._options = options
        self._policy = policy
        self._pool: ThreadPoolExecutor | None = None

    def etags(self, entries: list[Entry]) -> list[str | ImageError]:
        """Return the etags, in order, or why there is none."""
        if self._options.etag == "stat" and all(entry.state is not None for entry in entries):
            return [entry.state or "" for entry in entries]
        return list(self._threads().map(self._etag, entries))

    def read(self, pendings: Iterable[Pending]) -> Iterator[Pending]:
        """Yield them in order with what was to be read, or with the problem."""
        options = self._options
        waiting: deque[Future[Pending]] = deque()
        for pending in pendings:
            if pending.entry.read is None and not options.facts and not options.links:
                yield pending
                continue
            waiting.append(self._threads().submit(self._completed, pending))
            if len(waiting) >= AHEAD:
                yield waiting.popleft().result()
        for each in waiting:
            yield each.result()

    def close(self) -> None:
        """End the threads."""
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _etag(self, entry: Entry) -> str | ImageError:
        try:
            return etag(entry, self._options.etag, self._policy)
        except ImageError as error:
            return error

    def _completed(self, pending: Pending) -> Pending:
        entry, content = pending.entry, None
        try:
            if entry.read is not None:
                entry = replace(entry, image=fetch(entry), read=None)
            if self._options.links:
                content = etag(entry, "sha256", self._policy)
        except ImageError as error:
            return replace(pending, problem=error)
        if self._options.facts:
            facts = read_facts(entry.image, self._options.facts, self._policy)
            entry = replace(entry, payload=entry.payload | facts)
        return replace(pending, entry=entry, content=content)

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS, "clip-embed-fetch")
        return self._pool
