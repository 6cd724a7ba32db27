"""The stream: reading, decoding, the model and the caller overlap, and what is under way is bounded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import count
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from clip_embed import (
    ClipEmbedder,
    ImageError,
    ImageSpec,
)
from clip_embed._engine import pipeline as _pipeline
from clip_embed.testing import FakeModel

Photo = Callable[..., Image.Image]
Encode = Callable[..., bytes]
Threads = Callable[[], list[str]]
UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

TIMEOUT = 20  # seconds until a deadlock becomes a failure


class Gate(FakeModel):
    """A model whose images are prepared by a function of their width."""

    def __init__(self, on_width: Callable[[int], None]) -> None:
        super().__init__(size=8)
        self.embedded = threading.Semaphore(0)

        def prepare(image: Image.Image) -> UInt8:
            on_width(image.width)
            return np.asarray(image.resize((8, 8)))

        self.image_spec = ImageSpec(8, prepare=prepare)

    def embed_images(self, pixels: UInt8, /) -> Float32:
        """Embed, and count."""
        vectors = super().embed_images(pixels)
        for _ in pixels:
            self.embedded.release()
        return vectors


def test_a_slow_image_does_not_hold_the_batches(pictures: list[Image.Image]) -> None:
    """While one image is stuck, later ones are embedded; afterwards all stand in order."""
    arrived = threading.Event()

    def wait(width: int) -> None:
        if width == 99:
            assert all(model.embedded.acquire(timeout=TIMEOUT) for _ in range(24))
            arrived.set()

    model = Gate(wait)
    images = [picture.resize((99, 9)) if n == 3 else picture for n, picture in enumerate(pictures)]
    got = ClipEmbedder(model, batch_size=8, workers=2).embed_images(images)
    assert arrived.is_set()
    expected = ClipEmbedder(Gate(lambda _: None), batch_size=1).embed_images(images)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_decoding_goes_on_beside_the_model(pictures: list[Image.Image]) -> None:
    """While the model works on one batch, the decode threads prepare the next."""
    later = threading.Event()

    class Waiting(Gate):
        """Its first batch takes until an image of the next batch is decoded."""

        def embed_images(self, pixels: UInt8, /) -> Float32:
            """Wait for the other batch first."""
            assert later.wait(TIMEOUT)
            return super().embed_images(pixels)

    started = threading.Semaphore(4)  # the first batch; every further image sets the event

    def count(_: int) -> None:
        if not started.acquire(blocking=False):
            later.set()

    images = [np.asarray(picture) for picture in pictures]
    clip = ClipEmbedder(Waiting(count), batch_size=4, workers=1)
    assert clip.embed_images(images).shape == (40, 16)


def test_the_model_works_while_the_caller_is_busy(
    pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller holds the first batch until the model has done the second."""
    monkeypatch.setattr(_pipeline, "AT_ONCE", 1)
    decoded = threading.Semaphore(0)

    class Slow(Gate):
        """Its first batch takes until the images of the second are decoded."""

        def embed_images(self, pixels: UInt8, /) -> Float32:
            """Wait until the ninth image is being decoded: by then the eighth has been handed over."""
            if not self.calls[0]:
                assert all(decoded.acquire(timeout=TIMEOUT) for _ in range(9))
            return super().embed_images(pixels)

    model = Slow(lambda _: decoded.release())
    with ClipEmbedder(model, batch_size=4, workers=1).stream_images(pictures) as stream:
        next(stream)
        assert all(model.embedded.acquire(timeout=TIMEOUT) for _ in range(8))


def test_a_model_for_several_threads_gets_several_batches_at_once(
    pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch, decode_threads: Threads
) -> None:
    """Where a model says that it may, as many batches run side by side as torch has threads."""
    for name in ("torch_threads", "usable_cores"):
        monkeypatch.setattr(f"clip_embed._engine.towers.{name}", lambda: 3)
    together, number = threading.Barrier(3), count()

    class Parallel(FakeModel):
        """Its first three batches wait for each other."""

        parallel = True

        def embed_images(self, pixels: UInt8, /) -> Float32:
            """Wait for the two others."""
            if next(number) < 3:
                together.wait(TIMEOUT)
            return super().embed_images(pixels)

    model = Parallel()
    clip = ClipEmbedder(model, batch_size=4, workers=3, device="cpu", cache=None)
    got = clip.embed_images(pictures[:30])
    np.testing.assert_allclose(got, ClipEmbedder(FakeModel()).embed_images(pictures[:30]), atol=1e-6)
    assert decode_threads() == []


def test_a_single_batch_runs_in_the_callers_thread(pictures: list[Image.Image]) -> None:
    """There is nothing to overlap with, so no thread is started for the model."""
    names: list[str] = []

    class Named(FakeModel):
        """Remembers its threads."""

        def embed_images(self, pixels: UInt8, /) -> Float32:
            """Remember."""
            names.append(threading.current_thread().name)
            return super().embed_images(pixels)

    ClipEmbedder(Named(), batch_size=8).embed_images(pictures[:8])
    assert names == [threading.current_thread().name]


