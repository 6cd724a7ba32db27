"""The file of a cache: several processes, kill -9, damage, full disks, network file systems."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from clip_embed import ClipEmbedder, EmbeddingCache
from clip_embed._cache import mounts as _mounts
from clip_embed._cache.disk import DiskCache
from clip_embed._cache.file import CacheFile
from clip_embed.testing import FakeModel

Photo = Callable[..., Image.Image]
Encode = Callable[..., bytes]
Float32 = npt.NDArray[np.float32]
MIB = 1024 * 1024
TIMEOUT = 20  # seconds until a hang becomes a failure


@pytest.fixture(scope="module")
def encoded(photo: Photo, encode: Encode) -> list[bytes]:
    """Twelve encoded images, no two alike."""
    return [encode(photo(40, 30, seed)) for seed in range(12)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a cache may lie."""
    return tmp_path / "photos.cache"


def row(number: int, dim: int = 512) -> tuple[bytes, Float32]:
    """A key and a vector (dim,) of its own."""
    return number.to_bytes(20, "big"), np.full(dim, number, np.float32)


def fill(cache: DiskCache | EmbeddingCache, numbers: range, dim: int = 512) -> None:
    """Put rows in and commit."""
    for number in numbers:
        cache.put(*row(number, dim))
    cache.commit()


def assert_nothing_wrong(cache: DiskCache | EmbeddingCache, numbers: range, dim: int = 512) -> int:
    """Every vector that is found is the right one; return how many were found."""
    found = 0
    for number in numbers:
        key, vector = row(number, dim)
        got = cache.get([key])
        if got is not None:
            np.testing.assert_array_equal(got, vector)
            found += 1
    return found


# --- several processes -------------------------------------------------------------------------

WRITER = """
import sys, numpy as np
from pathlib import Path
from clip_embed._cache.disk import DiskCache
path, first, last, limit = Path(sys.argv[1]), *map(int, sys.argv[2:5])
cache = DiskCache(path, limit)
print("ready", flush=True)
sys.stdin.readline()
number = first
while number < last:
    cache.put(number.to_bytes(20, "big"), np.full(512, number, np.float32))
    number += 1
    if number % 200 == 0:
        cache.commit()
        print(number, flush=True)
cache.close()
"""


