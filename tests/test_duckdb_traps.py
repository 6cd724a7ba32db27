"""What DuckDB does that the functions are built around: where one of these changes, so may they."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import duckdb
import pyarrow as pa
import pytest
from duckdb.func import ARROW, SPECIAL
from PIL import Image

from clip_embed import ClipEmbedder
from clip_embed.testing import FakeModel
from clip_embed_duckdb import register
from clip_embed_duckdb._functions import make_functions
from clip_embed_duckdb._slot import Slot, State


def picture(number: int) -> bytes:
    """Return a PNG unlike that of any other number."""
    out = io.BytesIO()
    Image.new("RGB", (9, 9), (number % 256, number // 256, 7)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection without the functions."""
    with duckdb.connect() as con:
        yield con


def add(con: duckdb.DuckDBPyConnection, name: str, function: Callable[..., Any], **options: object) -> None:
    """Create a function as `register` does."""
    cast("Any", con).create_function(
        name, function, None, "FLOAT", type=ARROW, null_handling=SPECIAL, **options
    )


def test_return_null_loses_the_good_rows(con: duckdb.DuckDBPyConnection) -> None:
    """DuckDB's exception_handling gives up a whole chunk for one bad row; ours gives up the row."""

    def half(column: Any) -> Any:  # noqa: ANN401
        if any(value == 7 for value in column.to_pylist()):
            raise ValueError("seven")
        return pa.array([value / 2 for value in column.to_pylist()], pa.float32())

    add(con, "half", half, exception_handling="return_null")
    halves = [row[0] for row in con.execute("SELECT half(range) FROM range(10)").fetchall()]
    assert not any(halves)
    register(con, ClipEmbedder(FakeModel()))
    blobs = [b"bad" if number == 7 else picture(number) for number in range(10)]
    rows = con.execute("SELECT clip_score(unnest(?::BLOB[]), 'x') IS NULL", [blobs]).fetchall()
    assert [number for number, (missing,) in enumerate(rows) if missing] == [7]


