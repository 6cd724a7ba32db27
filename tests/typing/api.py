"""Typed uses of every public name of the core: for `mypy --strict` and pyright, never run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

import clip_embed
from clip_embed import (
    Classification,
    ClipEmbedder,
    ClipEmbedError,
    EmbeddedBatch,
    EmbeddingCache,
    ImageBatchError,
    ImageError,
    ImageFailure,
    ImagePolicy,
    ImageSpec,
    ImageStream,
    MissingExtra,
    Model,
    ModelError,
    ModelForked,
    ModelNotFound,
    ModelUnsupported,
    Profile,
    SpaceMismatch,
    Stamp,
    adopt,
)
from clip_embed.arrow import (
    embed_images,
    image_values,
    read_vectors,
    stamp_vectors,
    vector_array,
    vector_type,
)
from clip_embed.testing import FakeModel

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]


class Own:
    """A model of one's own: plain attributes and two methods, nothing inherited."""

    dim = 3
    space = "own:1"
    image_spec = ImageSpec((4, 4))

    def embed_images(self, pixels: UInt8) -> Float32:
        """Return the mean colours."""
        return np.asarray(pixels.mean(axis=(1, 2)), np.float32)

    def embed_texts(self, texts: Sequence[str]) -> Float32:
        """Return one row for each text."""
        return np.ones((len(texts), self.dim), np.float32)


class Computed:
    """A model whose facts are properties."""

    @property
    def dim(self) -> int:
        """Three."""
        return 3

    @property
    def space(self) -> str:
        """One's own."""
        return "own:2"

    @property
    def image_spec(self) -> ImageSpec:
        """One's own preparation."""
        return ImageSpec(4, prepare=lambda image: np.asarray(image.resize((4, 4))))

    def embed_images(self, pixels: UInt8, /) -> Float32:
        """Return the mean colours."""
        return np.asarray(pixels.mean(axis=(1, 2)), np.float32)

    def embed_texts(self, texts: Sequence[str], /) -> Float32:
        """Return one row for each text."""
        return np.ones((len(texts), 3), np.float32)


def models() -> list[Model]:
    """Everything that is a model."""
    return [Own(), Computed(), FakeModel(dim=8, size=16)]


def construct() -> list[ClipEmbedder]:
    """Every way to make an embedder."""
    policy = ImagePolicy(
        max_pixels=10**6,
        max_bytes=10**6,
        roots=["photos", Path("more")],
        exif=False,
        urls=True,
        max_seconds=9.5,
    )
    return [
        ClipEmbedder(),
        ClipEmbedder("offline"),
        ClipEmbedder(Path("models/clip"), device="cuda:1", precision="exact", batch_size=64, workers=8),
        ClipEmbedder(Own(), device="auto", precision="auto", batch_size="auto", workers="auto"),
        ClipEmbedder("some/model", device="cpu", precision="int8"),
        ClipEmbedder("some/model", device="cpu", precision="bf16"),
        ClipEmbedder("some/model", device="cuda", precision="fp16"),
        ClipEmbedder(Computed(), policy=policy, cache=None),
        ClipEmbedder(FakeModel(), policy=ImagePolicy(background=(0, 0, 0)), cache="memory"),
        ClipEmbedder(FakeModel(), cache="photos.cache"),
        ClipEmbedder("folder", device=["cuda:0", "cuda:1"]),
        ClipEmbedder(FakeModel(), cache=Path("photos.cache")),
        ClipEmbedder(FakeModel(), cache=EmbeddingCache("photos.cache", max_bytes=2**30, memory_bytes=0)),
    ]


def facts(clip: ClipEmbedder) -> None:
    """What an embedder says about itself."""
    assert_type(clip.dim, int)
    assert_type(clip.space, str)
    assert_type(clip.recipe, str)
    assert_type(clip.device, str)
    assert_type(clip.model, Model)
    assert_type(clip.policy, ImagePolicy)
    assert_type(clip.load(), None)
    assert_type(clip_embed.__version__, str)
    precision: str = clip.precision
    print(precision)


