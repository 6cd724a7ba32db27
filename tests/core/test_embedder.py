"""The embedder: unit vectors, texts, scores, the cache, threads and forks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from clip_embed import (
    ClipEmbedder,
    ImageBatchError,
    ImageError,
    ImagePolicy,
    ImageSpec,
    Model,
    ModelError,
    SpaceMismatch,
)
from clip_embed._cache.memory import MemoryCache
from clip_embed._images.source import decode
from clip_embed.testing import FakeModel

Photo = Callable[..., Image.Image]
Encode = Callable[..., bytes]
UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def encoded(photo: Photo, encode: Encode) -> list[bytes]:
    """Twelve encoded images, no two alike."""
    return [encode(photo(40, 30, seed)) for seed in range(12)]


class Rows(FakeModel):
    """A model that gives the rows it is told to give, whatever it is asked."""

    def __init__(self, rows: object) -> None:
        super().__init__(dim=4)
        self.rows = rows

    def embed_images(self, pixels: UInt8, /) -> Float32:
        """Return the rows."""
        return self.rows  # type: ignore[return-value]

    def embed_texts(self, texts: Sequence[str], /) -> Float32:
        """Return the rows."""
        return self.rows  # type: ignore[return-value]


def assert_unit(vectors: Float32) -> None:
    """float32 rows of length 1."""
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_vectors_are_unit_rows(clip: ClipEmbedder, encoded: list[bytes]) -> None:
    """Images and texts give float32 rows of unit length; dim, space and model say whose they are."""
    images, texts = clip.embed_images(encoded), clip.embed_texts(["a red car", "blue"])
    assert (images.shape, texts.shape) == ((12, clip.dim), (2, clip.dim))
    assert_unit(images)
    assert_unit(texts)
    assert (clip.dim, clip.space) == (clip.model.dim, clip.model.space)


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1.0, 1e15, 1e30])
def test_rows_of_any_length_are_normalised(scale: float) -> None:
    """Neither tiny nor huge rows of a model leave the range of float32 on the way."""
    rows = np.array([[3, 4, 0, 0], [0, 0, -1, 0]], np.float32) * np.float32(scale)
    got = ClipEmbedder(Rows(rows)).embed_texts(["a", "b"])
    np.testing.assert_allclose(got, [[0.6, 0.8, 0, 0], [0, 0, -1, 0]], atol=1e-6)


def test_rows_of_another_type() -> None:
    """A model may give float64 or lists: the vectors are float32 all the same."""
    assert_unit(ClipEmbedder(Rows(np.eye(4)[:2])).embed_texts(["a", "b"]))
    assert_unit(ClipEmbedder(Rows([[1, 2, 3, 4]])).embed_texts(["a"]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0])
def test_no_direction(bad: float, encoded: list[bytes]) -> None:
    """A row that is not finite, or zero, is a failure of that image or text, not a vector."""
    model = Rows(np.array([[1, 0, 0, 0], [bad] * 4, [0, 1, 0, 0]], np.float32))
    clip = ClipEmbedder(model, batch_size=3)
    with pytest.raises(ImageBatchError, match="the model gave no finite vector for it") as caught:
        clip.embed_images(encoded[:3])
    assert len(caught.value.failures) == 1
    assert_unit(caught.value.batch.vectors)
    with pytest.raises(ModelError, match="no finite vector for the text 'two'"):
        clip.embed_texts(["one", "two", "three"])
    model.rows = np.eye(4)[:1]
    index = caught.value.failures[0].index
    assert clip.embed_images([encoded[index]]).shape == (1, 4)  # it was not remembered


@pytest.mark.parametrize("rows", [np.ones((1, 4)), np.ones((2, 5)), np.ones(8), np.ones((2, 4, 1))])
def test_rows_of_a_wrong_shape(rows: Float32, encoded: list[bytes]) -> None:
    """The error names the model's method and both shapes."""
    clip = ClipEmbedder(Rows(rows), batch_size=2)
    with pytest.raises(ModelError, match=r"Rows.embed_texts gave \(.*for 2 rows of dimension 4"):
        clip.embed_texts(["a", "b"])
    with pytest.raises(ModelError, match=r"Rows.embed_images gave \(.*for 2 rows of dimension 4"):
        clip.embed_images(encoded[:2])


