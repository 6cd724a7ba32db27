"""Images of the same content: one of them is embedded, the others take its vector.

The one that is embedded notes its content in `_content`, those that take its vector in `_same_as`. Each
keeps a point of its own, so that filters, `verify` and `prune` treat it like any other image.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Generic, TypeVar

from clip_embed._types import Float32
from clip_embed_qdrant._filters import AnyOf, Condition, Equals
from clip_embed_qdrant._sink import CONTENT, SAME_AS, Payload, Sink

T = TypeVar("T")

_RECENT = 4_096  # vectors that may not be in the store yet
_COPIES = 4  # several machines may have embedded the same content


class Duplicates(Generic[T]):
    """Knows which contents are stored, and which are under way."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._recent: OrderedDict[str, Float32] = OrderedDict()
        self._waiting: dict[str, list[T]] = {}

    def known(self, contents: Iterable[str]) -> dict[str, tuple[str, Float32]]:
        """Return id and vector of the stored images that have these contents."""
        wanted = tuple(Equals(CONTENT, content) for content in set(contents))
        if not wanted:
            return {}
        found = self._sink.matching(AnyOf(wanted), _COPIES * len(wanted), vector=self._sink.vector)
        return {
            str(point.payload[CONTENT]): (point.id, point.vector)
            for point in found
            if point.vector is not None
        }

    def recent(self, content: str) -> Float32 | None:
        """Return the vector of a content that was embedded just now."""
        return self._recent.get(content)

    def wait(self, content: str, item: T) -> bool:
        """Whether the content is being embedded: then the item comes back from `done`."""
        if content in self._waiting:
            self._waiting[content].append(item)
            return True
        self._waiting[content] = []
        return False

    def done(self, content: str, vector: Float32 | None) -> list[T]:
        """Note what became of a content, None for a failure; return what waited for it."""
        if vector is not None:
            self._recent[content] = vector
            if len(self._recent) > _RECENT:
                self._recent.popitem(last=False)
        return self._waiting.pop(content, [])


def same_content(payloads: Iterable[Payload]) -> Condition | None:
    """Return the filter for all images whose content is that of one of these; None where none notes it."""
    contents = {content for payload in payloads if (content := content_of(payload)) is not None}
    parts = [Equals(field, content) for content in sorted(contents) for field in (CONTENT, SAME_AS)]
    return AnyOf(tuple(parts)) if parts else None


def content_of(payload: Payload) -> str | None:
    """Return the content that an image notes."""
    found = payload.get(CONTENT, payload.get(SAME_AS))
    return None if found is None else str(found)
