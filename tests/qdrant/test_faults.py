"""What a server may do to an ingest, over real sockets: nothing is lost, silent or done twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_wire import Fault, Wire, serve

from clip_embed import ClipEmbedder, SpaceMismatch
from clip_embed.testing import FakeModel
from clip_embed_qdrant import ImageStore, IngestStopped, StoreError

COUNT = 600  # three requests


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the pauses between two tries short."""
    monkeypatch.setattr("clip_embed_qdrant._upload._FIRST_PAUSE", 0.02)


@pytest.fixture(params=["grpc", "http"])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[Wire, dict[str, Any]]]:
    """A server and what opens a store on it."""
    with serve() as wire:
        port = wire.grpc_port if request.param == "grpc" else None
        yield wire, {"location": wire.url, "grpc_port": port, "collection": "photos", "timeout": 1}


def images() -> list[tuple[str, np.ndarray[Any, Any], dict[str, object]]]:
    """600 small pictures, no two alike."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)
    return [(f"{number:03}", each, {"note": f"<{number:03}>"}) for number, each in enumerate(pixels)]


class Counting(FakeModel):
    """Counts how often each image is embedded."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[bytes, int] = {}

    def embed_images(self, pixels: Any, /) -> Any:  # noqa: ANN401
        """Count, then embed."""
        for row in pixels:
            self.seen[row.tobytes()] = self.seen.get(row.tobytes(), 0) + 1
        return super().embed_images(pixels)


@pytest.mark.parametrize(
    ("faults", "retries"),
    [
        ([Fault("down", 3)], 3),
        ([Fault("error", 2, after=1)], 2),
        ([Fault("rate", 2)], 2),
        ([Fault("rate", 1, seconds=1)], 1),
        ([Fault("cut", 2, after=1)], 2),
        ([Fault("applied", 2)], 2),
        ([Fault("late", 1)], 1),
        ([Fault("slow", 1, seconds=1.5)], 1),
        ([Fault("down", 2, ("retrieve",))], 2),
        ([Fault("down", 2, ("delete",))], 2),
    ],
    ids=["down", "500", "429", "429 with Retry-After", "cut", "applied and lost", "wait timeout", "timeout",
         "down for questions", "down at the start"],
)  # fmt: skip
def test_what_passes_is_ridden_out(
    faults: list[Fault], retries: int, served: tuple[Wire, dict[str, Any]]
) -> None:
    """All is written, every retry is counted, and no image is embedded twice."""
    wire, arguments = served
    model = Counting()
    with ImageStore(**arguments, embedder=ClipEmbedder(model, cache=None)) as store:
        wire.faults += [replace(fault) for fault in faults]
        report = store.ingest(images())
    assert (report.written, len(report.failed)) == (COUNT, 0)
    assert report.retries >= retries  # a busy machine adds timeouts of its own
    assert wire.engine.count("photos").count == COUNT
    assert sum(number > 1 for number in model.seen.values()) == 0


def test_retry_after_is_honoured(served: tuple[Wire, dict[str, Any]]) -> None:
    """The server says a second, so at least a second is waited."""
    wire, arguments = served
    with ImageStore(**arguments, embedder=ClipEmbedder(FakeModel())) as store:
        store.ingest(images()[:1])
        wire.faults.append(Fault("rate", 1, seconds=1))
        begun = time.monotonic()
        store.ingest(images()[:2])
    assert time.monotonic() - begun >= 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("auth", after=1), "check the API key"),
        (Fault("full", after=1), "free space on the server"),
        (Fault("gone", after=1), "photos"),
        (Fault("down", after=1), "given up after"),
        (Fault("rate", after=1, seconds=60), "given up after 1 tries"),
    ],
    ids=["auth", "full", "gone", "down for good", "asks for more patience than there is"],
)
def test_what_does_not_pass_stops_with_the_report(
    fault: Fault, message: str, served: tuple[Wire, dict[str, Any]]
) -> None:
    """What was acknowledged counts and is there, and a second run completes the rest."""
    wire, arguments = served
    with ImageStore(**arguments, embedder=ClipEmbedder(FakeModel())) as store:
        wire.faults.append(replace(fault))
        with pytest.raises(IngestStopped, match=message) as stopped:
            store.ingest(images(), patience=0.5)
        written = stopped.value.report.written
        assert 0 < written < COUNT
        assert store.last_report is not None
        assert store.last_report.written == written
        assert wire.engine.count("photos").count >= written
        wire.faults.clear()
        report = store.ingest(images())
        assert report.skipped >= written
        assert report.skipped + report.written == COUNT
    assert wire.engine.count("photos").count == COUNT


def test_a_store_that_is_down_costs_no_compute(served: tuple[Wire, dict[str, Any]]) -> None:
    """Nothing is embedded for a server that cannot be written to."""
    wire, arguments = served
    model = FakeModel()
    with ImageStore(**arguments, embedder=ClipEmbedder(model)) as store:
        store.ingest(images()[:1])
        calls = len(model.calls[0])
        wire.faults.append(Fault("auth", operations=("delete", "upsert")))
        with pytest.raises(StoreError, match="check the API key"):
            store.ingest(images())
    assert len(model.calls[0]) == calls


