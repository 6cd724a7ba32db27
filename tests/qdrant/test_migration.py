"""From one model to another: both sets of vectors side by side, in every form of a store."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from qdrant_wire import Fault, serve

from clip_embed import ClipEmbedder, SpaceMismatch
from clip_embed.testing import FakeModel
from clip_embed_qdrant import Comparison, ImageStore, IngestStopped, Migration, StoreError, StoreLocked
from clip_embed_qdrant._entries import point_id

Open = Callable[..., ImageStore]


class Inverted(FakeModel):
    """Another space of the same dimension: a text finds the complementary colour."""

    def __init__(self) -> None:
        super().__init__()
        self.space = "inverted"

    def embed_images(self, pixels: Any, /) -> Any:  # noqa: ANN401
        """As FakeModel, with the other sign."""
        return -super().embed_images(pixels)


@pytest.fixture
def other() -> ClipEmbedder:
    """An embedder of another space."""
    return ClipEmbedder(Inverted(), batch_size=4, workers=2, cache=None)


def best(store: ImageStore) -> str:
    """What "red" finds."""
    return store.search(text="red", k=1)[0].key


def test_from_the_old_model_to_the_new(
    open_store: Open, pictures: Path, embedder: ClipEmbedder, other: ClipEmbedder
) -> None:
    """Old answers until the switch, new ones after it, also in a store opened later; the old is dropped."""
    store = open_store(embedder)
    store.ingest(pictures)
    migration = store.migration(other)
    report = migration.run(pictures)
    assert (report.seen, report.written, len(report.failed)) == (8, 8, 0)
    assert best(store) == "red.png"
    assert (store.status().beside, store.status().points_beside) == ("inverted", 8)
    assert migration.run(pictures).skipped == 8
    migration.switch()
    assert best(store) == "cyan.png"
    assert store.embedder is other
    migration.switch()
    assert best(store) == "red.png"
    migration.switch()
    migration.drop()
    assert (store.status().beside, store.status().points) == (None, 8)
    assert store.ingest(pictures).skipped == 8
    store.close()
    assert best(open_store(other)) == "cyan.png"
    with pytest.raises(SpaceMismatch, match="see `migration`"):
        open_store(embedder)


def test_what_is_not_stored_as_it_is_gets_no_vector(
    open_store: Open, pictures: Path, embedder: ClipEmbedder, other: ClipEmbedder
) -> None:
    """New and changed images are listed with what to do; the switch waits for them, unless told not to."""
    store = open_store(embedder)
    store.ingest(pictures)
    Image.new("RGB", (6, 4), "orange").save(pictures / "red.png")
    Image.new("RGB", (6, 4), "pink").save(pictures / "pink.png")
    migration = store.migration(other)
    report = migration.run(pictures)
    assert report.written == 7
    assert {failure.key: failure.reason for failure in report.failed} == {
        "red.png": "it has changed since it was ingested: ingest it again first",
        "pink.png": "it is not in the store: ingest it first",
    }
    with pytest.raises(StoreError, match=r"1 images in .* have no vector of the other model"):
        migration.switch()
    store.ingest(pictures)
    assert migration.missing() == 2
    assert migration.run(pictures).written == 2
    (pictures / "late.png").write_bytes((pictures / "red.png").read_bytes())
    store.ingest(pictures)
    migration.switch(partial=True)
    assert len(store.search(text="red", k=20)) == 9
    with pytest.raises(StoreError, match=r"1 images in .* have only the vector that would be dropped"):
        migration.drop()
    with serve() as wire:
        copied = store.copy_to(wire.url, "copied", grpc_port=None)
    assert (copied.written, [failure.key for failure in copied.failed]) == (9, ["late.png"])
    assert store.ingest(pictures).written == 1  # unchanged, but not to be found
    migration.drop()
    assert len(store.search(text="red", k=20)) == 10


def test_it_can_be_given_up(
    open_store: Open, pictures: Path, embedder: ClipEmbedder, other: ClipEmbedder
) -> None:
    """Dropped before the switch, all is as it was, and another migration may begin, of another dimension."""
    store = open_store(embedder)
    store.ingest(pictures)
    migration = store.migration(other)
    migration.run(pictures)
    with pytest.raises(SpaceMismatch):
        store.migration(ClipEmbedder(FakeModel(24)))
    migration.drop()
    assert best(store) == "red.png"
    wider = store.migration(ClipEmbedder(FakeModel(24)))
    assert wider.run(pictures).written == 8
    wider.switch()
    wider.drop()
    assert (best(store), store.status().dim) == ("red.png", 24)


def test_two_models_are_compared(
    open_store: Open, pictures: Path, embedder: ClipEmbedder, other: ClipEmbedder
) -> None:
    """Overlap@k for texts and stored images: 1 where both find the same, as brute force says where not."""
    store = open_store(embedder)
    store.ingest(pictures)
    migration = store.migration(other)
    migration.run(pictures)
    compared = migration.compare(["red"], k=3)
    assert (compared.images, len(compared.overlaps)) == (8, 9)
    paths = [pictures / name for name in store_keys(pictures)]
    first, second = (
        set(np.argsort(-clip.scores(paths, ["red"])[:, 0])[:3].tolist()) for clip in (embedder, other)
    )
    assert compared.overlaps["red"] == pytest.approx(len(first & second) / 3)
    # Among images alone the sign is no difference.
    assert all(overlap == 1 for query, overlap in compared.overlaps.items() if query != "red")
    assert compared.mean == pytest.approx(np.mean(list(compared.overlaps.values())))
    assert str(compared).startswith(f"overlap@3 {compared.mean:.2f} on 9 queries among 8 images, least ")


def store_keys(pictures: Path) -> list[str]:
    """The keys of all pictures."""
    return [path.relative_to(pictures).as_posix() for path in pictures.rglob("*.png")]


def test_what_there_is_to_say_before_it_begins(
    open_store: Open, pictures: Path, embedder: ClipEmbedder, other: ClipEmbedder
) -> None:
    """No store, no second model, the same model: each is told."""
    with pytest.raises(StoreError, match="there is no store"):
        open_store(embedder).migration(other)
    store = open_store(embedder)
    store.ingest(pictures)
    with pytest.raises(StoreError, match="is not being migrated: give the embedder"):
        store.migration()
    with pytest.raises(ValueError, match="holds vectors of this model already"):
        store.migration(embedder)
    migration = store.migration(other)
    assert isinstance(migration, Migration)
    for look in (migration.compare, migration.switch, migration.drop, migration.missing):
        with pytest.raises(StoreError, match="vectors of one model alone"):
            look()
    assert str(Comparison(10, 0, {})) == "no image has vectors of both models yet"


SCRIPT = """
import os, sys, time
sys.path.insert(0, os.environ["HERE"])
from clip_embed import ClipEmbedder
from clip_embed.testing import FakeModel
from clip_embed_qdrant import ImageStore
class Wide(FakeModel):
    def embed_images(self, pixels):
        time.sleep(0.03)
        return super().embed_images(pixels)
