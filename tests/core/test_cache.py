"""The cache: what it serves, to whom, within which limits, and what becomes of a damaged file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from clip_embed import ClipEmbedder, EmbeddingCache, ImageBatchError, ImagePolicy
from clip_embed._cache import disk as _disk_cache
from clip_embed._cache.disk import DiskCache
from clip_embed._cache.recipe import Recipe
from clip_embed.testing import FakeModel

Photo = Callable[..., Image.Image]
Encode = Callable[..., bytes]
Float32 = npt.NDArray[np.float32]
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def encoded(photo: Photo, encode: Encode) -> list[bytes]:
    """Twelve encoded images, no two alike."""
    return [encode(photo(40, 30, seed)) for seed in range(12)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a cache may lie."""
    return tmp_path / "photos.cache"


class Precise(FakeModel):
    """A model that says what it computes in, and in the bits of which it gives other vectors."""

    def __init__(self, precision: str = "fp32") -> None:
        super().__init__()
        self.precision = precision

    def embed_images(self, pixels: npt.NDArray[np.uint8], /) -> Float32:
        """Embed, a little off where the precision is low."""
        return super().embed_images(pixels) + np.float32({"fp32": 0}.get(self.precision, 0.01))


def embedded(model: FakeModel) -> int:
    """How many images the model has embedded."""
    return sum(model.calls[0])


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


def test_a_second_embedder_embeds_nothing(encoded: list[bytes], file: Path) -> None:
    """What one embedder kept, another finds in the file, bit for bit; texts too."""
    first = ClipEmbedder(FakeModel(), cache=file)
    images, texts = first.embed_images(encoded), first.embed_texts(["red", "blue"])
    model = FakeModel()
    second = ClipEmbedder(model, cache=str(file))
    np.testing.assert_array_equal(second.embed_images(encoded), images)
    np.testing.assert_array_equal(second.embed_texts(["red", "blue"]), texts)
    assert model.calls == ([], [])


def test_embedders_share_one_cache(encoded: list[bytes]) -> None:
    """In memory alone, too; a model of another space finds nothing of it."""
    cache = EmbeddingCache()
    models = [FakeModel(), FakeModel(), FakeModel(dim=8)]
    for model in models:
        ClipEmbedder(model, cache=cache).embed_images(encoded)
    assert [embedded(model) for model in models] == [12, 0, 12]
    assert len(cache) == 24


def test_images_and_texts_are_kept_apart(file: Path, encoded: list[bytes]) -> None:
    """A text is never the vector of an image file with the same bytes."""
    clip = ClipEmbedder(FakeModel(), cache=file)
    text = encoded[0].decode("latin-1")
    (clip.embed_texts([text]), clip.embed_texts([text.encode("latin-1").decode("utf-8", "surrogateescape")]))
    expected = ClipEmbedder(FakeModel(), cache=None).embed_images(encoded[:1])
    np.testing.assert_allclose(clip.embed_images(encoded[:1]), expected, atol=1e-6)


def test_what_was_put_is_found_bit_for_bit(file: Path) -> None:
    """Vectors come back from memory, from what is pending and from the file as they were."""
    vectors = np.random.default_rng(0).standard_normal((50, 747)).astype(np.float32)
    keys = [row(number)[0] for number in range(50)]
    cache = EmbeddingCache(file, memory_bytes=0)
    for key, vector in zip(keys, vectors, strict=True):
        cache.put(key, vector)
    for _ in range(2):
        np.testing.assert_array_equal(np.stack([cache.get([key]) for key in keys]), vectors)  # type: ignore[misc]
        cache.close()
    assert cache.get([b"unknown", keys[7]]) is not None
    assert cache.get([b"unknown"]) is None


PRECISIONS = ["fp32", "fp16", "bf16", "int8"]


