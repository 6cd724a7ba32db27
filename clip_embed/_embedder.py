"""`ClipEmbedder`: images and texts in, unit vectors of one space out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from clip_embed._cache import MemoryCache
from clip_embed._cores import usable_cores
from clip_embed._device import suggest_batch_size
from clip_embed._images import ImageInput, describe, read_encoded
from clip_embed._models import (
    DEFAULT_MODEL,
    check_model,
    check_model_precision,
    model_precision,
    open_model,
)
from clip_embed._pipeline import ImageStream, Prepared
from clip_embed._pixels import prepare_pixels
from clip_embed._precision import Precision
from clip_embed._towers import Towers
from clip_embed._types import EmbeddedBatch, Float32, ImagePolicy, Model, UInt8
from clip_embed._vectors import has_direction, unit_rows
from clip_embed.errors import ImageBatchError, ImageError, ModelError, SpaceMismatch

Images = Iterable[ImageInput | tuple[object, ImageInput]] | UInt8


class ClipEmbedder:
    """Computes vectors of images and texts in one space, in which cosine similarity compares them.

    >>> from clip_embed import ClipEmbedder
    >>> clip = ClipEmbedder("offline")
    >>> images = clip.embed_images(["car.jpg", "cat.jpg"])   # float32 (2, d)
    >>> texts = clip.embed_texts(["a red car"])              # float32 (1, d)
    >>> clip.scores(images, texts)                           # float32 (2, 1)

    `model` is a hub name (or name@revision), a local folder with a CLIP or SigLIP model, "offline", or an
    object with the `Model` protocol.
    `device` is "auto" (cuda, xpu, mps, else cpu) or a device of torch. `precision` is "exact"
    (float32 and the reference's pixels), "fp32", "bf16", "fp16" (not on a CPU), "int8" (image
    tower, on a CPU; checked against float32 when it loads, ModelError where it moves the vectors
    too far) or "auto": bf16 where the device computes faster in it, else fp32. All but "exact"
    decode and resize faster and stay close to the reference; the space is the same in all of them.
    "offline" and your own models compute in float32 for "auto".
    `batch_size` is the number of images per forward pass and `workers` the number of threads;
    "auto" takes them from the device and the cores. `cache="memory"` keeps vectors by
    content in at most 256 MiB; None keeps nothing.

    The constructor is cheap: weights load on first use or in `load()`. One embedder may be
    shared by threads. Raises ModelNotFound, ModelUnsupported or MissingExtra where the model is
    not to be had: no other model is ever taken in its place.
    """

    def __init__(
        self,
        model: str | Path | Model = DEFAULT_MODEL,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        batch_size: int | Literal["auto"] = "auto",
        workers: int | Literal["auto"] = "auto",
        policy: ImagePolicy | None = None,
        cache: Literal["memory"] | None = "memory",
    ) -> None:
        if cache not in ("memory", None):
            raise ValueError(f"cache must be 'memory' or None, not {cache!r}")
        for name, value in (("batch_size", batch_size), ("workers", workers)):
            if value != "auto" and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be 'auto' or a whole number from 1, not {value!r}")
        check_model(model)
        check_model_precision(model, precision)
        self._source = model
        self._device = device
        self._precision = precision
        self._workers: int | Literal["auto"] = workers
        self._with_torch = isinstance(model, (str, Path))  # a model of the user's own may run without
        self._policy = policy or ImagePolicy()
        self._cache = MemoryCache() if cache == "memory" else None
        if batch_size == "auto" and not self._with_torch:
            batch_size = suggest_batch_size("cpu")
        self._towers = Towers(
            lambda: open_model(model, device, precision),
            device=device,
            batch_size=batch_size,
            pad=isinstance(model, (str, Path)),
        )

    def __repr__(self) -> str:
        source = describe(self._source)
        return f"ClipEmbedder({source!r}, device={self._device!r}, precision={self._precision!r})"

    @property
    def model(self) -> Model:
        """The opened model; its weights may not be loaded yet."""
        return self._towers.model

    @property
    def dim(self) -> int:
        """Dimension d of the vectors; needs no weights."""
        return self.model.dim

    @property
    def space(self) -> str:
        """Says which vectors may be compared: equal strings, comparable vectors."""
        return self.model.space

    @property
    def device(self) -> str:
        """The device of torch that the model runs on, "auto" resolved."""
        return self._towers.device

    @property
    def precision(self) -> str:
        """How vectors are computed, "auto" resolved; ValueError where the device cannot compute so."""
        return model_precision(self._source, self._precision, self._device)

    @property
    def policy(self) -> ImagePolicy:
        """What may be read as an image."""
        return self._policy

    def load(self) -> None:
        """Load the weights now rather than on first use; idempotent."""
        self._towers.load()

    def embed_images(self, images: Images) -> Float32:
        """Return float32 (n, d), rows of unit length, in input order; empty input gives (0, d).

        `images` is an iterable of paths, bytes, PIL images, uint8 arrays (height, width, 3) or
        mappings with "bytes" or "path", or one uint8 array (n, height, width, 3). Where some
        images fail, the others are embedded first, then ImageBatchError is raised with both.
        """
        with self.stream_images(images) as stream:
            batches = list(stream)
        vectors = [batch.vectors for batch in batches]
        joined = np.concatenate(vectors) if vectors else np.empty((0, self.dim), np.float32)
        failures = [failure for batch in batches for failure in batch.failures]
        if failures:
            indices = np.concatenate([batch.indices for batch in batches])
            keys = tuple(key for batch in batches for key in batch.keys)
            raise ImageBatchError(failures, EmbeddedBatch(indices, joined, tuple(failures), keys))
        return joined

    def stream_images(self, images: Images) -> ImageStream:
        """Return an iterator of EmbeddedBatch in input order; memory is bounded for any length.

        Items are as in `embed_images`, or pairs (key, image), whose key comes back with the
        vector. A failed image is listed in its batch and stops nothing. The input is read by
        the iterating thread, a little ahead of the output. Use it as a context manager where
        the loop may be left early.
        """
        self._towers.check_process()
        workers = usable_cores() if self._workers == "auto" else self._workers
        return ImageStream(
            _iterate(images),
            prepare=self._prepare,
            forward=self._forward,
            streams=min(workers, self._towers.streams),
            dim=self.dim,
            batch_size=self._towers.batch_size,
            workers=workers,
        )

    def embed_texts(self, texts: Iterable[str]) -> Float32:
        """Return float32 (m, d), rows of unit length, in input order; empty input gives (0, d).

        Texts beyond the model's length are cut there, with one warning; lone surrogates are read as
        U+FFFD. Raises TypeError for anything that is not a str, ModelError for a text that the
        model gives no vector.
        """
        if isinstance(texts, (str, bytes)):
            raise TypeError("texts must be a list of texts; for a single one wrap it in a list: [text]")
        wanted = list(texts)
        for index, text in enumerate(wanted):
            if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"text {index} must be a str, not {type(text).__name__}")
        self._towers.check_process()
        known: dict[str, Float32] = {}
        for text in dict.fromkeys(wanted):
            entry = self._cache.get(_text_key(text)) if self._cache else None
            if isinstance(entry, np.ndarray):
                known[text] = entry
        missing = [text for text in dict.fromkeys(wanted) if text not in known]
        for text, vector in zip(missing, self._embed_new_texts(missing), strict=True):
            known[text] = vector
            if self._cache:
                self._cache.put(_text_key(text), vector)
        return np.stack([known[text] for text in wanted]) if wanted else np.empty((0, self.dim), np.float32)

    def scores(
        self, images: Images | npt.NDArray[np.floating], texts: Iterable[str] | npt.NDArray[np.floating]
    ) -> Float32:
        """Return the cosine similarities, float32 (n, m), of n images and m texts.

        A 2-D float array in either place is taken as vectors that are embedded already; raises
        SpaceMismatch where their dimension is not `dim`, ImageBatchError as `embed_images`.
        """
        left = self._as_vectors(images)
        right = self._as_vectors(texts)
        rows = self.embed_images(cast("Images", images)) if left is None else left
        columns = self.embed_texts(cast("Iterable[str]", texts)) if right is None else right
        return rows @ columns.T

    def _as_vectors(self, values: object) -> Float32 | None:
        """Return a 2-D float array as float32 rows of unit length, anything else as None."""
        if not isinstance(values, np.ndarray):
            return None
        array = cast("np.ndarray[tuple[int, ...], np.dtype[np.generic]]", values)
        if array.ndim != 2 or array.dtype.kind != "f":
            return None
        if array.shape[1] != self.dim:
            raise SpaceMismatch(
                f"the vectors have {array.shape[1]} dimensions, those of {describe(self._source)} have "
                f"{self.dim}: they were made by another model"
            )
        return unit_rows(array.astype(np.float32))

    def _prepare(self, source: object) -> Prepared:
        """Read and decode one image, in a decode thread; content that is known is not decoded."""
        encoded = read_encoded(source, self._policy)
        content = hashlib.sha256(encoded).digest() if encoded is not None and self._cache else b""
        if self._cache and content and (known := self._cache.get(content)) is not None:
            if isinstance(known, ImageError):
                raise ImageError(str(known))
            return Prepared(content, None, known)
        try:
            pixels = prepare_pixels(
                source,
                encoded,
                self.model.image_spec,
                self._policy,
                exact=self._precision == "exact",
                with_torch=self._with_torch,
            )
        except ImageError as error:
            if self._cache and content:
                self._cache.put(content, error)
            raise
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ModelError(
                f"the prepare of the model's image_spec gave {pixels.dtype} {pixels.shape}, "
                "not uint8 (height, width, 3)"
            )
        return Prepared(content, np.ascontiguousarray(pixels))

    def _forward(self, batch: Sequence[Prepared], alone: bool) -> list[Float32 | ImageError]:
        """Embed one batch of decoded images: a unit vector (d,) each, or why there is none.

        Equal content is embedded once, also where it became known while this batch waited.
        """
        outcomes: dict[bytes | int, Float32 | ImageError] = {}
        new: dict[bytes | int, UInt8] = {}
        names = [prepared.content or place for place, prepared in enumerate(batch)]
        for name, prepared in zip(names, batch, strict=True):
            known = self._cache.get(name) if self._cache and isinstance(name, bytes) else None
            if known is not None:
                outcomes[name] = known
            elif prepared.pixels is not None:
                new.setdefault(name, prepared.pixels)
        vectors = self._towers.embed_images(list(new.values()), alone=alone) if new else []
        for name, vector in zip(new, vectors, strict=True):
            if isinstance(vector, MemoryError):
                reason = f"the model ran out of memory on it alone: {vector}"
                outcomes[name] = ImageError(reason, retryable=True)
            elif not has_direction(vector):
                outcomes[name] = ImageError("the model gave no finite vector for it")
            else:
                outcomes[name] = vector
                if self._cache and isinstance(name, bytes):
                    self._cache.put(name, vector)
        return [outcomes[name] for name in names]

    def _embed_new_texts(self, texts: Sequence[str]) -> list[Float32]:
        """Return a unit vector (d,) for each text, in order; ModelError where there is none."""
        vectors: list[Float32] = []
        outcomes = self._towers.embed_texts([_well_formed(text) for text in texts]) if texts else []
        for text, vector in zip(texts, outcomes, strict=True):
            if isinstance(vector, MemoryError):
                raise ModelError(f"the model ran out of memory on the text {text[:60]!r} alone: {vector}")
            if not has_direction(vector):
                raise ModelError(f"the model gave no finite vector for the text {text[:60]!r}")
            vectors.append(vector)
        return vectors


def _iterate(images: object) -> Iterable[object]:
    """Return the images one by one; TypeError for a single image."""
    array = cast("UInt8", images) if isinstance(images, np.ndarray) else None
    if array is not None and array.dtype == np.uint8 and array.ndim == 4:
        return array
    if isinstance(images, (str, Path, bytes, Image.Image, Mapping)) or (
        array is not None and array.ndim == 3
    ):
        raise TypeError("images must be a list of images; for a single one wrap it in a list: [image]")
    if array is not None or not isinstance(images, Iterable):
        raise TypeError(
            "images must be an iterable of images or a uint8 array (n, height, width, 3), "
            f"not {describe(images)}"  # pyright: ignore[reportUnknownArgumentType]
        )
    return cast("Iterable[object]", images)


def _well_formed(text: str) -> str:
    """Replace lone surrogates, which no tokenizer takes, by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _text_key(text: str) -> bytes:
    return hashlib.sha256(b"text\0" + text.encode("utf-8", "surrogatepass")).digest()
