"""follow: a table of vectors that triggers keep up to date."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from PIL import Image

from clip_embed import ClipEmbedder, ClipEmbedError, SpaceMismatch
from clip_embed.testing import FakeModel
from clip_embed_duckdb import check, check_database, follow, register

pytestmark = pytest.mark.skipif(duckdb.__version__ < "2", reason="DuckDB before 2.0 has no triggers")
NEW_DUCKDB_ONLY = "needs the triggers of DuckDB 2.0, and this is 1.5.5: call materialize"


def picture(colour: str) -> bytes:
    """Return a PNG of one colour."""
    out = io.BytesIO()
    Image.new("RGB", (9, 9), colour).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    """Table photos (id, img, note): red, blue, a corrupt image and a NULL."""
    with duckdb.connect() as con:
        register(con, ClipEmbedder(FakeModel()))
        con.execute("CREATE TABLE photos (id INT, img BLOB, note VARCHAR)")
        insert(con, (1, picture("red")), (2, picture("blue")), (3, b"bad"), (4, None))
        yield con


def insert(con: duckdb.DuckDBPyConnection, *rows: tuple[int | None, bytes | None]) -> None:
    """Insert rows by one statement."""
    values = ", ".join(["(?, ?, '')"] * len(rows))
    con.execute(f"INSERT INTO photos VALUES {values}", [value for row in rows for value in row])


def kept(con: duckdb.DuckDBPyConnection, table: str = "photos_emb") -> dict[int, str]:
    """Return by key what a vector is nearest to, or the first words of the reason."""
    rows = con.execute(
        "SELECT id, coalesce(emb_error[:12], clip_label(emb, ['red', 'blue', 'green'])) "
        f"FROM {table} ORDER BY id"
    ).fetchall()
    return {int(key): str(what) for key, what in rows}


def test_what_is_there_and_what_comes(con: duckdb.DuckDBPyConnection) -> None:
    """Rows that are there are embedded now, later ones by their INSERT; failures get their reason."""
    report = follow(con, "photos", "img", key="id", progress=False)
    assert (report.done, report.failed, report.skipped) == (2, 1, 1)
    assert kept(con) == {1: "red", 2: "blue", 3: "not an image"}
    insert(con, (5, picture("green")), (6, b"worse"), (7, None), (None, picture("red")))
    assert kept(con) == {1: "red", 2: "blue", 3: "not an image", 5: "green", 6: "not an image"}
    assert con.execute("SELECT count(*) FROM photos").fetchall() == [(8,)]
    scores = con.execute(
        "SELECT clip_score(emb, 'red') - clip_score(img, 'red') FROM photos JOIN photos_emb USING (id)"
    ).fetchall()
    assert all(difference is None or abs(difference) < 1e-6 for (difference,) in scores)


def test_a_failing_image_does_not_stop_an_insert(con: duckdb.DuckDBPyConnection) -> None:
    """Not even where functions are to raise for it."""
    follow(con, "photos", "img", key="id", progress=False)
    register(con, ClipEmbedder(FakeModel()), on_error="raise")
    insert(con, (5, b"bad"), (6, picture("green")))
    assert kept(con)[5] == "not an image"
    assert kept(con)[6] == "green"


def test_updates_and_deletes(con: duckdb.DuckDBPyConnection) -> None:
    """Another image, another key, no image, no row: the vectors follow; other columns cost nothing."""
    model = FakeModel()
    register(con, ClipEmbedder(model, cache=None))
    follow(con, "photos", "img", key="id", progress=False)
    before = sum(model.calls[0])
    con.execute("UPDATE photos SET note = 'seen'")
    assert sum(model.calls[0]) == before
    con.execute("UPDATE photos SET img = ? WHERE id IN (1, 3)", [picture("green")])
    assert kept(con) == {1: "green", 2: "blue", 3: "green"}
    con.execute("UPDATE photos SET id = id + 10 WHERE id < 3")
    assert kept(con) == {3: "green", 11: "green", 12: "blue"}
    con.execute("UPDATE photos SET img = NULL WHERE id = 3")
    con.execute("DELETE FROM photos WHERE id = 11")
    assert kept(con) == {12: "blue"}
    con.execute("TRUNCATE photos")
    assert kept(con) == {}


def test_a_rollback_takes_both(con: duckdb.DuckDBPyConnection) -> None:
    """The vectors are written in the transaction of the images; a deleted key may come back in it."""
    follow(con, "photos", "img", key="id", progress=False)
    con.begin()
    con.execute("DELETE FROM photos WHERE id = 1")
    insert(con, (1, picture("green")))
    assert kept(con)[1] == "green"
    con.rollback()
    assert kept(con)[1] == "red"


def test_many_rows_at_once(con: duckdb.DuckDBPyConnection) -> None:
    """5,000 rows of one INSERT."""
    follow(con, "photos", "img", key="id", progress=False)
    con.register("rows", pa.table({"id": range(10, 5010), "img": [picture("red")] * 5000}))
    con.execute("INSERT INTO photos BY NAME FROM rows")
    assert con.execute("SELECT count(*), count(emb) FROM photos_emb WHERE id >= 10").fetchall() == [
        (5000, 5000)
    ]


def test_a_second_call_goes_on(con: duckdb.DuckDBPyConnection) -> None:
    """It embeds what is missing, tries failures again where asked to, and changes nothing else."""
    follow(con, "photos", "img", key="id", into='my "side"', progress=False)
    con.execute('DELETE FROM "my ""side""" WHERE id = 2')
    again = follow(con, "photos", "img", key="id", into='my "side"', progress=False)
    assert (again.done, again.failed, again.skipped) == (1, 0, 3)
    retried = follow(con, "photos", "img", key="id", into='my "side"', retry=True, progress=False)
    assert (retried.done, retried.failed) == (0, 1)
    insert(con, (9, picture("red")))
    assert kept(con, '"my ""side"""') == {1: "red", 2: "blue", 3: "not an image", 9: "red"}