@pytest.mark.parametrize(("made", "wanted"), list(product(PRECISIONS, PRECISIONS)))
@pytest.mark.parametrize("on_disk", [False, True])
def test_only_the_more_faithful_serves(
    made: str, wanted: str, on_disk: bool, encoded: list[bytes], file: Path
) -> None:
    """A vector of more bits serves a request for fewer, never the other way round; the same for texts."""
    cache = EmbeddingCache(file if on_disk else None, memory_bytes=0 if on_disk else MIB)
    maker, model = Precise(made), Precise(wanted)
    for each in (maker, model):
        clip = ClipEmbedder(each, cache=cache)
        clip.embed_images(encoded[:3])
        clip.embed_texts(["red"])
    serves = PRECISIONS.index(made) <= PRECISIONS.index(wanted)
    assert (embedded(model), model.calls[1]) == ((0, []) if serves else (3, [1]))


def test_exact_serves_fp32_and_never_the_reverse(encoded: list[bytes]) -> None:
    """Fast pixels do not stand for those of the reference."""
    for made, wanted, runs in (("exact", "fp32", 0), ("fp32", "exact", 12), ("auto", "fp32", 0)):
        cache, model = EmbeddingCache(), FakeModel()
        ClipEmbedder(FakeModel(), precision=made, cache=cache).embed_images(encoded)  # type: ignore[arg-type]
        ClipEmbedder(model, precision=wanted, cache=cache).embed_images(encoded)  # type: ignore[arg-type]
        assert embedded(model) == runs


def test_the_order_of_recipes() -> None:
    """A partial order: exact serves all; bf16 with exact pixels, fp32 with fast ones: not each other."""
    recipes = [
        Recipe(precision, pixels, exif=True, background=(255, 255, 255))
        for precision, pixels in product([*PRECISIONS, "own"], ("reference", "fast"))
    ]
    serves = {(a, b) for a in recipes for b in recipes if f"image {a}" in b.image_sources()}
    for a, b, c in product(recipes, repeat=3):
        assert (a, a) in serves
        assert a == b or not {(a, b), (b, a)} <= serves
        assert (a, c) in serves or not {(a, b), (b, c)} <= serves
    exact, fast = recipes[0], recipes[1]
    low = replace(exact, precision="bf16")
    assert all((exact, other) in serves for other in recipes if other.precision != "own")
    assert not {(low, fast), (fast, low)} & serves
    assert not any((other, recipes[-1]) in serves for other in recipes[:-2])


def test_another_picture_is_another_key(encoded: list[bytes], photo: Photo, encode: Encode) -> None:
    """Background and EXIF decide what is seen, so nothing is shared; limits do not, so vectors are."""
    image = encode(photo(40, 30).convert("RGBA"))
    for policy, runs in (
        (ImagePolicy(background=(0, 0, 0)), 1),
        (ImagePolicy(exif=False), 1),
        (ImagePolicy(max_pixels=5000, max_bytes=10**6), 0),
    ):
        cache, model = EmbeddingCache(), FakeModel()
        ClipEmbedder(FakeModel(), cache=cache).embed_images([image])
        ClipEmbedder(model, cache=cache, policy=policy).embed_images([image])
        assert embedded(model) == runs


def test_a_failure_is_of_its_policy(encoded: list[bytes]) -> None:
    """An image too large for one policy is read under another; where both agree it is not decoded again."""
    cache, small = EmbeddingCache(), ImagePolicy(max_pixels=100)
    with pytest.raises(ImageBatchError, match="more than the policy's max_pixels"):
        ClipEmbedder(FakeModel(), cache=cache, policy=small).embed_images(encoded[:1])
    assert ClipEmbedder(FakeModel(), cache=cache).embed_images(encoded[:1]).shape == (1, 16)


def test_failures_are_not_kept_on_disk(file: Path) -> None:
    """Another version of a decoder may read what this one does not."""
    for _ in range(2):
        with pytest.raises(ImageBatchError, match="not an image"):
            ClipEmbedder(FakeModel(), cache=file).embed_images([b"junk"])
    assert len(EmbeddingCache(file)) == 0


