"""Scores as percentiles in SQL: as in Python, for the column they were fitted to."""

from __future__ import annotations

import threading

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from clip_embed import ClipEmbedder, ClipEmbedError, SpaceMismatch
from clip_embed._types import Float32, UInt8
from clip_embed._vectors import unit_rows
from clip_embed.testing import FakeModel
from clip_embed_duckdb import calibrate, materialize, register


@pytest.fixture
def clip() -> ClipEmbedder:
    """An embedder without weights."""
    return ClipEmbedder(FakeModel())


@pytest.fixture
def vectors() -> Float32:
    """Unit rows (3000, 16)."""
    return unit_rows(np.random.default_rng(0).standard_normal((3000, 16)) + 1)


@pytest.fixture
def con(clip: ClipEmbedder, vectors: Float32) -> duckdb.DuckDBPyConnection:
    """A table of 3,000 vectors and one NULL."""
    con = duckdb.connect()
    register(con, clip)
    rows = pa.table({"id": pa.array(range(3001)), "emb": pa.array([*vectors.tolist(), None])})
    con.register("given", rows)
    con.execute("CREATE TABLE photos AS SELECT id, emb::FLOAT[16] AS emb FROM given")
    return con


@pytest.mark.filterwarnings("ignore:.*nothing says which model")
def test_sql_says_what_python_says(
    con: duckdb.DuckDBPyConnection, clip: ClipEmbedder, vectors: Float32
) -> None:
    """Each row's relevance is that of `Relevance.rate`, for any text, a column of texts included."""
    relevance = calibrate(con, "photos", "emb")
    assert relevance.images == 3000
    for text in ("red car", "a dog's bone"):
        rows = con.execute("SELECT clip_relevance(emb, ?) FROM photos ORDER BY id", [text]).fetchall()
        assert rows.pop() == (None,)
        np.testing.assert_allclose(
            [row[0] for row in rows], relevance.rate(clip, vectors, [text])[:, 0], atol=0.02
        )
    texts = "(VALUES ('red'), ('blue')) AS texts(t)"
    query = f"SELECT clip_relevance(emb, t) FROM photos, {texts} WHERE id = 7 ORDER BY t"
    both = [row[0] for row in con.sql(query).fetchall()]
    np.testing.assert_allclose(both, relevance.rate(clip, vectors[7:8], ["blue", "red"])[0], atol=0.02)


@pytest.mark.filterwarnings("ignore:.*nothing says which model")
def test_the_query_may_be_a_vector(con: duckdb.DuckDBPyConnection) -> None:
    """What `clip_text` gave is the text; anything else is refused by the macro's own name."""
    calibrate(con, "photos", "emb", name="fit's")
    query = """SELECT "fit's"(emb, 'a'), "fit's"(emb, clip_text('a')), "fit's"(emb, NULL) FROM photos"""
    for text, vector, nothing in con.execute(query).fetchall():
        assert vector == pytest.approx(text, abs=1e-3)
        assert nothing is None
    with pytest.raises(
        duckdb.Error, match=r"fit's: the query must be a VARCHAR .* or a vector .*not INTEGER"
    ):
        con.execute("""SELECT "fit's"(emb, 7) FROM photos""").fetchall()


@pytest.mark.filterwarnings("ignore:.*nothing says which model")
def test_two_columns_have_macros_of_their_own(con: duckdb.DuckDBPyConnection) -> None:
    """A name of its own keeps both; fitting again replaces; the macro is this connection's alone."""
    con.execute("CREATE TABLE few AS FROM photos WHERE id < 40")
    calibrate(con, "few", "emb", name="few relevance")
    calibrate(con, "photos", "emb")
    calibrate(con, "photos", "emb")
    few, many = con.sql(
        "SELECT \"few relevance\"(emb, 'red'), clip_relevance(emb, 'red') FROM photos WHERE id = 3"
    ).fetchall()[0]
    assert few > many  # the best of many is better than the best of few
    with pytest.raises(duckdb.Error, match="clip_relevance"):
        con.cursor().sql("SELECT clip_relevance(emb, 'red') FROM photos").fetchall()


