"""What others commit to a table while its images are embedded: none of it is lost or mixed up."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest
from PIL import Image

from clip_embed import ClipEmbedder, ClipEmbedError
from clip_embed._types import Float32, UInt8
from clip_embed.testing import FakeModel
from clip_embed_duckdb import Materialized, materialize, register

ROWS = 8


def picture(number: int) -> bytes:
    """Return a PNG unlike that of any other number."""
    out = io.BytesIO()
    Image.new("RGB", (9, 9), (29 * number % 256, 83 * number % 256, 7)).save(out, "PNG")
    return out.getvalue()


class Meanwhile(FakeModel):
    """A model during each of whose batches something happens, as often as `times` says."""

    def __init__(self) -> None:
        super().__init__()
        self.act: Callable[[], object] = lambda: None
        self.times = 0

    def embed_images(self, pixels: UInt8, /) -> Float32:
        """Let it happen, and embed."""
        if self.times > 0:
            self.times -= 1
            self.act()
        return super().embed_images(pixels)


class Table:
    """Table photos (id, img, note) with ROWS images, and another connection that changes it meanwhile."""

    def __init__(self, con: duckdb.DuckDBPyConnection) -> None:
        self.con, self.other, self.model = con, con.cursor(), Meanwhile()
        self.clip = ClipEmbedder(self.model, batch_size=4, workers=1, cache=None)
        self.clip.stamp()
        register(con, self.clip, progress=False)
        con.execute("CREATE TABLE photos (id INT, img BLOB, note VARCHAR)")
        for number in range(ROWS):
            con.execute("INSERT INTO photos VALUES (?, ?, '')", [number, picture(number)])

    def meanwhile(self, act: Callable[[], object], times: int = 1) -> None:
        """Have something happen while the next batches are embedded."""
        self.model.act, self.model.times = act, times

    def fill(self) -> Materialized:
        """Materialize."""
        return materialize(self.con, "photos", "img", embedder=self.clip, progress=False)

    def ask(self, query: str) -> list[tuple[object, ...]]:
        """Return rows."""
        return self.con.execute(query).fetchall()

    def check(self) -> None:
        """Each row with an image has its vector, and no other has one."""
        wrong = "(img IS NULL) != (emb IS NULL) OR clip_score(emb, clip_image(img)) < 0.9999"
        assert self.ask(f"SELECT id FROM photos WHERE {wrong}") == []


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    """The table in a file."""
    with duckdb.connect(str(tmp_path / "x.db")) as con:
        yield Table(con)


def run(con: duckdb.DuckDBPyConnection, script: str) -> None:
    """Run statements, of which some take $new, an image; $add begins an INSERT."""
    for statement in script.replace("$add", "INSERT INTO photos (id, img, note) VALUES").split("; "):
        con.execute(statement, {"new": picture(99)} if "$new" in statement else None)


@pytest.mark.parametrize(
    ("script", "note"),
    [
        ("UPDATE photos SET note = 'by Ann' WHERE id = 3", "by Ann"),
        ("UPDATE photos SET img = $new WHERE id = 3", ""),
        ("UPDATE photos SET img = NULL WHERE id = 3", ""),
        ("DELETE FROM photos WHERE id = 3", None),
        (
            "BEGIN; DELETE FROM photos WHERE id = 3; $add (3, $new, 'b'); COMMIT",
            "b",
        ),
        (
            "DELETE FROM photos WHERE id < 4; CHECKPOINT; $add (3, $new, 'c')",
            "c",
        ),
        (
            "DELETE FROM photos; CHECKPOINT; $add (3, $new, 'd'), (4, $new, '')",
            "d",
        ),
    ],
)
def test_what_others_commit_stays(table: Table, script: str, note: str | None) -> None:
    """Another note, image or row: it is there afterwards, with the vector of the image that it has now."""
    table.meanwhile(lambda: run(table.other, script))
    report = table.fill()
    assert table.ask("SELECT note FROM photos WHERE id = 3") == ([] if note is None else [(note,)])
    table.check()
    assert (report.done,) == table.ask("SELECT count(emb) FROM photos")[0]
    assert table.fill().done == 0


def test_a_vector_of_someone_else_stays(table: Table) -> None:
    """A row that has got a vector or a reason meanwhile keeps it, and is not counted."""
    table.fill()
    table.con.execute("UPDATE photos SET emb = NULL")
    table.meanwhile(
        lambda: run(
            table.other,
            "UPDATE photos SET emb = clip_text('red') WHERE id = 3; "
            "UPDATE photos SET emb_error = 'no' WHERE id = 4",
        )
    )
    assert table.fill().done == ROWS - 2
    assert table.ask("SELECT clip_score(emb, 'red') > 0.999 FROM photos WHERE id = 3") == [(True,)]
    assert table.ask("SELECT emb, emb_error FROM photos WHERE id = 4") == [(None, "no")]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE photos SET img = img || 'x'::BLOB WHERE id = 3",
        "CREATE OR REPLACE TEMP TABLE r AS SELECT * REPLACE (img || 'x'::BLOB AS img) "
        "FROM photos WHERE id = 3; DELETE FROM photos WHERE id = 3; INSERT INTO photos FROM r; DROP TABLE r",
    ],
    ids=["in place", "by another row"],
)
def test_a_row_that_goes_on_changing(table: Table, change: str) -> None:
    """It is left to the next call, the others get their vectors; the call ends, and says so."""
    table.meanwhile(lambda: run(table.other, change), times=1000)
    report = table.fill()
    assert (report.done, report.failed, report.skipped) == (ROWS - 1, 0, 1)
    assert table.ask("SELECT id FROM photos WHERE emb IS NULL") == [(3,)]
    table.model.times = 0
    assert table.fill().done == 1
    table.check()


def test_a_row_that_is_held(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another connection has deleted rows and not committed it, TransactionException says what is."""
    monkeypatch.setattr("clip_embed_duckdb._chunks._PATIENCE", 0)
    table.meanwhile(lambda: run(table.other, "BEGIN; DELETE FROM photos WHERE id = 3"))
    with pytest.raises(duckdb.TransactionException, match=r"not committed it; .* the next call goes on"):
        table.fill()
    table.other.rollback()
    assert table.fill().done == ROWS
    table.check()


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_a_row_that_is_held_for_a_moment(table: Table, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """The call waits until the other transaction is over, and embeds nothing again."""
    waits = list[float]()

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            table.other.execute(end)

    monkeypatch.setattr("clip_embed_duckdb._chunks.time.sleep", sleep)
    table.meanwhile(lambda: run(table.other, "BEGIN; DELETE FROM photos WHERE id = 3"))
    before = sum(table.model.calls[0])
    assert table.fill().done == (ROWS - 1 if end == "COMMIT" else ROWS)
    assert len(waits) == 2
    assert sum(table.model.calls[0]) == before + ROWS
    table.check()


def test_a_table_that_others_refer_to(table: Table) -> None:
    """It is refused before any work, with the way out; nothing is added."""
    table.con.execute("CREATE TABLE p AS FROM photos; ALTER TABLE p ADD PRIMARY KEY (id)")
    table.con.execute("CREATE TABLE captions (id INT REFERENCES p (id)); INSERT INTO captions VALUES (1)")
    before = table.ask("DESCRIBE p")
    with pytest.raises(ClipEmbedError, match=r"captions refers to it .*follow\(con, 'p', 'img', key='id'\)"):
        materialize(table.con, "p", "img", progress=False)
    assert table.ask("DESCRIBE p") == before
