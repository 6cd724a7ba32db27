"""Images of the same content that share a vector: `on_duplicate="link"`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_embed import ClipEmbedder
from clip_embed.testing import FakeModel
from clip_embed_qdrant import ImageStore, IngestReport

Open = Callable[..., ImageStore]


def link(store: ImageStore, pictures: Path) -> IngestReport:
    """Ingest with links."""
    return store.ingest(pictures, on_duplicate="link")


@pytest.fixture
def copied(pictures: Path) -> Path:
    """The pictures, with two copies of the red one."""
    shutil.copy(pictures / "red.png", pictures / "red copy.png")
    shutil.copy(pictures / "red.png", pictures / "below" / "red again.png")
    return pictures


def test_one_is_embedded_and_all_are_there(
    open_store: Open, copied: Path, embedder: ClipEmbedder, fake: FakeModel
) -> None:
    """Ten images, eight forward passes, ten points; the three are one hit that names the others."""
    store = open_store(embedder)
    before = sum(fake.calls[0])
    report = link(store, copied)
    probe = sum(fake.calls[0]) - before - report.embedded
    assert (report.seen, report.written, report.embedded, report.linked) == (10, 10, 8, 2)
    assert probe in (0, 8)  # the stamp's photos
    assert store.status().points == 10
    hits = store.search(text="red", k=8)
    assert len(hits) == 8
    names = {"red.png", "red copy.png", "below/red again.png"}
    assert {hits[0].key, *hits[0].duplicates} == names
    assert hits[1].duplicates == ()
    assert hits[0].payload.keys() == {"path", "size"}
    assert link(store, copied).skipped == 10


def test_a_later_copy_takes_the_vector_that_is_stored(
    open_store: Open, pictures: Path, embedder: ClipEmbedder, fake: FakeModel
) -> None:
    """In another run, opened anew, nothing is embedded for a copy or a touched file."""
    with open_store(embedder) as store:
        link(store, pictures)
    store = open_store(embedder)
    shutil.copy(pictures / "blue.png", pictures / "blue copy.png")
    (pictures / "red.png").touch()
    calls = len(fake.calls[0])
    report = link(store, pictures)
    assert (report.written, report.linked, report.embedded) == (2, 2, 0)
    assert len(fake.calls[0]) == calls
    hit = store.search(text="blue", k=1)[0]
    assert {hit.key, *hit.duplicates} == {"blue.png", "blue copy.png"}
    assert hit.score == pytest.approx(embedder.scores([pictures / "blue.png"], ["blue"])[0, 0], abs=1e-3)


def test_filters_verify_and_prune_see_each_of_them(
    open_store: Open, copied: Path, embedder: ClipEmbedder
) -> None:
    """A filter finds the copy that fits; the one that was embedded may go, and the copies stay."""
    store = open_store(embedder)
    link(store, copied)
    assert store.verify(copied)
    for key in ("red copy.png", "red.png", "below/red again.png"):
        assert store.search(text="red", k=1, where={"path": key})[0].key == key
    for gone, left in (("red.png", 9), ("red copy.png", 8)):
        (copied / gone).unlink()
        assert store.prune(copied) == 1
        assert store.status().points == left
    assert store.search(text="red", k=1)[0].key == "below/red again.png"
    assert store.search(text="red", k=1)[0].duplicates == ()


def test_a_changed_image_is_no_duplicate_any_more(
    open_store: Open, copied: Path, embedder: ClipEmbedder
) -> None:
    """Whichever of them changes, it gets a vector of its own and the others keep theirs."""
    store = open_store(embedder)
    link(store, copied)
    Image.new("RGB", (6, 4), "orange").save(copied / "red.png")
    report = link(store, copied)
    assert (report.skipped, report.written, report.embedded) == (9, 1, 1)
    hit = store.search(text="red", k=1)[0]
    assert {hit.key, *hit.duplicates} == {"red copy.png", "below/red again.png"}
    assert store.search(text="orange", k=1)[0].key == "red.png"


def test_groups_threshold_and_likeness(open_store: Open, copied: Path, embedder: ClipEmbedder) -> None:
    """A hit is still one hit with `group_by`, with diversity, and where a copy is liked."""
    store = open_store(embedder)
    link(store, copied)
    assert len(store.search(text="red", k=10, diversity=0.3)) == 8
    assert len(store.search(text="red", k=10, group_by="path")) == 8
    assert store.search(like=["red copy.png"], k=1)[0].score == pytest.approx(1, abs=1e-3)


def test_a_broken_image_and_its_copies_all_fail(
    open_store: Open, pictures: Path, embedder: ClipEmbedder
) -> None:
    """The reason stands for each of them."""
    for name in ("a.jpg", "b.jpg"):
        (pictures / name).write_bytes(b"\xff\xd8\xff\xe0 no picture")
    report = link(open_store(embedder), pictures)
    assert report.written == 8
    assert {failure.key for failure in report.failed} == {"a.jpg", "b.jpg"}


def test_many_of_one_content(tmp_path: Path, embedder: ClipEmbedder) -> None:
    """Two thousand copies of one picture: one is embedded, requests stay small, one hit names all others."""
    pixels = np.full((4, 4, 3), (255, 0, 0), np.uint8)
    with ImageStore(tmp_path / "s.clip", embedder=embedder) as store:
        report = store.ingest([(str(number), pixels) for number in range(2000)], on_duplicate="link")
        assert (report.written, report.embedded, report.linked) == (2000, 1, 1999)
        hits = store.search(text="red", k=5)
        assert (len(hits), len(hits[0].duplicates)) == (1, 1999)


def test_it_is_one_of_two_words(tmp_path: Path, pictures: Path, embedder: ClipEmbedder) -> None:
    """Another word is refused, and so are our own fields in a payload."""
    with ImageStore(tmp_path / "s.clip", embedder=embedder) as store:
        with pytest.raises(ValueError, match="on_duplicate must be 'embed' or 'link', not 'skip'"):
            store.ingest(pictures, on_duplicate="skip")  # type: ignore[arg-type]
        report = store.ingest([("a", pictures / "red.png", {"_content": "x"})])
        assert "'_content' is reserved" in next(iter(report.failed)).reason
