"""The SQLite file of a cache on disk: made, opened, checked, and set aside where it is damaged.

One table of rows in order of insertion, found by a unique key. Measured: WITHOUT ROWID, or touching rows
on read, costs many times as much.
"""

from __future__ import annotations

import ctypes
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from clip_embed._cache.mounts import network_file_system
from clip_embed._engine.fork import outlive_forks

T = TypeVar("T")
logger = logging.getLogger(__name__)

APPLICATION = 0x434C4950  # "CLIP", in the header of the file
SCHEMA = 1
_PAGE = 16384  # of 4,096 bytes a vector of 512 dimensions would leave half unused
_TABLE = """
    CREATE TABLE vectors (
        id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, checksum INTEGER NOT NULL, vector BLOB NOT NULL
    )
"""
_JOURNAL_BYTES = 32 * 1024 * 1024  # that the journal keeps between two commits
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DATABASE = "is a database of something else, not a cache: give another name"
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class DamagedFile(sqlite3.DatabaseError):
    """The file holds something else than it should."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


class CacheFile:
    """One connection to the file at `path`, opened where it is needed, for one thread at a time.

    It never crosses a fork: it is closed before, and both processes open their own where they need one.
    """

    def __init__(self, path: Path, *, timeout: float) -> None:
        self.path = path
        self._timeout = timeout
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._is_parents = False
        self._lock = threading.Lock()
        outlive_forks(self)

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """Do some work on the file; None where another process holds it, or it turns out to be damaged.

        A damaged cache is set aside. Raises sqlite3.Error and OSError where the file cannot be used, or is
        none.
        """
        with self._lock:
            try:
                return work(self._open())
            except sqlite3.Error as error:
                kind = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
                if kind in _DAMAGE:
                    was_cache = self._connection is not None
                    self._disconnect()
                    if self._identity == _identity(self.path):  # else another process did it already
                        if not was_cache and (foreign := _foreign(self.path)):
                            raise OSError(foreign) from error
                        _set_aside(self.path, error)
                elif kind in _BUSY:
                    logger.debug("the cache %s is held by another process: %s", self.path, error)
                else:
                    raise
        return None

    def close(self, *, only_if_moved: bool = False) -> None:
        """Let go of the file, or only if its name means another file by now."""
        with self._lock:
            if not only_if_moved or self._identity != _identity(self.path):
                self._disconnect()

    def _open(self) -> sqlite3.Connection:
        if self._is_parents:
            raise OSError("it was open during a fork that was not Python's")
        if self._connection is None:
            self._identity = _identity(self.path)
            self._connection = _open_file(self.path, self._timeout)
            self._identity = _identity(self.path)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):  # a damaged file cannot even be closed in order
                self._connection.close()
        self._connection = None

    def begin_fork(self) -> None:
        """Let go of the file until the fork is over: not even closing it would be safe in the child."""
        self._lock.acquire()
        self._disconnect()

    def end_fork(self) -> None:
        """Go on in the parent."""
        self._lock.release()

    def begin_child(self) -> None:
        """Go on in the child, unless the fork was not Python's and gave no notice."""
        self._lock = threading.Lock()
        if self._connection is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))  # so that it is never closed
            self._connection = None
            self._is_parents = True


def check_foreign(path: Path) -> None:
    """Raise ValueError for a folder, or a file that never was a cache; reads only its header."""
    if path.is_dir():
        raise ValueError(f"the cache {path} is a folder: give a file, such as {path / 'cache.db'}")
    if foreign := _foreign(path):
        raise ValueError(foreign)


def _foreign(path: Path) -> str | None:
    """Say why a file is none of ours by its header; None for a cache, an empty file, and where none is."""
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except OSError:
        return None
    if not header:
        return None
    if not header.startswith(b"SQLite format 3\0"):
        return f"{path} is a file of something else, not a cache: give another name, or delete it first"
    if header[68:72] != APPLICATION.to_bytes(4, "big"):
        return f"{path} {_DATABASE}"
    return None


def _open_file(path: Path, timeout: float) -> sqlite3.Connection:
    """Open the file, make it where there is none. Raises sqlite3.Error and OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
    try:
        deadline = time.monotonic() + timeout
        while True:
            try:
                _prepare(connection, path)
                break
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in _BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)  # the change to WAL does not wait for others by itself
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    remote = network_file_system(path)
    if number(connection, "PRAGMA page_count") and number(connection, "PRAGMA application_id") != APPLICATION:
        raise OSError(f"{path} {_DATABASE}")  # it came after `check_foreign`
    if is_new := not number(connection, "SELECT count(*) FROM sqlite_master"):
        connection.execute(f"PRAGMA page_size = {_PAGE}")
        with transaction(connection, "DEFERRED"):  # the first page never is without our mark
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # IMMEDIATE would be too late for it
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA journal_mode = {'DELETE' if remote else 'WAL'}")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA journal_size_limit = {_JOURNAL_BYTES}")
    if _is_current(connection):
        return
    with transaction(connection):
        if is_new and not number(connection, "SELECT count(*) FROM sqlite_master"):
            connection.execute(_TABLE)
            connection.execute(f"PRAGMA user_version = {SCHEMA}")
        elif not _is_current(connection):
            raise DamagedFile("it was made by another version of clip-embed")
    if remote:
        logger.warning(
            "the cache %s lies on a network file system (%s): it uses a rollback journal, which is slower",
            path,
            remote,
        )


def _is_current(connection: sqlite3.Connection) -> bool:
    stamp = (number(connection, "PRAGMA application_id"), number(connection, "PRAGMA user_version"))
    return stamp == (APPLICATION, SCHEMA)


def number(connection: sqlite3.Connection, query: str) -> int:
    """Return the one number that a query gives."""
    return int(connection.execute(query).fetchone()[0])


@contextmanager
def transaction(connection: sqlite3.Connection, kind: str = "IMMEDIATE") -> Generator[None]:
    """Write all that happens inside, or nothing."""
    connection.execute(f"BEGIN {kind}")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # SQLite rolls some errors back by itself
            connection.execute("ROLLBACK")
        raise


def _identity(path: Path) -> tuple[int, int] | None:
    """Say which file has this name now."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _set_aside(path: Path, reason: object) -> None:
    """Rename a damaged cache and its journal; what was set aside before stays. Raises OSError."""
    aside = _free_name(path)
    logger.warning("the cache %s is set aside as %s and begun anew: %s", path, aside.name, reason)
    path.with_name(f"{path.name}-shm").unlink(missing_ok=True)
    for ending in ("-wal", "-journal", ""):
        part = path.with_name(path.name + ending)
        if part.exists():
            part.replace(aside.with_name(aside.name + ending))


def _free_name(path: Path) -> Path:
    """Return where a file can be set aside, with an empty file there, so that nobody else takes it."""
    number = 1
    while True:
        aside = path.with_name(f"{path.name}.set-aside{'' if number == 1 else f'-{number}'}")
        if not any(aside.with_name(aside.name + ending).exists() for ending in ("-wal", "-journal")):
            with suppress(FileExistsError):
                aside.touch(exist_ok=False)
                return aside
        number += 1
