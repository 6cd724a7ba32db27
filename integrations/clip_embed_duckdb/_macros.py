"""What is written in SQL: scores of stored vectors, and `clip_search`.

A macro belongs to the connection that made it. One that has none calls the functions themselves, which
give the same, but have vectors handed to Python by one thread at a time.
"""

from __future__ import annotations

import weakref
from contextlib import suppress

import duckdb

from clip_embed._warn import warn_caller

_CANDIDATES = 10  # times k rows are scored again where `rescore` is given
_MARK = "_clip_embed_candidates"  # these tell our macros from the user's own
_QUERY = "_clip_query"

# A stored vector is compared by DuckDB itself, on all its threads; the binder knows types, so of the first
# CASE nothing is left for other columns, and their query is not embedded here. What has no answer
# (NULL, a NULL, NaN or infinity inside, only zeros, another dimension) is left to the function, with its
# rules and its messages; for that DuckDB 2.0 gives NaN or an error, and 1.5 a cosine of -1, 0 or 1.
# The lambda names a value that would otherwise be computed twice.
_SCORE = """
CREATE OR REPLACE TEMP MACRO {name}(img, query) AS coalesce(
    CASE WHEN {stored} THEN list_transform(
        [CASE WHEN list_position(TRY_CAST(img AS {vector}), NULL) IS NULL
        THEN 1::FLOAT - array_cosine_similarity(
            TRY_CAST(img AS {vector}),
            TRY_CAST({query}('{name}', CASE WHEN {stored} THEN query END) AS {vector})
        ) END],
        lambda distance: CASE WHEN isfinite(distance) AND distance NOT IN (0, 1, 2) THEN {value} END
    )[1] END,
    system.main.{name}(img, query)
)
"""
_VALUES = {
    "clip_score": "1::FLOAT - distance",
    "clip_sim": "{'distance': distance, 'score': 1::FLOAT - distance}",
}
# The column of a name, whatever its case. DuckDB works it out as it binds the statement; where there is none,
# it looks for a column called what we have to say, and says that there is no such.
_PICK = """COLUMNS(CASE WHEN len(list_filter((*), lambda name: lower(name) = lower({name}))) > 0
            THEN list_filter((*), lambda name: lower(name) = lower({name}))
            ELSE [tbl || ' has no column ' || {name} || '; it has ' || array_to_string({all}, ', ')] END)"""
_IMAGE = _PICK.format(name="img", all="(*)")
_RESCORED = _PICK.format(name="coalesce(rescore::VARCHAR, img)", all="(*)[2:]")  # the first is our score
# Inside out: score all rows and keep the best k, of which DuckDB reads the other columns only now
# (Top N); score these again where asked to; drop those without a score, which came last.
# A column of the table that is called score becomes score_1: of the two, ours stands first.
_SEARCH = f"""
CREATE OR REPLACE TEMP MACRO clip_search(tbl, img, query, k := 10, rescore := NULL) AS TABLE
SELECT * EXCLUDE (score), score
FROM (
    SELECT
        CASE WHEN rescore IS NULL THEN score ELSE clip_score(
            {_RESCORED}, query
        ) END AS score,
        * EXCLUDE (score)
    FROM (
        SELECT clip_score({_IMAGE}, query) AS score, *
        FROM query_table(tbl)
        ORDER BY 1 DESC NULLS LAST
        LIMIT CASE WHEN rescore IS NULL THEN k ELSE {_CANDIDATES} * k END
    ) AS {_MARK}
)
WHERE score IS NOT NULL
ORDER BY score DESC
LIMIT k
"""
_FIND = f"""
SELECT contains(macro_definition, '{_MARK}') OR contains(macro_definition, '{_QUERY}')
FROM duckdb_functions() WHERE function_name = ? AND macro_definition IS NOT NULL
"""
_VISIBLE = f"SELECT 1 FROM duckdb_functions() WHERE function_name = '{_QUERY}'"
_NAMES = ["clip_search", *_VALUES]

_having = weakref.WeakSet[duckdb.DuckDBPyConnection]()


def add_macros(con: duckdb.DuckDBPyConnection, dim: int) -> None:
    """Make the macros on a connection; warns where they cannot be made now, or the user has one of a name."""
    try:
        for name in _NAMES:
            if all(_find(con, name)):
                _add(con, name, dim)
                continue
            warn_caller(
                f"the database has a macro of its own called {name}, which stays: rename it and call "
                "register(con) again to have that of clip-embed"
            )
        _having.add(con)
    except duckdb.Error as error:
        if con not in _having:
            warn_caller(
                "clip_search was not added to this connection, the other functions were: "
                f"{str(error).splitlines()[0]} When that is over, call register(con) again."
            )


def remove_macros(con: duckdb.DuckDBPyConnection) -> None:
    """Take the macros from a connection, unless it is busy or a macro is the user's own."""
    for name in _NAMES:
        kind = "MACRO TABLE" if name == "clip_search" else "MACRO"
        with suppress(duckdb.Error):
            if (found := _find(con, name)) and all(found):
                con.sql(f"DROP {kind} temp.main.{name}")
    _having.discard(con)


def _add(con: duckdb.DuckDBPyConnection, name: str, dim: int) -> None:
    if name == "clip_search":
        con.sql(_SEARCH)
        return
    if not con.sql(_VISIBLE).fetchall():  # in a transaction that is older; to fail would end it
        return
    vector = f"FLOAT[{dim}]"
    # Not those of DOUBLE: DuckDB casts them more slowly than it hands them over.
    stored = f"typeof(img) IN ('{vector}', 'TINYINT[{dim}]', 'FLOAT[]')"
    con.sql(_SCORE.format(name=name, vector=vector, stored=stored, query=_QUERY, value=_VALUES[name]))


def _find(con: duckdb.DuckDBPyConnection, name: str) -> list[bool]:
    """Return for each macro of the name whether it is ours."""
    return [bool(ours) for (ours,) in con.sql(_FIND, params=[name]).fetchall()]