def test_poison_is_found_and_named(served: tuple[Wire, dict[str, Any]]) -> None:
    """Two records that the server refuses are the only ones that fail, each by its key."""
    wire, arguments = served
    with ImageStore(**arguments, embedder=ClipEmbedder(FakeModel())) as store:
        wire.faults += [Fault("poison", poison="<077>"), Fault("poison", poison="<500>")]
        report = store.ingest(images())
    assert {failure.key for failure in report.failed} == {"077", "500"}
    assert all("Validation error" in failure.reason for failure in report.failed)
    assert report.written == COUNT - 2 == wire.engine.count("photos").count


def test_an_interrupt_keeps_what_is_embedded(served: tuple[Wire, dict[str, Any]]) -> None:
    """Ctrl-C in the middle: the report says what is stored, no thread is left, the next run goes on."""
    wire, arguments = served
    with ImageStore(**arguments, embedder=ClipEmbedder(FakeModel(), batch_size=32)) as store:

        def some() -> Iterator[Any]:
            for number, image in enumerate(images()):
                if number == 400:
                    raise KeyboardInterrupt
                yield image

        with pytest.raises(KeyboardInterrupt):
            store.ingest(some())
        report = store.last_report
        assert report is not None
        assert report.written == report.embedded == wire.engine.count("photos").count > 0
        assert not [each for each in threading.enumerate() if each.name.startswith("clip-embed-")]
        assert store.ingest(images()).skipped == report.written


def test_an_interrupt_does_not_wait_for_a_server_that_is_down(served: tuple[Wire, dict[str, Any]]) -> None:
    """With minutes of patience left, Ctrl-C ends within a moment."""
    wire, arguments = served
    with ImageStore(**arguments, embedder=ClipEmbedder(FakeModel(), batch_size=32)) as store:
        store.ingest(images()[:1])

        def some() -> Iterator[Any]:
            yield from images()
            wire.faults.append(Fault("down"))
            yield from ((f"more {number}", image) for number, image, _ in images())
            time.sleep(0.3)  # the upload is waiting by now
            raise KeyboardInterrupt

        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            store.ingest(some(), patience=600)
    assert time.monotonic() - begun < 30


def test_on_error_raise(served: tuple[Wire, dict[str, Any]], tmp_path: Path) -> None:
    """The first failure ends it, with what was written until then."""
    _, arguments = served
    with (
        ImageStore(**arguments, embedder=ClipEmbedder(FakeModel())) as store,
        pytest.raises(IngestStopped, match=r"missing\.png: no such file") as stopped,
    ):
        store.ingest([*images()[:300], ("missing", tmp_path / "missing.png")], on_error="raise")
    assert len(stopped.value.report.failed) == 1


def test_a_source_that_breaks_off(served: tuple[Wire, dict[str, Any]]) -> None:
    """An error of the disk in the middle of the source loses nothing that is embedded."""
    _, arguments = served

    def some() -> Iterator[Any]:
        yield from images()[:300]
        raise OSError("input/output error")

    with ImageStore(**arguments, embedder=ClipEmbedder(FakeModel(), batch_size=32)) as store:
        with pytest.raises(IngestStopped, match="cannot be read further: input/output error") as stopped:
            store.ingest(some())
        assert stopped.value.report.written == store.status().points > 0


def test_an_old_server_is_told_from_a_new_one() -> None:
    """One that drops a collection's metadata without a word is refused when the collection is made."""
    with (
        serve(keeps_metadata=False) as wire,
        ImageStore(
            wire.url, collection="photos", grpc_port=wire.grpc_port, embedder=ClipEmbedder(FakeModel())
        ) as store,
        pytest.raises(StoreError, match="a later version of Qdrant is needed"),
    ):
        store.ingest(images()[:3])


def test_two_machines_begin_at_once(served: tuple[Wire, dict[str, Any]]) -> None:
    """Both found no collection: the slower one takes that of the other, unless it is of another space."""
    _, arguments = served
    with (
        ImageStore(**arguments, embedder=ClipEmbedder(FakeModel())) as first,
        ImageStore(**arguments, embedder=ClipEmbedder(FakeModel())) as second,
        ImageStore(**arguments, embedder=ClipEmbedder(FakeModel(24))) as other,
    ):
        assert (
            first.ingest(images()[:20], shard=(0, 2)).written
            + second.ingest(images()[:20], shard=(1, 2)).written
            == 20
        )
        assert second.status().points == 20
        with pytest.raises(SpaceMismatch):
            other.ingest(images()[:1])


def test_without_grpc_there_is_http() -> None:
    """Where nobody listens on the port for gRPC, HTTP is taken."""
    with serve() as wire:
        arguments = {"location": wire.url, "collection": "photos", "grpc_port": 1, "timeout": 2}
        with ImageStore(**arguments, embedder=ClipEmbedder(FakeModel())) as store:
            assert store.ingest(images()[:3]).written == 3


def test_nobody_answers() -> None:
    """A server that is not there is an error that names it, at once."""
    with pytest.raises(StoreError, match=r"http://127\.0\.0\.1:1/photos does not answer"):
        ImageStore("http://127.0.0.1:1", collection="photos", grpc_port=1, timeout=2)