def test_texts_in_order_each_embedded_once(clip: ClipEmbedder, fake: FakeModel) -> None:
    """Duplicates are embedded once and stand in every place; generators do as well."""
    texts = ["red", "blue", "red", "", "blue", "a green field"]
    got = clip.embed_texts(text for text in texts)
    assert fake.calls[1] == [4]
    for text, vector in zip(texts, got, strict=True):
        np.testing.assert_array_equal(ClipEmbedder(FakeModel()).embed_texts([text])[0], vector)
    assert clip.embed_texts([]).shape == (0, 16)
    assert clip.embed_texts(iter(())).dtype == np.float32


def test_many_texts_are_one_call(clip: ClipEmbedder, fake: FakeModel) -> None:
    """A long list reaches the model whole, so that it can warn once of the texts it cuts, and in order."""
    texts = [f"text {number}" for number in range(600)]
    got = clip.embed_texts(texts)
    assert fake.calls[1] == [600]
    np.testing.assert_array_equal(got[599], ClipEmbedder(FakeModel()).embed_texts(["text 599"])[0])


@pytest.mark.parametrize("single", ["a red car", b"a red car"])
def test_a_single_text_is_refused(single: object, clip: ClipEmbedder) -> None:
    """One text in place of a list is a TypeError that says what to write."""
    with pytest.raises(TypeError, match=r"wrap it in a list: \[text\]"):
        clip.embed_texts(single)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [None, 7, b"bytes", Path("car.jpg"), ["red"]])
def test_what_is_no_text_is_refused(wrong: object, clip: ClipEmbedder, fake: FakeModel) -> None:
    """The TypeError names the index and the type; nothing is embedded."""
    with pytest.raises(TypeError, match=f"text 1 must be a str, not {type(wrong).__name__}"):
        clip.embed_texts(["red", wrong])  # type: ignore[list-item]
    assert fake.calls[1] == []


def test_odd_texts_reach_the_model_well_formed(clip: ClipEmbedder) -> None:
    """Emoji and null characters pass as they are; a lone surrogate becomes U+FFFD, a pair its character."""
    seen: list[str] = []

    class Seeing(FakeModel):
        """Remembers its texts."""

        def embed_texts(self, texts: Sequence[str], /) -> Float32:
            """Remember."""
            seen.extend(texts)
            return super().embed_texts(texts)

    odd = ["", "\0", "a\0b", "🚗 red", "\ud800", "x\udcff.jpg", "\ud83d\ude97", "日本" * 500]
    assert_unit(ClipEmbedder(Seeing()).embed_texts(odd))
    assert seen == [*odd[:4], "\ufffd", "x\ufffd.jpg", "🚗", odd[-1]]


def test_scores(clip: ClipEmbedder, encoded: list[bytes]) -> None:
    """The cosine of every image with every text, from images and texts or from vectors."""
    texts = ["red", "a blue sea", "green"]
    images = clip.embed_images(encoded)
    expected = images.astype(np.float64) @ clip.embed_texts(texts).astype(np.float64).T
    got = clip.scores(encoded, texts)
    assert (got.shape, got.dtype) == ((12, 3), np.float32)
    for left in (encoded, images, images.astype(np.float64) * 7, images.astype(np.float16)):
        for right in (texts, clip.embed_texts(texts) * np.float32(0.01)):
            atol = 1e-3 if getattr(left, "dtype", None) == np.float16 else 1e-6
            np.testing.assert_allclose(clip.scores(left, right), expected, atol=atol)
    assert clip.scores([], texts).shape == (0, 3)
    assert clip.scores(np.empty((0, 16)), np.empty((0, 16))).shape == (0, 0)


def test_scores_refuse_vectors_of_another_dimension(clip: ClipEmbedder, encoded: list[bytes]) -> None:
    """On either side the error names both dimensions."""
    other = np.ones((3, 512), np.float32)
    with pytest.raises(SpaceMismatch, match=r"512 dimensions.*have 16"):
        clip.scores(other, ["red"])
    with pytest.raises(SpaceMismatch, match=r"512 dimensions.*have 16"):
        clip.scores(encoded, other)


