"""No image is embedded twice, however often DuckDB evaluates an expression; known files are not read."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest
from PIL import Image

from clip_embed import ClipEmbedder
from clip_embed.testing import FakeModel
from clip_embed_duckdb import register
from clip_embed_duckdb._digests import Digests

N = 30


def picture(number: int) -> bytes:
    """Return a PNG of 250 bytes unlike that of any other number, between red and blue."""
    out = io.BytesIO()
    Image.new("RGB", (20, 20), (number, 0, 255 - number)).save(out, "PNG")
    return out.getvalue().ljust(250, b"\0")


def write(path: Path, number: int, *, age: float) -> Path:
    """Write an image that was last changed so many seconds ago."""
    path.write_bytes(picture(number))
    then = time.time() - age
    os.utime(path, (then, then))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """N images, an hour old."""
    for number in range(N):
        write(tmp_path / f"{number:02}.png", number, age=3600)
    return tmp_path


SOURCES = {
    "blob": "(SELECT content AS img FROM read_blob('{folder}/*.png'))",
    "path": "(SELECT file AS img FROM glob('{folder}/*.png'))",
    "struct": "(SELECT {{'bytes': NULL::BLOB, 'path': file}} AS img FROM glob('{folder}/*.png'))",
}


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, folder: Path) -> str:
    """The images in a FROM clause, column img, of each kind."""
    return SOURCES[request.param].format(folder=folder)


def embedded(model: FakeModel) -> int:
    """Return how many images the model has seen."""
    return sum(model.calls[0])


def test_each_image_once(source: str) -> None:
    """First query n; the second, another text, another function and another connection none more."""
    model = FakeModel()
    with duckdb.connect() as con:
        register(con, ClipEmbedder(model))
        con.execute(f"SELECT clip_score(img, 'red') FROM {source}").fetchall()
        assert embedded(model) == N
        con.execute(f"SELECT clip_score(img, 'red') FROM {source}").fetchall()
        con.execute(f"SELECT * FROM {source} ORDER BY clip_sim(img, 'blue') LIMIT 3").fetchall()
        con.execute(f"SELECT clip_label(img, ['red', 'blue']), clip_error(img) FROM {source}").fetchall()
        con.cursor().execute(f"SELECT clip_image(img) FROM {source}").fetchall()
        assert embedded(model) == N


@pytest.mark.parametrize(
    "query",
    [
        "SELECT img FROM {source} WHERE clip_score(img, 'red') > -2 ORDER BY clip_sim(img, 'red')",
        "SELECT clip_score(img, 'red'), clip_score(img, 'blue') FROM {source}",
        "SELECT clip_score(img, 'red') s FROM {source} WHERE s > -2 ORDER BY clip_score(img, 'red') DESC",
        "SELECT max(clip_score(img, t)) FROM {source}, (VALUES ('red'), ('blue')) q(t)",
    ],
    ids=["filter and order", "two texts", "three times", "a join of texts"],
)
def test_what_duckdb_evaluates_again(source: str, query: str) -> None:
    """A query that evaluates the functions several times for each image embeds it once."""
    model = FakeModel()
    with duckdb.connect() as con:
        register(con, ClipEmbedder(model))
        con.execute(query.format(source=source)).fetchall()
    assert embedded(model) == N


def test_another_database_with_the_embedder(source: str) -> None:
    """Two databases that share an embedder share what it knows."""
    model = FakeModel()
    clip = ClipEmbedder(model)
    for _ in range(2):
        with duckdb.connect() as con:
            register(con, clip)
            con.execute(f"SELECT clip_score(img, 'red') FROM {source}").fetchall()
    assert embedded(model) == N


def test_another_process_with_the_cache(source: str, tmp_path: Path) -> None:
    """With a cache on disk a later process, and a restart, embed nothing."""
    script = (
        "import sys, duckdb\n"
        "from clip_embed import ClipEmbedder\n"
        "from clip_embed.testing import FakeModel\n"
        "from clip_embed_duckdb import register\n"
        "model = FakeModel()\n"
        "con = duckdb.connect(sys.argv[1] + '/photos.db')\n"
        "register(con, ClipEmbedder(model, cache=sys.argv[1] + '/photos.cache'))\n"
        "query = 'SELECT sum(clip_score(img, $$red$$) ORDER BY img) FROM ' + sys.argv[2]\n"
        "print(con.execute(query).fetchall())\n"
        "print(sum(model.calls[0]), sum(model.calls[1]))\n"
    )
    runs = [
        subprocess.run(  # noqa: S603
            [sys.executable, "-c", script, str(tmp_path), source], capture_output=True, text=True, check=True
        ).stdout.split("\n")
        for _ in range(2)
    ]
    assert runs[0][1] == f"{N} 1"
    assert runs[1][1] == "0 0"
    assert runs[0][0] == runs[1][0]


def scores(con: duckdb.DuckDBPyConnection, *paths: Path | str) -> list[float | None]:
    """Return the scores of paths."""
    found = con.execute("SELECT clip_score(unnest(?), 'red')", [[str(path) for path in paths]]).fetchall()
    return [score for (score,) in found]


def replaced(path: Path, number: int) -> None:
    """Put another image in the place of one, of the same size and time."""
    facts = path.stat()
    path.write_bytes(picture(number))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def test_a_known_file_is_not_read(folder: Path) -> None:
    """What has the size and time that it had is not opened again: other content behind them stays unseen."""
    path = folder / "07.png"
    with duckdb.connect() as con:
        register(con, ClipEmbedder(FakeModel()))
        before = scores(con, path)
        replaced(path, 250)
        assert scores(con, path) == scores(con.cursor(), path) == before
        assert scores(con, f"{folder}/./07.png") != before


@pytest.mark.parametrize("age", [0, -3600], ids=["just written", "from the future"])
def test_a_file_written_just_now_is_read_again(tmp_path: Path, age: float) -> None:
    """A second change within DuckDB's coarse time cannot hide, nor one where clocks disagree."""
    path = write(tmp_path / "a.png", 7, age=age)
    with duckdb.connect() as con:
        register(con, ClipEmbedder(FakeModel()))
        before = scores(con, path)
        replaced(path, 250)
        assert scores(con, path) != before


