"""Holding a store against its source."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from clip_embed._types import ImagePolicy
from clip_embed.errors import ImageError
from clip_embed_qdrant._entries import EtagKind, Source, etag, in_groups, point_id
from clip_embed_qdrant._errors import StoreError
from clip_embed_qdrant._origins import nothing_listed
from clip_embed_qdrant._report import Failures, IngestFailure
from clip_embed_qdrant._seen import contains, short_id
from clip_embed_qdrant._sink import ETAG, KEY, Found, Sink

MISSING = "it is not in the store"
CHANGED = "it has changed since it was written"
EXTRA = "it is in the store, but not in the source"


@dataclass(frozen=True, slots=True)
class Verification:
    """How a store and its source differ; `bool` of it is whether they do not."""

    seen: int
    """Images that the source listed."""
    missing: int
    """Of them, those that are not in the store."""
    changed: int
    """Of them, those whose etag is another now."""
    unreadable: int
    """Of them, those that cannot be looked at."""
    extra: int
    """Points of the store whose image the source does not list."""
    problems: Failures = field(repr=False)
    """Each of these with its reason."""

    def __bool__(self) -> bool:
        return not (self.missing or self.changed or self.unreadable or self.extra)

    def __str__(self) -> str:
        return (
            f"{self.seen:,} images, {self.missing:,} missing, {self.changed:,} changed, "
            f"{self.unreadable:,} unreadable, {self.extra:,} extra"
        )


def verify(
    sink: Sink, source: Source, *, prefix: str, others: tuple[str, ...], kind: EtagKind, policy: ImagePolicy
) -> Verification:
    """Compare each image of the source with what the store says of it; no image is decoded.

    Keys that begin with one of the `others` are of other sources, and not extra.
    """
    problems = Failures()
    counts: dict[str, int] = dict.fromkeys(("missing", "changed", "unreadable", "extra"), 0)

    def note(what: str, key: str, name: str, reason: str) -> None:
        counts[what] += 1
        problems.add(IngestFailure(key, name, reason, retryable=True))

    known = array("Q")
    for group in in_groups(source.entries()):
        ids = [point_id(prefix + entry.key) for entry in group]
        known.extend(map(short_id, ids))
        stored = sink.etags(ids)
        for entry, id_ in zip(group, ids, strict=True):
            tag, problem = None, entry.problem
            try:
                tag = None if problem else etag(entry, kind, policy)
            except ImageError as error:
                problem = str(error)
            if problem:
                note("unreadable", prefix + entry.key, entry.source, problem)
                continue
            if id_ not in stored:
                note("missing", prefix + entry.key, entry.source, MISSING)
            elif stored[id_] != tag:
                note("changed", prefix + entry.key, entry.source, CHANGED)
    for page in _others(sink, known, prefix, others):
        for point in page:
            key = str(point.payload.get(KEY, point.id))
            note("extra", key, key, EXTRA)
    return Verification(len(known), problems=problems, **counts)


def prune(sink: Sink, source: Source, *, prefix: str, others: tuple[str, ...]) -> int:
    """Remove the points whose image the source no longer lists; return how many.

    Keys that begin with one of the `others` are of other sources, and stay.

    Raises StoreError, and removes nothing, where the source is empty or cannot be listed to its end.
    """
    known = array("Q")
    for entry in source.entries():
        if entry.problem is not None and entry.key.endswith("/"):
            raise StoreError(f"{entry.source}: {entry.problem}; nothing was pruned")
        known.append(short_id(point_id(prefix + entry.key)))
    if not known:
        raise StoreError(nothing_listed(source, "nothing was pruned"))
    removed = 0
    pages = list[list[str]]()
    for page in _others(sink, known, prefix, others):
        pages.append([point.id for point in page])
    for ids in pages:
        sink.delete(ids)
        removed += len(ids)
    sink.flush()
    return removed


def _others(sink: Sink, known: array[int], prefix: str, others: tuple[str, ...]) -> Iterator[list[Found]]:
    """Yield the points below a prefix, as far as ingest wrote them, that are none of the known ones.

    Ids are compared by half their bits, 8 bytes an image: two that agree in those keep a point alive.
    """
    sorted_ids = np.sort(np.frombuffer(known, np.uint64)) if known else np.empty(0, np.uint64)
    for page in sink.scroll():
        ours = [
            point
            for point in page
            if ETAG in point.payload and _is_below(str(point.payload.get(KEY)), prefix, others)
        ]
        if not ours:
            continue
        ids = np.array([short_id(point.id) for point in ours], np.uint64)
        inside = contains(sorted_ids, ids)
        if not inside.all():
            yield [point for point, is_known in zip(ours, inside.tolist(), strict=True) if not is_known]


def _is_below(key: str, prefix: str, others: tuple[str, ...]) -> bool:
    return key.startswith(prefix) and not key.startswith(others)