def test_known_content_is_not_embedded_again(
    clip: ClipEmbedder, fake: FakeModel, encoded: list[bytes], tmp_path: Path
) -> None:
    """The second call runs the model on nothing, whatever name the content comes under."""
    first = clip.embed_images(encoded), clip.embed_texts(["red", "blue"])
    calls = (list(fake.calls[0]), list(fake.calls[1]))
    file = tmp_path / "copy.png"
    file.write_bytes(encoded[3])
    np.testing.assert_array_equal(clip.embed_images([*encoded, file, {"path": str(file)}])[:12], first[0])
    np.testing.assert_array_equal(clip.embed_texts(["blue", "red"]), first[1][::-1])
    assert (fake.calls[0], fake.calls[1]) == calls


def test_results_do_not_share_memory_with_the_cache(clip: ClipEmbedder, encoded: list[bytes]) -> None:
    """Writing into what was returned does not change what is returned next."""
    for embed, inputs in ((clip.embed_images, encoded[:3]), (clip.embed_texts, ["red", "blue", "red"])):
        expected = embed(inputs).copy()  # type: ignore[operator]
        embed(inputs)[:] = 7  # type: ignore[operator]
        np.testing.assert_array_equal(embed(inputs), expected)  # type: ignore[operator]


def test_without_a_cache_everything_runs_again(fake: FakeModel, encoded: list[bytes]) -> None:
    """`cache=None` remembers neither vectors nor failures."""
    clip = ClipEmbedder(fake, batch_size=12, cache=None)
    for _ in range(2):
        clip.embed_images(encoded)
        clip.embed_texts(["red"])
    assert fake.calls == ([12, 12], [1, 1])


