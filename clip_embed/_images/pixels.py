"""From anything that names an image to the uint8 array that a model takes."""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np
from PIL import Image

from clip_embed._images.jpeg import decode_jpeg, is_plain
from clip_embed._images.resize import FAST_FILTERS, resize
from clip_embed._images.source import checked_array, decode, opened, orientation, to_rgb, upright
from clip_embed._types import ImagePolicy, ImageSpec, UInt8

# Up to this many times the pixels that are kept, an image is resized whole. `resize(box=)` takes
# the two passes in another order from Pillow 13 on, and each clips what overshoots.
_WHOLE_RESIZE = 8
Size = tuple[int, int]  # (width, height)


class Stored(NamedTuple):
    """An RGB image as it is stored, perhaps decoded smaller than it is."""

    picture: Image.Image | UInt8
    extent: tuple[float, float]
    """(width, height) of what the image covers of the picture."""
    size: Size
    """(width, height) of the whole image."""
    turn: int
    """EXIF's orientation."""

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded pixels."""
        picture = self.picture
        return 3 * picture.width * picture.height if isinstance(picture, Image.Image) else picture.nbytes

    def is_long(self, spec: ImageSpec) -> bool:
        """Whether nearly all of the resized image would be cut off."""
        return is_long(_turned(self.size, self.turn), spec)

    def target(self, spec: ImageSpec) -> Size:
        """Return (width, height) after the resize, as stored."""
        return _turned(resized(_turned(self.size, self.turn), spec), self.turn)

    def finish(self, small: UInt8, spec: ImageSpec, background: tuple[int, int, int]) -> UInt8:
        """Turn what was resized to the target upright, and crop or pad it."""
        return finish(_upright_pixels(small, self.turn), spec, background)


def prepare_pixels(
    source: object,
    encoded: bytes | None,
    spec: ImageSpec,
    policy: ImagePolicy,
    *,
    exact: bool = False,
    with_torch: bool = True,
) -> UInt8:
    """Return what a model takes of an image: uint8 (height, width, 3).

    `encoded` is what `read_encoded` gave for `source`. With `exact` the pixels are those of the
    reference, transformers' PIL image processors. Else JPEG is decoded no larger than needed and
    the resize is a faster one, within the bounds that tests/core/test_fast_pixels.py states.
    Without torch the resize stays Pillow's, and torch is not loaded. Raises ImageError for the same
    images with the same reason in each case.
    """
    decoded = decode_for(source, encoded, spec, policy, exact=exact)
    return fit(decoded, spec, policy, with_torch=with_torch)


def decode_for(
    source: object,
    encoded: bytes | None,
    spec: ImageSpec,
    policy: ImagePolicy,
    *,
    exact: bool,
    into: UInt8 | None = None,
) -> Stored | Image.Image:
    """The first half of `prepare_pixels`: the image decoded, upright and whole where it is `exact`.

    `into` is flat memory that the fast codec begins to fill with its pixels where they fit.
    """
    if exact or spec.prepare is not None or spec.resample not in FAST_FILTERS:
        return decode(source, encoded, policy)
    return _decode(source, encoded, spec, policy, into)


def fit(
    decoded: Stored | Image.Image, spec: ImageSpec, policy: ImagePolicy, *, with_torch: bool = True
) -> UInt8:
    """The second half of `prepare_pixels`: the decoded image in the model's size."""
    if isinstance(decoded, Image.Image):
        return to_pixels(decoded, spec, policy.background)
    if decoded.is_long(spec):
        picture = decoded.picture
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        return to_pixels(upright(image, decoded.turn), spec, policy.background)
    target = decoded.target(spec)
    pixels = resize(decoded.picture, decoded.extent, target, spec.resample, with_torch=with_torch)
    return decoded.finish(pixels, spec, policy.background)


def _decode(
    source: object, encoded: bytes | None, spec: ImageSpec, policy: ImagePolicy, into: UInt8 | None
) -> Stored:
    if encoded is None and isinstance(source, np.ndarray):
        array = np.ascontiguousarray(checked_array(cast("UInt8", source), policy))
        size = (array.shape[1], array.shape[0])
        return Stored(array, size, size, 1)
    with opened(source, encoded, policy) as image:
        if encoded is None or not is_plain(encoded, image):
            image.load()
            return Stored(to_rgb(image, policy), image.size, image.size, orientation(image, policy))
        size, turn = image.size, orientation(image, policy)
        whole = _turned(size, turn)
        target = size if is_long(whole, spec) else _turned(resized(whole, spec), turn)
        return Stored(*decode_jpeg(encoded, image, target, into), size, turn)


