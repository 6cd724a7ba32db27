"""materialize: vectors kept in a column, resumable, with the stamp of their model."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import duckdb
import numpy as np
import pytest
from PIL import Image

from clip_embed import ClipEmbedder, ClipEmbedError, ImagePolicy, SpaceMismatch
from clip_embed._types import UInt8
from clip_embed.testing import FakeModel
from clip_embed_duckdb import check, check_database, materialize, register

COLOURS = ("red", "green", "blue", "orange")


def picture(colour: str) -> bytes:
    """Return a PNG of one colour."""
    out = io.BytesIO()
    Image.new("RGB", (9, 9), colour).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    """Table photos (name, img): four colours, a corrupt image and a NULL."""
    with duckdb.connect() as con:
        register(con, ClipEmbedder(FakeModel()))
        con.execute("CREATE TABLE photos (name VARCHAR, img BLOB)")
        rows: list[tuple[str, bytes | None]] = [(colour, picture(colour)) for colour in COLOURS]
        con.executemany("INSERT INTO photos VALUES (?, ?)", [("null", None), *rows, ("corrupt", b"x")])
        yield con


def small_chunks(monkeypatch: pytest.MonkeyPatch, rows: int = 1) -> None:
    """Have chunks of so many rows."""
    monkeypatch.setattr("clip_embed_duckdb._chunks._FIRST_ROWS", rows)
    monkeypatch.setattr("clip_embed_duckdb._chunks._MOST_ROWS", rows)


def comment(con: duckdb.DuckDBPyConnection, column: str = "emb") -> str:
    """Return the comment of a column."""
    query = "SELECT comment FROM duckdb_columns() WHERE column_name = ?"
    return str(con.execute(query, [column]).fetchall()[0][0])


def state(con: duckdb.DuckDBPyConnection, table: str = "photos") -> dict[str, str]:
    """Return by name: vector, error or neither."""
    rows = con.execute(
        f"SELECT name, CASE WHEN emb IS NOT NULL AND emb_error IS NULL THEN 'vector' "
        f"WHEN emb IS NULL AND emb_error IS NOT NULL THEN 'error' "
        f"WHEN emb IS NULL THEN 'nothing' ELSE 'both' END FROM {table}"
    ).fetchall()
    return dict(rows)


DONE = {**dict.fromkeys(COLOURS, "vector"), "corrupt": "error", "null": "nothing"}


def test_the_columns_are_added_and_filled(con: duckdb.DuckDBPyConnection) -> None:
    """Vectors are those of clip_image, FLOAT[d]; a failure has clip_error's reason; NULL stays NULL."""
    report = materialize(con, "photos", "img")
    assert (report.done, report.failed, report.skipped) == (4, 1, 1)
    assert report.seconds > 0
    assert state(con) == DONE
    assert con.execute("SELECT DISTINCT typeof(emb), typeof(emb_error) FROM photos").fetchall() == [
        ("FLOAT[16]", "VARCHAR")
    ]
    wrong = con.execute(
        "SELECT name FROM photos WHERE emb IS DISTINCT FROM clip_image(img) "
        "OR emb_error IS DISTINCT FROM clip_error(img)"
    ).fetchall()
    assert wrong == []