def test_only_failures_of_the_content_are_remembered(
    clip: ClipEmbedder, encoded: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Corrupt bytes are not decoded twice; a missing file is looked for again."""
    file = tmp_path / "late.png"
    for source in (encoded[0][:-40], file):
        with pytest.raises(ImageBatchError):
            clip.embed_images([source])
    file.write_bytes(encoded[0])
    assert clip.embed_images([file]).shape == (1, 16)

    def no_decoding(*_: object, **__: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr("clip_embed._cache.towers.decode_for", no_decoding)
    with pytest.raises(ImageBatchError, match="cannot decode"):
        clip.embed_images([encoded[0][:-40]])


def test_memory_cache_evicts_by_bytes() -> None:
    """What was not used for longest goes first, and the size stays below the limit."""
    vector = np.ones(100, np.float32)
    cache = MemoryCache(max_bytes=3 * 700)
    for name in (b"a", b"b", b"c"):
        cache.put(name, vector)
    assert cache.get(b"a") is not None
    cache.put(b"d", vector)
    assert cache.get(b"b") is None
    assert all(cache.get(name) is not None for name in (b"a", b"c", b"d"))
    cache.put(b"e", np.ones(10_000, np.float32))
    assert cache.get(b"e") is None


def test_memory_cache_keeps_single_rows() -> None:
    """A row is kept without the batch it was cut from, an error without its traceback."""
    cache = MemoryCache()
    cache.put(b"row", np.ones((1000, 4), np.float32)[0])
    row = cache.get(b"row")
    assert isinstance(row, np.ndarray)
    assert row.base is None
    with pytest.raises(ImageError) as caught:
        decode(b"junk", b"junk", ImagePolicy())
    cache.put(b"junk", caught.value)
    kept = cache.get(b"junk")
    assert isinstance(kept, ImageError)
    assert (str(kept), kept.__traceback__, kept.__context__) == (str(caught.value), None, None)
    cache.put(b"later", ImageError("no such file", retryable=True))
    assert cache.get(b"later") is None


def test_one_embedder_in_eight_threads(encoded: list[bytes]) -> None:
    """Threads that share an embedder get the vectors that one thread gets."""
    images = [encoded[n % 12] for n in range(30)]
    texts = [f"text {number % 7}" for number in range(20)]
    alone = ClipEmbedder(FakeModel(), cache=None)
    expected = alone.embed_images(images), alone.embed_texts(texts)
    shared, start = ClipEmbedder(FakeModel(), batch_size=3, workers=2), threading.Barrier(8)

    def work(_: int) -> tuple[Float32, Float32]:
        start.wait()
        return shared.embed_images(images), shared.embed_texts(texts)

    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(work, range(8)):
            np.testing.assert_allclose(got[0], expected[0], atol=1e-6)
            np.testing.assert_array_equal(got[1], expected[1])


def test_the_model_is_called_by_one_thread_at_a_time(encoded: list[bytes]) -> None:
    """A model need not be thread-safe."""

    class Exclusive(FakeModel):
        """Fails if two threads are inside at once."""

        inside = threading.Lock()

        def embed_texts(self, texts: Sequence[str], /) -> Float32:
            """Fail if not alone."""
            assert self.inside.acquire(blocking=False)
            try:
                return super().embed_texts(texts)
            finally:
                self.inside.release()

    shared = ClipEmbedder(Exclusive(), cache=None)
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(lambda n: shared.embed_texts([str(n)] * 3), range(200)))) == 200


FORK = """
import io, os
import numpy as np
from PIL import Image
from clip_embed import ClipEmbedder, ModelForked
from clip_embed.testing import FakeModel
clip, fresh = ClipEmbedder(FakeModel(), batch_size=2), ClipEmbedder(FakeModel(), batch_size=2)
image = np.zeros((1, 8, 8, 3), np.uint8)
Image.fromarray(image[0]).save(known := io.BytesIO(), "PNG")
clip.embed_images([known.getvalue()]), clip.embed_texts(["red"]), fresh.dim
reader, writer = os.pipe()
if os.fork() == 0:
    said = []
    calls = (lambda: clip.embed_images(image), lambda: clip.embed_images([known.getvalue()]))
    for call in (*calls, lambda: clip.embed_texts(["red"]), clip.load):
        try:
            call()
        except ModelForked as error:
            said.append(str(error))
    said.append(str(fresh.embed_images(image).shape))
    os.write(writer, repr(said).encode())
    os._exit(0)
os.wait()
print(os.read(reader, 9999).decode())
clip.embed_texts(["blue"])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_after_a_fork() -> None:
    """A loaded model says ModelForked in the child, for known content too; the parent and others go on."""
    code = ["-W", "ignore::DeprecationWarning", "-c", FORK]
    done = subprocess.run([sys.executable, *code], capture_output=True, text=True, check=True, timeout=60)  # noqa: S603
    said: list[str] = eval(done.stdout)  # noqa: S307
    assert len(said) == 5
    assert said[4] == "(1, 16)"
    for message in said[:4]:
        assert "forked after the model was loaded" in message
        assert "spawn" in message


def test_a_model_of_ones_own() -> None:
    """Five members make a model; it inherits from nothing."""

    class Own:
        dim = 3
        space = "own:1"
        image_spec = ImageSpec((4, 4))

        def embed_images(self, pixels: UInt8, /) -> Float32:
            assert (pixels.shape[1:], pixels.dtype) == ((4, 4, 3), np.uint8)
            return pixels.mean(axis=(1, 2)).astype(np.float32)

        def embed_texts(self, texts: Sequence[str], /) -> Float32:
            return np.array([[len(text), 1, 0] for text in texts], np.float32)

    assert isinstance(Own(), Model)
    clip = ClipEmbedder(Own(), device="cpu")
    image = Image.new("RGB", (9, 5), (0, 40, 30))
    np.testing.assert_allclose(clip.embed_images([image]), [[0, 0.8, 0.6]], atol=1e-6)
    np.testing.assert_allclose(clip.scores([image], ["abc"]), [[0.8 / 10**0.5]], atol=1e-6)
    clip.load()  # optional in a model


def test_warnings_are_not_ours(encoded: list[bytes]) -> None:
    """Embedding emits no warning of its own, whatever the input."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ClipEmbedder(Rows(np.full((1, 4), np.inf)), batch_size=1).stream_images(encoded[:2]).__next__()
    assert caught == []