def test_a_changed_file_is_read(folder: Path) -> None:
    """Another time or another size is another file, also in one group with others that are as they were."""
    model = FakeModel()
    paths = sorted(folder.glob("*.png"))
    with duckdb.connect() as con:
        register(con, ClipEmbedder(model))
        before = scores(con, *paths)
        write(paths[3], 200, age=1800)
        paths[5].write_bytes(picture(201) + b"\0")
        os.utime(paths[5], (0, paths[4].stat().st_mtime))
        after = scores(con, *paths)
    assert [i for i in range(N) if before[i] != after[i]] == [3, 5]
    assert embedded(model) == N + 2


def test_the_folder_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative name is another file in another folder, though size and time agree."""
    for name, number in (("one", 7), ("two", 250)):
        (tmp_path / name).mkdir()
        path = write(tmp_path / name / "a.png", number, age=0)
        os.utime(path, (10**9, 10**9))
    with duckdb.connect() as con:
        register(con, ClipEmbedder(FakeModel()))
        monkeypatch.chdir(tmp_path / "one")
        first = scores(con, "a.png")
        monkeypatch.chdir(tmp_path / "two")
        assert scores(con, "a.png") != first


def test_a_file_that_is_no_image_is_not_read_again(folder: Path) -> None:
    """Why a file is no image is known by its time, too; a missing file is looked for again."""
    bad, missing = folder / "bad.png", folder / "missing.png"
    bad.write_bytes(b"x" * 250)
    os.utime(bad, (10**9, 10**9))
    with duckdb.connect() as con:
        register(con, ClipEmbedder(FakeModel()))
        assert scores(con, bad, missing) == [None, None]
        replaced(bad, 7)
        write(missing, 7, age=3600)
        first, second = scores(con, bad, missing)
        assert first is None
        assert second is not None
        ((reason,),) = con.execute("SELECT clip_error(?)", [str(bad)]).fetchall()
        assert reason.startswith("not an image")


def test_without_a_cache_files_are_read_and_embedded_again(folder: Path) -> None:
    """cache=None keeps nothing anywhere."""
    model = FakeModel()
    with duckdb.connect() as con:
        register(con, ClipEmbedder(model, cache=None))
        for _ in range(2):
            scores(con, *folder.glob("*.png"))
    assert embedded(model) == 2 * N


def test_forgotten_vectors_are_made_again(folder: Path) -> None:
    """Where the cache has let a vector go, the file is read and embedded again, and the score is right."""
    from clip_embed import EmbeddingCache

    model = FakeModel()
    paths = sorted(folder.glob("*.png"))
    with duckdb.connect() as con:
        register(con, ClipEmbedder(model, cache=EmbeddingCache(memory_bytes=2000)))
        assert scores(con, *paths) == scores(con, *paths)
    assert embedded(model) > N


def test_the_memory_of_files_is_bounded() -> None:
    """The files that were read first are forgotten first; a file without a stamp is not remembered."""
    digests = Digests(most=2)
    for name in (b"a", b"b", b"c", b""):
        digests.put(name, b"digest of " + name)
    assert [digests.get(name) for name in (b"a", b"b", b"c", b"")] == [
        None,
        b"digest of b",
        b"digest of c",
        None,
    ]
