"""Stored vectors, which DuckDB compares itself: as the function does, and nothing else changes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from clip_embed import ClipEmbedder
from clip_embed.testing import FakeModel
from clip_embed_duckdb import _functions, register, unregister

TYPES = ["FLOAT[16]", "TINYINT[16]", "FLOAT[]", "DOUBLE[]", "DOUBLE[16]"]
NAN, INF = float("nan"), float("inf")
ODD: list[list[float | None] | None] = [
    None,
    [None, *[1.0] * 15],
    [NAN, *[1.0] * 15],
    [INF, *[1.0] * 15],
    [-INF, *[0.0] * 15],
    [0.0] * 16,
    [1e30] * 16,
    [1e-30, *[0.0] * 15],
    [3e38, *[-3e38] * 15],
]


@pytest.fixture
def model() -> FakeModel:
    """A model whose calls are counted."""
    return FakeModel()


@pytest.fixture
def con(model: FakeModel) -> Iterator[duckdb.DuckDBPyConnection]:
    """Table v (id, v FLOAT[16]) with good vectors and odd ones."""
    with duckdb.connect() as con:
        register(con, ClipEmbedder(model))
        good = np.random.default_rng(0).standard_normal((3000, 16)).astype(np.float32).clip(-3, 3)
        rows = pa.array([*ODD, *good.tolist()], pa.list_(pa.float32(), 16))
        con.register("rows", pa.table({"id": range(len(rows)), "v": rows}))
        con.execute("CREATE TABLE v AS FROM rows")
        con.unregister("rows")
        yield con


def by_function(name: str) -> str:
    """Return how the function behind a macro is called."""
    return f"system.main.{name}"


def plan(con: duckdb.DuckDBPyConnection, query: str) -> str:
    """Return the plan of a query as text."""
    return str(con.execute(f"EXPLAIN (FORMAT json) {query}").fetchall()[0][1])


@pytest.mark.parametrize("type_", TYPES)
def test_macro_and_function_agree(con: duckdb.DuckDBPyConnection, type_: str) -> None:
    """Score, distance and what is NULL are the same, for odd vectors, too, to the rounding of float32."""
    column = "v" if type_ != "TINYINT[16]" else "list_transform(v, lambda x: x * 40)"
    where = "WHERE id >= 9" if type_ == "TINYINT[16]" else ""
    con.execute(f"CREATE TABLE t AS SELECT id, {column}::{type_} AS v FROM v {where}")
    query = "SELECT {0}clip_score(v, 'red car'), {0}clip_sim(v, 'red car') FROM t ORDER BY id"
    macro = con.execute(query.format("")).fetchall()
    function = con.execute(query.format(by_function(""))).fetchall()
    for (score, sim), (score_, sim_) in zip(macro, function, strict=True):
        assert (score is None, sim is None) == (score_ is None, sim_ is None)
        if score is not None:
            assert score == sim["score"] == pytest.approx(score_, abs=1e-6)
            assert sim["distance"] == pytest.approx(sim_["distance"], abs=1e-6)
            assert not math.isnan(score)
    assert sum(score is None for score, _ in macro) == (0 if where else 6)


def test_duckdb_compares_and_the_function_does_the_rest(con: duckdb.DuckDBPyConnection) -> None:
    """Of a stored column the plan has DuckDB's own function, of a path or a BLOB only ours."""
    con.execute("CREATE TABLE p AS SELECT 'a.png' AS path, 'x'::BLOB AS blob")
    for name in ("clip_score", "clip_sim"):
        assert "array_cosine_similarity" in plan(con, f"SELECT {name}(v, 'red') FROM v")
        for column in ("path", "blob"):
            found = plan(con, f"SELECT {name}({column}, 'red') FROM p")
            assert name in found
            assert "array_cosine_similarity" not in found


def test_a_query_for_images_is_embedded_with_them(con: duckdb.DuckDBPyConnection, model: FakeModel) -> None:
    """The plan of a query over paths embeds no text; that over stored vectors embeds it once."""
    con.execute(
        "CREATE TABLE p AS SELECT range || '.png' AS path FROM range(9)"
    )  # of one DuckDB makes a constant
    plan(con, "SELECT clip_score(path, 'red') FROM p")
    assert model.calls[1] == []
    con.execute("SELECT clip_score(v, 'red'), clip_sim(v, 'red') FROM v").fetchall()
    assert sum(model.calls[1]) == 1


