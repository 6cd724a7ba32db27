"""The stream: order, failures, errors, and no thread left behind."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clip_embed import (
    ClipEmbedder,
    EmbeddedBatch,
    ImageBatchError,
    ImageError,
    ImageSpec,
    ImageStream,
)
from clip_embed._engine import pipeline
from clip_embed._engine.prepared import Prepared
from clip_embed._types import Float32
from clip_embed.testing import FakeModel

Photo = Callable[..., Image.Image]
Encode = Callable[..., bytes]
Threads = Callable[[], list[str]]
UInt8 = npt.NDArray[np.uint8]

TIMEOUT = 20  # seconds until a deadlock becomes a failure


@pytest.fixture(scope="module")
def vectors(pictures: list[Image.Image]) -> Float32:
    """Their vectors, each embedded alone."""
    clip = ClipEmbedder(FakeModel(), batch_size=1, workers=1, cache=None)
    return np.concatenate([clip.embed_images([picture]) for picture in pictures])


def joined(batches: list[EmbeddedBatch]) -> EmbeddedBatch:
    """Put the batches of a stream together."""
    return EmbeddedBatch(
        np.concatenate([batch.indices for batch in batches]),
        np.concatenate([batch.vectors for batch in batches]),
        tuple(failure for batch in batches for failure in batch.failures),
        tuple(key for batch in batches for key in batch.keys),
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 40), st.sets(st.integers(0, 39)), st.booleans())
def test_any_batch_size_and_workers(
    pictures: list[Image.Image],
    vectors: Float32,
    batch_size: int,
    workers: int,
    count: int,
    broken: set[int],
    cached: bool,
) -> None:
    """The same vectors in the same order, failures with their index, keys with their rows."""
    clip = ClipEmbedder(
        FakeModel(), batch_size=batch_size, workers=workers, cache="memory" if cached else None
    )
    items = [(f"key {n}", b"junk" if n in broken else pictures[n]) for n in range(count)]
    with clip.stream_images(items) as stream:
        batches = list(stream)
    assert all(len(batch.indices) or batch.failures for batch in batches)
    assert max((len(batch.vectors) for batch in batches), default=0) <= max(2 * batch_size, count)
    if not count:
        assert batches == []
        return
    whole = joined(batches)
    good = [n for n in range(count) if n not in broken]
    assert whole.indices.tolist() == good
    assert whole.vectors.dtype == np.float32
    np.testing.assert_allclose(whole.vectors, vectors[good], atol=1e-6)
    assert list(whole.keys) == [f"key {n}" for n in good]
    bad = sorted(broken & set(range(count)))
    assert [failure.index for failure in whole.failures] == bad
    assert [failure.key for failure in whole.failures] == [f"key {n}" for n in bad]


def test_model_gets_full_batches(clip: ClipEmbedder, fake: FakeModel, pictures: list[Image.Image]) -> None:
    """Batches hold `batch_size` images, only the last one fewer."""
    clip.embed_images(pictures[:30])
    assert fake.calls[0] == [4] * 7 + [2]


def test_one_corrupt_file_among_a_hundred(photo: Photo, encode: Encode, clip: ClipEmbedder) -> None:
    """The 99 good ones are embedded as they would be alone; the bad one is named with its reason."""
    images = [encode(photo(48, 32, seed), "JPEG") for seed in range(100)]
    images[57] = images[57][: len(images[57]) // 2]
    expected = ClipEmbedder(FakeModel(), cache=None).embed_images(images[:57] + images[58:])
    with clip.stream_images(images) as stream:
        failures = [failure for batch in stream for failure in batch.failures]
    assert [(failure.index, failure.retryable) for failure in failures] == [(57, False)]
    assert "truncated" in failures[0].reason.lower()
    with pytest.raises(ImageBatchError, match=r"1 of 100 images .*\n  image 57 .*[Tt]runcated") as caught:
        clip.embed_images(images)
    assert caught.value.batch.indices.tolist() == [*range(57), *range(58, 100)]
    assert caught.value.failures == caught.value.batch.failures
    np.testing.assert_allclose(caught.value.batch.vectors, expected, atol=1e-6)


def test_many_failures_are_counted_not_listed(clip: ClipEmbedder, photo: Photo) -> None:
    """The message shows five failures and how many more there are; all are in the error."""
    with pytest.raises(ImageBatchError, match=r"8 of 9 images[^…]*… and 3 more") as caught:
        clip.embed_images([b"junk"] * 8 + [photo()])
    assert len(caught.value.failures) == 8
    with pytest.raises(ImageBatchError) as caught:
        clip.embed_images([b"junk"] * 6)
    assert caught.value.batch.vectors.shape == (0, 16)


def test_no_images(clip: ClipEmbedder) -> None:
    """Empty input gives (0, d) float32 and a stream without batches."""
    for empty in ([], iter(()), np.empty((0, 8, 8, 3), np.uint8)):
        vectors = clip.embed_images(empty)  # type: ignore[arg-type]
        assert (vectors.shape, vectors.dtype) == ((0, 16), np.float32)
    assert list(clip.stream_images([])) == []


def test_equal_images_of_one_stream_are_embedded_once(photo: Photo, encode: Encode) -> None:
    """Also while the first of them is still under way; not without a cache, which tells them apart."""
    encoded = [encode(photo(24, 16, seed)) for seed in range(3)]
    for cache, rows in (("memory", 3), (None, 60)):
        model = FakeModel()
        clip = ClipEmbedder(model, batch_size=4, workers=2, cache=cache)  # type: ignore[arg-type]
        got = clip.embed_images(encoded * 20)
        assert sum(model.calls[0]) == rows
        np.testing.assert_allclose(got, np.tile(got[:3], (20, 1)), atol=1e-6)


class Crowded(FakeModel):
    """Has memory for `most` images at a time, and none for the pictures in `heavy`."""

    parallel = False

    def __init__(self, most: int, heavy: Float32, parallel: bool) -> None:
        super().__init__()
        self.parallel = parallel
        self._most = most
        self._heavy = heavy

    def embed_images(self, pixels: UInt8, /) -> Float32:
        """Run out of memory, or embed."""
        vectors = super().embed_images(pixels)
        units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        near = np.abs(units[:, None] - self._heavy[None]).max(axis=2) < 1e-5
        if len(pixels) > self._most or near.any():
            raise MemoryError("injected")
        return vectors


@settings(max_examples=60, deadline=None)
@given(
    order=st.lists(st.integers(0, 39), max_size=60),
    broken=st.sets(st.integers(0, 39), max_size=6),
    heavy=st.sets(st.integers(0, 39), max_size=6),
    most=st.integers(1, 12),
    batch_size=st.integers(1, 20),
    workers=st.integers(1, 4),
    options=st.tuples(st.booleans(), st.booleans()),
)
def test_any_images_any_batch_size_any_lack_of_memory(
    pictures: list[Image.Image],
    vectors: Float32,
    order: list[int],
    broken: set[int],
    heavy: set[int],
    most: int,
    batch_size: int,
    workers: int,
    options: tuple[bool, bool],
) -> None:
    """The same vectors in the same order, and every failure once, with its reason."""
    parallel, cached = options
    model = Crowded(most, vectors[sorted(heavy)], parallel)
    clip = ClipEmbedder(
        model, device="cpu", batch_size=batch_size, workers=workers, cache="memory" if cached else None
    )
    with clip.stream_images([b"junk" if n in broken else pictures[n] for n in order]) as stream:
        batches = list(stream)
    indices = [int(index) for batch in batches for index in batch.indices]
    good = [index for index, n in enumerate(order) if n not in broken | heavy]
    assert indices == good
    for batch in batches:
        np.testing.assert_allclose(batch.vectors, vectors[[order[n] for n in batch.indices]], atol=1e-6)
    failures = [failure for batch in batches for failure in batch.failures]
    assert [failure.index for failure in failures] == [n for n in range(len(order)) if n not in good]
    for failure in failures:
        assert failure.retryable == (order[failure.index] not in broken)
        assert ("out of memory on it alone" in failure.reason) == failure.retryable


class Stop(Exception):
    """What the tests raise in places of their own."""


def broken_source(error: BaseException, picture: Image.Image) -> Iterator[Image.Image]:
    """Ten pictures, then an error."""
    yield from [picture] * 10
    raise error


@pytest.mark.parametrize("error", [Stop("source"), KeyboardInterrupt(), SystemExit(3), StopIteration()])
def test_an_error_in_the_input(
    error: BaseException, clip: ClipEmbedder, pictures: list[Image.Image], decode_threads: Threads
) -> None:
    """It reaches the caller as it is (StopIteration as Python turns it), and no thread stays."""
    expected = RuntimeError if isinstance(error, StopIteration) else type(error)
    with pytest.raises(expected) as caught:
        clip.embed_images(broken_source(error, pictures[0]))
    assert caught.value is error or caught.value.__cause__ is error
    assert decode_threads() == []


@pytest.mark.parametrize("where", ["model", "prepare"])
@pytest.mark.parametrize("error", [Stop("inside"), KeyboardInterrupt()])
def test_an_error_in_the_model(
    where: str, error: BaseException, pictures: list[Image.Image], decode_threads: Threads
) -> None:
    """An error of the model's own code reaches the caller as it is, and no thread stays."""

    class Failing(FakeModel):
        """Fails at the third batch, or at an image."""

        def embed_images(self, pixels: UInt8, /) -> Float32:
            """Fail, if it is this one's turn."""
            if where == "model" and len(self.calls[0]) == 2:
                raise error
            return super().embed_images(pixels)

    def prepare(image: Image.Image) -> UInt8:
        if where == "prepare":
            raise error
        return np.asarray(image.resize((32, 32)))

    model = Failing()
    model.image_spec = ImageSpec(32, prepare=prepare)
    with pytest.raises(type(error)) as caught:
        ClipEmbedder(model, batch_size=4, workers=3).embed_images(pictures)
    assert caught.value is error
    assert decode_threads() == []


