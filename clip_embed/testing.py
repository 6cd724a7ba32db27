"""A model without weights, to test your own code with.

>>> from clip_embed import ClipEmbedder
>>> from clip_embed.testing import FakeModel
>>> clip = ClipEmbedder(FakeModel())
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from PIL import ImageColor

from clip_embed._types import Float32, ImageSpec, UInt8

__all__ = ["FakeModel"]

_DETAIL = 0.05  # how much of a vector is not colour


class FakeModel:
    """A deterministic `Model` that knows colours: the text "red" is nearest to red images.

    The first three dimensions are the mean colour; the others tell apart images of one colour,
    and texts. A text that names a colour ("red", "#00ff00", any name that Pillow knows, also
    inside a sentence) gets that colour, any other text none. `dim` is at least 4, images are
    `size` × `size` pixels. `calls` records the number of rows of each call, images then texts.
    """

    def __init__(self, dim: int = 16, size: int = 32) -> None:
        self.dim = dim
        self.image_spec = ImageSpec(size, crop=(size, size))
        self.space = f"fake:{dim}:{size}"
        self.calls: tuple[list[int], list[int]] = ([], [])
        noise = np.random.default_rng(0)
        self._projection = noise.standard_normal((size * size * 3, dim - 3)).astype(np.float32)

    def embed_images(self, pixels: UInt8, /) -> Float32:
        """uint8 (n, size, size, 3) -> float32 (n, dim), in order."""
        self.calls[0].append(len(pixels))
        values = pixels.reshape(len(pixels), -1, 3).astype(np.float32) / 255 - 0.5
        colour = values.mean(axis=1)
        flat = values.reshape(len(values), -1)
        detail = np.stack([row @ self._projection for row in flat]) / flat.shape[1] ** 0.5
        return np.concatenate([colour, _DETAIL * detail], axis=1)

    def embed_texts(self, texts: Sequence[str], /) -> Float32:
        """m texts -> float32 (m, dim), in order."""
        self.calls[1].append(len(texts))
        return np.stack([self._embed_text(text) for text in texts])

    def _embed_text(self, text: str) -> Float32:
        seed = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "little")
        detail = np.random.default_rng(seed).standard_normal(self.dim - 3)
        return np.concatenate([_colour(text), _DETAIL * detail]).astype(np.float32)


def _colour(text: str) -> Float32:
    """Return the first colour that a text names, RGB from -0.5 to 0.5; zeros if it names none."""
    for word in text.lower().split():
        try:
            return np.asarray(ImageColor.getrgb(word)[:3], np.float32) / np.float32(255) - np.float32(0.5)
        except ValueError:
            continue
    return np.zeros(3, np.float32)