def test_the_top_n_stays(con: duckdb.DuckDBPyConnection) -> None:
    """ORDER BY … LIMIT is a Top N for both functions and for clip_search."""
    for query in (
        "FROM v ORDER BY clip_sim(v, 'red') LIMIT 3",
        "FROM v ORDER BY clip_score(v, 'red') DESC NULLS LAST LIMIT 3",
        "FROM clip_search('v', 'v', 'red', k := 3)",
    ):
        assert "TOP_N" in plan(con, query)


def test_good_vectors_are_not_handed_over(
    con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a broken function all spellings still rank vectors that are in order, and only those."""

    def broken(*_: object) -> None:
        raise ValueError("broken")

    monkeypatch.setattr(_functions, "_distances", broken)
    con.execute("CREATE TABLE t AS SELECT id, v, v::FLOAT[] AS l FROM v WHERE id >= 9")
    for query in (
        "SELECT id FROM t ORDER BY clip_sim(v, 'red') LIMIT 3",
        "SELECT id FROM t ORDER BY clip_score(l, 'red') DESC LIMIT 3",
        "SELECT id FROM clip_search('t', 'v', 'red', k := 3)",
    ):
        assert len(con.execute(query).fetchall()) == 3
    with pytest.raises(duckdb.InvalidInputException, match="broken"):
        con.execute("SELECT clip_sim(v, 'red') FROM v").fetchall()


def test_one_order_in_all_spellings(con: duckdb.DuckDBPyConnection) -> None:
    """clip_sim, clip_score, clip_search and a connection without the macros list the same rows."""
    queries = [
        "SELECT id FROM v ORDER BY clip_sim(v, 'red car') LIMIT 10",
        "SELECT id FROM v ORDER BY clip_score(v, 'red car') DESC NULLS LAST LIMIT 10",
        "SELECT id FROM clip_search('v', 'v', 'red car', k := 10)",
    ]
    found = [con.execute(query).fetchall() for query in queries]
    with con.cursor() as cursor:
        found.append(cursor.execute(queries[0]).fetchall())
    assert all(rows == found[0] for rows in found)


def test_failures_raise_where_asked(con: duckdb.DuckDBPyConnection) -> None:
    """on_error='raise' holds for a NaN inside a vector, and not for NULL."""
    register(con, ClipEmbedder(FakeModel()), on_error="raise")
    assert con.execute("SELECT clip_score(v, 'red') FROM v WHERE id = 0").fetchall() == [(None,)]
    with pytest.raises(duckdb.InvalidInputException, match="the vector holds a NULL, a NaN, an infinity"):
        con.execute("SELECT clip_score(v, 'red') FROM v").fetchall()


@pytest.mark.parametrize("name", ["clip_score", "clip_sim"])
@pytest.mark.parametrize(
    ("image", "query", "message"),
    [
        ("[1, 2]::FLOAT[2]", "'red'", r"the image must be FLOAT\[16\] .* 2 dimensions"),
        ("[1, 2]::FLOAT[]", "'red'", r"the image must be FLOAT\[16\] .* 2 dimensions"),
        ("[1, 2]::DOUBLE[]", "'red'", r"the image must be FLOAT\[16\] .* 2 dimensions"),
        ("v", "[1, 2]::FLOAT[2]", r"the query must be FLOAT\[16\] .* 2 dimensions"),
        ("v", "42", "the query must be a VARCHAR .* not INTEGER"),
        ("v", "'red'::BLOB", "the query must be a VARCHAR .* not BLOB"),
        ("42", "'red'", "the image must be a BLOB .* not INTEGER"),
    ],
)
def test_wrong_arguments_are_named(
    con: duckdb.DuckDBPyConnection, name: str, image: str, query: str, message: str
) -> None:
    """Dimension and type are checked as by the function, whose name stands in the message."""
    with pytest.raises(duckdb.InvalidInputException, match=f"{name}: {message}"):
        con.execute(f"SELECT {name}({image}, {query}) FROM v").fetchall()
    with pytest.raises(duckdb.BinderException, match=f"{name}.*does not support the supplied arguments"):
        con.execute(f"SELECT {name}({image}) FROM v")


def test_queries_of_every_kind(con: duckdb.DuckDBPyConnection) -> None:
    """A parameter, a column of texts, an ENUM, a vector, a subquery and NULL are queries."""
    expected = con.execute("SELECT clip_score(v, 'red') FROM v WHERE id = 9").fetchall()
    con.execute("CREATE TABLE q AS SELECT 'red' AS q, 'red'::ENUM('red', 'blue') AS e, clip_text('red') AS v")
    for query in ("q.q", "q.e", "q.v", "(SELECT q FROM q)", "clip_text('red')", "clip_text('red')::DOUBLE[]"):
        found = con.execute(f"SELECT clip_score(v.v, {query}) FROM v, q WHERE id = 9").fetchall()
        assert found[0][0] == pytest.approx(expected[0][0], abs=1e-6)
    assert con.execute("SELECT clip_score(v, ?) FROM v WHERE id = 9", ["red"]).fetchall() == expected
    for query in ("NULL", "NULL::VARCHAR", "NULL::FLOAT[16]", "[0 FOR x IN range(16)]::FLOAT[16]"):
        assert con.execute(f"SELECT DISTINCT clip_score(v, {query}) FROM v").fetchall() == [(None,)]


def test_a_name_as_before(con: duckdb.DuckDBPyConnection) -> None:
    """The column of a result is called as the expression is written."""
    result = con.execute("SELECT clip_score(v, 'red'), clip_sim(v, 'red') FROM v")
    assert [column[0] for column in result.description] == ["clip_score(v, 'red')", "clip_sim(v, 'red')"]


def test_another_dimension_beside_old_macros(con: duckdb.DuckDBPyConnection) -> None:
    """Where another connection has replaced the functions, what is left of the old ones works."""
    with con.cursor() as cursor:
        register(cursor, ClipEmbedder(FakeModel()))
        unregister(con)
        register(con, ClipEmbedder(FakeModel(8)))
        with pytest.raises(duckdb.InvalidInputException, match=r"must be FLOAT\[8\] where it is a vector"):
            cursor.execute("SELECT clip_score(v, 'red') FROM v").fetchall()
        query = "SELECT clip_score(v[1:8]::FLOAT[8], 'red') FROM v WHERE id = 9"
        found, expected = cursor.execute(query).fetchall(), con.execute(query).fetchall()
        assert found[0][0] == pytest.approx(expected[0][0], abs=1e-6)


def test_macros_that_lose_their_functions(
    con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another connection unregisters, one that has macros hears which function is missing."""
    remove = duckdb.DuckDBPyConnection.remove_function
    said: list[str] = []

    def remove_and_look(own: duckdb.DuckDBPyConnection, name: str) -> duckdb.DuckDBPyConnection:
        gone = remove(own, name)
        try:
            cursor.execute("SELECT clip_score(v, 'red'), (clip_sim(v, ?)).score FROM v", ["red"])
        except duckdb.Error as error:
            said.append(str(error).partition("!")[0])
        return gone

    with con.cursor() as cursor:
        register(cursor, ClipEmbedder(FakeModel()))
        monkeypatch.setattr(duckdb.DuckDBPyConnection, "remove_function", remove_and_look)
        unregister(con)
    assert len(said) == 12
    assert set(said) == {"Catalog Error: Scalar Function with name _clip_query does not exist"}


def test_macros_go_with_unregister(con: duckdb.DuckDBPyConnection) -> None:
    """No macro of ours is left, and none was ever in the database."""
    query = "SELECT database_name, function_name FROM duckdb_functions() WHERE function_name LIKE 'clip%'"
    assert {row[0] for row in con.execute(query).fetchall()} == {"system", "temp"}
    unregister(con)
    assert con.execute(query).fetchall() == []


def test_a_macro_of_the_users_own_stays() -> None:
    """A temporary macro called clip_score is kept, and a warning says so."""
    with duckdb.connect() as con:
        con.execute("CREATE TEMP MACRO clip_score(a, b) AS 7")
        with pytest.warns(UserWarning, match="macro of its own called clip_score, which stays"):
            register(con, ClipEmbedder(FakeModel()))
        unregister(con)
        assert con.execute("SELECT clip_score(1, 2)").fetchall() == [(7,)]


def test_an_older_transaction_keeps_its_writes() -> None:
    """One that cannot see the functions yet is not aborted by register; a second call adds the macros."""
    with duckdb.connect() as con:
        con.begin()
        con.execute("CREATE TABLE t AS SELECT [1 FOR x IN range(16)]::FLOAT[16] AS v")
        con.execute("SELECT count(*) FROM duckdb_functions()").fetchall()
        register(con, ClipEmbedder(FakeModel()))
        con.commit()
        register(con, ClipEmbedder(FakeModel()))
        assert "array_cosine_similarity" in plan(con, "SELECT clip_score(v, 'red') FROM t")