def test_leaving_the_block_early(
    clip: ClipEmbedder, pictures: list[Image.Image], decode_threads: Threads
) -> None:
    """`break`, an error in the loop and `close` each end the threads and the stream."""
    streams: list[ImageStream] = []
    with clip.stream_images(pictures) as stream:
        streams.append(stream)
        for _ in stream:
            assert decode_threads()
            break
    assert decode_threads() == []

    def consume() -> None:
        with clip.stream_images(pictures) as stream:
            streams.append(stream)
            for _ in stream:
                raise Stop("consumer")

    with pytest.raises(Stop, match="consumer"):
        consume()
    assert decode_threads() == []
    streams.append(clip.stream_images(pictures))
    next(streams[-1])
    streams[-1].close()
    streams[-1].close()
    assert decode_threads() == []
    assert [list(stream) for stream in streams] == [[], [], []]


def test_two_streams_at_once(clip: ClipEmbedder, pictures: list[Image.Image]) -> None:
    """Two streams of one embedder may be read in turns."""
    with clip.stream_images(pictures) as left, clip.stream_images(pictures[::-1]) as right:
        pairs = list(zip_longest(left, right))
    ahead, back = (joined([batch for batch in batches if batch]) for batches in zip(*pairs, strict=True))
    np.testing.assert_array_equal(ahead.vectors, back.vectors[::-1])


