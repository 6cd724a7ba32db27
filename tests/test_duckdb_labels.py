"""clip_label and clip_labels: zero-shot classification in SQL, as `ClipEmbedder.classify` does it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from clip_embed import ClipEmbedder
from clip_embed.arrow import vector_array
from clip_embed.testing import FakeModel
from clip_embed_duckdb import register

COLOURS = ("red", "green", "blue", "white")
LABELS = "['red', 'lime', 'blue']"


def picture(colour: str) -> bytes:
    """Return an encoded image of one colour."""
    out = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    """Table photos: name and img of four images, a corrupt one and a NULL; the fake model's functions."""
    with duckdb.connect() as con:
        register(con, ClipEmbedder(FakeModel()))
        con.execute("CREATE TABLE photos (name VARCHAR, img BLOB)")
        rows: list[tuple[str, bytes | None]] = [(colour, picture(colour)) for colour in COLOURS]
        rows[2:2] = [("corrupt", b"no image"), ("null", None)]
        con.executemany("INSERT INTO photos VALUES (?, ?)", rows)
        yield con


def test_the_best_label(con: duckdb.DuckDBPyConnection) -> None:
    """clip_label names the colour of each image; a failed one and NULL are NULL."""
    found = dict(con.execute(f"SELECT name, clip_label(img, {LABELS}) FROM photos").fetchall())
    assert {name: found[name] for name in ("red", "green", "blue")} == {
        "red": "red",
        "green": "lime",
        "blue": "blue",
    }
    assert found["corrupt"] is found["null"] is None


def test_all_labels_are_those_of_the_library(con: duckdb.DuckDBPyConnection) -> None:
    """clip_labels gives classify's probabilities, best first; its first is clip_label's."""
    expected = ClipEmbedder(FakeModel()).classify([picture(c) for c in COLOURS], ["red", "lime", "blue"])
    query = f"SELECT clip_labels(img, {LABELS}) all_of, clip_label(img, {LABELS}) FROM photos"
    rows = con.execute(f"{query} WHERE all_of IS NOT NULL").fetchall()
    assert len(rows) == 4
    for (all_of, best), label, shares in zip(rows, expected.best, expected.probabilities, strict=True):
        assert [each["probability"] for each in all_of] == pytest.approx(
            sorted(shares, reverse=True), abs=1e-5
        )
        assert all_of[0]["label"] == best == label
        assert {each["label"] for each in all_of} == {"red", "lime", "blue"}
    ((kind,),) = con.execute(f"SELECT typeof(clip_labels(NULL, {LABELS}))").fetchall()
    assert kind.replace('"', "") == "STRUCT(label VARCHAR, probability FLOAT)[]"


def test_labels_group_a_table(con: duckdb.DuckDBPyConnection) -> None:
    """GROUP BY clip_label counts images, and clip_labels unnests to one row for each label."""
    chosen = "FROM photos WHERE name IN ('red', 'blue')"
    grouped = con.execute(f"SELECT clip_label(img, {LABELS}), count(*) {chosen} GROUP BY 1").fetchall()
    assert sorted(grouped) == [("blue", 1), ("red", 1)]
    unnested = con.execute(
        f"SELECT l.label, l.probability FROM (SELECT unnest(clip_labels(img, {LABELS})) l FROM photos)"
    ).fetchall()
    assert len(unnested) == 4 * 3


@pytest.mark.parametrize(
    "image",
    ["img", "{'bytes': img}", "clip_image(img)", "clip_image(img)::FLOAT[]", "clip_image(img)::DOUBLE[]"],
)
@pytest.mark.parametrize(
    "labels", [LABELS, f"{LABELS}::VARCHAR[3]", f"{LABELS}::ENUM('blue', 'lime', 'red')[]", "?::VARCHAR[]"]
)
def test_every_form_of_image_and_labels(con: duckdb.DuckDBPyConnection, image: str, labels: str) -> None:
    """BLOBs, structs and vectors, lists, arrays, ENUMs and parameters give the same label."""
    given = [["red", "lime", "blue"]] if "?" in labels else []
    found = con.execute(f"SELECT clip_label({image}, {labels}) FROM photos WHERE name = 'green'", given)
    assert found.fetchall() == [("lime",)]