def endless(pulled: list[int], picture: Image.Image) -> Iterator[Image.Image]:
    """Yield one picture for ever, and count."""
    while True:
        pulled[0] += 1
        yield picture


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (4, 2), (16, 3)])
def test_an_endless_input_is_read_a_little_ahead(
    batch_size: int, workers: int, pictures: list[Image.Image], decode_threads: Threads
) -> None:
    """What is read but not embedded stays below a few batches, however long it runs."""
    pulled, given = [0], 0
    clip = ClipEmbedder(FakeModel(), batch_size=batch_size, workers=workers)
    with clip.stream_images(endless(pulled, pictures[0])) as stream:
        assert pulled == [0]
        for _, batch in zip(range(60), stream, strict=False):
            given += len(batch.indices)
            under_way = pulled[0] - given - len(stream._done)  # the rest are vectors behind a slow image
            assert under_way <= 3 * batch_size + (2 * workers + 1) * _pipeline.AT_ONCE
    assert decode_threads() == []


class Watched(SimpleQueue[Callable[[], None]]):
    """Calls back when the stream is about to wait for an image."""

    def __init__(self, waiting: Callable[[], None]) -> None:
        self._waiting = waiting

    def get(self, block: bool = True, timeout: float | None = None) -> Callable[[], None]:
        """Call back, then wait."""
        self._waiting()
        return super().get(block, timeout)


def test_results_behind_a_slow_image_are_bounded(
    pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stuck image stops the reading at last; what failed meanwhile is kept without its bytes."""
    monkeypatch.setattr(_pipeline, "_MAX_WAITING_VECTORS", 50)
    nothing_else = threading.Event()  # only the stuck image is under way
    pulled, most = [0], [0]
    errors: list[ImageError] = []

    def wait(width: int) -> None:
        if width == 99:
            assert nothing_else.wait(TIMEOUT)
            most[0] = pulled[0]
            errors.extend(done for _, done in stream._done.values() if isinstance(done, ImageError))

    def source() -> Iterator[Image.Image | bytes]:
        for picture in [pictures[0].resize((99, 9)), *[*pictures, b"junk"] * 20]:
            pulled[0] += 1
            yield picture

    stream = ClipEmbedder(Gate(wait), batch_size=4, workers=2).stream_images(source())
    watched = Watched(lambda: nothing_else.set() if stream._under_way - len(stream._ready) == 1 else None)
    monkeypatch.setattr(stream, "_finished", watched)
    assert sum(len(batch.indices) for batch in stream) == 801
    assert 50 <= most[0] <= 2 * (3 * 4 + 2 * 2 * _pipeline.AT_ONCE) + _pipeline.AT_ONCE
    assert errors
    assert all(error.__traceback__ is None and error.__context__ is None for error in errors)


def test_bytes_under_way_are_bounded(photo: Photo, encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images handed in by value, also in mappings, count against a limit in bytes."""
    encoded = encode(photo(), "PNG")
    monkeypatch.setattr(_pipeline, "_MAX_HELD_BYTES", 3 * len(encoded))
    under_way: list[int] = []

    def source() -> Iterator[object]:
        for item in [encoded, {"bytes": encoded}] * 25:
            yield item
            under_way.append(stream._preparing)

    stream = ClipEmbedder(FakeModel(), batch_size=16, workers=1, cache=None).stream_images(source())  # type: ignore[arg-type]
    assert sum(len(batch.indices) for batch in stream) == 50
    assert 2 <= max(under_way) <= 3


def test_the_bytes_of_its_batches_are_always_allowed(
    photo: Photo, monkeypatch: pytest.MonkeyPatch, fake: FakeModel
) -> None:
    """However large a batch's pixels are, the model gets full batches, and what is under way has an end."""
    monkeypatch.setattr(_pipeline, "_MAX_HELD_BYTES", 1)
    picture = np.asarray(photo(8, 8))
    held: list[int] = []

    def source() -> Iterator[UInt8]:
        for _ in range(200):
            yield picture
            held.append(stream._held_bytes)

    clip = ClipEmbedder(fake, batch_size=48, workers=1, cache=None)
    pixels = 3 * 32 * 32  # of FakeModel
    stream = clip.stream_images(source())
    assert sum(len(batch.indices) for batch in stream) == 200
    assert fake.calls[0].count(48) >= 3
    assert max(held) <= 3 * 48 * pixels + (_pipeline.AT_ONCE + 1) * picture.nbytes


def test_an_unused_stream_starts_nothing(
    clip: ClipEmbedder, pictures: list[Image.Image], decode_threads: Threads
) -> None:
    """Until it is iterated a stream reads nothing and has no threads."""
    pulled = [0]
    with clip.stream_images(endless(pulled, pictures[0])):
        assert (pulled, decode_threads()) == ([0], [])
    assert clip.stream_images(pictures).close() is None
