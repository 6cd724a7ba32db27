"""What is in the files that were read, so that a second query need not read them again."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import OrderedDict

from clip_embed_duckdb._names import is_absolute

_SETTLED = 5.0  # seconds: more than DuckDB's times are coarse (1 s), and those of file systems (2 s)


class Digests:
    """SHA-256 of the content of files, by name, size and time of change; thread-safe, bounded.

    It belongs to one database, as names do. It opens nothing: who has a stamp has got it from
    DuckDB, which checks on each query whether the file may be read.
    """

    def __init__(self, most: int = 2**18) -> None:
        self._most = most
        self._known: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, stamp: bytes) -> bytes | None:
        """Return the digest of the file with this stamp, None where it is not known."""
        with self._lock:
            return self._known.get(stamp)

    def put(self, stamp: bytes, digest: bytes) -> None:
        """Remember a file; those that were read first go first. Nothing without both is remembered."""
        if stamp and digest:
            with self._lock:
                self._known[stamp] = digest
                if len(self._known) > self._most:
                    self._known.popitem(last=False)


def make_stamp(name: str, size: int, modified: int | None, asked: float) -> bytes:
    """Return what changes when a file does; empty where its time does not tell.

    `modified` is in microseconds, `asked` in seconds before DuckDB was asked for it. A file that was
    written just then may be written again with no other time to show for it, as in the same second.
    One that is replaced later with its size and its old time kept is taken for the old one, as by make.
    """
    if modified is None or modified / 1e6 > asked - _SETTLED:
        return b""
    where = name if is_absolute(name) else f"{os.getcwd()}/{name}"  # noqa: PTH109 - the very text
    facts = f"{where}\0{size}\0{modified}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(facts, digest_size=16).digest()


def now() -> float:
    """Return the time that files are stamped with, in seconds."""
    return time.time()
