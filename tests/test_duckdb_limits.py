"""More of what DuckDB does that the functions are built around: calls, types, what may use a function."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from duckdb.func import ARROW, SPECIAL

from clip_embed import ClipEmbedder
from clip_embed.testing import FakeModel
from clip_embed_duckdb import register

OLD = duckdb.__version__.startswith("1.")
ONES = "[1 FOR x IN range(16)]::FLOAT[16]"


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection without the functions."""
    with duckdb.connect() as con:
        yield con


def add(
    con: duckdb.DuckDBPyConnection,
    name: str,
    function: Callable[..., Any],
    takes: list[str] | None = None,
    gives: str = "FLOAT",
    **options: object,
) -> None:
    """Create a function over Arrow columns."""
    cast("Any", con).create_function(
        name, function, takes, gives, type=ARROW, null_handling=SPECIAL, **options
    )


def ones(column: Any) -> Any:  # noqa: ANN401
    """Return a number for each row."""
    return pa.array([1.0] * len(column), pa.float32())


def test_a_call_has_2048_rows_at_most(con: duckdb.DuckDBPyConnection) -> None:
    """However large the table is: so one query is several calls, and batches are made across them."""
    sizes: list[int] = []

    def note(column: Any) -> Any:  # noqa: ANN401
        sizes.append(len(column))
        return ones(column)

    add(con, "note", note)
    con.execute("SELECT note(range) FROM range(5000)").fetchall()
    assert sorted(sizes) == [904, 2048, 2048]


def test_a_filter_leaves_small_calls(con: duckdb.DuckDBPyConnection) -> None:
    """A call has as many rows as the filter leaves of DuckDB's chunk: so batches are made across calls."""
    sizes: list[int] = []

    def note(column: Any) -> Any:  # noqa: ANN401
        sizes.append(len(column))
        return ones(column)

    add(con, "note", note)
    con.execute("CREATE TABLE t AS SELECT range AS i FROM range(20480)")
    con.execute("SELECT note(i) FROM t WHERE i % 1000 = 5").fetchall()
    assert (len(sizes), sum(sizes), max(sizes)) == (10, 21, 3)


@pytest.mark.stress
def test_a_chunk_of_blobs_over_two_gigabytes(con: duckdb.DuckDBPyConnection) -> None:
    """DuckDB refuses it and names the setting that lets it through; 2,048 rows, 9 GB of memory."""
    register(con, ClipEmbedder(FakeModel()), progress=False)
    query = "SELECT count(clip_error((repeat('x', 1100000) || range)::BLOB)) FROM range(2048)"
    with pytest.raises(duckdb.InvalidInputException, match="arrow_large_buffer_size"):
        con.execute(query).fetchall()
    con.execute("SET arrow_large_buffer_size = true")
    assert con.execute(query).fetchall() == [(2048,)]


def test_a_table_below_122880_rows_runs_on_one_thread(con: duckdb.DuckDBPyConnection) -> None:
    """Whatever its threads: so images are decoded in parallel within a call."""
    threads: set[int] = set()

    def note(column: Any) -> Any:  # noqa: ANN401
        threads.add(threading.get_ident())
        return ones(column)

    add(con, "note", note)
    con.execute("SET threads = 4")
    con.execute("CREATE TABLE t AS SELECT range AS i FROM range(100000)")
    con.execute("SELECT sum(note(i)) FROM t").fetchall()
    assert len(threads) == 1


def test_a_typed_function_takes_a_path_for_a_blob(con: duckdb.DuckDBPyConnection) -> None:
    """A literal becomes what the signature says, silently; ours have none, and see what was written."""
    kinds: list[str] = []

    def note(column: Any) -> Any:  # noqa: ANN401
        kinds.append(str(column.type))
        return ones(column)

    add(con, "typed", note, ["BLOB"])
    add(con, "any_type", note)
    con.execute("SELECT typed('a.png'), any_type('a.png')").fetchall()
    assert sorted(kinds) == ["binary", "string"]
    register(con, ClipEmbedder(FakeModel()))
    assert con.execute("SELECT clip_error('a.png')").fetchall() == [("no such file",)]