def test_two_tables_may_follow_one(con: duckdb.DuckDBPyConnection) -> None:
    """Each has its triggers; dropping one with CASCADE leaves the other."""
    follow(con, "photos", "img", key="id", into="a", progress=False)
    follow(con, "photos", "img", key="id", into="b", progress=False)
    con.execute("DROP TABLE a CASCADE")
    insert(con, (9, picture("red")))
    assert kept(con, "b")[9] == "red"


def test_the_space_is_kept_and_checked(con: duckdb.DuckDBPyConnection) -> None:
    """The stamp is in the comment of emb; another model is refused before anything is changed."""
    follow(con, "photos", "img", key="id", progress=False)
    stamp = check(con, "photos_emb", "emb")
    assert stamp is not None
    assert stamp.space == "fake:16:32"
    register(con, ClipEmbedder(FakeModel(size=16)))
    with pytest.raises(SpaceMismatch, match="give another name for into"):
        follow(con, "photos", "img", key="id", progress=False)
    (mismatch,) = check_database(con)
    assert mismatch.column == "emb"


def test_a_reopened_file_needs_register(tmp_path: Path) -> None:
    """INSERT names the function that is missing, DELETE works; after register all is as before."""
    file = str(tmp_path / "x.db")
    with duckdb.connect(file) as con:
        register(con, ClipEmbedder(FakeModel()))
        con.execute("CREATE TABLE photos (id INT, img BLOB, note VARCHAR)")
        insert(con, (1, picture("red")), (2, picture("blue")))
        follow(con, "photos", "img", key="id", progress=False)
    with duckdb.connect(file) as con:
        with pytest.raises(duckdb.CatalogException, match="name clip_embedding does not exist"):
            insert(con, (3, picture("red")))
        con.execute("DELETE FROM photos WHERE id = 2")
        register(con, ClipEmbedder(FakeModel()))
        insert(con, (3, picture("red")))
        assert kept(con) == {1: "red", 3: "red"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("photos", "img", "note"), '"note" does not tell rows apart: 3 repeat a value'),
        (("photos", "img", "nope"), "has no column 'nope'; it has id, img, note"),
        (("v", "img", "id"), '"v" is a view, which holds no rows of its own'),
        (("photos", "id", "id"), "is a column of INTEGER; images are a BLOB"),
        (
            ("photos", "img", "id", "other"),
            r"is there, and no table of \(id INTEGER, emb FLOAT\[16\], emb_error",
        ),
    ],
)
def test_wrong_arguments(con: duckdb.DuckDBPyConnection, arguments: tuple[str, ...], message: str) -> None:
    """The error says what is wrong with which table or column, and nothing is made."""
    con.execute("CREATE VIEW v AS FROM photos")
    con.execute("CREATE TABLE other (id INT)")
    before = con.execute("SELECT table_name FROM duckdb_tables()").fetchall()
    with pytest.raises(ClipEmbedError, match=message):
        follow(con, *arguments, progress=False)
    assert con.execute("SELECT table_name FROM duckdb_tables()").fetchall() == before
    assert con.execute("FROM duckdb_triggers()").fetchall() == []


def test_an_older_duckdb(con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 2.0 there are no triggers: the error says so, and names materialize."""
    monkeypatch.setattr(duckdb, "__version__", "1.5.5")
    with pytest.raises(ClipEmbedError, match=NEW_DUCKDB_ONLY):
        follow(con, "photos", "img", key="id")
