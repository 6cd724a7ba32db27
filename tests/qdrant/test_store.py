"""The contract of a store, the same for Edge, the client's own engine, gRPC, HTTP and a real server."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from qdrant_wire import serve

from clip_embed import ClipEmbedder, SpaceMismatch
from clip_embed.testing import FakeModel
from clip_embed_qdrant import ImageStore, IngestReport, StoreError

Open = Callable[..., ImageStore]


def test_a_folder_goes_in_and_is_found_by_text(
    open_store: Open, pictures: Path, embedder: ClipEmbedder
) -> None:
    """Every picture is written, and a text finds the one it names, with its payload and a true cosine."""
    store = open_store(embedder)
    report = store.ingest(pictures)
    assert (report.seen, report.written, report.skipped, len(report.failed)) == (8, 8, 0, 0)
    hits = store.search(text="something red", k=3)
    assert [hits[0].key, len(hits)] == ["red.png", 3]
    size = (pictures / "red.png").stat().st_size
    assert hits[0].payload == {"path": "red.png", "size": size}
    expected = embedder.scores([pictures / "red.png"], ["something red"])[0, 0]
    assert hits[0].score == pytest.approx(expected, abs=1e-3)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_a_second_ingest_embeds_nothing(
    open_store: Open, pictures: Path, embedder: ClipEmbedder, fake: FakeModel
) -> None:
    """What is stored is skipped undecoded; what is new or changed is embedded, and replaces the old point."""
    store = open_store(embedder)
    store.ingest(pictures)
    calls = len(fake.calls[0])
    assert store.ingest(pictures).skipped == 8
    assert len(fake.calls[0]) == calls
    Image.new("RGB", (6, 4), "orange").save(pictures / "red.png")
    Image.new("RGB", (6, 4), "pink").save(pictures / "pink.png")
    report = store.ingest(pictures)
    assert (report.skipped, report.written) == (7, 2)
    assert sum(fake.calls[0][calls:]) == 2
    assert store.status().points == 9
    assert store.search(text="orange", k=1)[0].key == "red.png"


def test_the_etag_of_content_sees_through_a_touch(
    open_store: Open, pictures: Path, embedder: ClipEmbedder
) -> None:
    """With "sha256" a new time is no change; with "stat" it is one."""
    store = open_store(embedder)
    store.ingest(pictures, etag="sha256")
    os.utime(pictures / "red.png", (1, 1))
    assert store.ingest(pictures, etag="sha256").skipped == 8
    assert store.ingest(pictures, etag="stat").skipped == 0
    os.utime(pictures / "red.png", (2, 2))
    assert store.ingest(pictures, etag="stat").written == 1


def test_a_moved_folder_changes_nothing(open_store: Open, pictures: Path, embedder: ClipEmbedder) -> None:
    """Keys are relative to the source: after a move all is skipped, and one warning says that it moved."""
    store = open_store(embedder)
    store.ingest(pictures)
    moved = pictures.rename(pictures.with_name("elsewhere"))
    with pytest.warns(UserWarning, match=r"was filled from .*pictures, this is .*elsewhere"):
        assert store.ingest(moved).skipped == 8


def test_a_bad_image_is_listed_and_stops_nothing(
    open_store: Open, pictures: Path, embedder: ClipEmbedder
) -> None:
    """Its key, file, reason and whether to try again are in the report; the others are written."""
    (pictures / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    report = open_store(embedder).ingest(pictures)
    assert (report.written, len(report.failed)) == (8, 1)
    failure = next(iter(report.failed))
    assert (failure.key, failure.source) == ("broken.jpg", str(pictures / "broken.jpg"))
    assert "cannot decode" in failure.reason
    assert not failure.retryable


def test_retry_looks_only_at_what_may_work_now(
    open_store: Open, pictures: Path, embedder: ClipEmbedder, fake: FakeModel
) -> None:
    """A file that was missing is embedded by `retry`, a broken one is not tried again."""
    (pictures / "broken.jpg").write_bytes(b"no picture")
    store = open_store(embedder)
    late = pictures / "below" / "late.png"
    report = store.ingest(
        [("late", late), ("red", pictures / "red.png"), ("broken", pictures / "broken.jpg")]
    )
    assert sorted((failure.key, failure.retryable) for failure in report.failed) == [
        ("broken", False),
        ("late", True),
    ]
    Image.new("RGB", (6, 4), "orange").save(late)
    before = sum(fake.calls[0])
    again = store.retry(report)
    assert (again.seen, again.written, len(again.failed)) == (1, 1, 0)
    assert sum(fake.calls[0]) == before + 1
    assert store.search(text="orange", k=1)[0].key == "late"


def test_verify_and_prune(open_store: Open, pictures: Path, embedder: ClipEmbedder) -> None:
    """verify names what is missing, changed, unreadable and extra; prune removes the extra alone."""
    store = open_store(embedder)
    store.ingest(pictures)
    assert store.verify(pictures)
    (pictures / "red.png").unlink()
    Image.new("RGB", (9, 9), "pink").save(pictures / "pink.png")
    os.utime(pictures / "blue.png", (1, 1))
    found = store.verify(pictures)
    assert (found.missing, found.changed, found.unreadable, found.extra) == (1, 1, 0, 1)
    assert {failure.key: failure.reason for failure in found.problems} == {
        "pink.png": "it is not in the store",
        "blue.png": "it has changed since it was written",
        "red.png": "it is in the store, but not in the source",
    }
    assert not found
    assert store.prune(pictures) == 1
    assert store.status().points == 7
    store.ingest(pictures)
    assert store.verify(pictures)


def test_prune_trusts_no_empty_source(
    open_store: Open, pictures: Path, embedder: ClipEmbedder, tmp_path: Path
) -> None:
    """A folder that is not mounted looks empty: nothing is removed. A prefix limits what is looked at."""
    store = open_store(embedder)
    store.ingest(pictures, prefix="a/")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="lists no images; nothing was pruned"):
        store.prune(tmp_path / "empty", prefix="a/", other_source=True)
    assert store.prune([("x", pictures / "red.png")], prefix="b/") == 0
    assert store.status().points == 8


def test_another_space_is_refused(open_store: Open, pictures: Path, embedder: ClipEmbedder) -> None:
    """Neither another dimension nor another model of the same one gets into the store, or searches in it."""
    open_store(embedder).ingest(pictures)
    with pytest.raises(SpaceMismatch, match=r"24 dimensions|16 dimensions"):
        open_store(ClipEmbedder(FakeModel(dim=24)))
    other = FakeModel(size=16)
    other._projection = -other._projection
    other.embed_texts = lambda texts: -FakeModel().embed_texts(texts)  # type: ignore[method-assign]
    with pytest.raises(SpaceMismatch, match="fake:16:32"):
        open_store(ClipEmbedder(other))


def test_nothing_is_made_by_looking(open_store: Open, embedder: ClipEmbedder) -> None:
    """A store that does not exist is an error of every verb but ingest, not an empty store."""
    store = open_store(embedder)
    for look in (lambda: store.search(text="red"), store.status, store.optimize):
        with pytest.raises(StoreError, match="there is no store at"):
            look()


def test_search_by_everything(open_store: Open, pictures: Path, embedder: ClipEmbedder) -> None:
    """Image, vector, several at once, like and unlike; what is named by key is not among the hits."""
    store = open_store(embedder)
    store.ingest(pictures)
    red = pictures / "red.png"
    assert store.search(image=red, k=1)[0].key == "red.png"
    vector = embedder.embed_images([red])[0]
    assert store.search(vector=10 * vector, k=1)[0].score == pytest.approx(1, abs=1e-3)
    liked = store.search(like=["red.png"], k=8)
    assert len(liked) == 7
    assert liked[0].key in ("below/yellow.png", "below/magenta.png")
    away = store.search(like=["red.png"], unlike=["below/yellow.png"], k=8)
    assert away[0].key == "below/magenta.png"
    both = store.search(text="red", like=["blue.png"], k=1)
    assert both[0].key == "below/magenta.png"
    with pytest.raises(ValueError, match=r"no image 'nobody\.png'"):
        store.search(like=["nobody.png"])
    with pytest.raises(ValueError, match="search for what"):
        store.search()
    with pytest.raises(SpaceMismatch, match="3 dimensions"):
        store.search(vector=np.ones(3, np.float32))
    with pytest.raises(ValueError, match="not finite"):
        store.search(vector=np.full(16, np.nan, np.float32))


def test_threshold_diversity_and_groups(open_store: Open, pictures: Path, embedder: ClipEmbedder) -> None:
    """A least score, hits unlike each other, and at most one for each value of a field."""
    store = open_store(embedder)
    items = [
        (f"{colour}-{number}", np.full((8, 8, 3), value, np.uint8), {"colour": colour, "number": number})
        for colour, value in (("red", (250, 0, 0)), ("dark", (120, 0, 0)), ("blue", (0, 0, 250)))
        for number in range(4)
    ]
    for number, (_, pixels, _) in enumerate(items):
        pixels[0, 0] += np.uint8(number)
    store.ingest(items)
    assert {hit.payload["colour"] for hit in store.search(text="red", k=4)} == {"red"}
    assert all(hit.score > 0.5 for hit in store.search(text="red", k=12, threshold=0.5))
    assert 0 < len(store.search(text="red", k=12, threshold=0.5)) < 12
    grouped = store.search(text="red", k=3, group_by="colour")
    assert [hit.payload["colour"] for hit in grouped] == ["red", "dark", "blue"]
    assert len(store.search(text="red", k=6, group_by="colour", group_size=2)) == 6
    plain = {hit.payload["colour"] for hit in store.search(text="red", k=3)}
    diverse = {hit.payload["colour"] for hit in store.search(text="red", k=3, diversity=0.9)}
    assert len(plain) == 1
    assert len(diverse) > 1


def test_sixteen_bits_lose_no_neighbour(open_store: Open) -> None:
    """The ten nearest of 300 are those of brute force, and scores are true to a thousandth."""
    rng = np.random.default_rng(0)
    pictures = [(str(number), rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for number in range(300)]
    clip = ClipEmbedder(FakeModel(dim=64), cache=None)
    store = open_store(clip)
    store.ingest(pictures)
    rows = clip.embed_images([pixels for _, pixels in pictures])
    for query in rows[:20]:
        exact = rows @ query
        hits = store.search(vector=query, k=10)
        best = set(map(str, np.argsort(-exact)[:10].tolist()))
        assert len(best & {hit.key for hit in hits}) >= 9
        assert all(abs(hit.score - exact[int(hit.key)]) < 1e-3 for hit in hits)


def test_machines_share_a_source(open_store: Open, pictures: Path, embedder: ClipEmbedder) -> None:
    """Every image falls to exactly one of three shares."""
    store = open_store(embedder)
    reports = [store.ingest(pictures, shard=(share, 3)) for share in range(3)]
    assert sum(report.written for report in reports) == 8
    assert store.verify(pictures)
    with pytest.raises(ValueError, match="shard"):
        store.ingest(pictures, shard=(3, 3))


def interrupted(report: IngestReport) -> None:
    """Stop a job when it has begun."""
    if not report.written:
        raise KeyboardInterrupt


def test_a_copy_on_a_server(
    open_store: Open, pictures: Path, embedder: ClipEmbedder, fake: FakeModel
) -> None:
    """All points, nothing embedded; what was under way at an interrupt is there, a change goes over."""
    store = open_store(embedder)
    store.ingest(pictures)
    calls = len(fake.calls[0])
    with serve() as wire:
        to = {"url": wire.url, "collection": "copied", "grpc_port": wire.grpc_port}
        with pytest.raises(KeyboardInterrupt):
            store.copy_to(**to, progress=interrupted)
        assert store.copy_to(**to).skipped == 8
        with ImageStore(wire.url, collection="copied", grpc_port=wire.grpc_port, embedder=embedder) as copied:
            assert copied.ingest(pictures).skipped == 8
            assert [hit.key for hit in copied.search(text="red")] == [
                hit.key for hit in store.search(text="red")
            ]
        assert len(fake.calls[0]) == calls
        (pictures / "red.png").touch()
        store.ingest(pictures)
        report = store.copy_to(**to)
        assert (report.seen, report.skipped, report.written) == (8, 7, 1)
        ImageStore(wire.url, collection="other", grpc_port=None, embedder=ClipEmbedder(FakeModel(24))).ingest(
            []
        )
        with pytest.raises(SpaceMismatch, match="copy into another collection"):
            store.copy_to(wire.url, "other", grpc_port=None)
