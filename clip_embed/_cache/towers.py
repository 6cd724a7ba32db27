"""Images and texts on their way to vectors: what the cache knows is neither decoded nor embedded again."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, cast

import numpy as np

from clip_embed._cache.memory import EmbeddingCache
from clip_embed._cache.recipe import Recipe
from clip_embed._engine.decode_processes import Chunk, DecodeProcesses
from clip_embed._engine.prepared import Decoded, Prepare, Prepared, attempt, beside, in_halves, one_by_one
from clip_embed._engine.towers import Towers
from clip_embed._images.gpu_jpeg import GpuJpeg
from clip_embed._images.gpu_resize import GpuResize
from clip_embed._images.on_gpu import OnGpu, nothing_on_gpu, open_on_gpu
from clip_embed._images.pixels import decode_for, fit
from clip_embed._images.source import Encoded, Pixels, read_encoded
from clip_embed._types import Float32, ImagePolicy, UInt8
from clip_embed._vectors import has_direction
from clip_embed.errors import ImageError, ModelError


@dataclass(frozen=True, slots=True)
class _Names:
    """Under which keys the vector of some content may be found, the own one first."""

    spaces: tuple[bytes, ...]

    @classmethod
    def of(cls, space: str, recipes: Sequence[str]) -> _Names:
        return cls(tuple(_digest(f"{space}\n{recipe}".encode()) for recipe in recipes))

    def keys(self, content: bytes) -> list[bytes]:
        return [hashlib.blake2b(content, digest_size=20, key=space).digest() for space in self.spaces]


class _File(NamedTuple):
    """An image that was read."""

    source: object
    encoded: bytes | None
    """None where the source is no encoded image."""
    content: bytes
    """Its digest; empty without a cache."""


class CachedTowers:
    """The towers of a model behind a cache, for one policy and recipe. Without a cache all is computed."""

    def __init__(
        self,
        towers: Towers,
        policy: ImagePolicy,
        recipe: Recipe,
        cache: EmbeddingCache | None,
        *,
        with_torch: bool,
        processes: DecodeProcesses | None = None,
    ) -> None:
        self._towers = towers
        self._policy = policy
        self._recipe = recipe
        self._cache = cache
        self._with_torch = with_torch
        self.processes = processes
        self._opening = threading.Lock()
        self._on_gpu: OnGpu | None = None  # None: not opened yet
        space = towers.space if cache is not None else ""
        limits = f"failure max_pixels={policy.max_pixels} max_bytes={policy.max_bytes} {recipe}"
        self._images = _Names.of(space, recipe.image_sources())
        self._texts = _Names.of(space, recipe.text_sources())
        self._failures = _Names.of(space, [limits])

    def prepare_on(self, cores: int) -> tuple[Prepare, int]:
        """Return what prepares images on so many cores, and the threads that it wants.

        Where a GPU decodes too, one thread more hands to it what comes while all cores are busy.
        """
        gpu_jpeg = self.open_on_gpu().jpeg
        if isinstance(gpu_jpeg, str):
            return self.prepare_all, cores
        return beside(cores, self.prepare_all, partial(self._by_gpu_jpeg, gpu_jpeg)), cores + 1

    def prepare_all(self, sources: Sequence[object]) -> list[Prepared | ImageError]:
        """Prepare some images, where a chunk of them finds a decode process free in that; in order."""
        if self.processes is not None:
            chunk = self.processes.decode(sources, self.remembered, self.open_on_gpu().resizer)
            if chunk is not None:
                return self._from(chunk, sources)
        return self._by_cores(sources)

    def open_on_gpu(self) -> OnGpu:
        """Return what a GPU does of decoding and resizing, and why not the rest."""
        if self._on_gpu is None:
            with self._opening:
                self._on_gpu = self._on_gpu or self._open_on_gpu()
        return self._on_gpu

    def _open_on_gpu(self) -> OnGpu:
        if not self._with_torch:
            return nothing_on_gpu("it is for models that are given by name")
        if self._recipe.pixels != "fast":
            return nothing_on_gpu("its pixels are not the reference's")
        return open_on_gpu(self._towers.device, self._towers.model.image_spec, self._policy)

    def _from(self, chunk: Chunk, sources: Sequence[object]) -> list[Prepared | ImageError]:
        """Return what a decode process gave, as `prepare` would have given it."""
        outcomes: list[Prepared | ImageError] = []
        for place, (source, known, pixels) in enumerate(zip(sources, chunk.known, chunk.pixels, strict=True)):
            content = chunk.hashes[place] if chunk.hashes else b""
            content = content if isinstance(content, bytes) else b""
            if isinstance(source, Encoded):
                source.fetch, source.digest = None, content
            if isinstance(known, ImageError):
                outcomes.append(ImageError(str(known), retryable=known.retryable))
            elif isinstance(pixels, tuple):
                error = ImageError(pixels[0], retryable=pixels[1])
                if self._cache is not None and content:
                    self._cache.put_failure(self._failures.keys(content)[0], error)
                outcomes.append(error)
            else:
                outcomes.append(Prepared(content, pixels, cast("Float32 | None", known)))
        return outcomes

    def prepare(self, source: object) -> Prepared:
        """Read, decode and resize one image, in a decode thread; content that is known is not decoded."""
        return cast("Prepared", self._decode(source, None))

    def _by_cores(self, sources: Sequence[object]) -> list[Prepared | ImageError]:
        """Prepare some images in this thread; a GPU may resize them."""
        resizer = self.open_on_gpu().resizer
        if resizer is None:
            return one_by_one(self.prepare)(sources)
        return in_halves(partial(self._decode, resizer=resizer), resizer.fit)(sources)

    def _by_gpu_jpeg(self, gpu_jpeg: GpuJpeg, sources: Sequence[object]) -> list[Prepared | ImageError]:
        """Prepare a chunk whose plain JPEGs a GPU decodes, the rest in this thread."""
        outcomes = [attempt(self._read, source) for source in sources]
        files = {place: read for place, read in enumerate(outcomes) if isinstance(read, _File)}
        decoded = gpu_jpeg.decode([file.encoded or b"" for file in files.values()])
        left: dict[int, _File] = {}
        for (place, file), pixels in zip(files.items(), decoded, strict=True):
            if pixels is None:
                left[place] = file
            else:
                outcomes[place] = Prepared(file.content, pixels)
        for place, outcome in zip(left, self._by_cores(list(left.values())), strict=True):
            outcomes[place] = outcome
        return cast("list[Prepared | ImageError]", outcomes)

    def _read(self, source: object) -> Prepared | _File:
        """Return the file of an image, or what is known of it."""
        if isinstance(source, Pixels):
            return Prepared(b"", source.array)
        encoded = read_encoded(source, self._policy)
        content = _digest(encoded) if encoded is not None and self._cache is not None else b""
        if isinstance(source, Encoded):
            source.digest = content
        known = self._known(content) if content else None
        return _File(source, encoded, content) if known is None else Prepared(content, None, known)

    def _decode(self, source: object, resizer: GpuResize | None) -> Prepared | Decoded:
        """Return an image in the model's size, or as it is decoded where the resizer takes it so."""
        file = source if isinstance(source, _File) else self._read(source)
        if isinstance(file, Prepared):
            return file
        spec, exact = self._towers.model.image_spec, self._recipe.pixels == "reference"
        try:
            decoded = decode_for(file.source, file.encoded, spec, self._policy, exact=exact)
            if resizer is not None and resizer.takes(decoded):
                return Decoded(file.content, decoded)
            pixels = fit(decoded, spec, self._policy, with_torch=self._with_torch)
        except ImageError as error:
            if self._cache is not None and file.content:
                self._cache.put_failure(self._failures.keys(file.content)[0], error)
            raise
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ModelError(
                f"the prepare of the model's image_spec gave {pixels.dtype} {pixels.shape}, "
                "not uint8 (height, width, 3)"
            )
        return Prepared(file.content, np.ascontiguousarray(pixels))

    def forward(self, batch: Sequence[Prepared], alone: bool) -> list[Float32 | ImageError]:
        """Embed one batch of decoded images: a unit vector (d,) each, or why there is none.

        Equal content is embedded once, also where it became known while this batch waited.
        """
        outcomes: dict[bytes | int, Float32 | ImageError] = {}
        new: dict[bytes | int, UInt8] = {}
        names = [prepared.content or place for place, prepared in enumerate(batch)]
        for name, prepared in zip(names, batch, strict=True):
            known = self._known(name) if isinstance(name, bytes) else None
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
                if self._cache is not None and isinstance(name, bytes):
                    self._cache.put(self._images.keys(name)[0], vector)
        return [outcomes[name] for name in names]

    def embed_texts(self, texts: Sequence[str]) -> list[Float32]:
        """Return a unit vector (d,) for each text, in order; ModelError where there is none."""
        known: dict[str, Float32] = {}
        keys = {text: self._texts.keys(_digest(text.encode("utf-8", "surrogatepass"))) for text in texts}
        if self._cache is not None:
            found = ((text, self._cache.get(names)) for text, names in keys.items())
            known = {text: vector for text, vector in found if vector is not None}
        missing = [text for text in keys if text not in known]
        outcomes = self._towers.embed_texts([_well_formed(text) for text in missing]) if missing else []
        for text, vector in zip(missing, outcomes, strict=True):
            if isinstance(vector, MemoryError):
                raise ModelError(f"the model ran out of memory on the text {text[:60]!r} alone: {vector}")
            if not has_direction(vector):
                raise ModelError(f"the model gave no finite vector for the text {text[:60]!r}")
            known[text] = vector
            if self._cache is not None:
                self._cache.put(keys[text][0], vector)
        self.finish()
        return [known[text] for text in texts]

    def finish(self) -> None:
        """Let what was computed reach the disk."""
        if self._cache is not None:
            self._cache.commit()

    def remembered(self, digest: bytes) -> Float32 | ImageError | None:
        """Return what is known of a file with this SHA-256: its vector (d,), or why it is no image."""
        try:
            return self._known(digest)
        except ImageError as error:
            return error

    def _known(self, content: bytes) -> Float32 | None:
        """Return the vector of an image, None where it is not known. Raises the ImageError that is known."""
        if self._cache is None:
            return None
        if (failure := self._cache.get_failure(self._failures.keys(content)[0])) is not None:
            raise ImageError(str(failure))
        return self._cache.get(self._images.keys(content))


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _well_formed(text: str) -> str:
    """Replace lone surrogates, which no tokenizer takes, by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
