"""How far the vectors of another way are from those of float32, and what this is tried on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from clip_embed._types import Float32, UInt8
from clip_embed._vectors import unit_rows

EmbedImages = Callable[[UInt8], Float32]
EmbedTexts = Callable[[Sequence[str]], Float32]

_CHECK_IMAGES = 8
_TEXTS = (
    "a red car", "two dogs on a beach", "the skyline of a city at night", "a bowl of soup", "x",
    "a black and white photo of an old woman", "trees", "a blue door in a white wall",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a way of computing must hold to be used."""

    cosine: float
    centred: float
    company: float


LOW = Bounds(cosine=0.995, centred=0.98, company=5e-3)
"""What a device must hold in half the bits."""
FULL = Bounds(cosine=0.9999, centred=0.999, company=1e-4)
"""What it must hold in float32."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How far vectors are from those of float32, over one set of images or texts."""

    cosine: float
    """The smallest cosine."""
    centred: float
    """The smallest cosine after the mean of the float32 vectors is taken away from both."""
    company: float
    """The largest change of a component between an image alone and in a batch."""

    def within(self, bounds: Bounds) -> bool:
        """Whether all three bounds are held; a NaN holds none."""
        return (
            self.cosine >= bounds.cosine and self.centred >= bounds.centred and self.company <= bounds.company
        )

    def against(self, bounds: Bounds) -> str:
        """Return the figures beside their bounds, for a message."""
        return (
            f"smallest cosine {self.cosine:.4f} (at least {bounds.cosine}), after subtracting the mean "
            f"{self.centred:.4f} (at least {bounds.centred}), change with the batch {self.company:.1e} "
            f"(at most {bounds.company})"
        )


def compare(expected: Float32, found: Float32, first: Float32) -> Fidelity:
    """Hold rows (n, d), of any length, against those of float32; `first` (1, d) is row 0 computed alone."""
    right, rows, alone = (unit_rows(np.asarray(each, np.float32)) for each in (expected, found, first))
    mean = right.mean(axis=0)
    return Fidelity(
        cosine=_smallest_cosine(right, rows),
        centred=_smallest_cosine(right - mean, rows - mean),
        company=float(np.abs(rows[:1] - alone).max()),
    )


def worst(found: Iterable[Fidelity]) -> Fidelity:
    """Return the one of the smallest centred cosine; NaN before all."""
    return min(found, key=lambda each: (-np.inf if np.isnan(each.centred) else each.centred, -each.company))


@dataclass(frozen=True, slots=True)
class Check:
    """Fixed images and texts, and their vectors in float32 on the CPU."""

    pixels: UInt8
    images: Float32
    texts: Float32

    @classmethod
    def of(cls, edge: int, embed_images: EmbedImages, embed_texts: EmbedTexts) -> Check:
        """Embed them on the CPU; `edge` is the side of the images."""
        pixels = photo_like((edge, edge))
        return cls(pixels, embed_images(pixels), embed_texts(_TEXTS))

    def of_images(self, embed: EmbedImages) -> Fidelity:
        """Embed the images three times, so that a recording is made and replayed; the worst counts."""
        alone = embed(self.pixels[:1])
        return worst(compare(self.images, embed(self.pixels), alone) for _ in range(3))

    def of_texts(self, embed: EmbedTexts) -> Fidelity:
        """The same for the texts, once."""
        return compare(self.texts, embed(_TEXTS), embed(_TEXTS[:1]))


def _smallest_cosine(left: Float32, right: Float32) -> float:
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(((left * right).sum(axis=1) / np.maximum(lengths, 1e-12)).min())


def photo_like(size: tuple[int, int], count: int = _CHECK_IMAGES) -> UInt8:
    """Return the fixed images of the check: uint8 (count, *size, 3), light, shapes, texture and grain."""
    rng = np.random.default_rng(20)
    y, x = (np.linspace(0, 1, edge, dtype=np.float32) for edge in size)
    y, x = y[:, None, None], x[None, :, None]
    images: list[UInt8] = []
    for _ in range(count):
        tilt, waves, base = rng.uniform(-90, 90, (2, 3)), rng.uniform(2, 40, (2, 3)), rng.uniform(60, 200, 3)
        image = base + tilt[0] * x + tilt[1] * y
        image = image + rng.uniform(5, 40) * np.sin(waves[0] * 6.28 * x) * np.cos(waves[1] * 6.28 * y)
        for _ in range(8):
            (cx, cy), (w, h) = rng.uniform(0, 1, 2), rng.uniform(0.05, 0.3, 2)
            colour = rng.uniform(0, 255, 3)
            image = np.where(((x - cx) / w) ** 2 + ((y - cy) / h) ** 2 < 1, colour, image)
        image = image + rng.normal(0, rng.uniform(1, 12), image.shape)
        images.append(np.clip(image, 0, 255).astype(np.uint8))
    return np.stack(images)
