"""Vectors kept in a table beside that of the images, by triggers of DuckDB."""

from __future__ import annotations

import time
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from clip_embed import ClipEmbedder, ClipEmbedError
from clip_embed._progress import Progress
from clip_embed_duckdb._chunks import (
    Embedding,
    arrow_view,
    rare_checkpoints,
    transaction,
    write_patiently,
)
from clip_embed_duckdb._materialize import Materialized, check_vectors, image_column, writable_table
from clip_embed_duckdb._stamps import find_embedder, write_stamp
from clip_embed_duckdb._stored import Vectors, stored_form
from clip_embed_duckdb._tables import Column, Table, ask, quote, text

_VECTOR, _ERROR = "emb", "emb_error"
_TRIGGERS = """
SELECT trigger_name, sql FROM duckdb_triggers()
WHERE database_name = ? AND schema_name = ? AND table_name = ? AND starts_with(trigger_name, ?) ORDER BY ALL
"""


def follow(
    con: duckdb.DuckDBPyConnection,
    table: str,
    image: str,
    key: str,
    into: str | None = None,
    *,
    retry: bool = False,
    progress: bool = True,
) -> Materialized:
    """Keep the vectors of a table's images in a table beside it, which triggers keep up to date.

    >>> from clip_embed_duckdb import follow
    >>> follow(con, "photos", "img", key="id")            # makes and fills photos_emb
    >>> con.execute("INSERT INTO photos BY NAME SELECT 7 AS id, 'car.jpg' AS img")
    >>> con.sql("FROM photos JOIN photos_emb USING (id) ORDER BY clip_sim(emb, 'red car')")

    The table `into`, by default `<table>_emb` in the same schema, has the columns `key`, `emb`
    FLOAT[d] and `emb_error`: a row for each image. The images that are there are embedded as by
    `materialize`: in chunks that are committed, so a second call goes on where the first one ended, and
    `retry=True` tries again what failed. Where `table` was made anew since (DROP, CREATE OR REPLACE), its
    triggers are gone or others, and nothing in `into` can be trusted: all images are embedded anew, which
    the embedder's cache makes quick where it knows them.

    From then on INSERT, UPDATE, DELETE and TRUNCATE of `table` do the same to `into`, in the same
    transaction. A failed image gets its reason and does not stop the
    statement; a path that DuckDB may not read, or a model that cannot be loaded, does, and so does a model
    whose vectors may not stand beside those of `into`: SpaceMismatch names both.

    The triggers are in the file and use the functions of clip-embed. After it is reopened, an INSERT
    or UPDATE fails with "Scalar Function with name clip_embedding does not exist" until `register` is
    called. DuckDB 2.0 refuses INSERT … ON CONFLICT DO UPDATE, INSERT OR REPLACE and MERGE INTO for
    tables with such triggers, and to rename them or their columns. `DROP TABLE photos_emb CASCADE` ends it.

    `key` names a column whose values are different in each row; rows whose key is NULL are left out. A
    second image of a key is an error of the INSERT or UPDATE (ConstraintException: duplicate key); a second
    row without an image is not seen there, so give the column a PRIMARY KEY or UNIQUE if you can.
    Raises ClipEmbedError for DuckDB before 2.0, which has no triggers, for a view, a read-only database,
    a missing column or a key that repeats; SpaceMismatch where `into` has vectors of another model.
    """
    if int(duckdb.__version__.partition(".")[0]) < 2:
        raise ClipEmbedError(
            f"follow needs the triggers of DuckDB 2.0, and this is {duckdb.__version__}: call materialize "
            "after each change, or pip install 'duckdb>=2'"
        )
    if not isinstance(key, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"key must be the name of one column, not {key!r}: give one that tells rows apart")
    if "." in (into or ""):
        raise ClipEmbedError(
            f"into is a table in the schema of {table}, and {into!r} has a dot: give a name without"
        )
    used = find_embedder(con, None)
    began = time.monotonic()
    place = writable_table(con, table)
    work = Embedding(con, used)
    target = _SideTarget(con, place, image_column(con, place, image, work), place.column(con, key), into)
    target.prepare(used)
    with rare_checkpoints(con):
        rows, waiting = target.count(retry=retry)
        with Progress(f"Embedding {place}", waiting, enabled=progress) as bar:
            tally = work.run(con, target, bar)
        write_patiently(con, target.tidy, lambda: None)
        target.check_key()
    skipped = rows - tally.done - tally.failed
    return Materialized(tally.done, tally.failed, max(0, skipped), time.monotonic() - began)


