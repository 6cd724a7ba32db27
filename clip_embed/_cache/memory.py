"""Vectors by content, so that nothing is embedded twice: in memory, and on disk behind it."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from clip_embed._engine.fork import outlive_forks
from clip_embed._types import Float32
from clip_embed.errors import ImageError

if TYPE_CHECKING:
    from clip_embed._cache.disk import DiskCache

_ENTRY_OVERHEAD = 300  # bytes of key, dictionary slot and array header
_SMALLEST_FILE = 1024 * 1024


class EmbeddingCache:
    """Keeps the vectors of images and texts, in memory and, where a `path` is given, in a file.

    >>> from clip_embed import ClipEmbedder, EmbeddingCache
    >>> cache = EmbeddingCache("~/.cache/photos.cache")
    >>> clip = ClipEmbedder("offline", cache=cache)

    A vector is found by the SHA-256 of the image file's bytes (or of the text), the model's space and
    the recipe: one that was computed as precisely or more precisely serves, one computed less precisely
    never does. Vectors are kept as float32: what is found is bit for bit what was computed. Images that
    are no files (arrays, PIL images) are not kept. Files that are no images are remembered in memory
    only, under the policy's limits: another version of a decoder may read them.

    `memory_bytes` bounds the memory (what was not used for longest goes first), `max_bytes` the file
    (the oldest go first; the journal beside it, "-wal", is extra, some tens of MB). Embedders, threads
    and processes may share the file; it is SQLite, in WAL mode but on network file systems. A cache that
    is damaged or of another version is renamed to "….set-aside" and begun anew; where the file cannot be
    written, the memory goes on alone. Both are logged as warnings. A vector reaches the file with
    the end of the call that made it, or a second later in a long one.

    Raises ValueError where the path is a folder or a file of something else, or a limit too small.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        max_bytes: int = 2 * 1024**3,
        memory_bytes: int = 256 * 1024**2,
    ) -> None:
        if max_bytes < _SMALLEST_FILE or memory_bytes < 0:
            raise ValueError(f"max_bytes must be at least {_SMALLEST_FILE:,} and memory_bytes at least 0")
        self._path = None if path is None else Path(path).expanduser().absolute()
        self._limits = (max_bytes, memory_bytes)
        self._memory = MemoryCache(memory_bytes)
        self._disk: DiskCache | None = None
        if self._path is not None:
            from clip_embed._cache.disk import DiskCache
            from clip_embed._cache.file import check_foreign

            check_foreign(self._path)
            self._disk = DiskCache(self._path, max_bytes)
            weakref.finalize(self, self._disk.close)  # at the end of the program, too

    def __repr__(self) -> str:
        return f"EmbeddingCache({str(self._path) if self._path else None!r})"

    @property
    def path(self) -> Path | None:
        """The file, None where there is only memory."""
        return self._path

    def __reduce__(self) -> tuple[Callable[..., EmbeddingCache], tuple[object, ...]]:
        """Travel to another process as path and limits: the file is shared, the memory is not."""
        return _reopen, (self._path, *self._limits)

    def __len__(self) -> int:
        """Return the number of vectors: those in the file, or in memory where there is none."""
        return self._memory.count() if self._disk is None else self._disk.count()

    def __bool__(self) -> bool:
        return True  # an empty cache is a cache

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Commit and let go of the file; idempotent, and the next use opens it again."""
        if self._disk is not None:
            self._disk.close()

    def clear(self) -> None:
        """Forget everything, also what other processes have put into the file."""
        self._memory.clear()
        if self._disk is not None:
            self._disk.clear()

    def get(self, keys: Sequence[bytes]) -> Float32 | None:
        """Return the vector (d,) of the first key that is known, None where none is."""
        for key in keys:
            known = self._memory.get(key)
            if known is not None and not isinstance(known, ImageError):
                return known
        found = self._disk.get(keys) if self._disk is not None else None
        if found is not None:
            self._memory.put(keys[0], found)
        return found

    def put(self, key: bytes, vector: Float32) -> None:
        """Keep a vector (d,); it is copied."""
        self._memory.put(key, vector)
        if self._disk is not None:
            self._disk.put(key, vector)

    def get_failure(self, key: bytes) -> ImageError | None:
        """Return why some content is no image, None where that is not known."""
        known = self._memory.get(key)
        return known if isinstance(known, ImageError) else None

    def put_failure(self, key: bytes, error: ImageError) -> None:
        """Keep why some content is no image; what may go away by itself is not kept."""
        self._memory.put(key, error)

    def commit(self) -> None:
        """Write to the file what is not written yet."""
        if self._disk is not None:
            self._disk.commit()


def _reopen(path: Path | None, max_bytes: int, memory_bytes: int) -> EmbeddingCache:
    return EmbeddingCache(path, max_bytes=max_bytes, memory_bytes=memory_bytes)


class MemoryCache:
    """Bounded, thread-safe: key -> vector, or why the content is no image.

    Only failures of the content itself are kept, never a missing file or a permission.
    The entries that were not used for longest go first.
    """

    def __init__(self, max_bytes: int = 256 * 1024**2) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[bytes, Float32 | ImageError] = OrderedDict()
        self.begin_child()
        outlive_forks(self)

    def begin_child(self) -> None:
        """Make the lock, anew after a fork."""
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Float32 | ImageError | None:
        """Return the vector (d,), the error, or None where the key is not known."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
            return entry

    def put(self, key: bytes, entry: Float32 | ImageError) -> None:
        """Remember an entry; errors that may go away by themselves are not kept."""
        if isinstance(entry, ImageError) and entry.retryable:
            return
        # A copy and a fresh error: a row keeps its whole batch alive, a traceback the encoded image.
        kept = ImageError(str(entry)) if isinstance(entry, ImageError) else entry.copy()
        with self._lock:
            if key in self._entries:
                return
            self._entries[key] = kept
            self._bytes += _size(kept)
            while self._bytes > self._max_bytes:
                _, old = self._entries.popitem(last=False)
                self._bytes -= _size(old)

    def count(self) -> int:
        """Return the number of vectors."""
        with self._lock:
            return sum(not isinstance(entry, ImageError) for entry in self._entries.values())

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0


def _size(entry: Float32 | ImageError) -> int:
    return _ENTRY_OVERHEAD + (0 if isinstance(entry, ImageError) else entry.nbytes)
