"""`clip_relevance`: scores of one column of images as percentiles."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import Any, cast

import duckdb

from clip_embed import Relevance
from clip_embed._relevance import relevance_of
from clip_embed._types import Float32
from clip_embed._vectors import unit_rows
from clip_embed_duckdb._stamps import check, find_embedder
from clip_embed_duckdb._tables import Column, Table, ask, find_table, quote

_ROWS = 4096
# The percentile of a Gumbel distribution: how far the score lies above that of the collection's mean vector.
_MACRO = """
CREATE OR REPLACE TEMP MACRO {name}(img, query) AS (100 * exp(-exp((
    {middle} - clip_score(img, _clip_query({function}, query))
    + array_inner_product({centre}::FLOAT[{dim}], _clip_query({function}, query))
)::DOUBLE / {spread})))::FLOAT
"""


def calibrate(
    con: duckdb.DuckDBPyConnection, table: str, column: str, *, name: str = "clip_relevance"
) -> Relevance:
    """Learn how scores are to be read in one column of images or vectors, and add a macro that says so.

    >>> calibrate(con, "photos", "emb")
    >>> con.sql("SELECT img FROM photos WHERE clip_relevance(emb, 'red car') >= 90")

    `clip_relevance(img, text)` FLOAT is a percentile from 0 to 100: 95 says that the image fits the text
    better than the best image of the column fits 95 of 100 texts about something else. Where none reaches
    90, there is no good match. NULL as for `clip_score`. The query is a text, or the vector that
    `clip_text` gives of one.

    All rows are read once, those of stored vectors fast. The macro is TEMP: it belongs to this connection,
    and holds for this column; give others a `name` of their own. Fit it again when the table has grown by a
    lot, and
    for another model. `Relevance` does the same in Python, and can be kept as JSON.

    Raises ValueError for fewer than 10 images, SpaceMismatch for vectors of another model, ClipEmbedError
    where there is no such column or no embedder is registered.
    """
    embedder = find_embedder(con, None)
    place = find_table(con, table)
    found = place.column(con, column)
    if found.type.endswith("]"):
        check(con, table, column, embedder)
    with closing(_vectors(con, place, found)) as vectors:
        relevance = relevance_of(embedder, vectors)
    facts = {"name": quote(name), "middle": repr(relevance.middle), "spread": repr(relevance.spread)}
    facts["function"] = "'" + name.replace("'", "''") + "'"
    facts["centre"] = str(relevance.centre.tolist())
    ask(con, _MACRO.format(**facts, dim=embedder.dim))
    return relevance


def _vectors(con: duckdb.DuckDBPyConnection, table: Table, column: Column) -> Generator[Float32]:
    """Yield the unit vectors of a column in blocks, without those that are missing or failed.

    On the connection itself: a cursor sees no TEMP table and nothing of an open transaction.
    """
    vectors = f"SELECT clip_image({column.sql}) AS vector FROM {table}"
    query = f"SELECT vector FROM ({vectors}) WHERE vector IS NOT NULL"
    with cast("Any", con.sql(query)).to_arrow_reader(_ROWS) as batches:
        while (batch := _next(batches)) is not None:
            rows = batch.column(0)
            yield unit_rows(rows.flatten().to_numpy().reshape(len(rows), -1))


def _next(batches: Any) -> Any | None:  # noqa: ANN401 - a pa.RecordBatchReader and its batches
    """Return the next batch, None after the last. Raises duckdb.Error, which Arrow's reader hides."""
    try:
        return next(batches, None)
    except OSError as error:
        kind = duckdb.InterruptException if "interrupt" in str(error).lower() else duckdb.Error
        raise kind(str(error)) from error