class _SideTarget:
    """The images of one table, and the table that has their vectors by the same key."""

    def __init__(
        self, con: duckdb.DuckDBPyConnection, table: Table, image: Column, key: Column, into: str | None
    ) -> None:
        self._con = con
        self._table = table
        self._image = image
        self._key = key
        self._side = Table(table.database, table.schema, into or f"{table.name}_emb")

    def prepare(self, embedder: ClipEmbedder) -> None:
        """Make the table with its stamp and the triggers. Raises where what is there does not fit."""
        self.check_key()
        vector = Column(_VECTOR, f"FLOAT[{embedder.dim}]", None)
        wanted = {each.name.lower(): each for each in (self._key, vector, Column(_ERROR, "VARCHAR", None))}
        if len(wanted) < 3:
            raise ClipEmbedError(
                f"the key may not be called {self._key.name}, as a column of {self._side} is"
            )
        found = self._side.columns(self._con)
        if found and {name: each.type for name, each in found.items()} != {
            name: each.type for name, each in wanted.items()
        }:
            shape = ", ".join(f"{each.name} {each.type}" for each in wanted.values())
            raise ClipEmbedError(
                f"{self._side} is there, and no table of ({shape}): give another name for into"
            )
        stamp = check_vectors(self._side, found[_VECTOR], embedder) if found else None
        space = (stamp or embedder.stamp()).space  # takes its time: not within the transaction
        with transaction(self._con):
            self._con.execute(
                f"CREATE TABLE IF NOT EXISTS {self._side} ({self._key.sql} {self._key.type} PRIMARY KEY, "
                f"{_VECTOR} {vector.type}, {_ERROR} VARCHAR)"
            )
            if stamp is None:
                write_stamp(self._con, self._side, vector, embedder, f"{self._table.name}.{self._image.name}")
            before = self._read_triggers()
            for name, event, statement in self._triggers(space):
                self._con.execute(
                    f"CREATE OR REPLACE TRIGGER {quote(f'{self._side.name}_{name}')} AFTER {event} "
                    f"FOR EACH STATEMENT {statement}"
                )
            after = self._read_triggers()
            if before != after:  # whatever was changed without them, nobody knows
                self._con.execute(f"DELETE FROM {self._side}")

    def tidy(self) -> None:
        """Take away what has no image any more: one that was deleted at the moment its vector was written."""
        key = self._key.sql
        self._con.execute(
            f"DELETE FROM {self._side} WHERE {key} NOT IN (SELECT {key} FROM {self._table} "
            f"WHERE {key} IS NOT NULL AND {self._image.sql} IS NOT NULL)"
        )

    def count(self, *, retry: bool) -> tuple[int, int]:
        """Return the number of rows, and of images to be embedded; to retry, failures are forgotten."""
        if retry:
            self._con.execute(f"DELETE FROM {self._side} WHERE {_ERROR} IS NOT NULL")
        ((rows,),) = ask(self._con, f"SELECT count(*) FROM {self._table}")
        ((waiting,),) = ask(self._con, f"SELECT count(*) FROM ({self._missing()})")
        return int(str(rows)), int(str(waiting))

    def read(self, rows: int) -> pa.Table | None:
        """Return (key, image, mark) of images that have no row beside them."""
        key, image = self._key.sql, self._image.sql
        found = self._con.sql(
            f"SELECT {key}, {image}, hash({image}) FROM {self._table} "
            f"WHERE {key} IN ({self._missing()} LIMIT {rows})"
        ).to_arrow_table()
        return found if len(found) else None

    def write(self, keys: Any, marks: Any, vectors: Vectors) -> tuple[int, int]:  # noqa: ANN401 - pa.Arrays
        """Add a row for each image that is still the one that was read, and that has none by now."""
        good = pa.array(np.flatnonzero(vectors.valid))
        done = self._insert(_VECTOR, keys.take(good), marks.take(good), stored_form(vectors, "FLOAT"))
        bad = pa.array(list(vectors.reasons), pa.int64())
        reasons = pa.array(vectors.reasons.values(), pa.string())
        return done, self._insert(_ERROR, keys.take(bad), marks.take(bad), reasons)

    def _insert(self, name: str, keys: Any, marks: Any, values: Any) -> int:  # noqa: ANN401 - pa.Arrays
        if not len(keys):
            return 0
        key, image = self._key.sql, self._image.sql
        with arrow_view(self._con, {"key": keys, "mark": marks, "value": values}) as view:
            rows = self._con.execute(
                f"INSERT INTO {self._side} ({key}, {name}) SELECT c.key, c.value FROM {view} AS c "
                f"JOIN {self._table} AS t ON t.{key} = c.key AND hash(t.{image}) = c.mark "
                f"ANTI JOIN {self._side} AS s ON s.{key} = c.key"
            ).fetchall()
        return int(rows[0][0])

    def _missing(self) -> str:
        key, image = self._key.sql, self._image.sql
        return (
            f"SELECT {key} FROM {self._table} AS t ANTI JOIN {self._side} AS s USING ({key}) "
            f"WHERE {key} IS NOT NULL AND {image} IS NOT NULL"
        )

    def _read_triggers(self) -> list[tuple[object, ...]]:
        table = self._table
        return ask(self._con, _TRIGGERS, [table.database, table.schema, table.name, f"{self._side.name}_"])

    def _triggers(self, space: str) -> list[tuple[str, str, str]]:
        """Return name, event and statement of each; those of an event run in order of their names."""
        key, image, side, table = self._key.sql, self._image.sql, self._side, self._table
        pairs = f"SELECT n.{key}, n.{image} FROM n LEFT JOIN o ON n.{key} = o.{key} WHERE "
        changed = f"{pairs} o.{key} IS NOT NULL AND n.{image} IS DISTINCT FROM o.{image}"
        gone = f"DELETE FROM {side} WHERE {key} IN (SELECT {key} FROM o)"
        kept = f"(SELECT {key} FROM n WHERE {key} IS NOT NULL AND {image} IS NOT NULL)"
        both = f"UPDATE ON {table} REFERENCING OLD TABLE AS o NEW TABLE AS n"
        twice = (
            f"INSERT INTO {side} ({key}, {_ERROR}) "
            f"SELECT {key}, error({text(f'{table}.{key} does not tell rows apart: ')} || {key}) "
            f"FROM n WHERE {key} IS NOT NULL GROUP BY {key} HAVING count(*) > 1"
        )
        return [
            ("insert", f"INSERT ON {table} REFERENCING NEW TABLE AS n", self._embed("n", space)),
            ("update", f"UPDATE ON {table} REFERENCING NEW TABLE AS n", twice),
            ("update_changed", both, self._embed(f"({changed})", space, "OR REPLACE")),
            ("update_gone", both, f"{gone} AND {key} NOT IN {kept}"),
            ("update_new", both, self._embed(f"({pairs} o.{key} IS NULL)", space)),
            ("delete", f"DELETE ON {table} REFERENCING OLD TABLE AS o", gone),
        ]

    def _embed(self, rows: str, space: str, conflict: str = "") -> str:
        """Return the statement that embeds rows, by the model that made the other vectors alone."""
        key, image = self._key.sql, self._image.sql
        fits = f"_clip_fits({key}, {text(str(self._side))}, {text(space)})"
        return (
            f"INSERT {conflict} INTO {self._side} SELECT {key}, e.vector, e.error FROM ("
            f"SELECT {key}, clip_embedding({image}) AS e, {fits} AS fits FROM {rows} "
            f"WHERE {key} IS NOT NULL AND {image} IS NOT NULL) WHERE fits"
        )

    def check_key(self) -> None:
        """Raise ClipEmbedError where two rows have the same key."""
        key = self._key.sql
        ((repeated,),) = ask(self._con, f"SELECT count({key}) - count(DISTINCT {key}) FROM {self._table}")
        if repeated:
            raise ClipEmbedError(
                f"{self._table}.{key} does not tell rows apart: {repeated:,} repeat a value; give another key"
            )
