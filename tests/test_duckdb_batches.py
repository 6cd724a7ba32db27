"""How images flow through the functions: full batches, little memory, a line that says how far they are."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from PIL import Image

from clip_embed import ClipEmbedder
from clip_embed._types import Float32, UInt8
from clip_embed.testing import FakeModel
from clip_embed_duckdb import register

MB = 1024 * 1024


def picture(number: int, size: int = 0) -> bytes:
    """Return a PNG unlike that of any other number, of so many bytes at least."""
    out = io.BytesIO()
    Image.new("RGB", (9, 9), (number % 256, number // 256, 7)).save(out, "PNG")
    return out.getvalue().ljust(size, b"\0")


class Slow(FakeModel):
    """A model that takes its time, as a GPU takes it for a batch of any size."""

    def embed_images(self, pixels: UInt8, /) -> Float32:
        """Wait, then embed."""
        time.sleep(0.03)
        return super().embed_images(pixels)


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,200 images in a Parquet file with row groups of 100."""
    path = tmp_path_factory.mktemp("parquet") / "photos.parquet"
    with duckdb.connect() as con:
        con.execute("CREATE TABLE photos AS SELECT unnest(?::BLOB[]) AS img", [[*map(picture, range(1200))]])
        con.execute(f"COPY photos TO '{path}' (ROW_GROUP_SIZE 100)")
    return path


def test_calls_of_several_threads_share_batches(parquet: Path) -> None:
    """DuckDB's threads bring 100 rows each; the model gets fewer batches than that, some of several calls."""
    model = Slow()
    with duckdb.connect(config={"threads": 8}) as con:
        register(con, ClipEmbedder(model, batch_size=256, workers=2))
        rows = con.execute(f"SELECT img, clip_score(img, 'red') FROM '{parquet}'").fetchall()
    assert sum(model.calls[0]) == 1200
    assert max(model.calls[0]) > 100
    assert len(model.calls[0]) < 12
    expected = ClipEmbedder(FakeModel()).scores([img for img, _ in rows], ["red"])[:, 0]
    assert [score for _, score in rows] == pytest.approx(expected, abs=1e-6)


def test_a_small_query_does_not_wait_for_a_large_one(parquet: Path) -> None:
    """One image asked for beside 1,200 has its score while hundreds of those still wait."""
    model = Slow()
    with duckdb.connect(config={"threads": 1}) as con:
        con.execute(f"CREATE TABLE photos AS FROM '{parquet}'")
        register(con, ClipEmbedder(model, batch_size=16, workers=2))
        large = threading.Thread(
            target=con.cursor().execute, args=("SELECT sum(clip_score(img, 'x')) FROM photos",)
        )
        large.start()
        while len(model.calls[0]) < 3:
            time.sleep(0.01)
        con.execute("SELECT clip_score(?::BLOB, 'x')", [picture(5000)]).fetchall()
        assert sum(model.calls[0]) < 600
        large.join()


def test_no_thread_is_left(parquet: Path) -> None:
    """When a query is over, the threads that served it are gone."""
    before = threading.active_count()
    with duckdb.connect(config={"threads": 1}) as con:
        register(con, ClipEmbedder(FakeModel()))
        con.execute(f"SELECT clip_score(img, 'x') FROM '{parquet}'").fetchall()
        assert threading.active_count() == before


@pytest.fixture
def traced() -> Iterator[None]:
    """Python's memory, traced; DuckDB's and Arrow's own is not in it."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


SOURCES = {
    "paths": ("glob('{folder}/*.png')", "file", 80),
    "blobs": ("photos", "content", 20),
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_chunk_is_never_in_memory_as_a_whole(tmp_path: Path, source: str, traced: None) -> None:
    """Of 200 images of 2 MB in one chunk, a few are in memory: files a group ahead, BLOBs one a thread."""
    for number in range(200):
        (tmp_path / f"{number}.png").write_bytes(picture(number, 2 * MB))
    relation, column, most = SOURCES[source]
    model = FakeModel()
    with duckdb.connect() as con:
        if source == "blobs":
            con.execute(f"CREATE TABLE photos AS SELECT content FROM read_blob('{tmp_path}/*.png')")
        register(con, ClipEmbedder(model, batch_size=4, workers=2))
        tracemalloc.reset_peak()
        con.execute(
            f"SELECT max(clip_score({column}, 'x')) FROM {relation.format(folder=tmp_path)}"
        ).fetchall()
        _, peak = tracemalloc.get_traced_memory()
    assert sum(model.calls[0]) == 200
    assert peak < most * MB


_LONG = """
import sys, time, duckdb
sys.path.insert(0, sys.argv[1])
from test_duckdb_batches import picture
from clip_embed import ClipEmbedder
from clip_embed.testing import FakeModel
from clip_embed_duckdb import _slot, register
if sys.argv[4:]:
    _slot._QUIET = float(sys.argv[4])
class Slow(FakeModel):
    def embed_images(self, pixels):
        time.sleep(0.1)
        return super().embed_images(pixels)
con = duckdb.connect()
con.execute("SET enable_progress_bar = false")
register(con, ClipEmbedder(Slow(), batch_size=4), progress=sys.argv[2] == "on")
images = [*map(picture, range(int(sys.argv[3])))]
con.execute("SELECT clip_score(unnest(?::BLOB[]), 'red')", [images]).fetchall()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")
def test_a_long_query_says_how_far_it_is() -> None:
    """On a terminal, after two seconds: images and images per second; in the end the line goes away.

    Nothing is said in a short query, where stderr is no terminal, and with progress=False.
    """
    import fcntl
    import pty
    import termios

    cases = {"long": ["on", "160"], "off": ["off", "160"], "file": ["on", "160"]}
    cases["short"] = [
        "on",
        "8",
        "600",
    ]  # short beside what it waits for: two seconds may pass on a busy machine
    running: dict[str, tuple[subprocess.Popen[bytes], int]] = {}
    for name, options in cases.items():
        ours, theirs = pty.openpty() if name != "file" else os.pipe()
        if name != "file":
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        command = [sys.executable, "-c", _LONG, str(Path(__file__).parent), *options]
        running[name] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs), ours  # noqa: S603
        os.close(theirs)
    said = {
        name: (_read(ours), *process.communicate(timeout=120)) for name, (process, ours) in running.items()
    }
    assert all(process.returncode == 0 for process, _ in running.values())
    assert {name for name, (stderr, stdout, _) in said.items() if stderr or stdout} == {"long"}
    line = said["long"][0].decode()
    assert "images/s" in line
    assert line.rstrip(" ").endswith("\r")


def _read(descriptor: int) -> bytes:
    """Return all that a child writes until it ends."""
    parts: list[bytes] = []
    while True:
        try:
            part = os.read(descriptor, 4096)
        except OSError:  # how a pseudo-terminal ends
            part = b""
        if not part:
            os.close(descriptor)
            return b"".join(parts)
        parts.append(part)
