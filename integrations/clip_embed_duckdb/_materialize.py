"""Vectors kept in a column of the table that holds the images."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import duckdb
import numpy as np
import pyarrow as pa

from clip_embed import ClipEmbedder, ClipEmbedError, SpaceMismatch, Stamp
from clip_embed._progress import Progress
from clip_embed._stamp import MIN_COSINE, check_stamp
from clip_embed_duckdb._chunks import Embedding, arrow_view, rare_checkpoints, transaction
from clip_embed_duckdb._columns import plain
from clip_embed_duckdb._spaces import read_stamp
from clip_embed_duckdb._stamps import find_embedder, write_stamp
from clip_embed_duckdb._stored import Vectors, stored_form, stored_vectors
from clip_embed_duckdb._tables import Column, Table, ask, find_table

Storage = Literal["float32", "int8"]
_TYPES: dict[str, str] = {"float32": "FLOAT", "int8": "TINYINT"}
_PROVED = 16  # vectors without a stamp that are made again, to see whose they are

_REFERENCES = """
SELECT table_name, referenced_column_names[1] FROM duckdb_constraints()
WHERE database_name = ? AND schema_name = ? AND referenced_table = ? AND constraint_type = 'FOREIGN KEY'
"""


@dataclass(frozen=True, slots=True)
class Materialized:
    """What `materialize` or `follow` did. Counts are of rows."""

    done: int
    """Got a vector now."""
    failed: int
    """Got the reason in place of a vector now."""
    skipped: int
    """Had a vector or a reason before, no image, or another one each time that it was embedded."""
    seconds: float
    """From the first image to the last commit, loading of the model included."""


def materialize(
    con: duckdb.DuckDBPyConnection,
    table: str,
    image: str,
    into: str = "emb",
    embedder: ClipEmbedder | None = None,
    *,
    storage: Storage = "float32",
    retry: bool = False,
    progress: bool = True,
) -> Materialized:
    """Keep the vectors of a column of images in another column of the table, FLOAT[d].

    >>> from clip_embed_duckdb import materialize
    >>> materialize(con, "photos", "img")                 # fills photos.emb and photos.emb_error
    >>> con.sql("FROM clip_search('photos', 'emb', 'red car')")

    `table` is written as in SQL (`photos`, `main.photos`, `"my photos"`), `image` and `into` are names
    of columns. The columns `into` and `<into>_error` are added where missing; a failed image gets its
    reason there and no vector. Only rows that have neither are done, so a second run does what is new,
    and `retry=True` what failed as well. Rows without an image stay as they are. The embedder is the
    registered one unless given; a progress bar shows on a terminal and in a notebook.

    Rows are committed in chunks of 2 to 60 seconds of work: Ctrl-C, kill -9 or a power cut lose the
    last chunk, nothing else. So it cannot run inside a transaction. Others may read and write the table
    meanwhile: a row whose image they change is embedded again, one that they change again and again is
    left to the next call. Where a transaction of theirs that goes on has deleted such rows, it waits for
    ten seconds and then raises a TransactionException: call it again. One thing is DuckDB's: it takes
    back, without a word, what an UPDATE changes in a row at the moment at which its vector is written, or
    in a transaction that is open at that moment.

    `storage="int8"` keeps TINYINT[d], a quarter of the size: each vector is scaled so that its largest
    number is ±127, which no cosine notices. See `register` for `clip_search(…, rescore := …)`, which
    makes up for the rounding: of the ten best by float32 the ten best by int8 have 99.8 % without it and
    100 % with it (`python benchmarks/duckdb_stored.py`, vectors of a random walk).

    The column's comment says which model made the vectors, behind what you wrote there; see `check`.
    Raises SpaceMismatch where the column has vectors of another model, ClipEmbedError for a view, a
    read-only database, a missing column or one of another type.

    DuckDB stores a changed row of an array column anew, at the end of the table. So the order of the
    rows changes, BLOBs beside the vector are written once more, and a table whose key others refer to
    by a FOREIGN KEY is refused: keep the vectors in a table of their own by `follow`.
    """
    if storage not in _TYPES:
        raise ValueError(f"storage must be 'float32' or 'int8', not {storage!r}")
    used = find_embedder(con, embedder)
    began = time.monotonic()
    place = writable_table(con, table)
    work = Embedding(con, used)
    source = image_column(con, place, image, work)
    _check_references(con, place, image)
    target = _ColumnTarget(con, place, source, into, f"{_TYPES[storage]}[{used.dim}]")
    target.prepare(work)
    with rare_checkpoints(con):
        if retry:
            target.forget_errors()
        rows, waiting = target.count()
        with Progress(f"Embedding {place}.{source.sql}", waiting, enabled=progress) as bar:
            tally = work.run(con, target, bar)
    skipped = rows - tally.done - tally.failed
    return Materialized(tally.done, tally.failed, max(0, skipped), time.monotonic() - began)


def writable_table(con: duckdb.DuckDBPyConnection, name: str) -> Table:
    """Return the table of a name; ClipEmbedError for a view or where nothing can be written."""
    table = find_table(con, name)
    if table.is_view:
        raise ClipEmbedError(f"{table} is a view, which holds no rows of its own: give the table behind it")
    query = "SELECT readonly FROM duckdb_databases() WHERE database_name = ?"
    if ask(con, query, [table.database])[0][0]:
        raise ClipEmbedError(f"{table} is in a database that was opened read-only: open it for writing")
    return table


def _check_references(con: duckdb.DuckDBPyConnection, table: Table, image: str) -> None:
    """Raise ClipEmbedError where a FOREIGN KEY refers to a table: DuckDB deletes a row that gets a vector."""
    for other, keys in ask(con, _REFERENCES, [table.database, table.schema, table.name]):
        raise ClipEmbedError(
            f"{table} cannot get a column of vectors: {other} refers to it by a FOREIGN KEY. Keep them "
            f"in a table of their own (DuckDB 2.0), follow(con, {table.name!r}, {image!r}, key={keys!r})"
        )


def image_column(con: duckdb.DuckDBPyConnection, table: Table, name: str, work: Embedding) -> Column:
    """Return a column of a table; ClipEmbedError where there is none of the name, or not of images."""
    column = table.column(con, name)
    empty = con.sql(f"SELECT {column.sql} FROM {table} LIMIT 0").to_arrow_table()
    work.check_column(empty[0], f"{table}.{column.sql}")
    return column


def check_vectors(table: Table, column: Column, embedder: ClipEmbedder) -> Stamp | None:
    """Return the stamp of a column; SpaceMismatch where it is of another space."""
    stamp = read_stamp(column.comment)
    try:
        if stamp is not None:
            check_stamp(stamp, stamp.dim, embedder, f"{table}.{column.sql}")
    except SpaceMismatch as error:
        raise SpaceMismatch(
            f"{error}\nTo have both, give another name for into; to begin anew, drop what is there."
        ) from error
    return stamp


class _ColumnTarget:
    """The images and vectors of one table, known by their rowid within a transaction."""

    def __init__(
        self, con: duckdb.DuckDBPyConnection, table: Table, image: Column, into: str, type_: str
    ) -> None:
        self._con = con
        self._table = table
        self._image = image
        self._vector = Column(into, type_, None)
        self._error = Column(f"{into}_error", "VARCHAR", None)
        self._last = -1  # images before this rowid are done, unless rows have moved

    def prepare(self, work: Embedding) -> None:
        """Add the columns and the stamp where missing. Raises where what is there does not fit."""
        columns = self._table.columns(self._con)
        if "rowid" in columns:
            raise ClipEmbedError(
                f"{self._table} has a column called rowid, which hides DuckDB's own: rename it"
            )
        if self._image.name.lower() in (self._vector.name.lower(), self._error.name.lower()):
            raise ClipEmbedError(f"the images are in {self._image.name!r}: give another name for into")
        vector, error = (columns.get(each.name.lower()) for each in (self._vector, self._error))
        where = f"{self._table}.{self._vector.sql}"
        stamp = None if vector is None else check_vectors(self._table, vector, work.embedder)
        for found, wanted in ((vector, self._vector), (error, self._error)):
            if found is not None and found.type != wanted.type:
                raise ClipEmbedError(
                    f"{self._table}.{found.sql} is a column of {found.type}, and {wanted.type} is needed: "
                    "give another name for into, or drop the column"
                )
        if vector is not None and stamp is None:
            self._prove(work, where)
        missing = [each for each, found in ((self._vector, vector), (self._error, error)) if found is None]
        if not missing and stamp is not None:
            return
        work.embedder.stamp()  # takes its time: not within the transaction
        with transaction(self._con):
            for each in missing:
                self._con.execute(f"ALTER TABLE {self._table} ADD COLUMN {each.sql} {each.type}")
            if stamp is None:
                write_stamp(self._con, self._table, vector or self._vector, work.embedder, self._image.name)

    def forget_errors(self) -> None:
        """Have the images that failed tried again."""
        vector, error = self._vector.sql, self._error.sql
        self._con.execute(
            f"UPDATE {self._table} SET {error} = NULL WHERE {error} IS NOT NULL AND {vector} IS NULL"
        )

    def count(self) -> tuple[int, int]:
        """Return the number of rows, and of images that are to be embedded."""
        names = ", ".join(f"count({each.sql})" for each in (self._image, self._vector, self._error))
        rows, images, vectors, errors = (
            int(str(n)) for n in ask(self._con, f"SELECT count(*), {names} FROM {self._table}")[0]
        )
        return rows, max(0, images - vectors - errors)

    def read(self, rows: int) -> pa.Table | None:
        """Return (rowid, image, mark) of the next images; the second look from the start finds moved rows."""
        image = self._image.sql
        while True:
            found: pa.Table = self._con.sql(
                f"SELECT rowid, {image}, hash({image}) FROM {self._table} WHERE rowid > {self._last} "
                f"AND {self._open} AND {image} IS NOT NULL LIMIT {rows}"
            ).to_arrow_table()
            if len(found):
                self._last = int(np.asarray(plain(found[0])).max())
                return found
            if self._last < 0:
                return None
            self._last = -1

    def write(self, keys: Any, marks: Any, vectors: Vectors) -> tuple[int, int]:  # noqa: ANN401 - pa.Arrays
        """Keep vectors and reasons; a row whose vector is set moves to the end, one that failed stays.

        A rowid may be another row's by now: after a DELETE and a checkpoint DuckDB gives it again. What has
        it must only be without a vector and have the image that was read, for that makes the vector its own.
        """
        good = pa.array(np.flatnonzero(vectors.valid))
        values = stored_form(vectors, self._vector.type)
        done = self._update(self._vector, keys.take(good), marks.take(good), values)
        bad = pa.array(list(vectors.reasons), pa.int64())
        reasons = pa.array(vectors.reasons.values(), pa.string())
        return done, self._update(self._error, keys.take(bad), marks.take(bad), reasons)

    def _update(self, column: Column, keys: Any, marks: Any, values: Any) -> int:  # noqa: ANN401 - pa.Arrays
        if not len(keys):
            return 0
        ends = np.asarray(keys)
        with arrow_view(self._con, {"key": keys, "mark": marks, "value": values}) as view:
            rows = self._con.execute(
                f"UPDATE {self._table} AS t SET {column.sql} = c.value FROM {view} AS c "
                f"WHERE t.rowid = c.key AND t.rowid BETWEEN {ends.min()} AND {ends.max()} "
                f"AND {self._open} AND hash(t.{self._image.sql}) = c.mark"
            ).fetchall()
        return int(rows[0][0])

    @property
    def _open(self) -> str:
        return f"{self._vector.sql} IS NULL AND {self._error.sql} IS NULL"

    def _prove(self, work: Embedding, where: str) -> None:
        """Raise SpaceMismatch unless vectors without a stamp are what the model gives for their images."""
        image, vector = self._image.sql, self._vector.sql
        found = self._con.sql(
            f"SELECT {image}, {vector} FROM {self._table} WHERE {image} IS NOT NULL AND {vector} IS NOT NULL "
            f"USING SAMPLE reservoir({_PROVED} ROWS) REPEATABLE (1)"
        ).to_arrow_table()
        if not len(found):
            return
        known = stored_vectors(plain(found[1]), work.embedder.dim)
        made = work.embed(found[0])
        both = made.valid if known is None else made.valid & known.valid
        cosines = np.zeros(0) if known is None else known.cosines(made)[both]
        if not len(cosines) or not cosines.min() >= MIN_COSINE:
            worst = f"a cosine of {cosines.min():.3f}" if len(cosines) else "no image that could be read"
            raise SpaceMismatch(
                f"{where} holds vectors, and no stamp says which model made them; "
                f"{len(found)} were compared with what this one gives for their images: {worst}, "
                f"{MIN_COSINE} is needed. Give another name for into, or drop the column"
            )