def _turned(size: Size, turn: int) -> Size:
    """Return a size as stored from a size upright, and the other way round."""
    return size if turn < 5 else (size[1], size[0])


def _upright_pixels(pixels: UInt8, turn: int) -> UInt8:
    """Turn uint8 (height, width, 3) as EXIF's orientation says; a view, no copy."""
    if turn >= 5:
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: -1 if turn in (3, 4, 7, 8) else 1, :: -1 if turn in (2, 3, 6, 7) else 1]


def resized(size: Size, spec: ImageSpec) -> Size:
    """Return (width, height) after the resize of an upright image."""
    if spec.pad:
        height, width = (spec.size, spec.size) if isinstance(spec.size, int) else spec.size
        scale = min(height / size[1], width / size[0])
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    if not isinstance(spec.size, int):
        return spec.size[1], spec.size[0]
    short, long = sorted(size)
    longer = int(spec.size * long / short)
    return (spec.size, longer) if size[0] <= size[1] else (longer, spec.size)


def _kept(target: Size, spec: ImageSpec) -> tuple[int, int, int, int]:
    """Return left, top, width and height of what the crop keeps of the resized image."""
    crop_height, crop_width = spec.crop or (target[1], target[0])
    width, height = min(crop_width, target[0]), min(crop_height, target[1])
    return (target[0] - width) // 2, (target[1] - height) // 2, width, height


def is_long(size: Size, spec: ImageSpec) -> bool:
    """Whether an upright image is so long that nearly all of the resized image would be cut off."""
    if spec.pad:
        return False
    target = resized(size, spec)
    _, _, width, height = _kept(target, spec)
    return target[0] * target[1] > _WHOLE_RESIZE * width * height


def to_pixels(image: Image.Image, spec: ImageSpec, background: tuple[int, int, int]) -> UInt8:
    """Bring an RGB image into the form a model takes: uint8 (height, width, 3).

    Gives the very pixels of transformers' PIL image processors. Of an image longer than 8 times
    its width only the part that is kept is made, so that 1 × 100,000 pixels cost no more memory
    than a square; there, resampling may round, and clip what overshoots, in another order.
    """
    if spec.prepare is not None:
        return spec.prepare(image)
    resample = Image.Resampling[spec.resample.upper()]
    target = resized(image.size, spec)
    if not is_long(image.size, spec):
        return finish(np.asarray(image.resize(target, resample)), spec, background)
    left, top, width, height = _kept(target, spec)
    x, y = image.width / target[0], image.height / target[1]
    right, bottom = min((left + width) * x, image.width), min((top + height) * y, image.height)
    part = image.resize((width, height), resample, box=(left * x, top * y, right, bottom))
    return _centred_on_zeros(np.asarray(part), spec)


def finish(resized: UInt8, spec: ImageSpec, background: tuple[int, int, int]) -> UInt8:
    """Crop or pad a resized image, uint8 (height, width, 3)."""
    if spec.pad:
        height, width = (spec.size, spec.size) if isinstance(spec.size, int) else spec.size
        canvas = np.empty((height, width, 3), np.uint8)
        canvas[:] = background
        top, left = (height - resized.shape[0]) // 2, (width - resized.shape[1]) // 2
        canvas[top : top + resized.shape[0], left : left + resized.shape[1]] = resized
        return canvas
    left, top, width, height = _kept((resized.shape[1], resized.shape[0]), spec)
    return _centred_on_zeros(resized[top : top + height, left : left + width], spec)


def _centred_on_zeros(kept: UInt8, spec: ImageSpec) -> UInt8:
    """Put what is smaller than the crop on zeros, where transformers puts it."""
    height, width = kept.shape[:2]
    if spec.crop is None or (height, width) == spec.crop:
        return kept
    pixels = np.zeros((*spec.crop, 3), np.uint8)
    top, left = -((height - spec.crop[0]) // 2), -((width - spec.crop[1]) // 2)
    pixels[top : top + height, left : left + width] = kept
    return pixels
