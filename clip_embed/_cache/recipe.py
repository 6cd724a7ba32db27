"""How a vector was made, beside the space, which says what it may be compared with.

A recipe never forbids a comparison. It decides which cached vector may stand for a fresh one: one
that is as faithful to the reference, or more. Two things differ in that, each in one order:

- precision: fp32, fp16, bf16, int8, after the bits that a rounding keeps (24, 11, 8, 7);
- pixels: those of the reference, then the fast ones.

"exact" is fp32 with the reference's pixels, so its vectors serve everybody; "fp32" with fast pixels
serves bf16, and never "exact". Neither of bf16 with the reference's pixels and fp32 with fast ones
serves the other. EXIF and background make another picture, so there they must be equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, TypeVar

from clip_embed._images.resize import FAST_FILTERS
from clip_embed._models.precision import FULL
from clip_embed._types import ImagePolicy, ImageSpec

T = TypeVar("T")
Pixels = Literal["reference", "fast"]
_PRECISIONS = ("fp32", "fp16", "bf16", "int8")
_PIXELS: tuple[Pixels, ...] = ("reference", "fast")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How image vectors of one space are made; `str` gives it in one line, to be kept beside them."""

    precision: str
    """What the forward pass computes in: "fp32", "fp16", "bf16", "int8", or an own model's word."""
    pixels: Pixels
    """"fast" is scaled decoding and the faster resize. The codecs and resizers that do it differ less
    from each other than the bounds that tests/core/test_fast_pixels.py sets, so they are not told apart."""
    exif: bool
    background: tuple[int, int, int]
    storage: str = "float32"

    @classmethod
    def of(cls, precision: str, spec: ImageSpec, policy: ImagePolicy) -> Recipe:
        """Return the recipe of a resolved precision, "exact" among them."""
        slow = precision == "exact" or spec.prepare is not None or spec.resample not in FAST_FILTERS
        return cls(
            "fp32" if precision in FULL else precision,
            "reference" if slow else "fast",
            policy.exif,
            policy.background,
        )

    def __str__(self) -> str:
        colour = "".join(f"{channel:02x}" for channel in self.background)
        return (
            f"precision={self.precision} pixels={self.pixels} exif={'on' if self.exif else 'off'} "
            f"background=#{colour} storage={self.storage}"
        )

    def image_sources(self) -> tuple[str, ...]:
        """Return the recipes whose image vectors may stand for one of this recipe, itself first."""
        pairs = product(_from(self.precision, _PRECISIONS), _from(self.pixels, _PIXELS))
        return tuple(f"image {replace(self, precision=bits, pixels=pixels)}" for bits, pixels in pairs)

    def text_sources(self) -> tuple[str, ...]:
        """Return the same for the vectors of texts, which have no pixels."""
        bits = _from(self.precision, _PRECISIONS)
        return tuple(f"text precision={each} storage={self.storage}" for each in bits)


def _from(name: T, order: Sequence[T]) -> Sequence[T]:
    """Return a name and all that are more faithful, nearest first; an unknown name stands for itself."""
    return order[order.index(name) :: -1] if name in order else (name,)
