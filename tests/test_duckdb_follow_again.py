"""follow: what it does not trust, what it refuses, and what others change while it fills."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import duckdb
import numpy as np
import pytest
from PIL import Image

from clip_embed import ClipEmbedder, ClipEmbedError
from clip_embed._types import Float32, UInt8
from clip_embed.testing import FakeModel
from clip_embed_duckdb import _chunks, follow, register

pytestmark = pytest.mark.skipif(duckdb.__version__ < "2", reason="DuckDB before 2.0 has no triggers")


def picture(number: int) -> bytes:
    """Return a PNG unlike that of any other number."""
    out = io.BytesIO()
    Image.new("RGB", (9, 9), (29 * number % 256, 83 * number % 256, 7)).save(out, "PNG")
    return out.getvalue()


class Repackaged(FakeModel):
    """The same vectors under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.space = "repackaged:1"


class Turned(Repackaged):
    """Other vectors of the same dimension."""

    def embed_images(self, pixels: UInt8, /) -> Float32:
        """Embed, and turn."""
        return np.roll(super().embed_images(pixels), 1, axis=1)


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    """Table photos (id, img) with six images."""
    with duckdb.connect() as con:
        register(con, ClipEmbedder(FakeModel()))
        make(con)
        yield con


def make(con: duckdb.DuckDBPyConnection, first: int = 0, create: str = "CREATE TABLE") -> None:
    """Make the table, with the images from a number on."""
    con.execute(
        f"{create} photos AS SELECT unnest(range(6))::INT AS id, unnest(?::BLOB[]) AS img",
        [[picture(number) for number in range(first, first + 6)]],
    )


def keep(con: duckdb.DuckDBPyConnection) -> int:
    """Follow the photos; return how many were embedded."""
    return follow(con, "photos", "img", key="id", progress=False).done


def check(con: duckdb.DuckDBPyConnection) -> None:
    """Each image has its vector, and there is no other one."""
    wrong = con.execute(
        "SELECT id FROM (FROM photos WHERE img IS NOT NULL) FULL JOIN photos_emb USING (id) "
        "WHERE coalesce(clip_score(emb, clip_image(img)), 0) < 0.9999"
    ).fetchall()
    assert wrong == []


@pytest.mark.parametrize("create", ["CREATE OR REPLACE TABLE", "DROP TABLE photos; CREATE TABLE"])
def test_a_table_that_was_made_anew(con: duckdb.DuckDBPyConnection, create: str) -> None:
    """Its triggers went with the old one: the vectors are those of the images that are there now."""
    keep(con)
    if create.startswith("DROP"):
        con.execute("DROP TABLE photos")
        make(con, first=3)
    else:
        make(con, first=3, create=create)
    con.execute("DELETE FROM photos WHERE id = 5")
    assert keep(con) == 5
    check(con)
    assert keep(con) == 0


def test_a_trigger_that_was_dropped(con: duckdb.DuckDBPyConnection) -> None:
    """What happened without it is made good."""
    keep(con)
    con.execute("DROP TRIGGER photos_emb_delete ON photos; DELETE FROM photos WHERE id = 5")
    assert keep(con) == 5
    check(con)


@pytest.mark.parametrize(
    "change", ["INSERT INTO photos VALUES (9, $new)", "UPDATE photos SET img = $new WHERE id = 1"]
)
def test_another_model_may_not_write(con: duckdb.DuckDBPyConnection, change: str) -> None:
    """One of the same dimension is refused, by both names; the same one under another name is not."""
    keep(con)
    register(con, ClipEmbedder(Turned()))
    for _ in range(2):
        with pytest.raises(
            duckdb.InvalidInputException, match=r"(?s)SpaceMismatch: .*photos_emb.*fake:16:32"
        ):
            con.execute(change, {"new": picture(9)})
    with pytest.raises(duckdb.InvalidInputException, match="repackaged:1"):
        con.execute(change, {"new": picture(9)})
    con.execute("DELETE FROM photos WHERE id = 2")
    register(con, ClipEmbedder(Repackaged()))
    check(con)
    con.execute(change, {"new": picture(9)})
    check(con)
    assert keep(con) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("INSERT INTO photos VALUES (1, $new)", "(?i)duplicate key"),
        ("INSERT INTO photos VALUES (9, $new), (9, $new)", "(?i)duplicate key"),
        ("UPDATE photos SET id = 1, img = $new WHERE id = 2", "(?i)duplicate key"),
        ("UPDATE photos SET id = 1, img = $new", '"photos"."id" does not tell rows apart: 1'),
        ("UPDATE photos SET id = 9, img = $new", '"photos"."id" does not tell rows apart: 9'),
    ],
)
def test_a_key_that_repeats(con: duckdb.DuckDBPyConnection, change: str, message: str) -> None:
    """A second row of a key is refused, and nothing is changed."""
    keep(con)
    with pytest.raises(duckdb.Error, match=message):
        con.execute(change, {"new": picture(9)})
    assert con.execute("SELECT count(DISTINCT id) FROM photos").fetchall() == [(6,)]
    check(con)


def test_keys_that_change(con: duckdb.DuckDBPyConnection) -> None:
    """Shifted, swapped, and taken again in one transaction, keys keep their images' vectors."""
    keep(con)
    con.execute("UPDATE photos SET id = id + 1")
    check(con)
    con.execute("UPDATE photos SET id = 7 - id")
    check(con)
    con.execute("BEGIN")
    con.execute("DELETE FROM photos WHERE id = 2")
    con.execute("INSERT INTO photos VALUES (2, ?)", [picture(8)])
    con.execute("COMMIT")
    check(con)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE photos SET img = $new WHERE id = 3",
        "UPDATE photos SET id = 9 WHERE id = 3",
        "UPDATE photos SET img = NULL WHERE id = 3",
        "DELETE FROM photos WHERE id = 3",
        "INSERT INTO photos VALUES (9, $new)",
        "DELETE FROM photos; INSERT INTO photos VALUES (3, $new)",
    ],
)
def test_what_others_change_while_it_fills(
    con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Between the reading and the writing of a chunk: their triggers see to it, and the call ends."""
    other, before = con.cursor(), _chunks.write_patiently
    statements = change.split("; ")

    def write(
        con: duckdb.DuckDBPyConnection, work: Callable[[], object], check: Callable[[], None]
    ) -> object:
        while statements:
            statement = statements.pop(0)
            other.execute(statement, {"new": picture(9)} if "$new" in statement else None)
        return before(con, work, check)

    monkeypatch.setattr(_chunks, "write_patiently", write)
    keep(con)
    assert statements == []
    check(con)
    assert keep(con) == 0


def test_names_that_are_none(con: duckdb.DuckDBPyConnection) -> None:
    """Two columns as the key, and a table in another schema: the errors say what is taken."""
    with pytest.raises(TypeError, match=r"key must be the name of one column, not \['id', 'img'\]"):
        follow(con, "photos", "img", key=["id", "img"])  # type: ignore[arg-type]
    with pytest.raises(ClipEmbedError, match=r"'s.x' has a dot: give a name without"):
        follow(con, "photos", "img", key="id", into="s.x")
    assert con.execute("SELECT table_name FROM duckdb_tables()").fetchall() == [("photos",)]
