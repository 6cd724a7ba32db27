"""Where and how often register works, and what it leaves behind."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import duckdb
import pytest
from PIL import Image

from clip_embed import ClipEmbedder, ClipEmbedError, SpaceMismatch
from clip_embed.testing import FakeModel
from clip_embed_duckdb import register, unregister

NAMES = {
    "_clip_fits",
    "_clip_query",
    "clip_embedding",
    "clip_error",
    "clip_image",
    "clip_label",
    "clip_labels",
    "clip_predict",
    "clip_moderate",
    "clip_score",
    "clip_sim",
    "clip_text",
}


def fake(dim: int = 16) -> ClipEmbedder:
    """Return an embedder without weights."""
    return ClipEmbedder(FakeModel(dim))


def dimension(con: duckdb.DuckDBPyConnection) -> int:
    """Return the dimension of the functions, by using one."""
    return int(con.execute("SELECT len(clip_text('red'))").fetchall()[0][0])


def without_search() -> AbstractContextManager[object]:
    """Expect the warning that an open result keeps clip_search away; DuckDB 1.5 does not mind one."""
    if duckdb.__version__.startswith("1."):
        return nullcontext()
    return pytest.warns(UserWarning, match="clip_search was not added")


def functions(con: duckdb.DuckDBPyConnection) -> set[str]:
    """Return the names that contain clip; the macro clip_search has tests of its own."""
    query = (
        "SELECT function_name FROM duckdb_functions() "
        "WHERE function_name LIKE '%clip%' AND function_name <> 'clip_search'"
    )
    return {row[0] for row in con.execute(query).fetchall()}


def test_register_is_idempotent() -> None:
    """Twice the same is one set of functions and no error."""
    with duckdb.connect() as con:
        clip = fake()
        for _ in range(3):
            register(con, clip)
        assert functions(con) > NAMES
        assert len(functions(con)) == len(NAMES) + 1
        assert dimension(con) == 16


def test_wrong_arguments() -> None:
    """A name in place of a connection or an embedder, or another on_error, is refused by name."""
    with pytest.raises(TypeError, match="con must be a connection to DuckDB, not str"):
        register("photos.db", fake())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with duckdb.connect() as con:
        with pytest.raises(TypeError, match="embedder must be a ClipEmbedder, not str"):
            register(con, "offline")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match="on_error must be 'null' or 'raise', not 'skip'"):
            register(con, fake(), on_error="skip")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        assert functions(con) == set()


def test_the_default_model_is_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, clip_folder: Path
) -> None:
    """Without an embedder, CLIP_EMBED_MODEL names the model; its dimension is that of the vectors."""
    monkeypatch.setenv("CLIP_EMBED_MODEL", str(clip_folder))
    with duckdb.connect() as con:
        register(con)
        assert con.execute("SELECT typeof(clip_image(NULL))").fetchall() == [("FLOAT[48]",)]


def test_another_embedder_replaces_the_first() -> None:
    """Registering again swaps the embedder and on_error for all connections of the database."""
    first, second = FakeModel(), FakeModel()
    with duckdb.connect() as con, con.cursor() as cursor:
        register(con, ClipEmbedder(first))
        register(cursor, ClipEmbedder(second), on_error="raise")
        con.execute("SELECT clip_text('red')").fetchall()
        assert (sum(first.calls[1]), sum(second.calls[1])) == (0, 1)
        with pytest.raises(duckdb.InvalidInputException, match="no such file"):
            con.execute("SELECT clip_image('missing.png')").fetchall()


def test_another_dimension_replaces_the_functions() -> None:
    """On the connection that registered, also in a transaction and with a view in the way."""
    with duckdb.connect() as con:
        register(con, fake(16))
        con.execute("CREATE VIEW v AS SELECT clip_text('red') AS t")
        register(con, fake(8))
        assert dimension(con) == 8
        con.begin()
        register(con, fake(4))
        assert dimension(con) == 4
        con.rollback()
        assert dimension(con) == 4


def test_another_dimension_from_another_connection() -> None:
    """It works while the first connection lives; when that is gone, the error says what to do."""
    with duckdb.connect() as con, con.cursor() as cursor:
        register(con, fake(16))
        register(cursor, fake(8))
        assert dimension(con) == dimension(cursor) == 8
        cursor.close()
        with pytest.raises(SpaceMismatch, match=r"give FLOAT\[8\].*4 dimensions.*reopen the database"):
            register(con, fake(4))
        assert dimension(con) == 8


def test_two_databases_with_two_embedders() -> None:
    """Each database has its own."""
    with duckdb.connect() as a, duckdb.connect() as b:
        register(a, fake(16))
        register(b, fake(8))
        assert (dimension(a), dimension(b)) == (16, 8)
        unregister(a)
        assert dimension(b) == 8


def test_all_connections_of_a_database_have_the_functions(tmp_path: Path) -> None:
    """A cursor, a second connect() to the file and a thread's cursor see and may register them."""
    file = str(tmp_path / "x.db")
    with duckdb.connect(file) as con, duckdb.connect(file) as second:
        register(con.cursor(), fake())
        assert dimension(con) == dimension(second) == 16
        register(second, fake())
        found: list[int] = []
        threads = [threading.Thread(target=lambda: found.append(dimension(con.cursor()))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [16] * 4


def test_threads_register_at_once() -> None:
    """Eight threads that register one database leave one working set of functions."""
    with duckdb.connect() as con:
        clip = fake()
        cursors = [con.cursor() for _ in range(8)]
        threads = [threading.Thread(target=register, args=(cursor, clip)) for cursor in cursors]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(functions(con)) == len(NAMES) + 1
        assert dimension(con) == 16
        for cursor in cursors:
            cursor.close()


def test_an_open_result_is_left_alone() -> None:
    """After execute().fetchone() register and unregister work, and the result goes on."""
    with duckdb.connect() as con:
        con.execute("SELECT range FROM range(100000)")
        assert con.fetchone() == (0,)
        with without_search():
            register(con, fake())
        assert con.fetchone() == (1,)
        with without_search():
            register(con, fake())
        assert dimension(con.cursor()) == 16
        assert con.fetchone() == (2,)
        unregister(con)
        assert con.fetchone() == (3,)
        assert functions(con.cursor()) == set()


def test_a_locked_configuration(tmp_path: Path) -> None:
    """lock_configuration is no obstacle, and the search path holds with it."""
    Image.new("RGB", (9, 9), "red").save(tmp_path / "a[1].png")
    Image.new("RGB", (9, 9), "red").save(tmp_path / "a.png")
    with duckdb.connect() as con:
        con.execute(f"SET file_search_path = '/nowhere,{tmp_path}'")
        con.execute("SET lock_configuration = true")
        register(con, fake())
        query = "SELECT clip_score('a.png', 'red'), clip_score('a[1].png', 'red'), clip_error('b.png')"
        plain, wild, missing = con.execute(query).fetchall()[0]
        assert plain == wild > 0.9
        assert missing == "no such file"


def test_a_read_only_database(tmp_path: Path) -> None:
    """A database opened read-only takes the functions; nothing is written into it."""
    file = tmp_path / "x.db"
    duckdb.connect(str(file)).close()
    before = file.read_bytes()
    with duckdb.connect(str(file), read_only=True) as con:
        register(con, fake())
        assert dimension(con) == 16
    assert file.read_bytes() == before


def test_register_in_a_transaction() -> None:
    """The transaction sees the functions, and a rollback does not take them away."""
    with duckdb.connect() as con:
        con.begin()
        register(con, fake())
        register(con, fake())
        assert dimension(con) == 16
        con.rollback()
        assert dimension(con) == 16


def test_register_in_an_older_transaction() -> None:
    """One that has read the catalog sees the functions when it is over."""
    with duckdb.connect() as con:
        con.begin()
        assert functions(con) == set()
        register(con, fake())
        register(con, fake())
        con.commit()
        assert dimension(con) == 16


def test_a_result_left_open_does_not_keep_the_dimension() -> None:
    """fetchone() leaves a result open, before register and after it; the functions are still replaced."""
    with duckdb.connect() as con:
        for dim in (16, 8):
            con.execute("SELECT range FROM range(9)").fetchone()
            with without_search():
                register(con, fake(dim))
            assert con.fetchone() == (1,)
            assert dimension(con) == dim


def test_an_aborted_transaction() -> None:
    """Registering while a transaction is aborted works for after it."""
    with duckdb.connect() as con:
        con.begin()
        with pytest.raises(duckdb.Error):
            con.execute("SELECT error('x')").fetchall()
        with pytest.warns(UserWarning, match="clip_search was not added"):
            register(con, fake())
        con.rollback()
        assert dimension(con) == 16


def test_a_taken_name_leaves_nothing_behind() -> None:
    """Where the user has a macro of one of the names, the error says so and no name is added."""
    with duckdb.connect() as con:
        con.execute("CREATE MACRO clip_text(x) AS x")
        with pytest.raises(ClipEmbedError, match="of its own called clip_text"):
            register(con, fake())
        assert functions(con) == {"clip_text"}


def test_unregister_removes_the_functions() -> None:
    """Afterwards the names are free, a second call does nothing, register works again."""
    with duckdb.connect() as con:
        unregister(con)
        register(con, fake())
        unregister(con)
        unregister(con)
        assert functions(con) == set()
        register(con, fake(8))
        assert dimension(con) == 8


def test_unregister_where_duckdb_keeps_the_names() -> None:
    """When the first connection is gone, calling the functions says that they were unregistered."""
    con = duckdb.connect()
    cursor = con.duplicate()
    register(con, fake())
    del con
    unregister(cursor)
    with pytest.raises(duckdb.InvalidInputException, match=r"clip_text was unregistered .*register\(con\)"):
        dimension(cursor)
    register(cursor, fake())
    assert dimension(cursor) == 16
    cursor.close()


def test_a_reopened_database_needs_register(tmp_path: Path) -> None:
    """A view that uses a function fails by its name after reopening, until register is called."""
    file = str(tmp_path / "x.db")
    with duckdb.connect(file) as con:
        register(con, fake())
        con.execute("CREATE VIEW v AS SELECT clip_score(NULL, 'red') AS s")
    with duckdb.connect(file) as con:
        with pytest.raises(duckdb.CatalogException, match="Function with name clip_score does not exist"):
            con.execute("FROM v")
        register(con, fake())
        assert con.execute("FROM v").fetchall() == [(None,)]


def test_the_file_is_unlocked(tmp_path: Path) -> None:
    """After `del con`, and after close(), the file opens with another mode, which a lock forbids."""
    file = str(tmp_path / "x.db")
    con = duckdb.connect(file)
    register(con, fake())
    con.execute("SELECT clip_image('missing.png')").fetchall()
    del con
    duckdb.connect(file, read_only=True).close()
    con = duckdb.connect(file)
    register(con, fake())
    con.close()
    duckdb.connect(file, read_only=True).close()


def test_a_model_that_cannot_load_is_tried_once() -> None:
    """DuckDB calls a failing function again and again; the slow part happens once per register."""

    class Broken(FakeModel):
        tries = 0

        def load(self) -> None:
            self.tries += 1
            raise OSError("no weights")

    model = Broken()
    with duckdb.connect() as con:
        register(con, ClipEmbedder(model))
        for _ in range(2):
            with pytest.raises(duckdb.InvalidInputException, match=r"could not be loaded \(no weights\)"):
                con.execute("SELECT clip_text('red')").fetchall()
        assert model.tries == 1
        register(con, ClipEmbedder(model))
        with pytest.raises(duckdb.InvalidInputException):
            con.execute("SELECT clip_text('red')").fetchall()
        assert model.tries == 2
