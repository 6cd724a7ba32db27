"""`clip_search`: the best rows of a table, without a direction to get wrong."""

from __future__ import annotations

import weakref
from contextlib import suppress

import duckdb

from clip_embed._warn import warn_caller

_CANDIDATES = 10  # times k rows are scored again where `rescore` is given
_MARK = "_clip_embed_candidates"  # tells our macro from one of the user's own
# Inside out: score all rows and keep the best k, of which DuckDB reads the other columns only now
# (Top N); score these again where asked to; drop those without a score, which came last.
# A column of the table that is called score becomes score_1: of the two, ours stands first.
_MACRO = f"""
CREATE OR REPLACE TEMP MACRO clip_search(tbl, img, query, k := 10, rescore := NULL) AS TABLE
SELECT * EXCLUDE (score), score
FROM (
    SELECT
        CASE WHEN rescore IS NULL THEN score ELSE clip_score(
            COLUMNS(lambda name: lower(name) = lower(coalesce(rescore, img))), query
        ) END AS score,
        * EXCLUDE (score)
    FROM (
        SELECT clip_score(COLUMNS(lambda name: lower(name) = lower(img)), query) AS score, *
        FROM query_table(tbl)
        ORDER BY 1 DESC NULLS LAST
        LIMIT CASE WHEN rescore IS NULL THEN k ELSE {_CANDIDATES} * k END
    ) AS {_MARK}
)
WHERE score IS NOT NULL
ORDER BY score DESC
LIMIT k
"""
_FIND = "SELECT contains(macro_definition, $mark) FROM duckdb_functions() WHERE function_name = 'clip_search'"

_having = weakref.WeakSet[duckdb.DuckDBPyConnection]()


def add_search(con: duckdb.DuckDBPyConnection) -> None:
    """Make the macro on a connection; warns where it cannot be made now, or the user has one of the name."""
    try:
        if not all(_find(con)):
            warn_caller(
                "the database has a macro of its own called clip_search, which stays: rename it and call "
                "register(con) again to have that of clip-embed"
            )
            return
        con.sql(_MACRO)
        _having.add(con)
    except duckdb.Error as error:
        if con not in _having:
            warn_caller(
                "clip_search was not added to this connection, the other functions were: "
                f"{str(error).splitlines()[0]} When that is over, call register(con) again."
            )


def remove_search(con: duckdb.DuckDBPyConnection) -> None:
    """Take the macro from a connection, unless it is busy or the macro is the user's own."""
    with suppress(duckdb.Error):
        if (found := _find(con)) and all(found):
            con.sql("DROP MACRO TABLE temp.main.clip_search")
    _having.discard(con)


def _find(con: duckdb.DuckDBPyConnection) -> list[bool]:
    """Return for each macro of the name whether it is ours."""
    return [bool(ours) for (ours,) in con.sql(_FIND, params={"mark": _MARK}).fetchall()]