@pytest.fixture
def writer(file: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process that waits for a line and then puts rows into the cache."""
    started: list[subprocess.Popen[str]] = []

    def start(first: int, last: int, limit: int = 1 << 30) -> subprocess.Popen[str]:
        code = [sys.executable, "-c", WRITER, str(file), str(first), str(last), str(limit)]
        started.append(
            subprocess.Popen(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def go(processes: list[subprocess.Popen[str]]) -> None:
    """Wait until all are ready, then let them begin together."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()


def test_processes_write_at_once(file: Path, writer: Callable[..., subprocess.Popen[str]]) -> None:
    """Three processes make one file and fill it together, half of the rows twice, while this one reads."""
    processes = [writer(0, 3000), writer(1500, 4500), writer(3000, 6000)]
    go(processes)
    cache = DiskCache(file, 1 << 30)
    while any(process.poll() is None for process in processes):
        assert_nothing_wrong(cache, range(0, 6000, 50))
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert assert_nothing_wrong(cache, range(6000)) == cache.count() == 6000
    assert not list(file.parent.glob("*.set-aside"))


def test_a_file_that_somebody_holds(
    file: Path, encoded: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """One lookup waits, the others do without; what was embedded meanwhile is written later."""
    with EmbeddingCache(file) as cache:
        fill(cache, range(10))
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    model, cache = FakeModel(), EmbeddingCache(file)
    began = time.monotonic()
    assert ClipEmbedder(model, cache=cache).embed_images(encoded).shape == (12, 16)
    assert time.monotonic() - began < TIMEOUT
    holder.close()
    cache.close()
    assert (sum(model.calls[0]), caplog.records) == (12, [])
    assert len(EmbeddingCache(file)) == 22


@pytest.mark.parametrize("turn", range(4))
def test_killed_in_mid_write(file: Path, writer: Callable[..., subprocess.Popen[str]], turn: int) -> None:
    """After kill -9 every committed row is there, nothing is wrong, and the file is sound."""
    process = writer(0, 1_000_000, 8 * MIB if turn % 2 else 1 << 30)
    go([process])
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(5)]
    time.sleep(0.037 * turn)
    process.send_signal(signal.SIGKILL)
    process.wait()
    lines += process.stdout.read().split()
    committed = int(lines[-1])
    cache = DiskCache(file, 1 << 30)
    count = cache.count()
    newest = range(max(0, committed - 1500), committed)
    assert assert_nothing_wrong(cache, newest) == len(newest)
    assert count >= len(newest)
    with sqlite3.connect(file) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    assert not list(file.parent.glob("*.set-aside"))
    fill(cache, range(10))
    assert assert_nothing_wrong(cache, range(10)) == 10


# --- damage ------------------------------------------------------------------------------------


def damaged(file: Path, damage: Callable[[Path], None]) -> EmbeddingCache:
    """Make a file of 2,000 rows without a journal, damage it, and return a cache over it."""
    with EmbeddingCache(file) as cache:
        fill(cache, range(2000))
    damage(file)
    return EmbeddingCache(file, memory_bytes=0)


def overwrite(start: float, end: float, content: bytes | None = None) -> Callable[[Path], None]:
    """Write random bytes, or some content again and again, over a part of a file."""

    def damage(file: Path) -> None:
        size = file.stat().st_size
        first, length = int(start * size), int((end - start) * size)
        noise = np.random.default_rng(0).bytes(length) if content is None else content * length
        with file.open("r+b") as opened:
            opened.seek(first)
            opened.write(noise[:length])

    return damage


def truncate(share: float) -> Callable[[Path], None]:
    """Cut a file off."""
    return lambda file: os.truncate(file, int(file.stat().st_size * share))


@pytest.mark.parametrize(
    "damage",
    [truncate(0.6), truncate(0.001), overwrite(0.0001, 0.02), overwrite(0.0001, 1)],
    ids=["cut", "only a header", "first pages", "all but the header"],
)
def test_a_damaged_file_is_set_aside(
    damage: Callable[[Path], None], file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is renamed with one warning that says why, and a new one begun that works."""
    cache = damaged(file, damage)
    with caplog.at_level(logging.WARNING):
        assert_nothing_wrong(cache, range(2000))
        fill(cache, range(3000, 3100))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "photos.cache.set-aside and begun anew: " in caplog.text
    assert (file.parent / "photos.cache.set-aside").exists()
    assert assert_nothing_wrong(cache, range(3000, 3100)) == 100
    cache.close()
    assert len(EmbeddingCache(file)) == 100


@pytest.mark.parametrize("start", np.linspace(0.05, 0.95, 10).tolist())
@pytest.mark.parametrize("content", [None, b"\0", b"\xff"], ids=["noise", "zeros", "ones"])
def test_damaged_pages_give_no_wrong_vector(start: float, content: bytes | None, file: Path) -> None:
    """Pages in the middle: what is found is right; a page that is met is the end of the file."""
    cache = damaged(file, overwrite(start, start + 0.03, content))
    found = assert_nothing_wrong(cache, range(2000))
    assert found < 2000
    fill(cache, range(2000))
    assert assert_nothing_wrong(cache, range(2000)) > 1900


def test_pages_that_changed_places_give_no_wrong_vector(file: Path) -> None:
    """Whole rows of others in the right place are noticed by the checksum, which covers the key."""

    def swap(file: Path) -> None:
        content = bytearray(file.read_bytes())
        for page in range(20, 100, 2):
            here, there = (
                slice(page * 16384, (page + 1) * 16384),
                slice((page + 1) * 16384, (page + 2) * 16384),
            )
            content[here], content[there] = content[there], content[here]
        file.write_bytes(content)

    assert assert_nothing_wrong(damaged(file, swap), range(2000)) < 2000


def test_a_stale_index_gives_no_wrong_vector(file: Path) -> None:
    """An index that leads to the row of another key is damage, not an answer."""
    with EmbeddingCache(file) as cache:
        fill(cache, range(100))
    connection = sqlite3.connect(file)
    connection.execute("UPDATE vectors SET vector = (SELECT vector FROM vectors WHERE id = 7) WHERE id = 5")
    connection.commit()
    connection.close()
    cache = EmbeddingCache(file, memory_bytes=0)
    assert cache.get([row(4)[0]]) is None
    assert (file.parent / "photos.cache.set-aside").exists()


def test_another_version_is_set_aside(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file of another schema is kept for whoever wants it, and replaced."""
    with EmbeddingCache(file) as cache:
        fill(cache, range(10))
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert len(EmbeddingCache(file)) == 0
    assert "made by another version" in caplog.text
    assert (file.parent / "photos.cache.set-aside").exists()


def test_what_was_set_aside_before_stays(file: Path) -> None:
    """Three damaged caches one after another: all three are kept, under names of their own."""
    kept: list[bytes] = []
    for number in range(3):
        cache = damaged(file, overwrite(0.01 * (number + 1), 1))
        kept.append(file.read_bytes())
        assert_nothing_wrong(cache, range(2000))
        fill(cache, range(10))
        cache.close()
        file.unlink()
    names = [f"photos.cache.set-aside{number}" for number in ("", "-2", "-3")]
    assert sorted(path.name for path in file.parent.iterdir()) == names
    assert [(file.parent / name).read_bytes() for name in names] == kept


def database() -> bytes:
    """A sound database without a table, of nobody that we know."""
    connection = sqlite3.connect(":memory:")
    connection.execute("PRAGMA user_version = 7")
    return connection.serialize()


@pytest.mark.parametrize("content", [b"my notes", b"PAR1" + bytes(200), bytes(5000), database()])
def test_a_file_that_is_no_cache_is_left_alone(
    content: bytes, file: Path, encoded: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """It is refused at once; where it comes later there is a warning, and nothing is kept on disk."""
    clip = ClipEmbedder(FakeModel(), cache=file)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"photos\.cache is a .* of something else, not a cache: give"):
        EmbeddingCache(file)
    assert clip.embed_images(encoded).shape == (12, 16)
    assert "is not used from here on: " in caplog.text
    assert [(path.name, path.read_bytes()) for path in file.parent.iterdir()] == [(file.name, content)]


def test_a_file_that_another_process_made_anew_is_left_alone(file: Path) -> None:
    """Of two that find a damage only the first renames; the other goes on with the new file."""
    caches = [damaged(file, lambda _: None), EmbeddingCache(file, memory_bytes=0)]
    for cache in caches:
        assert_nothing_wrong(cache, range(10))
    overwrite(0, 1)(file)
    for number, cache in enumerate(caches):
        assert_nothing_wrong(cache, range(2000))
        fill(cache, range(5000 + 100 * number, 5100 + 100 * number))
    for cache in caches:
        assert assert_nothing_wrong(cache, range(5000, 5200)) == 200


def test_a_file_that_was_removed_is_made_again(file: Path) -> None:
    """A cache folder may be emptied while it is in use."""
    cache = EmbeddingCache(file, memory_bytes=0)
    fill(cache, range(10))
    for part in file.parent.iterdir():
        part.unlink()
    fill(cache, range(10, 20))
    assert assert_nothing_wrong(EmbeddingCache(file), range(10, 20)) == 10


# --- where the file cannot be used ----------------------------------------------------------------


def test_without_the_disk_it_goes_on(
    tmp_path: Path, encoded: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """Where no file can be made there is one warning, and the memory goes on."""
    (tmp_path / "occupied").write_text("a file where a folder is wanted")
    model = FakeModel()
    clip = ClipEmbedder(model, cache=tmp_path / "occupied" / "photos.cache")
    for _ in range(2):
        assert clip.embed_images(encoded).shape == (12, 16)
    assert sum(model.calls[0]) == 12
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "is not used from here on" in caplog.text


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from clip_embed import ClipEmbedder
from clip_embed.testing import FakeModel
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
clip = ClipEmbedder(FakeModel(dim=512), batch_size=8, cache=Path(sys.argv[1]))
texts = [f"text {n}" for n in range(3000)]
first = clip.embed_texts(texts)
assert np.array_equal(clip.embed_texts(texts), first)
print(len(clip.model.calls[1]))
"""


@pytest.mark.parametrize("room", [0, 50_000, 1_000_000])
def test_a_full_disk(file: Path, room: int) -> None:
    """Where the system refuses to write more, there is one warning and the memory goes on."""
    pytest.importorskip("resource", reason="needs limits of processes")
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", FULL, str(file), str(room)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "1\n")
    assert done.stderr.count("is not used from here on") == done.stderr.count("\n") == 1
    assert assert_nothing_wrong(DiskCache(file, MIB), range(10)) == 0


def test_a_network_file_system_gets_no_wal(
    file: Path,
    writer: Callable[..., subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """There WAL is unsafe: a rollback journal takes its place, with a warning, and all works."""
    mounts = file.parent / "mountinfo"
    line = "31 1 0:5 / {} rw - {} server:/export rw\n"
    mounts.write_text(line.format("/", "ext4") + line.format(file.parent, "nfs4"))
    monkeypatch.setattr(_mounts, "_MOUNTS", mounts)
    cache = EmbeddingCache(file, memory_bytes=0)
    fill(cache, range(100))
    assert CacheFile(file, timeout=1).run(lambda con: con.execute("PRAGMA journal_mode").fetchone()) == (
        "delete",
    )
    assert "network file system (nfs4)" in caplog.text
    assert assert_nothing_wrong(cache, range(100)) == 100
    assert not list(file.parent.glob("*-wal"))
