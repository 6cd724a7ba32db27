"""Which model made a column of vectors: it stands in the column's comment."""

from __future__ import annotations

import re
from dataclasses import dataclass

import duckdb

from clip_embed import ClipEmbedder, ClipEmbedError, Stamp
from clip_embed._stamp import check_stamp
from clip_embed_duckdb._register import find_slot
from clip_embed_duckdb._spaces import MARK, PROGRAMS, read_stamp
from clip_embed_duckdb._tables import Column, Table, ask, find_table, text

_VECTORS = re.compile(r"(?:FLOAT|DOUBLE|TINYINT)\[(\d*)\]")
_STAMPED = """
SELECT database_name, schema_name, table_name, column_name FROM duckdb_columns()
WHERE contains(comment, $mark) ORDER BY ALL
"""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A column whose vectors must not be compared with those of the model in use."""

    table: str
    """Its full name, as it stands in a statement."""
    column: str
    reason: str

    def __str__(self) -> str:
        return self.reason


def check(
    con: duckdb.DuckDBPyConnection, table: str, column: str, embedder: ClipEmbedder | None = None
) -> Stamp | None:
    """Return the stamp of a column of vectors, once it is sure that they are of the model's space.

    >>> check(con, "photos", "emb").recipe

    `materialize` and `follow` leave the stamp in the column's comment. Without `embedder`, the one
    that was registered is meant. Raises SpaceMismatch where another model made the vectors or they
    have another dimension, ClipEmbedError where there is no such column of vectors. Where nothing
    says which model made them, warns and returns None.

    The SQL functions see values alone and cannot look here: they check the dimension. A comment is
    lost by CREATE TABLE AS, views, COPY to Parquet and joins, and so is the stamp of an Arrow table
    (`clip_embed.arrow.stamp_vectors`) that is queried by its name: DuckDB drops the metadata of its
    fields. Check such a table by `clip_embed.arrow.read_vectors` before it is queried.
    """
    place = find_table(con, table)
    found = place.column(con, column)
    where = f"{place}.{found.sql}"
    if not (match := _VECTORS.fullmatch(found.type)):
        raise ClipEmbedError(f"{where} is a column of {found.type}, not of vectors")
    used = find_embedder(con, embedder)
    stamp = read_stamp(found.comment)
    dim = int(match[1]) if match[1] else used.dim if stamp is None else stamp.dim
    check_stamp(stamp, dim, used, where)
    return stamp


def check_database(con: duckdb.DuckDBPyConnection, embedder: ClipEmbedder | None = None) -> list[Mismatch]:
    """Return the stamped columns whose vectors are of another space, in all attached databases.

    Nothing is loaded where no column has a stamp, little where all are of the model's own space.
    Columns without a stamp are not listed: they may hold anything.
    """
    rows = ask(con, _STAMPED, {"mark": MARK})
    used = find_embedder(con, embedder) if rows else embedder
    found: list[Mismatch] = []
    for database, schema, name, column in rows:
        table = str(Table(str(database), str(schema), str(name)))
        try:
            check(con, table, str(column), used)
        except ClipEmbedError as error:
            found.append(Mismatch(table, str(column), str(error)))
    return found


def find_embedder(con: duckdb.DuckDBPyConnection, given: ClipEmbedder | None) -> ClipEmbedder:
    """Return the embedder that was given, else the registered one; ClipEmbedError without either."""
    if given is not None:
        return given
    slot = find_slot(con)
    if slot is None or slot.state is None:
        raise ClipEmbedError(
            "no embedder is registered with this database: call clip_embed_duckdb.register(con) "
            "first, or give embedder="
        )
    return slot.state.embedder


def write_stamp(
    con: duckdb.DuckDBPyConnection, table: Table, column: Column, embedder: ClipEmbedder, source: str
) -> None:
    """Say in the column's comment who made its vectors of `source`; the user's own words stay in front."""
    before = [line for line in (column.comment or "").splitlines() if not line.startswith(MARK)]
    line = (
        f"{MARK}vectors of {' '.join(source.split())} by {embedder!r}, recipe {embedder.recipe}; "
        f"{PROGRAMS}{embedder.stamp().to_json()}"
    )
    comment = "\n".join([*before, line])
    con.execute(f"COMMENT ON COLUMN {table}.{column.sql} IS {text(comment)}")