def test_read_blob_brings_one_row_at_a_time(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    """A scan of read_blob calls a function for each file; glob() brings the paths together."""
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    calls: list[int] = []

    def note(column: Any) -> Any:  # noqa: ANN401
        calls.append(len(column))
        return pa.array([1.0] * len(column), pa.float32())

    add(con, "note", note)
    con.execute(f"SELECT note(content) FROM read_blob('{tmp_path}/*.png')").fetchall()
    con.execute(f"SELECT note(file) FROM glob('{tmp_path}/*.png')").fetchall()
    assert [calls.count(1), calls.count(5)] == [5, 1]


def test_a_duplicate_has_not_the_search_path(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    """A copy of a connection forgets file_search_path; the functions still find what `con` finds."""
    (tmp_path / "a.png").write_bytes(picture(1))
    con.execute(f"SET file_search_path = '{tmp_path}'")
    with con.duplicate() as copy:
        assert copy.execute("SELECT current_setting('file_search_path')").fetchall() == [("",)]
    register(con, ClipEmbedder(FakeModel()))
    assert con.execute("SELECT clip_error('a.png'), clip_error('./a.png')").fetchall() == [(None, None)]


def test_an_open_result_is_in_the_way_of_functions(con: duckdb.DuckDBPyConnection) -> None:
    """After fetchone() a connection takes no function in 2.0, but a copy does; so register works."""
    con.execute("SELECT range FROM range(100000)").fetchone()
    if duckdb.__version__.startswith("1."):
        register(con, ClipEmbedder(FakeModel()))
    else:
        with pytest.raises(duckdb.Error):
            add(con, "one", lambda column: column)
        with pytest.warns(UserWarning, match="clip_search was not added"):
            register(con, ClipEmbedder(FakeModel()))
    assert con.fetchone() == (1,)


@pytest.mark.skipif(duckdb.__version__.startswith("1."), reason="waits for itself for ever in 1.5")
def test_a_function_may_not_use_its_connection(con: duckdb.DuckDBPyConnection) -> None:
    """DuckDB refuses the connection that runs the query; a copy of it reads files."""
    errors: list[str] = []

    def ask(column: Any) -> Any:  # noqa: ANN401
        try:
            con.execute("SELECT 1")
        except duckdb.Error as error:
            errors.append(str(error))
        with con.duplicate() as copy:
            return pa.array([copy.execute("SELECT 2").fetchall()[0][0]] * len(column), pa.float32())

    add(con, "ask", ask)
    assert con.execute("SELECT ask(range) FROM range(1)").fetchall() == [(2.0,)]
    assert len(errors) == 1
    con.remove_function("ask")


def test_a_name_is_taken_once(con: duckdb.DuckDBPyConnection) -> None:
    """DuckDB refuses or overloads a second function of a name; register twice is one."""
    for _ in range(2):
        register(con, ClipEmbedder(FakeModel()))
    count = con.execute("SELECT count(*) FROM duckdb_functions() WHERE function_name = '_clip_query'")
    assert count.fetchall() == [(1,)]


@pytest.mark.parametrize("text", ["'red car'", "?", "'red' || ' car'"])
def test_a_constant_text_is_embedded_once_a_query(con: duckdb.DuckDBPyConnection, text: str) -> None:
    """clip_text of a constant is folded: one text for 5,000 rows in three chunks, without any cache."""
    model = FakeModel()
    register(con, ClipEmbedder(model, cache=None))
    con.execute(
        "CREATE TABLE v AS FROM range(5000) "
        "SELECT list_transform(range(16), lambda x: range + x + 1)::FLOAT[16] v"
    )
    con.execute(
        f"SELECT array_inner_product(v, clip_text({text})) FROM v", ["red car"] if text == "?" else []
    ).fetchall()
    plans = 2 if duckdb.__version__.startswith("1.") else 1  # how often a query is planned
    assert sum(model.calls[1]) == plans
    con.execute("SELECT clip_score(v, 'red car') FROM v").fetchall()
    assert sum(model.calls[1]) == 2 * plans
    con.execute("SELECT clip_score(v::DOUBLE[], 'red car') FROM v").fetchall()
    assert (
        sum(model.calls[1]) <= 2 * plans + 3
    )  # to a function it comes with each row, and counts once a chunk


def test_explain_and_create_view_embed_no_image(con: duckdb.DuckDBPyConnection) -> None:
    """Both plan a query, which folds its constant text, once or twice; the images are left alone."""
    model = FakeModel()
    register(con, ClipEmbedder(model, cache=None))
    con.execute("CREATE TABLE t AS SELECT unnest(?::BLOB[]) img", [[picture(1), picture(2)]])
    query = "SELECT *, clip_label(img, ['a', 'b']) FROM t WHERE clip_error(img) IS NULL ORDER BY {by}"
    folded = "array_inner_product(clip_image(img), clip_text('red car'))"
    for by, texts in ((folded, {0, 1, 2}), ("clip_sim(img, 'red car')", {0})):
        for prefix in ("EXPLAIN ", "CREATE OR REPLACE VIEW v AS "):
            before = sum(model.calls[1])
            con.execute(prefix + query.format(by=by)).fetchall()
            assert sum(model.calls[1]) - before in texts
    assert not model.calls[0]
    assert len(con.execute("FROM v").fetchall()) == 2
    assert model.calls[0]


def test_a_stored_vector_is_compared_in_the_form_of_an_index(con: duckdb.DuckDBPyConnection) -> None:
    """The distance of a column and a constant in a Top-N is what an index answers; it ranks as clip_sim."""
    register(con, ClipEmbedder(FakeModel()))
    con.execute("CREATE TABLE t AS SELECT unnest(?::BLOB[]) img", [[picture(number) for number in range(50)]])
    con.execute("CREATE TABLE v AS SELECT rowid AS id, clip_image(img) AS emb FROM t")
    query = "SELECT id FROM v ORDER BY {by} LIMIT 5"
    distance = "array_negative_inner_product(emb, clip_text('red'))"
    plan = con.execute(f"EXPLAIN (FORMAT json) {query.format(by=distance)}").fetchall()[0][1]
    assert "TOP_N" in plan
    assert "clip_text" not in plan
    nearest = [con.execute(query.format(by=by)).fetchall() for by in (distance, "clip_sim(emb, 'red')")]
    assert nearest[0] == nearest[1]


def test_a_call_may_have_no_rows() -> None:
    """DuckDB may hand over nothing; then nothing is embedded, and the type is right all the same."""
    model = FakeModel()
    slot = Slot(model.dim)
    slot.state = State(ClipEmbedder(model), "raise")
    functions = make_functions(slot)
    functions.pop("_clip_fits")  # it takes no image
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    vectors = [pa.list_(pa.float32(), model.dim), pa.list_(pa.float64()), pa.list_(pa.int8(), model.dim)]
    images = [pa.binary(), pa.string(), struct, pa.null(), *vectors]
    seconds = {"clip_label": pa.list_(pa.string()), "clip_labels": pa.list_(pa.string())}
    texts = ("clip_sim", "clip_score", "clip_predict", "clip_moderate", "_clip_query")
    seconds |= dict.fromkeys(texts, pa.string())
    for name, (function, _) in functions.items():
        filled = function(*[pa.nulls(1, kind) for kind in (pa.string(), seconds.get(name)) if kind])
        for image in [pa.string()] if name in ("clip_text", "_clip_query") else images:
            kinds = [image, seconds[name]] if name in seconds else [image]
            answer = function(*[pa.nulls(0, kind) for kind in kinds])
            assert (len(answer), answer.type) == (0, filled.type), (name, image)
    assert not any(model.calls)


def test_one_macro_takes_all_types(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    """A macro with a type refuses a mere text in its place; ours have none, and take all."""
    con.execute("CREATE TEMP MACRO typed(img BLOB) AS octet_length(img)")
    with pytest.raises(duckdb.BinderException):
        con.execute("SELECT typed('x')")
    register(con, ClipEmbedder(FakeModel()))
    path = tmp_path / "a.png"
    path.write_bytes(picture(1))
    con.execute("CREATE TABLE t AS SELECT ?::BLOB AS img", [picture(1)])
    vector = "clip_image(img)"
    forms = ["img", f"'{path}'", f"'{path}'::ENUM('{path}')", "{'bytes': img, 'path': 'x'}", vector]
    forms += [f"{vector}::FLOAT[]", f"{vector}::DOUBLE[]", f"{vector}::DOUBLE[16]", "NULL", "NULL::FLOAT[16]"]
    scores = con.execute(
        f"SELECT {', '.join(f'clip_score({form}, $q)' for form in forms)} FROM t", {"q": "red"}
    )
    values = scores.fetchall()[0]
    assert values[:-2] == pytest.approx([values[0]] * (len(forms) - 2), abs=1e-6)
    assert values[-2:] == (None, None)
    kinds = con.execute("SELECT function_type FROM duckdb_functions() WHERE function_name = 'clip_score'")
    assert sorted(kinds.fetchall()) == [("macro",), ("scalar",)]


def test_functions_bind_in_windows_and_aggregates(con: duckdb.DuckDBPyConnection) -> None:
    """They have no side effects, so DuckDB lets them stand wherever a value may."""
    register(con, ClipEmbedder(FakeModel()))
    con.execute("CREATE TABLE t AS SELECT unnest(?::BLOB[]) img", [[picture(number) for number in (1, 200)]])
    rows = con.execute(
        "SELECT rank() OVER (ORDER BY clip_sim(img, 'red')), avg(clip_score(img, 'red')) OVER (), "
        "lag(clip_score(img, 'red')) OVER (ORDER BY clip_score(img, 'red') DESC) FROM t"
    ).fetchall()
    assert {row[0] for row in rows} == {1, 2}
    kept = con.execute(
        "SELECT count(*) FROM t GROUP BY clip_score(img, 'red') > 2 HAVING max(clip_score(img, 'x')) < 2"
    )
    assert kept.fetchall() == [(2,)]


def test_an_error_aborts_the_transaction_and_nothing_else(con: duckdb.DuckDBPyConnection) -> None:
    """After an error in a transaction comes a rollback; the connection and what was committed stay."""
    register(con, ClipEmbedder(FakeModel()), on_error="raise")
    con.execute("CREATE TABLE t AS SELECT 1 AS i")
    con.begin()
    con.execute("INSERT INTO t VALUES (2)")
    with pytest.raises(duckdb.InvalidInputException, match="missing"):
        con.execute("SELECT clip_score('missing.png', 'x')").fetchall()
    with pytest.raises(duckdb.TransactionException):
        con.execute("FROM t").fetchall()
    con.rollback()
    assert con.execute("FROM t").fetchall() == [(1,)]
    assert con.execute("SELECT clip_score(?::BLOB, 'x') IS NULL", [picture(1)]).fetchall() == [(False,)]


def test_nan_never_comes_out(con: duckdb.DuckDBPyConnection) -> None:
    """NaN would sort first in descending order; a vector without a direction is NULL and sorts last."""
    register(con, ClipEmbedder(FakeModel()))
    con.execute("CREATE TABLE v (v FLOAT[16])")
    zeros, spoiled, good = [0.0] * 16, [float("nan")] + [1.0] * 15, [1.0] * 16
    con.executemany("INSERT INTO v VALUES (?)", [[zeros], [spoiled], [good]])
    rows = con.execute("SELECT clip_score(v, 'red') s FROM v ORDER BY s DESC NULLS LAST").fetchall()
    assert [row[0] is None for row in rows] == [False, True, True]


@pytest.mark.parametrize("setting", ["nulls_first", "nulls_last"])
def test_where_nulls_sort_is_a_setting(con: duckdb.DuckDBPyConnection, setting: str) -> None:
    """NULL comes first where the user has it so, unless NULLS LAST is written; clip_search has no NULLs."""
    register(con, ClipEmbedder(FakeModel()))
    con.execute("CREATE TABLE t AS SELECT unnest(?::BLOB[]) img", [[picture(1), None, b"bad", picture(2)]])
    con.execute(f"SET default_null_order = '{setting}'")
    query = "SELECT clip_score(img, 'red') IS NULL FROM t ORDER BY clip_sim(img, 'red')"
    last = [(False,), (False,), (True,), (True,)]
    assert con.execute(query).fetchall() == (last if setting == "nulls_last" else last[::-1])
    assert con.execute(f"{query} NULLS LAST").fetchall() == last
    assert len(con.execute("FROM clip_search('t', 'img', 'red')").fetchall()) == 2


def test_files_of_another_file_system(con: duckdb.DuckDBPyConnection) -> None:
    """What is registered with DuckDB is read through it, and known again by its time."""
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe("/clip-embed-test/a.png", picture(1))
    con.register_filesystem(memory)
    model = FakeModel()
    register(con, ClipEmbedder(model))
    query = (
        "SELECT clip_error('memory://clip-embed-test/a.png'), clip_error('memory://clip-embed-test/b.png')"
    )
    for _ in range(2):
        assert con.execute(query).fetchall() == [(None, "no such file")]
    assert sum(model.calls[0]) == 1
    memory.rm("/clip-embed-test", recursive=True)
