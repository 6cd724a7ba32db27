"""Images embedded a chunk at a time: what is committed stays, whatever happens later."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar, cast

import duckdb
import numpy as np
import pyarrow as pa

from clip_embed import ClipEmbedder, ClipEmbedError
from clip_embed._progress import Progress
from clip_embed_duckdb._columns import Column, blobs_and_paths, plain, sql_name
from clip_embed_duckdb._images import ImageColumn
from clip_embed_duckdb._interrupts import Stopped
from clip_embed_duckdb._register import find_slot, stops_of
from clip_embed_duckdb._slot import Slot, State
from clip_embed_duckdb._stored import Vectors
from clip_embed_duckdb._tables import ask, text

_FIRST_ROWS, _MOST_ROWS = 32, 16_384
_MOST_BYTES = 256 * 1024 * 1024  # of the images in one chunk
_SHORTEST, _LONGEST = 2.0, 60.0  # seconds of work that one chunk may lose
_SHARE = 20  # a chunk works so many times as long as reading and writing it takes
_LOG = "1.0 GiB"  # as DuckDB shows it
_PATIENCE = 10.0  # seconds for which the transaction of another connection may hold rows
_PAUSE = 0.02
_FRUITLESS = 5  # chunks in a row of which others changed every row
_NO_IMAGE = "it has neither bytes nor a path"
_T = TypeVar("_T")


class Target(Protocol):
    """Where the images come from and their vectors go."""

    def read(self, rows: int) -> pa.Table | None:
        """Return the next images that have neither vector nor error; None for no more.

        The columns are the key, the image and a mark that is another one once the image is.
        """
        ...

    def write(self, keys: Column, marks: Column, vectors: Vectors) -> tuple[int, int]:
        """Keep the vectors of valid rows, and the reasons of failed ones; return how many of each.

        Rows that have changed since they were read are left out.
        """
        ...


@dataclass(slots=True)
class Tally:
    """What came of the images so far."""

    done: int = 0
    failed: int = 0


class Embedding:
    """Embeds columns of images outside of a query, by the rules of the database for files."""

    def __init__(self, con: duckdb.DuckDBPyConnection, embedder: ClipEmbedder) -> None:
        self.embedder = embedder
        self._slot = Slot(embedder.dim)
        if (registered := find_slot(con)) is None:
            self._slot.stops = stops_of(con)
        else:
            self._slot.digests, self._slot.stops = registered.digests, registered.stops
        self._slot.add(con)
        self._slot.search_path = str(ask(con, "SELECT current_setting('file_search_path')")[0][0])
        self._state = State(embedder, "null")
        self._bar = Progress(enabled=False)

    def embed(self, column: Column) -> Vectors:
        """Embed a column of images; each row has a vector, a reason or is NULL."""
        with self._slot.running() as check:
            return self._embed(plain(column), check)

    def check_column(self, column: Column, name: str) -> None:
        """Raise ClipEmbedError unless a column, which may be empty, is of images."""
        if blobs_and_paths(plain(column)) is None:
            raise ClipEmbedError(
                f"{name} is a column of {sql_name(column.type)}; images are a BLOB, a VARCHAR (a path) or a "
                "STRUCT(bytes BLOB, path VARCHAR)"
            )

    def run(self, con: duckdb.DuckDBPyConnection, target: Target, progress: Progress) -> Tally:
        """Embed all that the target gives, in chunks that are read and written each in a short transaction.

        None is open while a chunk is embedded: DuckDB would take back what others commit meanwhile.
        Raises duckdb.InterruptException after `con.interrupt()`, as a query would.
        """
        self._slot.progress = self._bar = progress
        try:
            with self._slot.running() as check:
                return self._run(con, target, check)
        except Stopped:
            raise duckdb.InterruptException(
                "interrupted; what is committed stays, and the next call goes on from there"
            ) from None

    def _run(self, con: duckdb.DuckDBPyConnection, target: Target, check: Callable[[], None]) -> Tally:
        tally, rows, fruitless = Tally(), _FIRST_ROWS, 0
        self._state.load()
        while fruitless < _FRUITLESS:  # else a row that goes on changing would keep it here for ever
            check()
            began = time.monotonic()
            with transaction(con):
                chunk = target.read(rows)
            if chunk is None:
                break
            keys, images, marks = chunk.columns
            read = time.monotonic()
            vectors = self._embed(plain(images), check)
            embedded = time.monotonic()
            write = partial(target.write, plain(keys), plain(marks), vectors)
            done, failed = write_patiently(con, write, check)
            tally.done += done
            tally.failed += failed
            fruitless = 0 if done + failed else fruitless + 1
            cost = time.monotonic() - embedded + read - began
            seconds = min(max(_SHORTEST, _SHARE * cost), _LONGEST)
            wanted = int(len(keys) * seconds / max(embedded - read, 0.001))
            fits = int(_MOST_BYTES / max(images.nbytes / len(images), 1))
            rows = max(1, min(wanted, 4 * rows, fits, _MOST_ROWS))
        return tally

    def _embed(self, column: Column, check: Callable[[], None]) -> Vectors:
        def fail(rows: list[int], _: str | None, __: str) -> None:
            self._bar.fail(len(rows))

        blobs, paths = cast("tuple[Any, Any]", blobs_and_paths(column))
        images = ImageColumn(self._slot, self._state, len(column), blobs, paths, fail)
        if images.left:
            self._state.stream.run(images, check)
        nothing = np.flatnonzero(~images.vectors.valid).tolist()
        if nothing := [row for row in nothing if row not in images.vectors.reasons]:
            images.vectors.reasons.update(dict.fromkeys(nothing, _NO_IMAGE))
            fail(nothing, None, _NO_IMAGE)
        return images.vectors


def write_patiently(con: duckdb.DuckDBPyConnection, write: Callable[[], _T], check: Callable[[], None]) -> _T:
    """Write in a transaction, again where another connection changed the same rows at that moment.

    Raises duckdb.TransactionException where the transaction of another holds them for longer.
    """
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            with transaction(con):
                return write()
        except (duckdb.TransactionException, duckdb.ConstraintException) as error:
            if isinstance(error, duckdb.ConstraintException) and "Duplicate key" not in str(error):
                raise
            if time.monotonic() >= end:
                raise duckdb.TransactionException(
                    "another connection has changed the same rows and not committed it; what is committed "
                    f"here stays, and the next call goes on from there ({str(error).splitlines()[0]})"
                ) from error
        check()
        time.sleep(_PAUSE)


@contextmanager
def transaction(con: duckdb.DuckDBPyConnection) -> Generator[None]:
    """Commit at the end; undo everything where an error or an interrupt comes before it."""
    try:
        con.begin()
    except duckdb.TransactionException as error:
        raise ClipEmbedError(
            "the connection is in a transaction, and this commits in parts: commit or roll back first"
        ) from error
    except BaseException:
        _roll_back(con)  # interrupted, it may have begun all the same
        raise
    try:
        yield
        con.commit()
    except BaseException:
        _roll_back(con)
        raise


@contextmanager
def rare_checkpoints(con: duckdb.DuckDBPyConnection) -> Generator[None]:
    """Let DuckDB put its log into the file more rarely: each time it writes the table's last part anew."""
    before = ask(con, "SELECT current_setting('checkpoint_threshold')")[0][0]
    if before == _LOG:  # another call has set it, for the whole database, and sets it back
        yield
        return
    try:
        try:
            con.execute(f"SET checkpoint_threshold = {text(_LOG)}")
        except duckdb.InterruptException:  # it may be set all the same
            raise
        except duckdb.Error:  # the configuration is locked
            pass
        yield
    finally:
        with suppress(duckdb.Error):  # it is locked, or the connection closed
            _insist(lambda: con.execute(f"SET checkpoint_threshold = {text(str(before))}"))


@contextmanager
def arrow_view(con: duckdb.DuckDBPyConnection, columns: dict[str, Column]) -> Generator[str]:
    """Let a connection see Arrow arrays as a view, for as long as the context."""
    name = f"_clip_embed_{uuid.uuid4().hex}"
    try:
        con.register(name, cast("Any", pa).table(columns))
        yield name
    finally:
        try:
            _insist(lambda: con.unregister(name))
        except duckdb.TransactionException:  # aborted: only after its end does the view let go of the arrays
            _roll_back(con)
            _insist(lambda: con.unregister(name))


def _roll_back(con: duckdb.DuckDBPyConnection) -> None:
    """End a transaction, unless it is over already."""
    with suppress(duckdb.TransactionException):
        _insist(con.rollback)


def _insist(clean_up: Callable[[], object]) -> None:
    """Do again what was interrupted: after a rollback that was, every query of the connection would fail."""
    while True:
        try:
            clean_up()
        except duckdb.InterruptException:
            continue
        return
