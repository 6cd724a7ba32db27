"""Labels learned from examples, in SQL: by name and by file, within DuckDB's rules."""

from __future__ import annotations

import io
import os
from pathlib import Path

import duckdb
import numpy as np
import pytest
from PIL import Image

from clip_embed import Category, Classifier, ClipEmbedder, ClipEmbedError, ModerationPolicy, fit, moderate
from clip_embed.testing import FakeModel
from clip_embed_duckdb import add_classifier, register

COLOURS = {"red": (250, 0, 0), "crimson": (220, 20, 60), "blue": (0, 0, 250), "navy": (0, 0, 128)}


def encoded(colour: tuple[int, int, int]) -> bytes:
    """A PNG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def clip() -> ClipEmbedder:
    """An embedder without weights."""
    return ClipEmbedder(FakeModel())


@pytest.fixture
def classifier(clip: ClipEmbedder) -> Classifier:
    """Tells warm colours from cold ones."""
    pictures = [np.full((8, 8, 3), colour, np.uint8) for colour in COLOURS.values()]
    return fit(clip, pictures, ["warm", "warm", "cold", "cold"], method="mean")


@pytest.fixture
def con(clip: ClipEmbedder) -> duckdb.DuckDBPyConnection:
    """A database with six images: four colours, a broken one and none."""
    con = duckdb.connect()
    register(con, clip)
    con.execute("CREATE TABLE photos (id INTEGER, img BLOB)")
    images = [*map(encoded, COLOURS.values()), b"broken", None]
    con.executemany("INSERT INTO photos VALUES (?, ?)", list(enumerate(images)))
    return con


WANTED = ["warm", "warm", "cold", "cold", None, None]


def predict(con: duckdb.DuckDBPyConnection, name: str) -> list[str | None]:
    """The labels of all photos by one classifier, in order."""
    return [
        label
        for (label,) in con.execute("SELECT clip_predict(img, ?) FROM photos ORDER BY id", [name]).fetchall()
    ]


def test_a_classifier_by_its_name(con: duckdb.DuckDBPyConnection, classifier: Classifier) -> None:
    """Known in every connection of the database; NULL for NULL and for an image that failed."""
    add_classifier(con, "warmth", classifier)
    assert predict(con, "warmth") == WANTED
    assert predict(con.cursor(), "warmth") == WANTED
    assert con.sql("SELECT clip_predict(img, NULL) FROM photos").fetchall() == [(None,)] * 6


def test_a_classifier_from_its_file(
    con: duckdb.DuckDBPyConnection, clip: ClipEmbedder, classifier: Classifier, tmp_path: Path
) -> None:
    """The file is read, and read again where it has changed; stored vectors are named as images are."""
    file = tmp_path / "warmth.classifier"
    classifier.save(file)
    assert predict(con, str(file)) == WANTED
    stored = "SELECT clip_predict(clip_image(img), ?) FROM photos ORDER BY id"
    assert [label for (label,) in con.execute(stored, [str(file)]).fetchall()] == WANTED
    swapped = fit(clip, classifier.weights, ["icy", "hot"], method="mean")
    swapped.save(file)
    os.utime(file, (1, 1))
    assert predict(con, str(file)) == ["hot", "hot", "icy", "icy", None, None]


def test_a_classifier_for_each_row(
    con: duckdb.DuckDBPyConnection, clip: ClipEmbedder, classifier: Classifier
) -> None:
    """The name may be a column: each row is named by its own."""
    add_classifier(con, "a", classifier)
    add_classifier(con, "b", fit(clip, classifier.weights, ["icy", "hot"], method="mean"))
    rows = con.sql(
        "SELECT clip_predict(img, CASE WHEN id % 2 = 0 THEN 'a' ELSE 'b' END) FROM photos ORDER BY id LIMIT 4"
    ).fetchall()
    assert [label for (label,) in rows] == ["warm", "hot", "cold", "icy"]


def test_what_is_no_classifier_raises(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    """A missing file, a file of something else, an argument of another type: the message names it."""
    (tmp_path / "notes.txt").write_text("no classifier")
    with pytest.raises(duckdb.Error, match="no classifier 'birds', and as a file: no such file"):
        predict(con, "birds")
    with pytest.raises(duckdb.Error, match=r"notes\.txt is no classifier"):
        predict(con, str(tmp_path / "notes.txt"))
    with pytest.raises(duckdb.Error, match="must be a VARCHAR"):
        con.sql("SELECT clip_predict(img, 7) FROM photos").fetchall()
    with pytest.raises(ClipEmbedError, match="register"):
        add_classifier(duckdb.connect(), "x", None)  # type: ignore[arg-type]


def test_another_models_classifier_is_refused(con: duckdb.DuckDBPyConnection) -> None:
    """A classifier of another space raises, and says both spaces."""
    other = ClipEmbedder(FakeModel(size=4))
    add_classifier(con, "other", fit(other, np.eye(16, dtype=np.float32)[:2], ["a", "b"], method="mean"))
    with pytest.raises(duckdb.Error, match=r"'other'.*fake:16:4"):
        predict(con, "other")


def test_files_are_read_only_where_duckdb_may(
    con: duckdb.DuckDBPyConnection, classifier: Classifier, tmp_path: Path
) -> None:
    """Without access to files no classifier is read; one that has a name works all the same."""
    file = tmp_path / "warmth.classifier"
    classifier.save(file)
    add_classifier(con, "warmth", classifier)
    con.execute("SET enable_external_access = false")
    with pytest.raises(duckdb.Error, match=r"[Pp]ermission"):
        predict(con, str(file))
    assert predict(con, "warmth") == WANTED


POLICY = ModerationPolicy((Category("warm", ("fire",), ("sea",)), Category("cold", ("sea",), ("fire",))))


def test_decisions_by_a_policy(con: duckdb.DuckDBPyConnection, clip: ClipEmbedder, tmp_path: Path) -> None:
    """By text, by file and by the starter's name: as in Python, 'unchecked' for a failure, NULL for NULL."""
    file = tmp_path / "policy.json"
    file.write_text(POLICY.to_json())
    wanted = moderate(clip, [encoded(colour) for colour in COLOURS.values()], POLICY)
    for name in (POLICY.to_json(), str(file)):
        query = "SELECT clip_moderate(img, ?) FROM photos ORDER BY id"
        *found, broken, missing = [row for (row,) in con.execute(query, [name]).fetchall()]
        assert [row["verdict"] for row in found] == [each.verdict for each in wanted]
        assert [row["reason"] for row in found] == [each.reason for each in wanted]
        for row, each in zip(found, wanted, strict=True):
            assert row["scores"] == pytest.approx(each.scores, abs=1e-6)
        assert broken["verdict"] == "unchecked"
        assert "cannot identify" in broken["reason"] or "not an image" in broken["reason"]
        assert missing is None
    ((starter,),) = con.sql("SELECT clip_moderate(img, 'starter').scores FROM photos WHERE id = 0").fetchall()
    assert list(starter) == [each.name for each in ModerationPolicy.starter().categories]
    assert con.sql("SELECT clip_moderate(img, NULL) FROM photos").fetchall() == [(None,)] * 6


def test_a_policy_that_is_none(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    """The message says which file or text it was, and of which function."""
    file = tmp_path / "policy.json"
    file.write_text('[{"name": "x"}]')
    for name, reason in (
        (str(file), "policy.json"),
        ("[1]", "no policy"),
        ("nowhere.json", "no policy"),
        (' {"a": 1}', r"a policy is a JSON list of categories, \[\{.*not ' \{\"a\": 1\}'"),
    ):
        with pytest.raises(duckdb.Error, match=f"clip_moderate: .*{reason}"):
            con.execute("SELECT clip_moderate(img, ?) FROM photos", [name]).fetchall()