def images(clip: ClipEmbedder, picture: Image.Image, pixels: UInt8, names: Iterator[str]) -> None:
    """Every kind of image, in lists of one kind and mixed, in arrays and generators."""
    row: Mapping[str, object] = {"bytes": b"", "path": "a.jpg"}
    assert_type(clip.embed_images(["a.jpg", Path("b.jpg"), b"", picture, pixels, row]), Float32)
    clip.embed_images(["a.jpg", "b.jpg"])
    clip.embed_images([Path("a.jpg")])
    clip.embed_images([b"..."])
    clip.embed_images([picture])
    clip.embed_images(pixels)
    clip.embed_images(names)
    clip.embed_images(Path("photos").glob("*.jpg"))
    clip.embed_images(path.read_bytes() for path in Path("photos").iterdir())
    clip.embed_images([])


def stream(clip: ClipEmbedder) -> None:
    """A stream, with and without keys."""
    with clip.stream_images((path.name, path) for path in Path("photos").iterdir()) as batches:
        assert_type(batches, ImageStream)
        for batch in batches:
            assert_type(batch, EmbeddedBatch)
            assert_type(batch.indices, npt.NDArray[np.int64])
            assert_type(batch.vectors, Float32)
            assert_type(batch.keys, tuple[object, ...])
            for failure in batch.failures:
                report(failure)
    assert_type(next(clip.stream_images(["a.jpg"])), EmbeddedBatch)
    clip.stream_images([]).close()


def report(failure: ImageFailure) -> None:
    """What a failure says."""
    assert_type(failure.index, int)
    assert_type(failure.source, str)
    assert_type(failure.reason, str)
    assert_type(failure.retryable, bool)
    assert_type(failure.key, object)


def texts(clip: ClipEmbedder, stored: npt.NDArray[np.float64]) -> None:
    """Texts and scores."""
    assert_type(clip.embed_texts(["red", "blue"]), Float32)
    assert_type(clip.embed_texts(word for word in ("red", "blue")), Float32)
    assert_type(clip.scores(["a.jpg"], ["red"]), Float32)
    assert_type(clip.scores(stored, ["red"]), Float32)
    assert_type(clip.scores(stored.astype(np.float16), clip.embed_texts(["red"])), Float32)


def errors(clip: ClipEmbedder) -> None:
    """What each error carries."""
    try:
        clip.embed_images(["a.jpg"])
    except ImageBatchError as error:
        assert_type(error.failures, tuple[ImageFailure, ...])
        assert_type(error.batch, EmbeddedBatch)
    except ImageError as error:
        assert_type(error.retryable, bool)
    except (ModelNotFound, ModelUnsupported, ModelForked) as error:
        model_error: ModelError = error
        print(model_error)
    except MissingExtra as error:
        print(error.name)
    except SpaceMismatch as error:
        as_value_error: ValueError = error
        print(as_value_error)
    except ClipEmbedError:
        raise


def arrow(clip: ClipEmbedder, column: pa.ChunkedArray[Any]) -> None:
    """Columns in, columns out."""
    vectors, reasons = embed_images(column, clip)
    assert_type(reasons, pa.StringArray)
    for image in image_values(column):
        print(image)
    print(len(vectors), vector_array(np.zeros((2, 4), np.float32), np.ones(2, np.bool_)))


def stored(clip: ClipEmbedder, column: pa.ChunkedArray[Any]) -> None:
    """Stamps, and vectors made elsewhere."""
    stamp = clip.stamp()
    assert_type(stamp, Stamp)
    assert_type(Stamp.from_json(stamp.to_json()).probe, Float32)
    vectors, _ = embed_images(column, clip)
    rows, valid = read_vectors(stamp_vectors(vectors, clip), clip)
    assert_type(rows, Float32)
    print(valid, vector_type(clip), adopt("vectors.npy", ["a.jpg"], clip, column="emb").num_rows)


def labels(clip: ClipEmbedder) -> None:
    """Classification and profile."""
    found = clip.classify(["a.jpg"], ["car", "dog"], templates=["a photo of a {}"])
    assert_type(found, Classification)
    assert_type(found.probabilities, Float32)
    assert_type(found.best, tuple[str, ...])
    assert_type(found.top(2), list[list[tuple[str, float]]])
    profile = clip.profile(["a.jpg"])
    assert_type(profile, Profile)
    assert_type(profile.verdict, str)
    assert_type(profile.images_per_second, float)


def fake() -> None:
    """The fake model's own members."""
    model = FakeModel()
    assert_type(model.calls, tuple[list[int], list[int]])
    assert_type(model.image_spec.crop, tuple[int, int] | None)