def tasks_of(seconds: float, *, pause: float = 0.0, count: int = 100, size: int = 1) -> list[int]:
    """How many images each thread was given at a time, of images that take so long to decode or to come."""
    sizes: list[int] = []

    def prepare(sources: Sequence[object]) -> list[Prepared | ImageError]:
        sizes.append(len(sources))
        time.sleep(seconds * len(sources))
        return [Prepared(b"", np.zeros((1, 1, 3), np.uint8)) for _ in sources]

    def images() -> Iterator[bytes]:
        for _ in range(count):
            time.sleep(pause)
            yield bytes(size)

    with ImageStream(
        images(),
        prepare=prepare,
        forward=lambda batch, _: [np.ones(2, np.float32)] * len(batch),
        streams=1,
        dim=2,
        batch_size=8,
        workers=2,
    ) as stream:
        assert sum(len(batch.vectors) for batch in stream) == count
    return sizes


def test_a_thread_takes_many_quick_images_at_a_time_and_few_slow_ones() -> None:
    """So that handing over costs little, and no core is left with a long rest at the end."""
    quick, slow = tasks_of(0.0, count=1000), tasks_of(0.03)
    assert quick[:8] == [1] * 8  # four for each thread, before it is known
    assert max(quick) == statistics.median(quick[8:]) == pipeline.AT_ONCE
    assert set(slow) == {1}


def test_passes_get_smaller_at_the_end() -> None:
    """So that no core computes a long last batch while the others are idle."""
    passes: list[int] = []

    def forward(batch: Sequence[Prepared], _: bool) -> list[Float32 | ImageError]:
        passes.append(len(batch))
        return [np.ones(2, np.float32)] * len(batch)

    with ImageStream(
        [b"x"] * 50,
        prepare=lambda sources: [Prepared(b"", np.zeros((1, 1, 3), np.uint8)) for _ in sources],
        forward=forward,
        streams=2,
        dim=2,
        batch_size=64,
        workers=2,
    ) as stream:
        assert sum(len(batch.vectors) for batch in stream) == 50
    assert sorted(passes, reverse=True) == [13, 10, 8, 8, 6, 3, 1, 1]


def test_what_is_there_does_not_wait_for_what_comes_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow input, or one of large images, is handed out as it comes."""
    assert set(tasks_of(0.0, pause=0.05, count=12)) == {1}
    monkeypatch.setattr(pipeline, "_TASK_BYTES", 1000)
    assert max(tasks_of(0.0, size=400)) == 3


def test_an_input_that_has_nothing_at_the_moment() -> None:
    """It gets what is done without waiting for a full batch, and is asked again; not over and over."""
    asked: list[int] = []
    keys: list[object] = []

    def images() -> Iterator[object]:
        for number in range(30):
            while len(keys) < number // 10 * 10:  # what comes depends on what has come back
                asked.append(len(keys))
                yield pipeline.LATER
            yield number, b"x"
        while True:  # ends the stream once nothing is under way
            asked.append(len(keys))
            yield pipeline.LATER

    with ImageStream(
        images(),
        prepare=lambda sources: [Prepared(b"", np.zeros((1, 1, 3), np.uint8)) for _ in sources],
        forward=lambda batch, _: [np.ones(2, np.float32)] * len(batch),
        streams=2,
        dim=2,
        batch_size=8,
        workers=2,
    ) as stream:
        for batch in stream:
            keys += batch.keys
    assert keys == list(range(30))
    assert 0 < len(asked) < 60