def test_images_themselves(clip: ClipEmbedder) -> None:
    """A column of images is embedded; those that fail do not count, and have no relevance."""
    con = duckdb.connect()
    register(con, clip)
    con.execute("CREATE TABLE p (img BLOB)")
    colours = np.random.default_rng(0).integers(0, 256, (12, 3)).tolist()
    images = [b"P6 8 8 255\n" + bytes(colour) * 64 for colour in colours]
    con.executemany("INSERT INTO p VALUES (?)", [(image,) for image in [*images, b"broken"]])
    assert calibrate(con, "p", "img").images == 12
    rated = [row[0] for row in con.sql("SELECT clip_relevance(img, 'red') FROM p").fetchall()]
    assert rated[-1] is None
    assert all(0 <= value <= 100 for value in rated[:-1])
    materialize(con, "p", "img", into="emb")
    assert calibrate(con, "p", "emb").images == 12  # stamped: no warning


@pytest.mark.filterwarnings("ignore:.*nothing says which model")
def test_what_only_the_connection_sees(con: duckdb.DuckDBPyConnection) -> None:
    """A TEMP table, an Arrow table by its name and rows of an open transaction are read as any others."""
    con.execute("CREATE TEMP TABLE passing AS FROM photos")
    con.register("view", con.sql("SELECT emb FROM photos").to_arrow_table())
    con.begin()
    con.execute("CREATE TABLE fresh AS FROM photos")
    con.execute("DELETE FROM photos WHERE id >= 2000")
    images = {name: calibrate(con, name, "emb").images for name in ("passing", "view", "fresh", "photos")}
    assert images == {"passing": 3000, "view": 3000, "fresh": 3000, "photos": 2000}
    con.rollback()
    assert calibrate(con, "photos", "emb").images == 3000


def test_it_can_be_stopped() -> None:
    """In the middle of its second chunk; the connection is then as good as before, and no macro was made."""
    reached, go_on = threading.Event(), threading.Event()

    class Held(FakeModel):
        def embed_images(self, pixels: UInt8, /) -> Float32:
            if sum(self.calls[0]) > 2048:
                reached.set()
                assert go_on.wait(60)
            return super().embed_images(pixels)

    def stop() -> None:
        assert reached.wait(60)
        con.interrupt()

    con = duckdb.connect()
    register(con, ClipEmbedder(Held(), workers=1))
    con.execute(
        "CREATE TABLE p AS SELECT ('P6 2 1 255 ' || printf('%06d', range))::BLOB AS img FROM range(3000)"
    )
    stopping = threading.Thread(target=stop)
    stopping.start()
    try:
        with pytest.raises(duckdb.Error, match=r"(?i)interrupt"):
            calibrate(con, "p", "img")
        assert not go_on.is_set()  # so it did not wait for the model
    finally:
        go_on.set()
        stopping.join()
    assert not con.sql("SELECT 1 FROM duckdb_functions() WHERE function_name = 'clip_relevance'").fetchall()
    assert calibrate(con, "p", "img").images == 3000


def test_what_cannot_be_fitted_says_so(con: duckdb.DuckDBPyConnection) -> None:
    """Another model's vectors, a missing column, no embedder, too few rows: nothing is made."""
    con.execute("CREATE TABLE wide AS SELECT [1.0, 2.0]::FLOAT[2] AS emb FROM range(20)")
    with pytest.raises(SpaceMismatch, match="2 dimensions"):
        calibrate(con, "wide", "emb")
    with pytest.raises(ClipEmbedError, match="no column 'nope'"):
        calibrate(con, "photos", "nope")
    with pytest.raises(ClipEmbedError, match="no embedder is registered"):
        calibrate(duckdb.connect(), "photos", "emb")
    con.execute("CREATE TABLE tiny AS FROM photos LIMIT 3")
    with (
        pytest.warns(UserWarning, match="nothing says"),
        pytest.raises(ValueError, match="at least 10 images"),
    ):
        calibrate(con, "tiny", "emb")
    assert not con.sql("SELECT 1 FROM duckdb_functions() WHERE function_name = 'clip_relevance'").fetchall()
