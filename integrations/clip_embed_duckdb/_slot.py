"""What the functions of one database work with."""

from __future__ import annotations

import threading
import uuid
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Literal

import duckdb

from clip_embed import ClipEmbedder
from clip_embed._progress import Progress
from clip_embed.errors import ClipEmbedError, ModelError
from clip_embed_duckdb._digests import Digests
from clip_embed_duckdb._interrupts import Stops
from clip_embed_duckdb._outcomes import Outcomes
from clip_embed_duckdb._stream import SharedStream

OnError = Literal["null", "raise"]
_QUIET = 2.0  # seconds in which a query needs no progress bar
_TOKENS = "SELECT function_name FROM duckdb_functions() WHERE starts_with(function_name, '_clip_embed_')"


class State:
    """One embedder and how its failures show; `register` replaces it as a whole."""

    def __init__(self, embedder: ClipEmbedder, on_error: OnError) -> None:
        self.embedder = embedder
        self.on_error: OnError = on_error
        self.stream = SharedStream(embedder)
        self.before_loading: Callable[[], object] = lambda: None
        """Called once, as the weights are about to be loaded."""
        self._lock = threading.Lock()
        self._loaded = False
        self.spaces = set[str]()  # those whose vectors are known to be the embedder's own
        self._failure: str | None = None

    def load(self) -> ClipEmbedder:
        """Return the embedder with its weights loaded.

        A failure is remembered: DuckDB calls a failing function again, up to four times a query.
        """
        with self._lock:
            if self._failure is not None:
                raise ModelError(self._failure)
            if not self._loaded:
                self.before_loading()
                try:
                    self.embedder.load()
                except (ClipEmbedError, OSError, RuntimeError, ValueError, MemoryError) as error:
                    self._failure = f"the model could not be loaded ({error}); register again to retry"
                    raise ModelError(self._failure) from error
                self._loaded = True
        return self.embedder


class Slot:
    """The place of a database's functions: their callables, their state, ways to read files.

    Connections are held weakly: a strong reference would keep the database file locked.
    """

    def __init__(self, dim: int) -> None:
        self.token = f"_clip_embed_{uuid.uuid4().hex}"
        self.dim = dim
        self.state: State | None = None
        self.search_path = ""
        self.digests = Digests()
        self.progress = Progress(patience=_QUIET)
        self.stops = Stops()
        self.outcomes: Outcomes | None = None  # made by who reads it
        # (what it is, its name) -> the stamp of its file, None without one, and the thing itself
        self.named: dict[tuple[str, str], tuple[bytes | None, object]] = {}
        self.callables: dict[str, Callable[..., Any]] = {}
        self.owner: Callable[[], duckdb.DuckDBPyConnection | None] = lambda: None
        # In order: the first one mostly outlives the others. Closing one closes its duplicates, too, and is
        # refused while a query reads files through one of them.
        self._connections = weakref.WeakKeyDictionary[duckdb.DuckDBPyConnection, None]()
        self._lock = threading.Lock()

    def add(self, con: duckdb.DuckDBPyConnection) -> None:
        """Read files through this connection too, while it lives."""
        with self._lock:
            self._connections.setdefault(con, None)

    def open_connection(self) -> duckdb.DuckDBPyConnection:
        """Return a new connection to this database; ClipEmbedError where none is left to copy."""
        with self._lock:
            registered = list(self._connections)
        for con in registered:
            try:
                return con.duplicate()
            except duckdb.Error:  # closed, but still referred to
                continue
        own = duckdb.default_connection().duplicate()
        if self.token in find_tokens(own):
            return own
        own.close()
        raise ClipEmbedError(
            "files are read through a connection that was registered, and none is open any more: "
            "call clip_embed_duckdb.register(con) again"
        )

    @contextmanager
    def running(self) -> Generator[Callable[[], None]]:
        """Mark one call, with its progress; gives what raises KeyboardInterrupt once the call is to end."""
        with self.progress, self.stops.running() as check:
            yield check


def find_tokens(con: duckdb.DuckDBPyConnection) -> list[str]:
    """Return the names of the functions that mark a registered database, as `con` sees them."""
    return [name for (name,) in con.sql(_TOKENS).fetchall()]
