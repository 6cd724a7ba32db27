"""What the SQL functions of clip_embed_duckdb give, for every kind of argument."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from clip_embed import ClipEmbedder
from clip_embed.testing import FakeModel
from clip_embed_duckdb import register
from clip_embed_duckdb._functions import make_functions
from clip_embed_duckdb._slot import Slot, State

COLOURS = ("red", "green", "blue", "white", "black", "orange")


def picture(colour: str, format_: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    """Return an encoded image of one colour."""
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, format_)
    return out.getvalue()


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with the functions of the fake model, 16 dimensions."""
    with duckdb.connect() as con:
        register(con, ClipEmbedder(FakeModel()))
        yield con


@pytest.fixture
def photos(con: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    """Table photos, name and img BLOB, with six images, a corrupt one and a NULL."""
    con.execute("CREATE TABLE photos (name VARCHAR, img BLOB)")
    rows: list[tuple[str, bytes | None]] = [(colour, picture(colour, "JPEG")) for colour in COLOURS]
    rows[3:3] = [("corrupt", picture("red", "JPEG")[:200]), ("null", None)]
    con.executemany("INSERT INTO photos VALUES (?, ?)", rows)
    return con


def value(con: duckdb.DuckDBPyConnection, expression: str, *parameters: object) -> object:
    """Evaluate one SQL expression."""
    row = con.execute(f"SELECT {expression}", list(parameters)).fetchone()
    assert row is not None
    return row[0]


def scores(con: duckdb.DuckDBPyConnection, query: str) -> list[float]:
    """Return the first column of a query as floats."""
    return [row[0] for row in con.execute(query).fetchall()]


@pytest.mark.parametrize(
    "image",
    [
        "img",
        "file",
        "{'bytes': img, 'path': 'elsewhere.jpg'}",
        "{'bytes': NULL::BLOB, 'path': file}",
        "clip_image(img)",
        "clip_image(img)::DOUBLE[]",
    ],
    ids=["BLOB", "path", "bytes in a STRUCT", "path in a STRUCT", "stored", "stored as DOUBLE"],
)
def test_the_plain_query_lists_the_best_match_first(
    photos: duckdb.DuckDBPyConnection, tmp_path: Path, image: str
) -> None:
    """SELECT * … ORDER BY clip_sim(img, 'red car'): the library's order, corrupt and NULL images last."""
    for name, content in photos.execute("FROM photos WHERE img IS NOT NULL").fetchall():
        (tmp_path / name).write_bytes(content)
    photos.execute(
        f"CREATE OR REPLACE TABLE photos AS SELECT name, {image} AS img FROM "
        f"(SELECT *, if(img IS NULL, NULL, '{tmp_path}/' || name) AS file FROM photos)"
    )
    rows = photos.execute("SELECT * FROM photos ORDER BY clip_sim(img, 'red car')").fetchall()
    scored = ClipEmbedder(FakeModel()).scores([picture(colour, "JPEG") for colour in COLOURS], ["red car"])
    expected = [COLOURS[number] for number in np.argsort(-scored[:, 0])]
    assert expected[0] == "red"
    assert [row[0] for row in rows[:-2]] == expected
    assert {row[0] for row in rows[-2:]} == {"corrupt", "null"}


def test_sim_ascending_is_score_descending(con: duckdb.DuckDBPyConnection) -> None:
    """Both functions order 3,000 stored vectors alike, near-ties included."""
    rng = np.random.default_rng(1)
    base = rng.standard_normal((3000, 16)) * np.repeat([1e-4, 1.0], 1500)[:, None] + rng.standard_normal(16)
    con.execute("CREATE TABLE v (id INT, emb FLOAT[16])")
    con.executemany("INSERT INTO v VALUES (?, ?)", [(i, row.tolist()) for i, row in enumerate(base)])
    ordered = scores(con, "SELECT clip_score(emb, 'red car') FROM v ORDER BY clip_sim(emb, 'red car')")
    assert ordered == sorted(ordered, reverse=True)


def test_sim_holds_distance_and_score(con: duckdb.DuckDBPyConnection) -> None:
    """clip_sim is STRUCT(distance, score); distance = 1 - score = 1 - clip_score."""
    blob = picture("red")
    sim = value(con, "clip_sim(?, 'red')", blob)
    assert isinstance(sim, dict)
    sim = cast("dict[str, float]", sim)
    assert list(sim) == ["distance", "score"]
    assert sim["score"] == value(con, "clip_score(?, 'red')", blob)
    assert sim["distance"] == pytest.approx(1 - sim["score"], abs=1e-7)


@pytest.mark.parametrize("expression", ["clip_sim(img, 'red') > 0.2", "clip_sim(img, 'red') + 1"])
def test_sim_is_no_number(photos: duckdb.DuckDBPyConnection, expression: str) -> None:
    """Comparing clip_sim with a number, or adding to it, does not bind."""
    with pytest.raises(duckdb.BinderException):
        photos.execute(f"SELECT {expression} FROM photos")


def test_scores_are_those_of_the_library(photos: duckdb.DuckDBPyConnection) -> None:
    """clip_score equals ClipEmbedder.scores on the same images."""
    expected = ClipEmbedder(FakeModel()).scores([picture(c, "JPEG") for c in COLOURS], ["a green tree"])
    got = scores(photos, "SELECT clip_score(img, 'a green tree') s FROM photos WHERE s IS NOT NULL")
    np.testing.assert_allclose(got, expected[:, 0], atol=1e-6)


@pytest.mark.parametrize(
    "image",
    [
        "content",
        "'{path}'",
        "{{'bytes': content, 'path': NULL}}",
        "{{'path': '{path}', 'bytes': NULL}}",
        "{{'path': 'nothing.png', 'more': 1, 'bytes': content}}",
        "{{'bytes': content}}",
        "{{'path': '{path}'}}",
        "{{'Path': '{path}', 'BYTES': content}}",
        "{{'path': '{path}'::ENUM('{path}')}}",
        "'{path}'::ENUM('{path}', 'other.png')",
        "clip_image(content)",
        "clip_image('{path}')",
        "clip_image(content)::FLOAT[]",
        "clip_image(content)::DOUBLE[]",
        "clip_image(content)::DOUBLE[16]",
        "list_transform(clip_image(content)::FLOAT[], lambda x: x * 3)",
    ],
)
def test_every_form_of_an_image_scores_alike(
    con: duckdb.DuckDBPyConnection, tmp_path: Path, image: str
) -> None:
    """BLOB, path, ENUM, STRUCT in any order and stored vectors of any length give one score."""
    path = tmp_path / "red.png"
    path.write_bytes(picture("red"))
    (expected,) = ClipEmbedder(FakeModel()).scores([path], ["red car"])[0]
    con.execute(f"CREATE TABLE t AS SELECT content FROM read_blob('{path}')")
    (got,) = scores(con, f"SELECT clip_score({image.format(path=path)}, 'red car') FROM t")
    assert got == pytest.approx(expected, abs=1e-6)
    assert con.execute(f"SELECT clip_error({image.format(path=path)}) FROM t").fetchall() == [(None,)]


@pytest.mark.parametrize(
    "image",
    [
        "NULL",
        "NULL::BLOB",
        "NULL::VARCHAR",
        "NULL::FLOAT[16]",
        "NULL::FLOAT[]",
        "NULL::STRUCT(bytes BLOB, path VARCHAR)",
        "{'bytes': NULL, 'path': NULL}",
    ],
)
def test_null_gives_null(con: duckdb.DuckDBPyConnection, image: str) -> None:
    """A NULL image is NULL in every function, and no failure, even where failures raise."""
    register(con, ClipEmbedder(FakeModel()), on_error="raise")
    row = con.execute(
        f"SELECT clip_sim({image}, 'x'), clip_score({image}, 'x'), clip_image({image}), clip_error({image})"
    ).fetchone()
    assert row == (None, None, None, None)


def test_null_text_gives_null(photos: duckdb.DuckDBPyConnection) -> None:
    """A NULL query is NULL, whether the constant or one row among others."""
    assert value(photos, "clip_text(NULL)") is None
    assert value(photos, "clip_score(?, NULL)", picture("red")) is None
    query = "SELECT clip_score(img, CASE WHEN name = 'red' THEN NULL ELSE name END) IS NULL FROM photos"
    assert sum(scores(photos, query)) == 3  # red, corrupt, null


def test_one_corrupt_image_among_100(con: duckdb.DuckDBPyConnection) -> None:
    """The corrupt one is NULL with a reason, the other 99 have their own scores."""
    blobs = [picture(f"rgb({i * 2},0,{255 - i * 2})", "JPEG") for i in range(100)]
    expected = ClipEmbedder(FakeModel()).scores(blobs, ["red"])[:, 0]
    blobs[37] = blobs[37][:150]
    con.execute("CREATE TABLE t (i INT, img BLOB)")
    con.executemany("INSERT INTO t VALUES (?, ?)", list(enumerate(blobs)))
    rows = con.execute(
        "SELECT i, clip_score(img, 'red'), clip_error(img), clip_image(img), clip_sim(img, 'red') "
        "FROM t ORDER BY i"
    ).fetchall()
    assert rows[37][1] is rows[37][3] is rows[37][4] is None
    assert rows[37][2]
    good = [row for row in rows if row[0] != 37]
    np.testing.assert_allclose([row[1] for row in good], np.delete(expected, 37), atol=1e-6)
    assert all(row[2] is None for row in good)


def test_vectors_have_unit_length(photos: duckdb.DuckDBPyConnection) -> None:
    """clip_image and clip_text give FLOAT[16] of unit length, also for a stored vector."""
    assert value(photos, "typeof(clip_image(NULL)) || typeof(clip_text(NULL))") == "FLOAT[16]FLOAT[16]"
    for expression in ("clip_text('x')", f"clip_image({[3.0] * 16}::FLOAT[16])"):
        assert np.linalg.norm(np.array(value(photos, expression))) == pytest.approx(1, abs=1e-6)
    lengths = scores(
        photos,
        "SELECT array_inner_product(v, v) FROM (SELECT clip_image(img) v FROM photos) WHERE v[1] IS NOT NULL",
    )
    np.testing.assert_allclose(lengths, np.ones(6), atol=1e-6)


def test_image_to_image(photos: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    """clip_score(img, clip_image('query.jpg')) finds the image itself, with cosine 1."""
    (tmp_path / "query.png").write_bytes(picture("blue"))
    query = f"clip_score(img, clip_image('{tmp_path}/query.png'))"
    best = photos.execute(f"SELECT name, {query} s FROM photos ORDER BY s DESC NULLS LAST LIMIT 1").fetchall()
    assert best[0][0] == "blue"
    assert best[0][1] == pytest.approx(1, abs=1e-3)


def test_a_query_per_row(photos: duckdb.DuckDBPyConnection) -> None:
    """The query may be a column: of texts, of ENUMs or of vectors, a NULL among them."""
    texts, enums, vectors, constants = zip(
        *photos.execute(
            f"SELECT clip_score(img, name), clip_score(img, name::ENUM {COLOURS}), "
            "clip_score(img, clip_text(name)), clip_score(img, 'red') "
            "FROM photos WHERE name NOT IN ('corrupt', 'null')"
        ).fetchall(),
        strict=True,
    )
    assert texts == enums == pytest.approx(vectors, abs=1e-6)
    assert texts[0] == pytest.approx(constants[0], abs=1e-6)
    assert texts[1] != pytest.approx(constants[1], abs=1e-2)


def test_views_of_a_column(con: duckdb.DuckDBPyConnection) -> None:
    """Filters, slices and empty inputs give each row its own score, over several chunks."""
    con.execute(
        "CREATE TABLE t AS SELECT range i, CASE WHEN range % 7 > 0 THEN "
        "list_transform(range(16), lambda x: ((range * 31 + x) % 17)::FLOAT)END::FLOAT[16] v "
        "FROM range(5000)"
    )
    whole = dict(con.execute("SELECT i, clip_score(v, 'red') FROM t").fetchall())
    assert whole[0] is None
    assert whole[1] is not None
    for clause in ("WHERE i % 1000 = 3", "WHERE i > 4990", "LIMIT 10 OFFSET 2040", "WHERE v IS NULL LIMIT 5"):
        for i, score in con.execute(
            f"SELECT i, clip_score(v::FLOAT[], 'red') FROM (FROM t {clause})"
        ).fetchall():
            assert score == whole[i]
    assert (
        con.execute("SELECT clip_score(v, 'red'), clip_image(v), clip_error(v) FROM t WHERE i < 0").fetchall()
        == []
    )


def test_repeated_images_are_embedded_once() -> None:
    """The same bytes in 50 rows, in two queries, cost one image in the model."""
    model = FakeModel()
    with duckdb.connect() as con:
        register(con, ClipEmbedder(model, workers=1))
        con.execute("CREATE TABLE t (img BLOB)")
        con.execute("INSERT INTO t VALUES (?)", [picture("red")])
        for _ in range(2):
            con.execute("SELECT clip_score(img, 'red') FROM t").fetchall()
        con.execute("SELECT clip_image(img), clip_error(img) FROM t").fetchall()
    assert sum(model.calls[0]) == 1
    assert sum(model.calls[1]) == 1


def test_a_text_is_never_a_path(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    """A VARCHAR query is a text even where a file has that name."""
    path = tmp_path / "red.png"
    path.write_bytes(picture("red"))
    assert value(con, "clip_score(?, ?)", picture("red"), str(path)) != pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (
            "clip_score(1, 'x')",
            r"clip_score: the image must be a BLOB .* or a vector of 16 numbers "
            r"\(FLOAT\[16\], FLOAT\[\], DOUBLE\[\] or TINYINT\[16\]\), not INTEGER",
        ),
        ("clip_sim(DATE '2020-01-01', 'x')", "(?m)clip_sim: the image must be .*, not DATE$"),
        ("clip_image(MAP {'a': 1.5})", r"(?m)clip_image: .*, not MAP\(VARCHAR, DECIMAL\(2,1\)\)$"),
        ("clip_error(union_value(a := 'x'::BLOB))", r"(?m)clip_error: .*, not UNION\(a BLOB\)$"),
        ("clip_error(TIMESTAMP '2020-01-01')", "(?m)clip_error: .*, not TIMESTAMP$"),
        ("clip_image([1, 2])", r"clip_image: the image must be .*, not INTEGER\[\]"),
        ("clip_error({'a': 1})", r"clip_error: the image must be .*, not STRUCT\(a INTEGER\)"),
        (
            "clip_error({'metadata': 'x'::BLOB, 'value': 'x'::BLOB})",
            r"not STRUCT\(metadata BLOB, value BLOB\)",
        ),
        ("clip_image({'bytes': 'x', 'path': 1})", r"not STRUCT\(bytes VARCHAR, path INTEGER\)"),
        (
            "clip_score(NULL, 1.5)",
            r"clip_score: the query must be a VARCHAR \(a text\) or a vector of 16 numbers "
            r"\(FLOAT\[16\], FLOAT\[\], DOUBLE\[\] or TINYINT\[16\]\), not DECIMAL\(2,1\)",
        ),
        ("clip_score('x', 'y'::BLOB)", "clip_score: the query must be .*, not BLOB"),
        ("clip_text([1.0]::FLOAT[1])", r"clip_text: the query must be a VARCHAR, not FLOAT\[1\]"),
        (
            "clip_image([1.0, 2]::FLOAT[2])",
            r"clip_image: the image must be FLOAT\[16\] where it is a vector, not FLOAT\[2\]",
        ),
        (
            "clip_score([1.0, 2]::DOUBLE[], 'x')",
            r"the image must be FLOAT\[16\] .* not DOUBLE\[\]: a vector of 2",
        ),
        (
            "clip_sim(NULL, [0.5]::FLOAT[])",
            r"clip_sim: the query must be FLOAT\[16\] .* not FLOAT\[\]: a vector of 1",
        ),
    ],
)
def test_wrong_arguments_are_named(con: duckdb.DuckDBPyConnection, expression: str, message: str) -> None:
    """The error names the function, what it takes and what came; the connection stays usable."""
    with pytest.raises(duckdb.InvalidInputException, match=message):
        value(con, expression)
    assert value(con, "1") == 1


@pytest.mark.parametrize(
    ("expression", "name"),
    [
        ("1::HUGEINT", "HUGEINT"),
        ("sum(1)", "HUGEINT"),
        ("1::DECIMAL(18,3)", "DECIMAL(18,3)"),
        ("TIMESTAMP_NS '2020-01-01'", "TIMESTAMP_NS"),
        ("[TIMESTAMP_S '2020-01-01']", "TIMESTAMP_S[]"),
        ("TIMESTAMP_MS '2020-01-01'", "TIMESTAMP_MS"),
        ("TIMESTAMPTZ '2020-01-01'", "TIMESTAMP WITH TIME ZONE"),
        ("TIME_NS '10:00'", "TIME_NS"),
        ("{'n': 1::BIGNUM}", "STRUCT(n BIGNUM)"),
        pytest.param(
            "1::VARIANT",
            "VARIANT",
            marks=pytest.mark.skipif(duckdb.__version__.startswith("1."), reason="1.5 hands over no VARIANT"),
        ),
    ],
)
def test_types_are_named_as_duckdb_does(con: duckdb.DuckDBPyConnection, expression: str, name: str) -> None:
    """What came is named as `typeof` names it, not as Arrow carries it."""
    assert value(con, f"typeof({expression})") == name
    with pytest.raises(duckdb.InvalidInputException, match=f"(?m), not {re.escape(name)}$"):
        value(con, f"clip_error({expression})")


@pytest.mark.parametrize(
    ("expression", "name"),
    [
        ("uuid()", "UUID"),
        ("{'path': '{}'::JSON}", "STRUCT(path JSON)"),
        ("'101'::BIT", "BIT"),
        ("TIMETZ '10:00:00+01'", "TIME WITH TIME ZONE"),
        ("[1::HUGEINT]", "HUGEINT[]"),
        ("true", "BOOLEAN"),
    ],
)
def test_types_that_only_a_setting_tells(con: duckdb.DuckDBPyConnection, expression: str, name: str) -> None:
    """Where DuckDB says that a text is a UUID or a JSON, it is no path, and a BIT no image."""
    con.execute("SET arrow_lossless_conversion = true")
    with pytest.raises(duckdb.InvalidInputException, match=f"(?m), not {re.escape(name)}$"):
        value(con, f"clip_error({expression})")


@pytest.mark.parametrize("number", ["'nan'::DOUBLE", "'inf'::DOUBLE", "'-inf'::DOUBLE", "NULL", "0"])
def test_spoiled_vectors_give_null(con: duckdb.DuckDBPyConnection, number: str) -> None:
    """A stored vector with NaN, infinity or NULL, or of zeros, is NULL with a reason, never NaN."""
    rest = "0" if number == "0" else "1"
    vector = f"[{number}{f', {rest}' * 15}]"
    for type_ in ("FLOAT[16]", "FLOAT[]", "DOUBLE[]"):
        row = con.execute(
            f"SELECT clip_score(v, 'red'), clip_image(v), clip_score(clip_text('red'), v), clip_error(v) "
            f"FROM (SELECT {vector}::{type_} v)"
        ).fetchone()
        assert row is not None
        assert row[:3] == (None, None, None)
        assert "only zeros" in row[3]


@pytest.mark.parametrize(
    "setting", ["arrow_large_buffer_size", "produce_arrow_string_view", "arrow_output_list_view"]
)
def test_other_arrow_layouts(con: duckdb.DuckDBPyConnection, setting: str, tmp_path: Path) -> None:
    """DuckDB's settings of the Arrow layout change no result."""
    (tmp_path / "a.png").write_bytes(picture("red"))
    blob = picture("red")
    query = (
        f"SELECT clip_score(b, t), clip_score(clip_image(b)::FLOAT[], t), clip_score('{tmp_path}/a.png', t), "
        "clip_score({'bytes': b, 'path': t}, t) FROM (SELECT ?::BLOB b, 'red' t)"
    )
    before = con.execute(query, [blob]).fetchall()
    if setting != "arrow_large_buffer_size":
        con.execute("SET arrow_output_version = '1.4'")
    con.execute(f"SET {setting} = true")
    assert con.execute(query, [blob]).fetchall()[0] == pytest.approx(before[0], abs=1e-6)
    assert before[0][0] is not None


def test_on_error_raise_names_the_row(photos: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    """With on_error='raise' a failed image stops the query: its row or path, and the reason."""
    register(photos, ClipEmbedder(FakeModel()), on_error="raise")
    with pytest.raises(duckdb.InvalidInputException, match="clip_score: the image in row 3 of this batch"):
        photos.execute("SELECT clip_score(img, 'x') FROM photos").fetchall()
    missing = tmp_path / "missing.jpg"
    with pytest.raises(
        duckdb.InvalidInputException, match=f"{re.escape(str(missing))}.* failed: no such file"
    ):
        value(photos, "clip_sim(?, 'x')", str(missing))
    with pytest.raises(duckdb.InvalidInputException, match="only zeros"):
        value(photos, f"clip_image({[0.0] * 16}::FLOAT[16])")
    assert value(photos, "clip_error(?)", str(missing)) == "no such file"


def test_try_keeps_the_other_rows(photos: duckdb.DuckDBPyConnection) -> None:
    """TRY(f(x)) turns a raised failure into NULL row by row."""
    register(photos, ClipEmbedder(FakeModel()), on_error="raise")
    rows = scores(photos, "SELECT TRY(clip_score(img, 'x')) FROM photos")
    assert sum(row is None for row in rows) == 2


@pytest.mark.parametrize("name", ["clip_text", "clip_image", "clip_sim", "clip_score", "clip_embedding"])
def test_results_are_in_memory_of_arrows_own(name: str) -> None:
    """To free NumPy's asks for the interpreter, which is gone where DuckDB 1.5 does it at the very end."""
    slot = Slot(16)
    slot.state = State(ClipEmbedder(FakeModel()), "null")
    function, _ = make_functions(slot)[name]
    images, texts = pa.array([picture("red")] * 2048), pa.array(["red"] * 2048)
    columns = {"clip_text": [texts], "clip_sim": [images, texts], "clip_score": [images, texts]}
    before = pa.total_allocated_bytes()
    result = function(*columns.get(name, [images]))
    assert pa.total_allocated_bytes() - before >= result.nbytes
