"""The level of a cache that lies on disk: rows are collected and committed many at a time.

Reading and writing have a connection each, so that no lookup waits for a commit. Whatever goes wrong
with the file, the worst that follows is that vectors are computed again.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from clip_embed._cache.file import CacheFile, DamagedFile, number, transaction
from clip_embed._engine.fork import outlive_forks
from clip_embed._types import Float32

T = TypeVar("T")
logger = logging.getLogger(__name__)

ROWS_PER_COMMIT = 4096  # fewer cost several times as much a row
_SECONDS_PENDING = 1.0
_MAX_PENDING = 4 * ROWS_PER_COMMIT  # while another process holds the file
_READ_TIMEOUT, _WRITE_TIMEOUT = 1.0, 2.0  # seconds to wait for another process
_REST = 5.0  # seconds without lookups after one that waited in vain
_ROW_OVERHEAD = 100  # bytes of key, index entry and cells
Row = tuple[bytes, bytes]


class DiskCache:
    """float32 vectors by key in a SQLite file of at most `max_bytes`; the oldest rows go first.

    Thread-safe. A file that is damaged is set aside and begun anew; where the disk is full or cannot
    be written, there is one warning, and from then on nothing is kept or found.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._max_batch_bytes = max_bytes // 8
        self._off = False
        self._reader = CacheFile(path, timeout=_READ_TIMEOUT)
        self._writer = CacheFile(path, timeout=_WRITE_TIMEOUT)
        self._pending: dict[bytes, bytes]
        self._pending_since = 0.0
        self._resting_until = 0.0
        self.begin_child()
        outlive_forks(self)

    def get(self, keys: Sequence[bytes]) -> Float32 | None:
        """Return the vector (d,) of the first key that is known."""
        for key in keys:
            if (pending := self._pending.get(key)) is not None:
                return np.frombuffer(pending, "<f4").astype(np.float32)
        began = time.monotonic()
        if began < self._resting_until:
            return None
        row = self._guarded(self._reader, lambda connection: _find(connection, keys))
        if row is None:
            if time.monotonic() - began > _READ_TIMEOUT:
                self._resting_until = time.monotonic() + _REST
            return None
        return np.frombuffer(row, "<f4").astype(np.float32)

    def put(self, key: bytes, vector: Float32) -> None:
        """Remember a vector (d,); it is committed with others, soon."""
        row = vector.astype("<f4").tobytes()
        with self._filling:
            if self._off or key in self._pending:
                return
            if not self._pending:
                self._pending_since = time.monotonic()
            self._pending[key] = row
            self._pending_bytes += len(row) + _ROW_OVERHEAD
            if len(self._pending) > _MAX_PENDING:
                self._forget([next(iter(self._pending))])
            full = len(self._pending) >= ROWS_PER_COMMIT or self._pending_bytes >= self._max_batch_bytes
            due = full or time.monotonic() - self._pending_since > _SECONDS_PENDING
        if due and not self._is_committing:
            self.commit()

    def commit(self) -> None:
        """Write what is pending; what cannot be written now stays pending."""
        if not self._pending:
            return
        with self._committing:
            self._is_committing = True
            try:
                for file in (self._reader, self._writer):
                    file.close(only_if_moved=True)
                while batch := self._next_batch():
                    if not self._guarded(self._writer, partial(self._write, rows=batch)):
                        break
                    with self._filling:
                        self._forget([key for key, _ in batch])
            finally:
                self._is_committing = False
                self._pending_since = time.monotonic()

    def close(self) -> None:
        """Commit and let go of the file; it is opened again where it is needed."""
        self.commit()
        self._writer.close()
        self._reader.close()

    def count(self) -> int:
        """Return how many vectors there are."""
        self.commit()
        return self._guarded(self._reader, lambda con: number(con, "SELECT count(*) FROM vectors")) or 0

    def clear(self) -> None:
        """Forget everything, and give the space back."""
        with self._filling:
            self._forget(list(self._pending))
        self._guarded(self._writer, _delete_all)

    def _write(self, connection: sqlite3.Connection, rows: Sequence[Row]) -> bool:
        with transaction(connection):
            needed = sum(len(row) + _ROW_OVERHEAD for _, row in rows) * 5 // 4  # pages are not quite full
            _make_room(connection, needed, self._max_bytes)
            connection.executemany(
                "INSERT OR IGNORE INTO vectors (key, checksum, vector) VALUES (?, ?, ?)",
                ((key, _checksum(key, row), row) for key, row in rows),
            )
        _shrink(connection, self._max_bytes)
        return True

    def _next_batch(self) -> list[Row]:
        """Return the oldest pending rows, of which at least one, but no more than fit into a commit."""
        batch: list[Row] = []
        room = self._max_batch_bytes
        with self._filling:
            for key, row in self._pending.items():
                if batch and (len(row) > room or len(batch) == ROWS_PER_COMMIT):
                    break
                batch.append((key, row))
                room -= len(row) + _ROW_OVERHEAD
        return batch

    def _forget(self, keys: Sequence[bytes]) -> None:
        """Drop what is pending; needs the lock."""
        for key in keys:
            row = self._pending.pop(key, None)
            self._pending_bytes -= len(row) + _ROW_OVERHEAD if row is not None else 0

    def _guarded(self, file: CacheFile, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """Do some work on the file; None where that cannot be done, now or at all."""
        if self._off:
            return None
        try:
            return file.run(work)
        except (sqlite3.Error, OSError) as error:
            with self._filling:  # of several threads one says so
                was_off, self._off = self._off, True
                self._pending = {}
                self._pending_bytes = 0
            if not was_off:
                logger.warning("the cache %s is not used from here on: %s", self._path, error)
            return None

    def begin_child(self) -> None:
        """Begin anew after a fork: what is pending is the parent's to write."""
        self._filling = threading.Lock()
        self._committing = threading.Lock()
        self._is_committing = False
        self._pending = {}
        self._pending_bytes = 0


def _find(connection: sqlite3.Connection, keys: Sequence[bytes]) -> bytes | None:
    """Return the row of the first key that is there."""
    marks = ",".join("?" * len(keys))
    query = f"SELECT key, checksum, vector FROM vectors WHERE key IN ({marks})"  # noqa: S608 - only marks
    found = {key: (checksum, row) for key, checksum, row in connection.execute(query, keys).fetchall()}
    for key in keys:
        if key in found:
            checksum, row = found[key]
            if not isinstance(row, bytes) or _checksum(key, row) != checksum:
                raise DamagedFile("a row does not have its checksum")
            return row
    return None


def _delete_all(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM vectors")
    _shrink(connection, 0)


def _make_room(connection: sqlite3.Connection, needed: int, max_bytes: int) -> None:
    """Delete the oldest rows until so many bytes more fit; within a transaction."""
    while (excess := _used(connection) + needed - max_bytes) > 0:
        first, last = connection.execute("SELECT min(id), max(id) FROM vectors").fetchone()
        if first is None:
            return
        bytes_per_row = max(1, _used(connection) // (last - first + 1))
        until = first + excess // bytes_per_row + (last - first) // 50 + 1  # some more: not for each commit
        connection.execute("DELETE FROM vectors WHERE id < ?", (until,))


def _shrink(connection: sqlite3.Connection, max_bytes: int) -> None:
    """Give back what the file is longer than it may be, as far as it is free."""
    over = number(connection, "PRAGMA page_count") - max_bytes // number(connection, "PRAGMA page_size")
    if (free := min(over, number(connection, "PRAGMA freelist_count"))) > 0:
        connection.executescript(f"PRAGMA incremental_vacuum({free})")  # execute() would free one page
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _used(connection: sqlite3.Connection) -> int:
    pages = number(connection, "PRAGMA page_count") - number(connection, "PRAGMA freelist_count")
    return pages * number(connection, "PRAGMA page_size")


def _checksum(key: bytes, row: bytes) -> int:
    """Cover the key as well: a damaged index may lead to the row of another."""
    return zlib.crc32(row, zlib.crc32(key))
