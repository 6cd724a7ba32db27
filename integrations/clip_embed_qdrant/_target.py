"""What an ingest writes to: the vectors in use, or during a migration those beside them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from clip_embed_qdrant._filters import All, HasId, HasVector
from clip_embed_qdrant._sink import ETAG, Points, Sink


class Target:
    """The vectors in use of a store; `begun` is called once, when the first points are written."""

    def __init__(
        self, sink: Sink, *, migrating: bool = False, begun: Callable[[], None] | None = None
    ) -> None:
        self.sink = sink
        self.streams = sink.streams
        self._migrating = migrating
        self._begun = begun
        self._turn = threading.Lock()

    def standing(self, ids: Sequence[str], etags: Sequence[str]) -> list[bool | str]:
        """Return whether each image is stored in that state; a text says why it is not to be taken at all."""
        stored = self.sink.etags(ids)
        # What was written with the other model alone would not be found.
        complete = _having(self.sink, ids, self.sink.vector) if self._migrating else stored.keys()
        return [stored.get(id_) == tag and id_ in complete for id_, tag in zip(ids, etags, strict=True)]

    def write(self, points: Points) -> None:
        """Insert or replace points."""
        self.sink.write(points)
        with self._turn:
            begun, self._begun = self._begun, None
            if begun:
                begun()


class Beside(Target):
    """The vectors beside those in use: only of images that are stored, in the state in which they are."""

    def __init__(self, sink: Sink, name: str) -> None:
        super().__init__(sink)
        self._name = name

    def standing(self, ids: Sequence[str], etags: Sequence[str]) -> list[bool | str]:
        """Return whether each image has its vector; a text says why it is to have none."""
        stored = self.sink.etags(ids)
        done = _having(self.sink, ids, self._name)
        found: list[bool | str] = []
        for id_, tag in zip(ids, etags, strict=True):
            if id_ not in stored:
                found.append("it is not in the store: ingest it first")
            elif stored[id_] != tag:
                found.append("it has changed since it was ingested: ingest it again first")
            else:
                found.append(id_ in done)
        return found

    def write(self, points: Points) -> None:
        """Add vectors to points; what another process has replaced meanwhile is left without."""
        self.sink.write_beside(points, self._name)
        stored = self.sink.etags(points.ids)
        stale = [
            id_
            for id_, payload in zip(points.ids, points.payloads, strict=True)
            if id_ in stored and stored[id_] != payload[ETAG]
        ]
        if stale:
            self.sink.remove_vectors(stale, self._name)


def _having(sink: Sink, ids: Sequence[str], name: str) -> set[str]:
    """Return those of the ids that have a vector of a name."""
    condition = All((HasId(tuple(ids)), HasVector(name)))
    return {point.id for point in sink.matching(condition, len(ids))}