store = ImageStore(sys.argv[1], embedder=ClipEmbedder(FakeModel()))
migration = store.migration(ClipEmbedder(Wide(24), batch_size=16))
print(migration.run(sys.argv[2], progress=lambda report: print(report.written, flush=True)))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX processes")
def test_kill_minus_nine_in_the_middle(tmp_path: Path, embedder: ClipEmbedder) -> None:
    """Killed twice: what was acknowledged is not embedded again, searches never stop, the rest is added."""
    folder = tmp_path / "many"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(1200):
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(folder / f"{number:04}.png")
    place = tmp_path / "s.clip"
    with ImageStore(place, embedder=embedder) as store:
        store.ingest(folder)
        before = [hit.key for hit in store.search(text="red", k=20)]
    done = 0
    for _ in range(2):
        with subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", SCRIPT, str(place), str(folder)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"HERE": str(Path(__file__).parent)},
        ) as child:
            assert child.stdout
            next(line for line in child.stdout if int(line) > 0)
            with ImageStore(place, embedder=embedder) as store:
                assert [hit.key for hit in store.search(text="red", k=20)] == before
                with pytest.raises(StoreLocked):
                    store.migration(ClipEmbedder(FakeModel(24))).run(folder)
            child.kill()
        with ImageStore(place, embedder=embedder) as store:
            now = store.status().points_beside
            assert [hit.key for hit in store.search(text="red", k=20)] == before
        assert now >= done + 256
        done = now
    assert done < 1200
    model = FakeModel(24)
    with ImageStore(place, embedder=embedder) as store:
        migration = store.migration(ClipEmbedder(model, cache=None))
        report = migration.run(folder)
        assert (report.skipped, report.written) == (done, 1200 - done)
        migration.switch()
        migration.drop()
        assert len(store.search(text="red", k=20)) == 20
        assert store.verify(folder)


