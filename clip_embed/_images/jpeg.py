"""JPEG the fast way: libjpeg-turbo through simplejpeg, and only as large as it is needed.

The codec leaves out the finest coefficients of each 8 × 8 block, so that a photo of 12 megapixels
is decoded to 0.75. Pillow has read the header, and it has the last word: whatever makes
libjpeg-turbo as much as warn goes to Pillow, for the same image or the same failure as without it.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Protocol, cast

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from clip_embed._types import UInt8

# How many times the target a scaled image stays, on each side. At 1 the vectors of real photos
# fall to a cosine of 0.97, at 2 they keep 0.997.
_MARGIN = 2
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # the three are other segments
_PLAIN_FRAMES = (0xC0, 0xC1, 0xC2)
_SCALES = (8, 4, 2)  # those for which libjpeg-turbo has vector code


class _Codec(Protocol):
    def decode_jpeg(
        self,
        data: bytes,
        colorspace: str,
        *,
        min_height: int,
        min_width: int,
        buffer: UInt8 | None,
        strict: bool,
    ) -> UInt8: ...


@cache
def _codec() -> _Codec | None:
    """Return simplejpeg, or None where the extra `fast` is not installed."""
    try:
        return cast("_Codec", import_module("simplejpeg"))
    except ImportError:
        return None


def has_codec() -> bool:
    """Whether the extra `fast` is installed."""
    return _codec() is not None


def is_plain(encoded: bytes, image: Image.Image) -> bool:
    """Whether an opened image is a grey or colour JPEG of 8 bits, baseline or progressive.

    CMYK, lossless and arithmetic coding, 12 bits and strange headers are Pillow's.
    """
    return (
        isinstance(image, JpegImageFile)
        and image.mode in ("L", "RGB")
        and image.bits == 8
        and image.layers == len(image.layer)
        and all(across and down for _, across, down, _ in image.layer)
        and frame_marker(encoded) in _PLAIN_FRAMES
    )


def frame_marker(encoded: bytes) -> int | None:
    """Return the marker of the first frame's header; None where something else comes first."""
    at = 2
    while at + 4 <= len(encoded) and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker in _FRAMES:
            return marker
        at += 1 if marker == 0xFF else 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return None


def _margin(image: Image.Image) -> float:
    """Return how many times the target a scaled image must stay for its coarsest component to keep _MARGIN.

    The codec scales subsampled colour less than the rest, but by the same factor both ways: 4:2:0
    colour becomes as fine as the rest, 4:2:2 stays half as fine across.
    """
    layers: list[tuple[int, int]] = [layer[1:3] for layer in cast("JpegImageFile", image).layer]
    widest, highest = max(across for across, _ in layers), max(down for _, down in layers)
    coarser = [(widest / across, highest / down) for across, down in layers]
    return _MARGIN * max(max(pair) / min(pair) for pair in coarser)


def decode_jpeg(
    encoded: bytes, image: Image.Image, target: tuple[int, int], into: UInt8 | None = None
) -> tuple[Image.Image | UInt8, tuple[float, float]]:
    """Decode the plain JPEG that `image` is the header of, as large as a resize to the target needs.

    Gives an RGB image or uint8 (height, width, 3), and the (width, height) of what the image covers
    of it: the last row and column of a scaled image may lie partly outside. Sizes are (width,
    height), as stored. The array begins where the flat memory `into` does, if it fits there. What Pillow
    raises on a broken file comes through.
    """
    size = image.size
    room = min(side / goal for side, goal in zip(size, target, strict=True)) / _margin(image)
    scale = next((scale for scale in _SCALES if scale <= room), 1)
    extent = (size[0] / scale, size[1] / scale)
    if (pixels := _decode_strictly(encoded, size, scale, into)) is not None:
        return pixels, extent
    if room >= 1:  # at scale 1 it only chooses the quicker upsampling of colour
        image.draft(None, (size[0] // scale, size[1] // scale))
    image.load()
    return image.convert("RGB"), extent


def _decode_strictly(encoded: bytes, size: tuple[int, int], scale: int, into: UInt8 | None) -> UInt8 | None:
    """Return None where simplejpeg is not installed or finds the least fault in the file."""
    codec = _codec()
    if codec is None:
        return None
    width, height = (-(-side // scale) for side in size)
    if into is not None and into.size < 3 * width * height:
        into = None
    try:
        pixels = codec.decode_jpeg(
            encoded, "RGB", min_height=height, min_width=width, buffer=into, strict=True
        )
    except ValueError:
        return None
    return pixels if pixels.shape == (height, width, 3) else None
