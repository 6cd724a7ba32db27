"""Paths as images: each file is read or fails by itself."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import duckdb
import numpy as np
import pytest
from PIL import Image

from clip_embed import ClipEmbedder, ImagePolicy
from clip_embed.testing import FakeModel
from clip_embed_duckdb import register


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


def value(con: duckdb.DuckDBPyConnection, expression: str, *parameters: object) -> object:
    """Evaluate one SQL expression."""
    row = con.execute(f"SELECT {expression}", list(parameters)).fetchone()
    assert row is not None
    return row[0]


def test_files_that_cannot_be_used(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    """Missing, empty, a folder, no image, too large: each NULL with its reason, the good one scored."""
    register(con, ClipEmbedder(FakeModel(), policy=ImagePolicy(max_bytes=2000)))
    (tmp_path / "good.png").write_bytes(picture("red"))
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "large.png").write_bytes(bytes(2001))
    names = {
        "good.png": None,
        "empty.png": "the file is empty",
        "folder.png": "it is a folder, no file: glob('folder/*') lists its files",
        "*.png": "no such file: where it is a pattern, give it to glob(), which lists the files",
        "a[1].png": "no such file: where it is a pattern",
        "missing.png": "no such file",
        "text.png": "not an image",
        "large.png": "2,001 bytes are more than the policy's max_bytes",
        "nul\0.png": "no such file",
        "": "no such file",
    }
    con.execute("CREATE TABLE t (name VARCHAR, path VARCHAR)")
    con.executemany("INSERT INTO t VALUES (?, ?)", [(n, f"{tmp_path}/{n}" if n else "") for n in names])
    rows = con.execute("SELECT name, clip_error(path), clip_score({'path': path}, 'red') FROM t").fetchall()
    for name, error, score in rows:
        expected = names[name]
        assert (error is None, score is None) == (expected is None, expected is not None)
        assert expected is None or error.startswith(expected)


def test_roots_of_the_policy_hold(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    """A policy with roots refuses files outside them, also behind `..`."""
    inside = tmp_path / "in"
    inside.mkdir()
    for folder in (tmp_path, inside):
        (folder / "a.png").write_bytes(picture("red"))
    register(con, ClipEmbedder(FakeModel(), policy=ImagePolicy(roots=[inside])))
    assert value(con, "clip_error(?)", str(inside / "a.png")) is None
    assert value(con, "clip_error(?)", f"{inside}/../a.png") == "the file lies outside the policy's roots"


@pytest.mark.parametrize("scheme", ["https", "HTTP", "s3", "gs", "r2", "hf", "abfss"])
def test_urls_are_not_read(con: duckdb.DuckDBPyConnection, tmp_path: Path, scheme: str) -> None:
    """A URL is refused as in the library, before DuckDB asks a server for the file or for an extension."""
    asked: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    (tmp_path / "a.png").write_bytes(picture("red"))
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        con.execute(f"SET custom_extension_repository = 'http://127.0.0.1:{server.server_port}'")
        url = f"{scheme}://example.invalid/a.jpg"
        assert str(value(con, f"clip_error('{url}')")).startswith("URLs are not read")
        con.execute("SET file_search_path = ?", [f"{scheme}://example.invalid"])
        register(con, ClipEmbedder(FakeModel()))
        assert value(con, "clip_error('a.jpg')") == "no such file"
        query = "SELECT clip_score(unnest(?), 'red') IS NULL"
        assert con.execute(query, [[url, f"{tmp_path}/a.png"]]).fetchall() == [(True,), (False,)]
        server.shutdown()
    assert not asked


def test_a_file_system_of_the_users(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    """It is asked for names that DuckDB would need an extension for; what it raises is a failure."""
    fsspec = pytest.importorskip("fsspec")

    class Broken(fsspec.AbstractFileSystem):  # type: ignore[misc]
        protocol = "gs"

        def glob(self, path: str, **_: object) -> list[str]:
            return [path]

        def info(self, path: str, **_: object) -> dict[str, object]:
            raise RuntimeError(f"no cloud for {path}")

        open = info

    (tmp_path / "a.png").write_bytes(picture("red"))
    con.register_filesystem(Broken())
    assert not str(value(con, "clip_error('gs://bucket/b.png')")).startswith("URLs are not read")
    query = "SELECT clip_score(unnest(?), 'red') IS NULL"
    rows = con.execute(query, [["gs://bucket/b.png", f"{tmp_path}/a.png"]]).fetchall()
    assert rows == [(True,), (False,)]


def test_many_files_in_groups(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    """100 files, every third of them missing, some listed twice: each row has its own score."""
    for i in range(100):
        if i % 3:
            (tmp_path / f"{i}.png").write_bytes(picture(f"rgb({i * 2},0,{255 - i * 2})"))
    paths = [f"{tmp_path}/{i % 100}.png" for i in range(130)]
    con.execute("CREATE TABLE t AS SELECT unnest(?) path, generate_subscripts(?, 1) i", [paths, paths])
    got = [row[0] for row in con.execute("SELECT clip_score(path, 'red') FROM t ORDER BY i").fetchall()]
    there = [i for i in range(130) if i % 100 % 3]
    assert [i for i, score in enumerate(got) if score is not None] == there
    expected = ClipEmbedder(FakeModel()).scores([paths[i] for i in there], ["red"])[:, 0]
    np.testing.assert_allclose([got[i] for i in there], expected, atol=1e-6)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that opens but cannot be read")
def test_an_unreadable_file_spoils_no_other(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    """A file that fails while it is read leaves the others of its group alone."""
    (tmp_path / "a.png").write_bytes(picture("red"))
    rows = con.execute(
        "SELECT clip_error(unnest([?, '/proc/self/mem', ?]))", [f"{tmp_path}/a.png"] * 2
    ).fetchall()
    assert [row[0] for row in rows[::2]] == [None, None]
    assert rows[1][0].startswith(("cannot read the file", "the file is empty"))