def test_searching_elsewhere_goes_on_until_the_old_is_dropped(
    pictures: Path, embedder: ClipEmbedder, other: ClipEmbedder
) -> None:
    """A process that opened the store with the old model keeps its answers, then is told to open it again."""
    with serve() as wire:
        where = {"location": wire.url, "grpc_port": wire.grpc_port, "collection": "photos"}
        with ImageStore(**where, embedder=embedder) as here:
            here.ingest(pictures)
            with ImageStore(**where, embedder=embedder) as elsewhere:
                migration = here.migration(other)
                migration.run(pictures)
                assert elsewhere.ingest(pictures).skipped == 8
                migration.switch()
                assert (best(here), best(elsewhere)) == ("cyan.png", "red.png")
                with pytest.raises(StoreError, match="switched to another model meanwhile: open it again"):
                    elsewhere.ingest(pictures)
                migration.drop()
                with pytest.raises(StoreError, match="switched to another model meanwhile: open it again"):
                    elsewhere.search(text="red")


def test_an_image_that_is_replaced_meanwhile_keeps_no_stale_vector(
    pictures: Path, embedder: ClipEmbedder, other: ClipEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its vector was made, one image was replaced and one removed: neither gets a vector now."""
    with serve() as wire:
        where = {"location": wire.url, "grpc_port": wire.grpc_port, "collection": "photos"}
        with ImageStore(**where, embedder=embedder) as store:
            store.ingest(pictures)
            migration = store.migration(other)
            write = store._sink.write_beside

            def late(points: Any, name: str) -> None:  # noqa: ANN401
                wire.engine.set_payload("photos", {"_etag": "another"}, [point_id("red.png")])
                wire.engine.delete("photos", [point_id("blue.png")])
                write(points, name)

            monkeypatch.setattr(store._sink, "write_beside", late)
            report = migration.run(pictures)
            assert [failure.key for failure in report.failed] == ["blue.png"]
            assert migration.missing() == 1
            monkeypatch.undo()
            store.ingest(pictures)
            assert migration.run(pictures).written == 2
            assert migration.missing() == 0


def test_a_server_that_stops(pictures: Path, embedder: ClipEmbedder, other: ClipEmbedder) -> None:
    """The report so far, and the next run goes on; nothing of the old is touched."""
    with serve() as wire:
        where = {"location": wire.url, "grpc_port": None, "collection": "photos"}
        with ImageStore(**where, embedder=embedder) as store:
            store.ingest(pictures)
            migration = store.migration(other)
            wire.faults.append(Fault("gone", operations=("add vector",)))
            with pytest.raises(StoreError, match="404"):
                migration.run(pictures)
            assert store.status().beside is None
            wire.faults[:] = [Fault("full", operations=("vectors",))]
            with pytest.raises(IngestStopped, match="free space on the server"):
                migration.run(pictures)
            assert best(store) == "red.png"
            wire.faults.clear()
            assert store.migration(other).run(pictures).written == 8