def test_a_second_run_does_what_is_new(con: duckdb.DuckDBPyConnection) -> None:
    """Neither vectors nor errors are made again, unless errors are to be retried."""
    model = FakeModel()
    clip = ClipEmbedder(model, cache=None)
    clip.stamp()
    before = sum(model.calls[0])
    materialize(con, "photos", "img", embedder=clip)
    con.execute("INSERT INTO photos BY NAME SELECT 'new' AS name, ? AS img", [picture("pink")])
    report = materialize(con, "photos", "img", embedder=clip)
    assert (report.done, report.failed, report.skipped) == (1, 0, 6)
    assert sum(model.calls[0]) - before == 5
    con.execute("UPDATE photos SET img = ? WHERE name = 'corrupt'", [picture("red")])
    assert materialize(con, "photos", "img", embedder=clip).done == 0
    report = materialize(con, "photos", "img", embedder=clip, retry=True)
    assert (report.done, report.failed, report.skipped) == (1, 0, 6)
    assert state(con)["corrupt"] == "vector"


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_the_size_of_chunks_changes_nothing(
    con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """Rows that move to the end of the table while others wait are neither lost nor done twice."""
    small_chunks(monkeypatch, rows)
    con.execute("INSERT INTO photos SELECT name || i, img FROM photos, range(9) AS t(i)")
    report = materialize(con, "photos", "img", progress=False)
    assert (report.done, report.failed, report.skipped) == (40, 10, 10)
    assert con.execute("SELECT count(*), count(emb), count(emb_error) FROM photos").fetchall() == [
        (60, 40, 10)
    ]
    assert (
        con.execute("SELECT name FROM photos WHERE clip_score(emb, clip_image(img)) < 0.9999").fetchall()
        == []
    )


def test_every_kind_of_image_column(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    """Paths, ENUMs of paths and STRUCTs give the vectors of the BLOBs; an empty STRUCT gets a reason."""
    for colour in COLOURS:
        (tmp_path / f"{colour}.png").write_bytes(picture(colour))
    paths = [f"{tmp_path}/{colour}.png" for colour in COLOURS]
    con.execute("CREATE TABLE p AS SELECT unnest(?) AS name, name AS img", [paths])
    con.execute(f"CREATE TABLE e AS SELECT name, img::ENUM({str(paths)[1:-1]}) AS img FROM p")
    con.execute("CREATE TABLE s AS SELECT name, {'path': img, 'bytes': NULL::BLOB} AS img FROM p")
    con.execute("INSERT INTO s VALUES ('empty', {'path': NULL, 'bytes': NULL}), ('null', NULL)")
    con.execute("INSERT INTO p VALUES ('gone', '/nowhere.png')")
    for table, failed in (("p", 1), ("e", 0), ("s", 1)):
        report = materialize(con, table, "img")
        assert (report.done, report.failed) == (4, failed)
        assert (
            con.execute(
                f"SELECT name FROM {table} WHERE clip_score(emb, clip_image(img)) < 0.9999"
            ).fetchall()
            == []
        )
    reasons = con.execute("SELECT emb_error FROM s UNION ALL SELECT emb_error FROM p").fetchall()
    assert {reason for (reason,) in reasons if reason} == {"it has neither bytes nor a path", "no such file"}


def test_paths_obey_duckdb(tmp_path: Path) -> None:
    """A path that DuckDB may not read stops it with DuckDB's error; nothing of the chunk is written."""
    (tmp_path / "a.png").write_bytes(picture("red"))
    with duckdb.connect() as con:
        con.execute("CREATE TABLE photos AS SELECT ? AS img", [str(tmp_path / "a.png")])
        con.execute("SET enable_external_access = false")
        with pytest.raises(duckdb.PermissionException):
            materialize(con, "photos", "img", embedder=ClipEmbedder(FakeModel()))
        assert con.execute("SELECT emb, emb_error FROM photos").fetchall() == [(None, None)]


def test_the_policy_holds(con: duckdb.DuckDBPyConnection) -> None:
    """Images that the embedder's policy refuses fail with its reason."""
    con.execute("UPDATE photos SET img = img || repeat('x', 500_000)::BLOB WHERE name = 'red'")
    clip = ClipEmbedder(FakeModel(), policy=ImagePolicy(max_bytes=400_000))
    assert materialize(con, "photos", "img", embedder=clip).failed == 2
    assert "max_bytes" in con.execute("SELECT emb_error FROM photos WHERE name = 'red'").fetchall()[0][0]


@pytest.mark.parametrize(
    ("create", "table"),
    [
        ("CREATE TABLE {} (name VARCHAR, img BLOB)", "other.photos"),
        ("CREATE TABLE {} (name VARCHAR, img BLOB)", 'other."my ""photos"".x"'),
        ("CREATE TABLE {} (name VARCHAR, img BLOB)", "memory.other.photos"),
        ("CREATE TABLE {} (name VARCHAR PRIMARY KEY, img BLOB NOT NULL)", "keyed"),
        ("CREATE TEMP TABLE {} (name VARCHAR, img BLOB)", "passing"),
        ("CREATE TABLE {} (name VARCHAR, img BLOB, more INT GENERATED ALWAYS AS (1))", "generated"),
    ],
)
def test_names_and_kinds_of_tables(con: duckdb.DuckDBPyConnection, create: str, table: str) -> None:
    """Schemas, odd names, primary keys, temporary tables and generated columns."""
    con.execute("CREATE SCHEMA other")
    con.execute(create.format(table))
    con.execute(f"INSERT INTO {table} BY NAME SELECT * FROM photos WHERE img IS NOT NULL")
    report = materialize(con, table, "IMG")
    assert (report.done, report.failed, report.skipped) == (4, 1, 0)
    assert materialize(con, table, "img").skipped == 5


def test_the_table_of_the_current_schema_is_meant(con: duckdb.DuckDBPyConnection) -> None:
    """After USE a bare name is that of the schema in use; a name that may be two is refused."""
    con.execute("CREATE SCHEMA other; CREATE TABLE other.photos AS FROM photos LIMIT 2")
    con.execute("USE other")
    assert materialize(con, "photos", "img").done == 1
    con.execute("USE memory.main")
    assert materialize(con, "photos", "img").done == 4
    con.execute("CREATE SCHEMA third; CREATE TABLE third.p (img BLOB); CREATE TABLE other.p (img BLOB)")
    with pytest.raises(ClipEmbedError, match=r'"other"."p" or .*give one of these names'):
        materialize(con, "p", "img")


@pytest.mark.parametrize("odd", ['e m"b', "select", "Ünï"])
def test_odd_names_of_columns(con: duckdb.DuckDBPyConnection, odd: str) -> None:
    """`image` and `into` are names as they are, without quotes."""
    quoted = '"' + odd.replace('"', '""') + '"'
    con.execute(f"CREATE TABLE t AS SELECT img AS {quoted} FROM photos")
    assert materialize(con, "t", odd, into=odd + "2").done == 4
    assert con.execute(f'SELECT count({quoted[:-1]}2_error") FROM t').fetchall() == [(1,)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing", "img"), "there is no table 'nothing'"),
        (("a.b.c.d", "img"), "'a.b.c.d' is no name of a table"),
        (('"open', "img"), "is no name of a table"),
        (("", "img"), "is no name of a table"),
        (("v", "img"), '"v" is a view, which holds no rows of its own'),
        (("photos", "image"), r"has no column 'image'; it has name, img"),
        (("n", "img"), r'"img" is a column of INTEGER; images are a BLOB'),
        (("photos", "img", "name"), r'"name" is a column of VARCHAR, and FLOAT\[16\] is needed'),
        (("photos", "img", "img"), "give another name for into"),
        (("e", "img"), r'"emb_error" is a column of INTEGER, and VARCHAR is needed'),
        (("r", "img"), "has a column called rowid"),
    ],
)
def test_wrong_arguments(con: duckdb.DuckDBPyConnection, arguments: tuple[str, ...], message: str) -> None:
    """The error names the table or column and what is wrong with it; nothing is changed."""
    con.execute("CREATE VIEW v AS FROM photos; CREATE TABLE n AS SELECT 1 AS img, 2 AS rowid")
    con.execute("CREATE TABLE e (img BLOB, emb_error INT); CREATE TABLE r (img BLOB, rowid INT)")
    before = con.execute("SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal").fetchall()
    with pytest.raises(ClipEmbedError, match=message):
        materialize(con, *arguments)
    after = con.execute("SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal").fetchall()
    assert before == after
    with pytest.raises(ValueError, match="storage must be 'float32' or 'int8', not 'half'"):
        materialize(con, "photos", "img", storage="half")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_a_read_only_database(tmp_path: Path) -> None:
    """The error says that it was opened so; an attached one likewise."""
    file = str(tmp_path / "x.db")
    with duckdb.connect(file) as con:
        con.execute("CREATE TABLE photos (img BLOB)")
    with duckdb.connect() as con:
        con.execute(f"ATTACH '{file}' AS kept (READ_ONLY)")
        with pytest.raises(ClipEmbedError, match='"photos" is in a database that was opened read-only'):
            materialize(con, "kept.photos", "img", embedder=ClipEmbedder(FakeModel()))


def test_the_connection_must_be_free(con: duckdb.DuckDBPyConnection) -> None:
    """In a transaction, or with a result half read, it says what to do, and both go on."""
    con.begin()
    with pytest.raises(ClipEmbedError, match=r"is in a transaction.*commit or roll back first"):
        materialize(con, "photos", "img")
    con.rollback()
    if duckdb.__version__ < "2":  # it cuts the result short and says nothing
        return
    con.execute("SELECT range FROM range(9)").fetchone()
    with pytest.raises(ClipEmbedError, match=r"not read to its end: read it, or give con.cursor\(\)"):
        materialize(con, "photos", "img")
    assert con.fetchone() == (1,)
    with con.cursor() as cursor:
        assert materialize(cursor, "photos", "img").done == 4


def test_without_an_embedder(con: duckdb.DuckDBPyConnection) -> None:
    """A database without functions needs one given; it takes precedence elsewhere."""
    with duckdb.connect() as bare:
        bare.execute("CREATE TABLE photos (img BLOB)")
        with pytest.raises(ClipEmbedError, match="no embedder is registered with this database"):
            materialize(bare, "photos", "img")
        materialize(bare, "photos", "img", embedder=ClipEmbedder(FakeModel()))
    materialize(con, "photos", "img", embedder=ClipEmbedder(FakeModel(8)))
    assert con.execute("SELECT typeof(emb) FROM photos LIMIT 1").fetchall() == [("FLOAT[8]",)]


# ---------------------------------------------------------------------------------------------- stamps


def test_the_comment_says_who_made_them(con: duckdb.DuckDBPyConnection) -> None:
    """Words for people first, the user's own before them; check reads it, also after reopening."""
    con.execute("ALTER TABLE photos ADD COLUMN emb FLOAT[16]")
    con.execute("COMMENT ON COLUMN photos.emb IS 'for the\nautumn show'")
    materialize(con, "photos", "img")
    lines = comment(con).splitlines()
    assert lines[:2] == ["for the", "autumn show"]
    assert lines[2].startswith("[clip-embed] vectors of img by ClipEmbedder('FakeModel'")
    stamp = check(con, "photos", "EMB")
    assert stamp is not None
    assert (stamp.space, stamp.recipe) == ("fake:16:32", ClipEmbedder(FakeModel()).recipe)
    before = comment(con)
    materialize(con, "photos", "img", retry=True)
    assert comment(con) == before


class Repackaged(FakeModel):
    """The same vectors under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.space = "repackaged:1"


class Turned(Repackaged):
    """Other vectors of the same dimension."""

    def embed_images(self, pixels: UInt8, /) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """Embed, and turn."""
        return np.roll(super().embed_images(pixels), 1, axis=1)


@pytest.mark.parametrize("model", [Turned(), FakeModel(8)])
def test_another_space_is_refused(con: duckdb.DuckDBPyConnection, model: FakeModel) -> None:
    """By materialize, check and check_database, with the ways out; nothing is changed."""
    materialize(con, "photos", "img")
    con.execute("INSERT INTO photos (name, img) VALUES ('new', ?)", [picture("red")])
    other = ClipEmbedder(model)
    with pytest.raises(SpaceMismatch, match="give another name for into; to begin anew, drop what is there"):
        materialize(con, "photos", "img", embedder=other)
    assert state(con)["new"] == "nothing"
    with pytest.raises(SpaceMismatch, match=r'"photos"."emb"'):
        check(con, "photos", "emb", other)
    (mismatch,) = check_database(con, other)
    assert (mismatch.table, mismatch.column) == ('"memory"."main"."photos"', "emb")
    assert str(mismatch) == mismatch.reason
    assert materialize(con, "photos", "img", into="emb2", embedder=other).done == 5


def test_repackaged_weights_are_known_again(con: duckdb.DuckDBPyConnection) -> None:
    """Another name of the space with the same probe fills the same column."""
    materialize(con, "photos", "img")
    con.execute("INSERT INTO photos (name, img) VALUES ('new', ?)", [picture("red")])
    assert materialize(con, "photos", "img", embedder=ClipEmbedder(Repackaged())).done == 1
    assert check_database(con, ClipEmbedder(Repackaged())) == []


def test_vectors_without_a_stamp_are_proved(con: duckdb.DuckDBPyConnection) -> None:
    """Those of this model get its stamp; others, or what cannot be proved, are refused."""
    con.execute("ALTER TABLE photos ADD COLUMN emb FLOAT[16]")
    con.execute("UPDATE photos SET emb = clip_image(img) WHERE name < 'h'")
    with pytest.warns(UserWarning, match="nothing says which model made these vectors"):
        assert check(con, "photos", "emb") is None
    with pytest.raises(SpaceMismatch, match=r"no stamp says which model.*a cosine of"):
        materialize(con, "photos", "img", embedder=ClipEmbedder(Turned()))
    assert materialize(con, "photos", "img").done == 2
    assert check(con, "photos", "emb") is not None
    con.execute("CREATE TABLE lost AS SELECT 'x'::BLOB AS img, clip_text('red') AS emb")
    with pytest.raises(SpaceMismatch, match="no image that could be read"):
        materialize(con, "lost", "img")


def test_check_names_what_is_no_vector(con: duckdb.DuckDBPyConnection) -> None:
    """A column of another type, a missing one, and a database without any stamp."""
    with pytest.raises(ClipEmbedError, match='"name" is a column of VARCHAR, not of vectors'):
        check(con, "photos", "name")
    with pytest.raises(ClipEmbedError, match="has no column 'emb'"):
        check(con, "photos", "emb")
    with duckdb.connect() as bare:
        assert check_database(bare) == []


def test_a_stamp_of_a_later_version(con: duckdb.DuckDBPyConnection) -> None:
    """It is refused rather than overwritten."""
    materialize(con, "photos", "img")
    later = comment(con).replace('"schema": 1', '"schema": 2').replace("'", "''")
    con.execute(f"COMMENT ON COLUMN photos.emb IS '{later}'")
    with pytest.raises(SpaceMismatch, match="no stamp of clip-embed, or one of a later version"):
        materialize(con, "photos", "img")
    (mismatch,) = check_database(con)
    assert "later version" in mismatch.reason


# ------------------------------------------------------------------------------------------------ int8


def test_int8_takes_a_quarter_and_keeps_the_direction(con: duckdb.DuckDBPyConnection) -> None:
    """TINYINT[d] whose largest number is 127; scores differ little; the functions take it as a vector."""
    report = materialize(con, "photos", "img", storage="int8")
    assert (report.done, report.failed) == (4, 1)
    rows = con.execute(
        "SELECT typeof(emb), emb::INT[], clip_score(emb, 'red') - clip_score(img, 'red'), "
        "clip_score(emb, clip_image(img)), typeof(clip_image(emb)) FROM photos WHERE emb IS NOT NULL"
    ).fetchall()
    for type_, numbers, difference, cosine, again in rows:
        assert type_ == "TINYINT[16]"
        assert max(map(abs, numbers)) == 127
        assert abs(difference) < 0.01
        assert cosine > 0.999
        assert again == "FLOAT[16]"
    with pytest.raises(ClipEmbedError, match=r"TINYINT\[16\], and FLOAT\[16\] is needed"):
        materialize(con, "photos", "img")


def test_int8_with_rescoring_is_exact() -> None:
    """The best ten by int8, scored again by float32, are the best ten of float32."""
    rng = np.random.default_rng(7)
    vectors = rng.standard_normal((2000, 16)).astype(np.float32)
    with duckdb.connect() as con:
        register(con, ClipEmbedder(FakeModel()))
        con.execute("CREATE TABLE v (id INT, emb FLOAT[16])")
        con.executemany("INSERT INTO v VALUES (?, ?)", list(enumerate(vectors.tolist())))
        most = "greatest(list_max(emb::FLOAT[]), -list_min(emb::FLOAT[]))"
        con.execute("ALTER TABLE v ADD COLUMN small TINYINT[16]")
        con.execute(
            "UPDATE v SET small = list_transform(emb::FLOAT[], "
            f"lambda x: round(x / {most} * 127))::TINYINT[16]"
        )
        exact = con.execute("SELECT id, score FROM clip_search('v', 'emb', 'red')").fetchall()
        again = con.execute(
            "SELECT id, score FROM clip_search('v', 'small', 'red', rescore := 'emb')"
        ).fetchall()
        assert again == exact


# ---------------------------------------------------------------------------- interruptions and crashes


def test_what_is_committed_stays(con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the third chunk leaves two; the connection works, and the next run does the rest."""
    small_chunks(monkeypatch)

    class Stopping(FakeModel):
        left = 2

        def embed_images(self, pixels: UInt8, /) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
            """Embed twice, then be interrupted."""
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            return super().embed_images(pixels)

    model = Stopping()
    clip = ClipEmbedder(model, batch_size=1, workers=1)
    model.left = 100
    clip.stamp()
    model.left = 2
    with pytest.raises(KeyboardInterrupt):
        materialize(con, "photos", "img", embedder=clip)
    assert sorted(state(con).values()).count("vector") == 2
    model.left = 100
    assert materialize(con, "photos", "img", embedder=clip).done == 2
    assert state(con) == DONE


_KILLED = """
import os, sys, signal, duckdb
import clip_embed_duckdb._chunks as chunks
from clip_embed import ClipEmbedder
from clip_embed.testing import FakeModel
from clip_embed_duckdb import materialize
chunks._FIRST_ROWS = chunks._MOST_ROWS = 2
class Dying(FakeModel):
    left = 1000
    def embed_images(self, pixels):
        self.left -= len(pixels)
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().embed_images(pixels)
model = Dying()
clip = ClipEmbedder(model, batch_size=1, workers=1)
clip.stamp()
model.left = 7
materialize(duckdb.connect(sys.argv[1]), "photos", "img", embedder=clip, progress=False)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9 on this system")
def test_kill_9_loses_one_chunk(tmp_path: Path) -> None:
    """Killed at the eighth image with chunks of two, a file keeps six; a second run ends the work."""
    file = str(tmp_path / "x.db")
    with duckdb.connect(file) as con:
        con.execute("CREATE TABLE photos (name VARCHAR, img BLOB)")
        rows = [(str(i), picture(f"rgb({i},9,9)")) for i in range(12)]
        con.executemany("INSERT INTO photos VALUES (?, ?)", rows)
    done = subprocess.run([sys.executable, "-c", _KILLED, file], check=False, timeout=120)  # noqa: S603
    assert done.returncode == -signal.SIGKILL
    with duckdb.connect(file) as con:
        assert con.execute("SELECT count(emb) FROM photos").fetchall() == [(6,)]
        report = materialize(con, "photos", "img", embedder=ClipEmbedder(FakeModel()))
        assert (report.done, report.skipped) == (6, 6)
        assert len(check_database(con, ClipEmbedder(FakeModel(8)))) == 1


def test_someone_else_writes_meanwhile(tmp_path: Path) -> None:
    """Rows that another connection adds and deletes between chunks are neither lost nor mixed up."""
    with duckdb.connect(str(tmp_path / "x.db")) as con:
        con.execute("CREATE TABLE photos (name VARCHAR, img BLOB)")
        add = "INSERT INTO photos (name, img) VALUES (?, ?)"
        con.executemany(add, [(f"rgb({i},0,0)", picture(f"rgb({i},0,0)")) for i in range(60)])
        clip = ClipEmbedder(FakeModel(), batch_size=4)
        materialize(con, "photos", "img", embedder=clip)
        con.execute("UPDATE photos SET emb = NULL")
        other, stop = con.cursor(), threading.Event()

        def write() -> None:
            for i in range(60, 120):
                if stop.is_set():
                    break
                other.execute(add, [f"rgb({i},0,0)", picture(f"rgb({i},0,0)")])
                if i % 20 == 0:
                    with suppress(duckdb.TransactionException):  # the other is writing now
                        other.execute("CHECKPOINT")

        writer = threading.Thread(target=write)
        writer.start()
        with suppress(duckdb.TransactionException):
            materialize(con, "photos", "img", embedder=clip)
        stop.set()
        writer.join()
        materialize(con, "photos", "img", embedder=clip)
        rows = con.execute("SELECT name, emb FROM photos").fetchall()
        expected = clip.embed_images([picture(name) for name, _ in rows])
        np.testing.assert_allclose(np.array([emb for _, emb in rows]), expected, atol=1e-6)
        other.close()


def test_settings_are_as_before(con: duckdb.DuckDBPyConnection) -> None:
    """The checkpoint threshold is put back, and a locked configuration is no obstacle."""
    con.execute("SET checkpoint_threshold = '32 MiB'")
    materialize(con, "photos", "img")
    assert con.execute("SELECT current_setting('checkpoint_threshold')").fetchall() == [("32.0 MiB",)]
    con.execute("SET lock_configuration = true")
    assert materialize(con, "photos", "img", into="emb2").done == 4
    assert con.execute(
        "SELECT count(*) FROM duckdb_views() WHERE view_name LIKE '%clip_embed%'"
    ).fetchall() == [(0,)]


def test_the_bar(con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal it counts images and failures up to the total; none is shown elsewhere or on demand."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("clip_embed._progress._PATIENCE", 0)
    monkeypatch.setattr("clip_embed._progress._BETWEEN", 0)
    for kind, progress, shown in (
        (Terminal, True, True),
        (Terminal, False, False),
        (io.StringIO, True, False),
    ):
        stream = kind()
        monkeypatch.setattr(sys, "stderr", stream)
        con.execute(
            "ALTER TABLE photos DROP COLUMN IF EXISTS emb; ALTER TABLE photos DROP COLUMN IF EXISTS emb_error"
        )
        materialize(con, "photos", "img", progress=progress)
        assert ("Embedding" in stream.getvalue()) == shown
        if shown:
            assert "/5" in stream.getvalue()
