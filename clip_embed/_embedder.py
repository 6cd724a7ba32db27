"""`ClipEmbedder`: images and texts in, unit vectors of one space out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np
from PIL import Image

from clip_embed._cache.memory import EmbeddingCache
from clip_embed._cache.recipe import Recipe
from clip_embed._cache.towers import CachedTowers
from clip_embed._classify import Classification, Labels, LabelVectors, read_labels, shares_of
from clip_embed._engine.cores import usable_cores
from clip_embed._engine.decode_processes import processes_for
from clip_embed._engine.device import device_name, suggest_batch_size
from clip_embed._engine.fork import loading
from clip_embed._engine.pipeline import ImageStream
from clip_embed._engine.profile import Profiler
from clip_embed._engine.towers import Towers
from clip_embed._engine.verdict import Profile
from clip_embed._images.inputs import iterate
from clip_embed._images.source import ImageInput, describe
from clip_embed._models.opening import (
    DEFAULT_MODEL,
    check_model,
    check_model_devices,
    check_model_precision,
    model_precision,
    open_model,
    path_or_model,
)
from clip_embed._models.precision import Precision
from clip_embed._stamp import Stamp, probe_images, probe_texts
from clip_embed._templates import DEFAULT_TEMPLATES, NOTHING
from clip_embed._types import EmbeddedBatch, Float32, ImagePolicy, Model, UInt8
from clip_embed._vectors import Vectors, given_vectors
from clip_embed.errors import ImageBatchError, ImageError, ModelError

Images = Iterable[ImageInput | tuple[object, ImageInput]] | UInt8


class Settings(NamedTuple):
    """What an embedder was made with, and is made of again in another process."""

    model: str | Path | Model
    device: str
    precision: Precision
    batch_size: int | Literal["auto"]
    workers: int | Literal["auto"]
    policy: ImagePolicy
    cache: EmbeddingCache | None


class ClipEmbedder:
    """Computes vectors of images and texts in one space, in which cosine similarity compares them.

    >>> from clip_embed import ClipEmbedder
    >>> clip = ClipEmbedder("offline")
    >>> images = clip.embed_images(["car.jpg", "cat.jpg"])   # float32 (2, d)
    >>> texts = clip.embed_texts(["a red car"])              # float32 (1, d)
    >>> clip.scores(images, texts)                           # float32 (2, 1)

    `model` is a hub name (or name@revision), a local folder with a CLIP or SigLIP model, "offline", or an
    object with the `Model` protocol.
    `device` is "auto" (cuda, xpu, mps, else cpu), a device of torch, or a list of them, which share the
    images: ["cuda:0", "cuda:1"]. `precision` is "exact"
    (float32 and the reference's pixels), "fp32", "bf16", "fp16" (not on a CPU), "int8" (image
    tower, on a CPU; checked against float32 when it loads, ModelError where it moves the vectors
    too far) or "auto": bf16 where the device computes faster in it, else fp32. All but "exact"
    decode and resize faster and stay close to the reference; the space is the same in all of them.
    "offline" and your own models compute in float32 for "auto".
    `batch_size` is the number of images per forward pass and `workers` the number of threads;
    "auto" takes them from the device and the cores. `cache="memory"` keeps vectors by
    content in at most 256 MiB, a path keeps them in a file as well, an `EmbeddingCache` may be
    shared by several embedders; None keeps nothing.

    The constructor is cheap: weights load on first use or in `load()`. One embedder may be
    shared by threads. Raises ModelNotFound, ModelUnsupported or MissingExtra where the model is
    not to be had: no other model is ever taken in its place.
    """

    def __init__(
        self,
        model: str | Path | Model = DEFAULT_MODEL,
        *,
        device: str | Sequence[str] = "auto",
        precision: Precision = "auto",
        batch_size: int | Literal["auto"] = "auto",
        workers: int | Literal["auto"] = "auto",
        policy: ImagePolicy | None = None,
        cache: str | Path | EmbeddingCache | None = "memory",
    ) -> None:
        for name, value in (("batch_size", batch_size), ("workers", workers)):
            if value != "auto" and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be 'auto' or a whole number from 1, not {value!r}")
        device = device_name(device)
        check_model(model)
        check_model_precision(model, precision)
        check_model_devices(model, device)
        self._source = model
        self._device = device
        self._precision = precision
        self._workers: int | Literal["auto"] = workers
        self._with_torch = isinstance(model, (str, Path))  # a model of the user's own may run without
        self._policy = policy or ImagePolicy()
        self._cache = _as_cache(cache)
        found = path_or_model(model)
        self.settings = Settings(found, device, precision, batch_size, workers, self._policy, self._cache)
        self._cached_towers: CachedTowers | None = None
        self._stamp: Stamp | None = None
        self._labels = LabelVectors()
        if batch_size == "auto" and not self._with_torch:
            batch_size = suggest_batch_size("cpu")
        self._towers = Towers(
            lambda: open_model(found, device, precision),
            device=device,
            batch_size=batch_size,
            pad=self._with_torch,
        )

    def __reduce__(self) -> tuple[Callable[[Settings], ClipEmbedder], tuple[Settings]]:
        """Travel to another process as settings: weights load there, once for all copies of one embedder."""
        return _revive, (self.settings,)

    def __repr__(self) -> str:
        source = describe(self._source)
        return f"ClipEmbedder({source!r}, device={self._device!r}, precision={self._precision!r})"

    @property
    def model(self) -> Model:
        """The opened model; its weights may not be loaded yet."""
        return self._towers.model

    @property
    def name(self) -> str:
        """The model as it was given: its name, its folder, or the type of an object."""
        return describe(self._source)

    @property
    def dim(self) -> int:
        """Dimension d of the vectors; needs no weights."""
        return self.model.dim

    @property
    def space(self) -> str:
        """Says which vectors may be compared: equal strings, comparable vectors."""
        return self._towers.space

    @property
    def device(self) -> str:
        """The device of torch that the model runs on, "auto" resolved; several stand with commas."""
        return self._towers.device

    @property
    def precision(self) -> str:
        """How vectors are computed, "auto" resolved; ValueError where the device cannot compute so."""
        return model_precision(self._source, self._precision, self._device)

    @property
    def recipe(self) -> str:
        """How image vectors are made, in one line to keep beside them: no reason to refuse a comparison."""
        return str(Recipe.of(self.precision, self.model.image_spec, self._policy))

    @property
    def logit_scale(self) -> float:
        """What cosine similarities are multiplied by before a softmax; learned, so the weights load."""
        return self._towers.logit_scale

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
        mappings with "bytes" or "path", a column of Arrow or of a frame with such, or one uint8 array
        (n, height, width, 3). Where some
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
        towers = self._through_cache()
        prepare, workers = towers.prepare_on(self._threads)
        return ImageStream(
            iterate(images),
            prepare=prepare,
            forward=towers.forward,
            finish=towers.finish,
            streams=self._towers.lanes or min(workers, self._towers.streams),
            own_threads=bool(self._towers.lanes),
            dim=self.dim,
            batch_size=self._towers.batch_size,
            workers=workers,
        )

    def prepare_image(self, image: ImageInput) -> UInt8:
        """Return what the model takes of one image, uint8 (height, width, 3); the cache is not asked.

        `clip_embed.arrow.prepare` does it for columns, on all cores. Raises ImageError.
        """
        self._towers.check_process()
        pixels = self._open_towers(self._policy, None).prepare(image).pixels
        assert pixels is not None  # noqa: S101 - without a cache nothing is known already
        return pixels

    def profile(self, images: Images) -> Profile:
        """Measure where the time from these images to vectors goes; `print` shows it with a verdict.

        `images` are as in `embed_images`, some hundreds of them for steady figures: they are embedded
        without the cache, then once more in each half, decoding alone and the forward pass alone.
        """
        self.load()
        towers = self._through_cache()
        return Profiler(
            model=self.model,
            policy=self._policy,
            device=self.device,
            precision=self.precision,
            batch_size=self._towers.batch_size,
            workers=self._threads,
            pad=self._with_torch,
            with_torch=self._with_torch,
            processes=towers.processes,
            on_gpu=towers.open_on_gpu(),
        ).run(iterate(images))

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
        vectors = self._through_cache().embed_texts(wanted)
        return np.stack(vectors) if vectors else np.empty((0, self.dim), np.float32)

    def scores(self, images: Images | Vectors, texts: Iterable[str] | Vectors) -> Float32:
        """Return the cosine similarities, float32 (n, m), of n images and m texts.

        In either place vectors that are there already may stand: an array of numpy or a tensor of torch of
        two dimensions, or a column of Arrow, whose stamp is checked (docs/uses.md). Raises
        SpaceMismatch for those of another model or dimension, ImageBatchError as `embed_images`.
        """
        left = given_vectors(images, self)
        right = given_vectors(texts, self)
        rows = self.embed_images(cast("Images", images)) if left is None else left
        columns = self.embed_texts(cast("Iterable[str]", texts)) if right is None else right
        return rows @ columns.T

    def classify(
        self,
        images: Images | Vectors,
        labels: Labels,
        *,
        templates: Sequence[str] | str = DEFAULT_TEMPLATES,
        multi: bool = False,
        other: str | None = None,
    ) -> Classification:
        """Say which of k labels each of n images fits best: probabilities float32 (n, k).

        Write labels as they stand in a sentence ("red car"), or as a mapping with the words for each
        ({"car": ["car", "automobile"]}). Each word is put into the templates (a list, or the name of a set:
        "few", "many" of 80), and the mean of those sentences' vectors stands for the label. The
        model's own temperature turns cosine similarities into shares of the labels given: for an image of
        none of them they mean nothing, and another choice of labels gives others. `other` is the name of one
        more label, for images that fit a "thing" or a "scene" better than any label. With `multi=True` labels
        do not compete: each has its probability against those words, `other` that of none of them.
        `images` are as in `scores`.

        Raises ValueError for fewer than two labels or a template without {}, else as `embed_images`.
        """
        words = read_labels(labels, other, multi=multi)
        chosen = [*words.values(), NOTHING] if multi else list(words.values())
        vectors = self._labels.get(self.embed_texts, chosen, templates)
        logits = self.scores(images, vectors) * self.logit_scale
        return Classification(tuple(words), shares_of(logits, multi=multi, other=other is not None))

    def remembered(self, digest: bytes) -> Float32 | ImageError | None:
        """Return what the cache knows of an image file with this SHA-256, None where it knows nothing.

        That is its vector float32 (d,), or why its content is no image: for integrations that know files
        by other means than their content.
        """
        return self._through_cache().remembered(digest)

    def stamp(self) -> Stamp:
        """Return what to keep beside stored vectors, so that those of another model are refused later."""
        if self._stamp is None:
            towers = self._open_towers(ImagePolicy(), self._cache)  # the probe is ours: no policy forbids it
            images = towers.forward([towers.prepare(image) for image in probe_images()], True)
            if failed := [outcome for outcome in images if isinstance(outcome, ImageError)]:
                raise ModelError(f"the photos of the stamp could not be embedded: {failed[0]}")
            probe = np.stack([*cast("list[Float32]", images), *self.embed_texts(probe_texts())])
            self._stamp = Stamp(self.space, self.recipe, probe)
        return self._stamp

    def _through_cache(self) -> CachedTowers:
        """Return the towers behind the cache; made late, because that asks for space and device."""
        if self._cached_towers is None:
            self._cached_towers = self._open_towers(self._policy, self._cache)
        return self._cached_towers

    def _open_towers(self, policy: ImagePolicy, cache: EmbeddingCache | None) -> CachedTowers:
        with loading():
            Image.preinit()  # imports Pillow's formats here rather than in the decode threads
            recipe = Recipe.of(self.precision, self.model.image_spec, policy)
        processes = None
        if self._with_torch:
            exact = recipe.pixels == "reference"
            hashed = cache is not None
            processes = processes_for(self._towers, policy, self._threads, exact=exact, hashed=hashed)
        return CachedTowers(
            self._towers, policy, recipe, cache, with_torch=self._with_torch, processes=processes
        )

    @property
    def _threads(self) -> int:
        """How many threads read and decode, "auto" resolved."""
        return usable_cores() if self._workers == "auto" else self._workers


_revived: dict[str, ClipEmbedder] = {}


def _revive(settings: Settings) -> ClipEmbedder:
    """Return the embedder of these settings that came to this process before, or a new one."""
    if not isinstance(settings.model, (str, Path)):  # nothing says that two objects are the same model
        return ClipEmbedder(**settings._asdict())
    key = repr(settings)
    return _revived.get(key) or _revived.setdefault(key, ClipEmbedder(**settings._asdict()))


def _as_cache(cache: object) -> EmbeddingCache | None:
    """Return the cache that an argument names; TypeError for anything else."""
    if cache is None or isinstance(cache, EmbeddingCache):
        return cache
    if not isinstance(cache, (str, Path)):
        raise TypeError(f"cache must be 'memory', a path, an EmbeddingCache or None, not {cache!r}")
    return EmbeddingCache() if cache == "memory" else EmbeddingCache(cache)