def test_the_recipe_is_one_line() -> None:
    """It names precision, pixels, EXIF, background and storage, and is what the embedder says it is."""
    policy = ImagePolicy(exif=False, background=(0, 128, 255))
    clip = ClipEmbedder(FakeModel(), precision="exact", policy=policy)
    assert clip.recipe == "precision=fp32 pixels=reference exif=off background=#0080ff storage=float32"
    assert "pixels=fast exif=on background=#ffffff" in ClipEmbedder(FakeModel()).recipe


@pytest.mark.parametrize("dim", [16, 512, 1152])
def test_the_file_stays_within_its_limit(file: Path, dim: int) -> None:
    """However much is put in, the file stays below the limit, and the newest rows are there."""
    cache, count, largest = DiskCache(file, 4 * MIB), 24 * MIB // (4 * dim + 100), 0
    for start in range(0, count, count // 16):
        fill(cache, range(start, min(count, start + count // 16)), dim)
        cache.close()
        largest = max(largest, file.stat().st_size)
    assert 3 * MIB < largest <= 4 * MIB
    last = range(count - cache.count(), count)
    assert len(last) > count // 12
    assert assert_nothing_wrong(cache, last, dim) == len(last)
    assert assert_nothing_wrong(cache, range(count - len(last)), dim) == 0


def test_a_smaller_limit_shrinks_the_file(file: Path) -> None:
    """What is too much for a new limit goes with the next commit, oldest first."""
    cache = DiskCache(file, 16 * MIB)
    fill(cache, range(4000))
    cache.close()
    before = file.stat().st_size
    cache = DiskCache(file, 2 * MIB)
    fill(cache, range(4000, 4010))
    cache.close()
    assert file.stat().st_size <= 2 * MIB < before
    assert assert_nothing_wrong(cache, range(4000, 4010)) == 10


def test_clear_forgets_and_gives_the_space_back(file: Path) -> None:
    """Memory, file and what is pending are empty; the cache goes on."""
    with EmbeddingCache(file) as cache:
        fill(cache, range(2000))
        cache.put(*row(2000))
        cache.clear()
        assert (len(cache), cache.get([row(3)[0]]), cache.get([row(2000)[0]])) == (0, None, None)
        assert file.stat().st_size < 200_000
        fill(cache, range(5))
        assert len(cache) == 5
    assert bool(EmbeddingCache()) is True


def test_wrong_paths_and_limits(tmp_path: Path) -> None:
    """A folder, a database of something else, tiny limits and other types are refused at once."""
    other = sqlite3.connect(tmp_path / "my.db")
    other.execute("CREATE TABLE precious (x)")
    other.close()
    before = (tmp_path / "my.db").read_bytes()
    with pytest.raises(ValueError, match="is a folder: give a file"):
        EmbeddingCache(tmp_path)
    with pytest.raises(ValueError, match="database of something else"):
        ClipEmbedder(FakeModel(), cache=tmp_path / "my.db")
    assert (tmp_path / "my.db").read_bytes() == before
    with pytest.raises(ValueError, match="max_bytes must be at least"):
        EmbeddingCache(max_bytes=1000)
    with pytest.raises(TypeError, match="cache must be 'memory', a path, an EmbeddingCache or None, not 7"):
        ClipEmbedder(FakeModel(), cache=7)  # type: ignore[arg-type]


def test_pending_rows_are_committed_after_a_while(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a long call a row waits a second, not until there are thousands."""
    cache = EmbeddingCache(file)
    cache.put(*row(0))
    assert DiskCache(file, MIB).get([row(0)[0]]) is None
    monkeypatch.setattr(_disk_cache, "_SECONDS_PENDING", 0)
    cache.put(*row(1))
    assert assert_nothing_wrong(DiskCache(file, MIB), range(2)) == 2


def test_threads_share_a_cache(file: Path) -> None:
    """Eight threads read and write through one cache; nothing is lost and nothing is wrong."""
    cache = EmbeddingCache(file, memory_bytes=100_000)

    def work(thread: int) -> int:
        numbers = range(thread * 500, thread * 500 + 500)
        for number in numbers:
            cache.put(*row(number, 64))
            if number % 100 == 0:
                cache.commit()
        return assert_nothing_wrong(cache, numbers, 64)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [500] * 8
    assert len(cache) == 4000
