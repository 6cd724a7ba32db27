"""A store in a folder: a shard of Qdrant Edge, a file that says what is in it, and a lock.

::

    photos.clip/
    ├── store.json     model, space, probe (`Meta`), replaced by atomic rename
    ├── lock           held by the one process that has the shard open
    ├── owner.json     where that process answers those who only read
    └── shard/         Qdrant Edge
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import portalocker

from clip_embed_qdrant._errors import StoreError, StoreLocked
from clip_embed_qdrant._filters import Condition
from clip_embed_qdrant._neighbour import Answering, Neighbour
from clip_embed_qdrant._shard import Shard, create_shard
from clip_embed_qdrant._sink import VECTOR, Condensed, Found, IndexKind, Meta, Points, Query

_ROOM = 128 * 1024 * 1024  # bytes
_OURS = {"lock", "owner.json", "shard", "shard.new", "store.json", "store.json.new"}


class EdgeSink:
    """A `Sink` over a folder. Whoever opens the shard first has it; the others can read through them."""

    streams = 1

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self.where = str(folder)
        self.vector = VECTOR
        self._lock: portalocker.Lock | None = None
        self._shard: Shard | None = None
        self._answering: Answering | None = None

    def read_meta(self) -> Meta | None:
        """Return what store.json says; None where there is none. StoreError where the folder is not ours."""
        try:
            text = (self._folder / "store.json").read_bytes()
        except FileNotFoundError:
            self._check_free()
            return None
        except NotADirectoryError:
            raise StoreError(f"{self.where} is a file, not a store") from None
        return Meta.from_json(text, self.where)

    def create(self, meta: Meta, dim: int) -> None:
        """Make an empty store; what a crash left of an earlier attempt is used or removed."""
        self._check_free()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._check_room()
        self._take_lock()
        shard, new = self._folder / "shard", self._folder / "shard.new"
        if not shard.exists():
            if new.exists():
                shutil.rmtree(new)
            create_shard(new, meta.used.name, dim)
            new.rename(shard)
        opened = self._open()
        if count := opened.count(None):
            self.close()
            raise StoreError(f"{self.where} holds {count:,} points, but its store.json is gone: restore that")
        self.write_meta(meta)

    def write_meta(self, meta: Meta) -> None:
        """Replace store.json."""
        new = self._folder / "store.json.new"
        with new.open("w", encoding="utf-8") as file:
            file.write(meta.to_json())
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._folder / "store.json")

    def open_for_writing(self) -> Shard:
        """Open the shard and answer other processes; StoreLocked where one of them has it."""
        if self._shard is None and not (self._folder / "store.json").exists():
            raise StoreError(f"there is no store at {self.where}: `ingest` makes it")
        return self._open()

    def index_fields(self, fields: Mapping[str, IndexKind]) -> None:
        """Make payload fields quick to filter by."""
        self.open_for_writing().index_fields(fields)

    def etags(self, ids: Sequence[str]) -> dict[str, str | None]:
        """Return the etag of each of the ids that is stored."""
        return self.open_for_writing().etags(ids)

    def write(self, points: Points) -> None:
        """Insert or replace points."""
        self._check_room()
        self.open_for_writing().write(points, self.vector)

    def write_beside(self, points: Points, name: str) -> None:
        """Give points that are there vectors of another name."""
        self._check_room()
        self.open_for_writing().write_beside(points, name)

    def vector_names(self) -> set[str]:
        """Return the names of vectors: nobody but this class makes any."""
        return {self.vector}

    def add_vector(self, name: str, dim: int) -> None:
        """Make room for vectors of one more name; idempotent."""
        self._check_room()
        self.open_for_writing().add_vector(name, dim)

    def drop_vector(self, name: str) -> None:
        """Remove all vectors of a name, and the name; idempotent."""
        self.open_for_writing().drop_vector(name)

    def remove_vectors(self, ids: Sequence[str], name: str) -> None:
        """Remove the vectors of a name from points."""
        self.open_for_writing().remove_vectors(ids, name)

    def delete(self, ids: Sequence[str]) -> None:
        """Remove points."""
        self.open_for_writing().delete(ids)

    def flush(self) -> None:
        """Bring what is written to its place."""
        if self._shard:
            self._shard.flush()

    def count(self, condition: Condition | None = None) -> int:
        """Return how many points there are."""
        return self._reader().count(condition)

    def query(self, query: Query) -> list[Found]:
        """Return the nearest points, best first."""
        return self._reader().query(query)

    def fetch(self, ids: Sequence[str]) -> list[Found]:
        """Return those of the ids that are stored, with their vectors."""
        return self._reader().fetch(ids, self.vector)

    def matching(self, condition: Condition, limit: int, *, vector: str | None = None) -> list[Found]:
        """Return points that a filter lets through, in the order of their ids."""
        return self._reader().matching(condition, limit, vector)

    def scroll(self, *, with_vectors: bool = False) -> Iterator[list[Found]]:
        """Yield all points in pages."""
        return self.open_for_writing().scroll(self.vector if with_vectors else None)

    def condense(self) -> Condensed:
        """Return counts and sizes."""
        return self._reader().condense()

    def optimize(self) -> None:
        """Build the index in a process of its own, because Edge would stop every thread of this one."""
        self.open_for_writing()
        self._check_room()
        self._close_shard()
        command = [sys.executable, "-m", "clip_embed_qdrant._optimize", str(self._folder / "shard")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise StoreError(f"{self.where} could not be optimised: {reason}")
        self.open_for_writing()

    def close(self) -> None:
        """Flush, close the shard and free the lock."""
        self._close_shard()
        self._drop_lock()

    def _open(self) -> Shard:
        if self._shard is None:
            self._take_lock()
            try:
                self._shard = Shard(self._folder / "shard")
            except StoreError:
                self._drop_lock()
                raise
            self._answering = Answering(self._shard, self._folder / "owner.json")
        return self._shard

    def _reader(self) -> Shard | Neighbour:
        """Return the shard, or the process that has it."""
        try:
            return self.open_for_writing()
        except StoreLocked:
            neighbour = Neighbour.of(self._folder / "owner.json")
            if neighbour is None:
                raise
            return neighbour

    def _check_room(self) -> None:
        """Stop before the disk is full: Edge maps its files into memory, and would be killed by a signal."""
        free = shutil.disk_usage(self._folder).free
        if free < _ROOM:
            raise StoreError(
                f"{self.where}: {free / 1e6:,.0f} MB are free on its disk, and Qdrant Edge needs "
                f"{_ROOM / 1e6:,.0f} MB to write safely: free space, then run it again"
            )

    def _check_free(self) -> None:
        """Refuse a folder with other things in it."""
        if not self._folder.exists():
            return
        if not self._folder.is_dir():
            raise StoreError(f"{self.where} is a file, not a store")
        others = [path.name for path in self._folder.iterdir() if path.name not in _OURS]
        if others:
            raise StoreError(f"{self.where} is a folder with other things in it ({others[0]}), not a store")

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        lock = portalocker.Lock(
            str(self._folder / "lock"), "a", timeout=0, flags=portalocker.LOCK_EX | portalocker.LOCK_NB
        )
        try:
            lock.acquire()
        except portalocker.exceptions.LockException:
            raise StoreLocked(
                f"{self.where} is open in {self._owner()}; one process at a time can write to it, verify and "
                "prune it, while search and status go on. Wait until it is closed there, end that process, "
                "or use a Qdrant server, which takes several at once"
            ) from None
        self._lock = lock

    def _owner(self) -> str:
        pid = Neighbour.pid(self._folder / "owner.json")
        if pid == os.getpid():
            return f"this process already (process {pid})"
        return "another process" if pid is None else f"another process (process {pid})"

    def _drop_lock(self) -> None:
        if self._lock is not None:
            with suppress(OSError):
                self._lock.release()
            self._lock = None

    def _close_shard(self) -> None:
        if self._answering:
            self._answering.close()
            self._answering = None
        if self._shard:
            self._shard.close()
            self._shard = None