def test_only_arrow_lists_of_float32_come_back(con: duckdb.DuckDBPyConnection) -> None:
    """A numpy matrix and half floats are refused as a result, so clip_image gives FixedSizeList<float32>."""

    def fixed(numbers: Any) -> Any:  # noqa: ANN401
        return cast("Any", pa.FixedSizeListArray).from_arrays(pa.array(numbers), 3)

    add(con, "matrix", lambda column: np.zeros((len(column), 3), np.float32), gives="FLOAT[3]")
    add(con, "half", lambda column: fixed(np.zeros(3 * len(column), np.float16)), gives="FLOAT[3]")
    add(con, "single", lambda column: fixed(np.zeros(3 * len(column), np.float32)), gives="FLOAT[3]")
    for name in ("matrix", "half"):
        with pytest.raises(duckdb.Error):
            con.execute(f"SELECT {name}(1)").fetchall()
    assert con.execute("SELECT single(1)").fetchall() == [((0.0, 0.0, 0.0),)]


@pytest.mark.skipif(OLD, reason="1.5 takes it")
def test_a_function_with_side_effects_orders_no_window(con: duckdb.DuckDBPyConnection) -> None:
    """So ours are declared without, and DuckDB may call them as often as it likes."""
    add(con, "volatile", ones, side_effects=True)
    with pytest.raises(duckdb.BinderException, match="volatile"):
        con.execute("SELECT rank() OVER (ORDER BY volatile(range)) FROM range(3)")


def test_nothing_else_holds_the_default_connection() -> None:
    """Its Python object dies with the last name: a weak reference to it is no way to find it again."""
    reference = weakref.ref(duckdb.default_connection())
    gc.collect()
    assert reference() is None


