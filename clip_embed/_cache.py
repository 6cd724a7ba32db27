"""Vectors by content, so that nothing is embedded twice."""

from __future__ import annotations

import threading
from collections import OrderedDict

from clip_embed._types import Float32
from clip_embed.errors import ImageError

_ENTRY_OVERHEAD = 300  # bytes of key, dictionary slot and array header


class MemoryCache:
    """Bounded, thread-safe: digest of the content -> vector, or why the content is no image.

    Only failures of the content itself are kept, never a missing file or a permission.
    The entries that were not used for longest go first.
    """

    def __init__(self, max_bytes: int = 256 * 1024 * 1024) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[bytes, Float32 | ImageError] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, content: bytes) -> Float32 | ImageError | None:
        """Return the vector (d,), the error, or None where the content is not known."""
        with self._lock:
            entry = self._entries.get(content)
            if entry is not None:
                self._entries.move_to_end(content)
            return entry

    def put(self, content: bytes, entry: Float32 | ImageError) -> None:
        """Remember an entry; errors that may go away by themselves are not kept."""
        if isinstance(entry, ImageError) and entry.retryable:
            return
        # A copy and a fresh error: a row keeps its whole batch alive, a traceback the encoded image.
        kept = ImageError(str(entry)) if isinstance(entry, ImageError) else entry.copy()
        with self._lock:
            if content in self._entries:
                return
            self._entries[content] = kept
            self._bytes += _size(kept)
            while self._bytes > self._max_bytes:
                _, old = self._entries.popitem(last=False)
                self._bytes -= _size(old)


def _size(entry: Float32 | ImageError) -> int:
    return _ENTRY_OVERHEAD + (0 if isinstance(entry, ImageError) else entry.nbytes)
