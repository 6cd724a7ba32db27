"""The model whose parts all come from the package index."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clip_embed._engine.device import resolve_device
from clip_embed._models.fidelity import Bounds, Check, worst
from clip_embed._models.space import space_of
from clip_embed._types import Float32, ImageSpec, UInt8
from clip_embed.errors import ModelError
from clip_embed.offline import _colour, _colour_words, _heads, _towers, _vectors
from clip_embed.offline._colour_words import parse_colours
from clip_embed.offline._packages import PINNED_FILES, require_packages

logger = logging.getLogger(__name__)

_BOUNDS = Bounds(cosine=0.99999, centred=0.9999, company=1e-4)
"""What a GPU must hold. It is more than other models' float32 must: on the images of the check convolutions
in TF32 come to 0.99995 and 0.9998, and on some photos to less than they may."""
VERSION = 1
"""Raise it when the same weights and constants come to mean other vectors."""
IMAGE_SPEC = ImageSpec(size=(_towers.IMAGE_SIZE, _towers.IMAGE_SIZE), pad=True)


@dataclass(frozen=True, slots=True)
class _Loaded:
    images: _towers.ImageTower
    texts: _towers.TextTower
    conse: _heads.ConseHeads
    looks: _heads.LooksHeads
    head: _heads.TrainedHead

    @classmethod
    def on(cls, device: str) -> _Loaded:
        images, texts = _towers.ImageTower(device), _towers.TextTower(device)
        return cls(images, texts, _heads.ConseHeads(), _heads.LooksHeads(), _heads.TrainedHead.shipped())

    def embed_images(self, pixels: UInt8) -> Float32:
        seen = self.images(pixels)
        meanings = self.head(seen, self.conse.image(seen))
        colours = _colour.colour_parts(pixels, seen.activation)
        topics = self.conse.topics(meanings)
        return _vectors.image_vectors(meanings, self.looks.image(seen), topics, colours)

    def embed_texts(self, texts: Sequence[str]) -> Float32:
        queries = [parse_colours(text) for text in texts]
        plain = self.conse.text(self.texts([query.rest for query in queries], shown=texts))
        colours = np.stack([query.colours for query in queries])
        names_object = [query.names_object for query in queries]
        topics, looks = self.conse.topics(plain), self.looks.text(plain)
        return _vectors.text_vectors(plain, looks, topics, colours, names_object)


class OfflineModel:
    """Image and text vectors without a model hub: EfficientNet-Lite2, all-MiniLM-L6-v2 and colour shares.

    Smaller and weaker than CLIP: it knows the 1,000 kinds of things of ImageNet, some more from drawings, and
    eleven colours (MODEL_CARD.md says what it cannot see). Implements the `Model` protocol; the weights load
    on first use.

    Raises MissingExtra where a package of the extra `offline` is not installed.
    """

    parallel = True
    """`embed_images` may be called by several threads at once."""
    logit_scale = 20.0
    """For `classify`: what makes the validation photos' own queries likeliest (`training/evaluation.py`)."""

    def __init__(self, device: str = "cpu") -> None:
        require_packages()
        self._device = device
        self._loaded: _Loaded | None = None

    @property
    def dim(self) -> int:
        """Dimension of the vectors: 1,003."""
        return _vectors.DIM

    @property
    def space(self) -> str:
        """Says which vectors may be compared: a digest of the weights' digests and of every constant."""
        facts = {
            "version": VERSION,
            "image_spec": [IMAGE_SPEC.size, IMAGE_SPEC.crop, IMAGE_SPEC.resample, IMAGE_SPEC.pad],
            "pixels": [_towers.PIXEL_MEAN, _towers.PIXEL_SCALE, _towers.CAM_CLASSES],
            "tokens": _towers.TEXT_TOKENS,
            "conse": [_heads.CONSE_TEMPERATURE, _heads.CONSE_CLASSES],
            "head": _heads.FEATURE_LENGTH,
            "looks": [_heads.FOCUS, _heads.NAME_SHARPNESS],
            "colours": _colour.TYPICAL_COLOURS,
            "colour_naming": [_colour.LIGHTNESS_WEIGHT, _colour.NAME_WIDTH, _colour.GRID, _colour.LEVELS],
            "background_share": _colour.BACKGROUND_SHARE,
            "colour_words": _colour_words.RULES,
            "lengths": _vectors.LENGTHS,
        }
        return space_of("offline", ",".join(file.sha256 for file in PINNED_FILES), self.dim, facts)

    @property
    def image_spec(self) -> ImageSpec:
        """Padded to a square with the background, 260 × 260 pixels, bicubic."""
        return IMAGE_SPEC

    def load(self) -> None:
        """Load the weights now rather than on first use (seconds, about 150 MB of memory).

        Raises ModelUnsupported where a weights file is not the one that the model was made for, ModelError
        where a GPU gives other vectors than the CPU.
        """
        self._parts()

    def embed_images(self, pixels: UInt8, /) -> Float32:
        """uint8 (n, 260, 260, 3) RGB -> float32 (n, 1003), rows of unit length, in order."""
        expected = (_towers.IMAGE_SIZE, _towers.IMAGE_SIZE, 3)
        if pixels.dtype != np.uint8 or pixels.shape[1:] != expected:
            raise ValueError(
                f"expected uint8 pixels of shape (n, {', '.join(map(str, expected))}), "
                f"got {pixels.dtype} {pixels.shape}"
            )
        return self._parts().embed_images(pixels)

    def embed_texts(self, texts: Sequence[str], /) -> Float32:
        """m texts -> float32 (m, 1003), rows of unit length, in order.

        Texts of more than 256 tokens are cut there, with one UserWarning for the whole call.
        """
        return self._parts().embed_texts(texts)

    def _parts(self) -> _Loaded:
        if self._loaded is None:
            device = resolve_device(self._device)
            loaded = _Loaded.on(device)
            if device != "cpu":
                _hold_against_cpu(loaded, device)
            self._loaded = loaded
        return self._loaded


def _hold_against_cpu(loaded: _Loaded, device: str) -> None:
    """Raise ModelError with the figures where a device gives other vectors than the CPU."""
    here = _Loaded.on("cpu")
    check = Check.of(_towers.IMAGE_SIZE, here.embed_images, here.embed_texts)
    found = worst([check.of_images(loaded.embed_images), check.of_texts(loaded.embed_texts)])
    figures = found.against(_BOUNDS)
    if not found.within(_BOUNDS):
        raise ModelError(
            f"offline on {device} moves vectors too far from float32 on the CPU: {figures}; device, driver, "
            "torch or a setting of it computes otherwise: take another device"
        )
    logger.info("offline on %s: %s", device, figures)