def test_a_path_and_an_enum_of_paths(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    """Paths are images here too, also as an ENUM; a missing file is NULL."""
    (tmp_path / "a.png").write_bytes(picture("blue"))
    path, missing = f"'{tmp_path}/a.png'", f"'{tmp_path}/b.png'"
    row = con.execute(
        f"SELECT clip_label({path}, {LABELS}), clip_label({path}::ENUM({path}), {LABELS}), "
        f"clip_labels({missing}, {LABELS})"
    ).fetchall()
    assert row == [("blue", "blue", None)]


def test_labels_of_each_row(con: duckdb.DuckDBPyConnection) -> None:
    """Labels may be a column: rows with equal sets share them, NULL gives NULL, lengths may differ."""
    rows = con.execute(
        "SELECT name, clip_label(img, CASE name WHEN 'red' THEN ['black', 'white', 'red'] "
        "WHEN 'green' THEN NULL ELSE ['white', 'blue'] END) FROM photos"
    ).fetchall()
    expected = {"red": "red", "green": None, "blue": "blue", "white": "white", "corrupt": None, "null": None}
    assert dict(rows) == expected


def test_null_labels(con: duckdb.DuckDBPyConnection) -> None:
    """NULL in place of the labels is NULL in both functions."""
    row = con.execute(
        "SELECT clip_label(img, NULL), clip_labels(img, NULL::VARCHAR[]) FROM photos"
    ).fetchall()
    assert row == [(None, None)] * 6


@pytest.mark.parametrize("on_error", ["null", "raise"])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("'red'", r"clip_label: the labels must be a list of texts, VARCHAR\[\], not VARCHAR"),
        ("[1, 2]", r"clip_label: the labels must be a list of texts, VARCHAR\[\], not INTEGER\[\]"),
        ("clip_text('x')", r"the labels must be a list of texts, VARCHAR\[\], not FLOAT\[16\]"),
        ("['red']", "clip_label: give at least two labels"),
        ("[]::VARCHAR[]", "clip_label: give at least two labels"),
        ("['red', 'red']", "clip_label: the label 'red' stands twice"),
        ("['red', ' ']", "clip_label: labels must not be empty texts"),
        ("['red', NULL]", r"clip_label: a NULL stands among the labels \['red', None\]"),
    ],
)
def test_wrong_labels_are_named(
    con: duckdb.DuckDBPyConnection, labels: str, message: str, on_error: str
) -> None:
    """Labels that cannot tell images apart raise whatever `on_error` says; the connection stays usable."""
    register(con, ClipEmbedder(FakeModel()), on_error="raise" if on_error == "raise" else "null")
    with pytest.raises(duckdb.InvalidInputException, match=message):
        con.execute(f"SELECT clip_label(img, {labels}) FROM photos WHERE name = 'red'").fetchall()
    assert con.execute("SELECT 1").fetchall() == [(1,)]


def test_wrong_images_are_named(con: duckdb.DuckDBPyConnection) -> None:
    """The image is checked as in the other functions, under this one's name."""
    with pytest.raises(duckdb.InvalidInputException, match=r"clip_labels: the image must be .* not INT"):
        con.execute(f"SELECT clip_labels(1, {LABELS})").fetchall()
    with pytest.raises(duckdb.InvalidInputException, match=r"clip_label: the image must be FLOAT\[16\]"):
        con.execute(f"SELECT clip_label([1.0, 2]::FLOAT[2], {LABELS})").fetchall()


def test_class_vectors_are_made_once() -> None:
    """Several chunks, queries and connections cost one pass over the labels' sentences, without a cache."""
    model = FakeModel()
    with duckdb.connect() as con:
        register(con, ClipEmbedder(model, cache=None))
        con.execute(
            "CREATE TABLE v AS SELECT list_transform(range(16), lambda x: (range + x) % 7 + 1)::FLOAT[16] v "
            "FROM range(5000)"
        )
        for cursor in (con, con.cursor()):
            found = cursor.execute(
                f"SELECT count(clip_label(v, {LABELS})), count(clip_labels(v, {LABELS})) FROM v"
            )
            assert found.fetchall() == [(5000, 5000)]
    assert len(model.calls[1]) == 1


def test_labels_over_many_rows_are_each_rows_own() -> None:
    """5,000 vectors in several chunks, NULLs among them, get what classify gives each of them."""
    clip = ClipEmbedder(FakeModel())
    rows = np.random.default_rng(0).standard_normal((5000, 16)).astype(np.float32)
    expected = clip.classify(rows, ["red", "lime", "blue"]).best
    with duckdb.connect() as con:
        register(con, clip)
        table = pa.table({"i": np.arange(5000), "v": vector_array(rows, np.arange(5000) % 7 != 3)})
        con.register("v", table)
        found = con.execute(f"SELECT clip_label(v, {LABELS}) FROM v ORDER BY i").fetchall()
    assert [label for (label,) in found] == [
        None if i % 7 == 3 else label for i, label in enumerate(expected)
    ]