def test_a_missing_file_is_dropped_silently(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    """read_blob says nothing of it, so files are matched by their names."""
    here, gone = tmp_path / "a.png", tmp_path / "b.png"
    here.write_bytes(b"x")
    found = con.execute("SELECT filename FROM read_blob(?)", [[str(here), str(gone)]]).fetchall()
    assert found == [(str(here),)]


def test_nan_would_be_the_best(con: duckdb.DuckDBPyConnection) -> None:
    """DuckDB sorts NaN before all numbers in descending order, so no function of ours returns one."""
    rows = con.execute("SELECT unnest([1, 'nan'::FLOAT, 2]) AS x ORDER BY x DESC").fetchall()
    assert [str(row[0]) for row in rows] == ["nan", "2.0", "1.0"]


def test_a_comment_is_lost_by_a_copy(con: duckdb.DuckDBPyConnection) -> None:
    """So a stamp is, and check warns of vectors that have none."""
    con.execute("CREATE TABLE a (v FLOAT[16])")
    con.execute("COMMENT ON COLUMN a.v IS 'a stamp'")
    con.execute("CREATE TABLE b AS FROM a")
    query = "SELECT comment FROM duckdb_columns() WHERE table_name = ?"
    assert [con.execute(query, [name]).fetchall() for name in ("a", "b")] == [[("a stamp",)], [(None,)]]


def test_what_may_not_call_a_function(con: duckdb.DuckDBPyConnection) -> None:
    """No stored generated column, no default of other columns, no index: so materialize and follow exist."""
    register(con, ClipEmbedder(FakeModel()))
    con.execute("CREATE TABLE t (img VARCHAR)")
    with pytest.raises(duckdb.Error, match="STORED"):
        con.execute("CREATE TABLE a (img VARCHAR, v FLOAT[16] GENERATED ALWAYS AS (clip_image(img)) STORED)")
    with pytest.raises(duckdb.Error, match="column names"):
        con.execute("CREATE TABLE a (img VARCHAR, v FLOAT[16] DEFAULT (clip_image(img)))")
    con.execute("CREATE INDEX i ON t (clip_error(img))")
    with pytest.raises(duckdb.Error, match="Failed to commit"):
        con.execute("INSERT INTO t VALUES ('a.png')")


@pytest.mark.skipif(OLD, reason="1.5 has no triggers")
def test_a_trigger_may_not_write_its_own_table(con: duckdb.DuckDBPyConnection) -> None:
    """So follow keeps the vectors in a table beside."""
    register(con, ClipEmbedder(FakeModel()))
    con.execute("CREATE TABLE t (img VARCHAR, v FLOAT[16])")
    with pytest.raises(duckdb.NotImplementedException, match="Recursive trigger"):
        con.execute(
            "CREATE TRIGGER fill AFTER INSERT ON t REFERENCING NEW TABLE AS n FOR EACH STATEMENT "
            "UPDATE t SET v = clip_image(img)"
        )


def test_a_generated_column_needs_the_function_itself(con: duckdb.DuckDBPyConnection) -> None:
    """DuckDB takes no lambda there, which the macro for stored vectors has; docs/duckdb.md has a way out."""
    register(con, ClipEmbedder(FakeModel()))
    con.execute("CREATE TABLE a (v FLOAT[16], s FLOAT GENERATED ALWAYS AS (clip_score(v, 'red')))")
    with pytest.raises(duckdb.NotImplementedException, match="Lambda"):
        con.execute(f"INSERT INTO a VALUES ({ONES})")
    con.execute(
        "CREATE TABLE b (v FLOAT[16], s FLOAT GENERATED ALWAYS AS (system.main.clip_score(v, 'red')))"
    )
    con.execute(f"INSERT INTO b VALUES ({ONES})")
    assert con.execute("SELECT s = clip_score(v, 'red') OR abs(s) <= 1 FROM b").fetchall() == [(True,)]


def test_torch_takes_no_column_of_vectors(con: duckdb.DuckDBPyConnection) -> None:
    """DuckDB's own .torch() fails for FLOAT[d]: the way out is Arrow."""
    register(con, ClipEmbedder(FakeModel()))
    with pytest.raises(TypeError, match="object"):
        con.sql("SELECT clip_text('red') AS v").torch()


def test_vectors_on_their_way_in_and_out(con: duckdb.DuckDBPyConnection) -> None:
    """Arrow's fixed-size lists are FLOAT[d] both ways; .flatten() drops NULL rows, .values has all."""
    register(con, ClipEmbedder(FakeModel()))
    column = cast("Any", pa.FixedSizeListArray).from_arrays(pa.array(np.ones(32, np.float32)), 16)
    con.register("arrow", pa.table({"v": column}))
    assert con.execute(
        "SELECT typeof(v), count(clip_score(v, 'red')) FROM arrow GROUP BY ALL"
    ).fetchall() == [("FLOAT[16]", 2)]
    table = con.sql("SELECT clip_text(unnest(['red', NULL, 'blue'])) AS v").to_arrow_table()
    back = cast("Any", table["v"]).combine_chunks()
    assert (len(back.flatten()), len(back.values), len(back.slice(2).values)) == (32, 48, 48)
    con.unregister("arrow")


def test_arrays_of_polars_are_vectors(con: duckdb.DuckDBPyConnection) -> None:
    """polars' Array arrives as FLOAT[d], and clip_image gives one back."""
    polars = pytest.importorskip("polars")
    register(con, ClipEmbedder(FakeModel()))
    con.register("frame", polars.DataFrame({"v": np.ones((2, 16), np.float32)}))
    rows = con.execute("SELECT typeof(v), count(clip_score(v, 'red')) FROM frame GROUP BY ALL").fetchall()
    assert rows == [("FLOAT[16]", 2)]
    back = con.sql("SELECT clip_image(v) AS v FROM frame").pl()["v"]
    assert back.dtype == polars.Array(polars.Float32, 16)
    con.unregister("frame")
