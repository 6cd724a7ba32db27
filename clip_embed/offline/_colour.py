"""The colours of what an image shows: shares of eleven colour terms, by arithmetic on the pixels.

A pixel is named by the nearest of a few typical colours of each term, in OKLab with lightness counting
half. The pixels count by the class activation map, so that the object's colour is seen and not that of
the road, and a part of what lies outside the activation is taken off.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from clip_embed._types import Float32, UInt8
from clip_embed._vectors import unit_rows
from clip_embed.offline._colour_words import COLOUR_TERMS

TYPICAL_COLOURS: dict[str, str] = {
    "red": "c8141e 96101a e63c32 6e0a12",
    "orange": "ff8200 e66e1e ffa53c",
    "yellow": "ffe100 f0c828 fff082 c8aa14",
    "green": "009628 3cb43c 78c850 1e5a28 96c896 5a6e28 00aa78 b4e632 c8e6a0",
    "blue": "143cc8 3c82dc 82bef0 141e64 00a0c8 648caa",
    "purple": "6e1e96 965ac8 be96dc 501450 8c4682",
    "pink": "ff82b4 fab4c8 e6328c dc788c",
    "brown": "6e3c19 965f37 4b2d19 b48c5f 8b3a0a",
    "black": "0a0a0a 232326",
    "white": "ffffff ebebee",
    "gray": "808080 aaaaaa 5a5a5a 464646",
}
"""sRGB, hexadecimal. Of the XKCD survey's 558 names that end in a basic term, 87 % are named the same."""
LIGHTNESS_WEIGHT = 0.5
NAME_WIDTH = 0.03
"""Distance in OKLab over which a pixel changes its name; between two terms it counts for both."""
GRID = 65
"""Height and width to which image and activation map are brought."""
BACKGROUND_SHARE = 0.3
TINY = 1e-6
"""Added to each pixel's weight, so that an image without any activation is seen as a whole."""
LEVELS = 32
"""Levels per channel of the table that names colours."""


def colour_parts(pixels: UInt8, activation: Float32, background_share: float = BACKGROUND_SHARE) -> Float32:
    """The colour part of n images: float32 (n, 11), rows of unit length, none below 0, order COLOUR_TERMS.

    `pixels`: uint8 (n, 260, 260, 3) RGB; `activation`: float32 (n, h, w), from 0 to 1.
    """
    pairs = zip(pixels, activation, strict=True)
    return np.stack([_colour_part(image, seen, background_share) for image, seen in pairs])


def _colour_part(image: UInt8, activation: Float32, background_share: float) -> Float32:
    step = image.shape[0] // GRID
    small = image.reshape(GRID, step, GRID, step, 3).mean(axis=(1, 3)).astype(np.intp) * LEVELS // 256
    names = naming_table()[small[..., 0], small[..., 1], small[..., 2]]
    seen = _enlarge(activation)
    weights = seen**2 + TINY, (1 - seen) ** 2 + TINY
    inside, outside = (np.einsum("hw,hwc->c", each, names) / each.sum() for each in weights)
    shares = np.clip(inside - background_share * outside, 0, None)
    part: Float32 = unit_rows(shares[None])[0]
    return part


def _enlarge(activation: Float32) -> npt.NDArray[np.float64]:
    """(h, w) -> (GRID, GRID), bilinear, the cells' centres kept in place."""
    rows, columns = (_interpolation(size) for size in activation.shape)
    wide = np.einsum("ih,hw->iw", rows, activation)  # not by BLAS: see _products.py
    enlarged: npt.NDArray[np.float64] = np.einsum("iw,jw->ij", wide, columns)
    return enlarged


@cache
def _interpolation(size: int) -> npt.NDArray[np.float64]:
    """(GRID, size): the weights of linear interpolation from `size` cells to GRID."""
    centres = np.clip((np.arange(GRID) + 0.5) * size / GRID - 0.5, 0, size - 1)
    weights: npt.NDArray[np.float64] = np.clip(1 - np.abs(centres[:, None] - np.arange(size)), 0, None)
    return weights


@cache
def naming_table() -> Float32:
    """float32 (32, 32, 32, 11): how much an RGB colour (8 levels to a cell) is each term; sums to 1."""
    level = (np.arange(LEVELS) + 0.5) * 256 / LEVELS
    cells = np.stack(np.meshgrid(level, level, level, indexing="ij"), axis=-1)
    return name_colours(cells)


def name_colours(rgb: npt.NDArray[np.floating]) -> Float32:
    """(…, 3) sRGB from 0 to 255 -> float32 (…, 11): how much each colour is each term; sums to 1."""
    scale = np.array([LIGHTNESS_WEIGHT, 1, 1])
    lab = oklab(rgb) * scale
    distances = np.stack([_nearest(lab, oklab(_typical(term)) * scale) for term in COLOUR_TERMS], axis=-1)
    closeness = np.exp((distances.min(axis=-1, keepdims=True) - distances) / (2 * NAME_WIDTH**2))
    shares: Float32 = (closeness / closeness.sum(axis=-1, keepdims=True)).astype(np.float32)
    return shares


def _nearest(lab: npt.NDArray[np.float64], typical: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(…): squared distance to the nearest of the typical colours."""
    distances: npt.NDArray[np.float64] = ((lab[..., None, :] - typical) ** 2).sum(axis=-1).min(axis=-1)
    return distances


def _typical(term: str) -> npt.NDArray[np.float64]:
    return np.array([list(bytes.fromhex(code)) for code in TYPICAL_COLOURS[term].split()], dtype=np.float64)


def oklab(rgb: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """(…, 3) sRGB from 0 to 255 -> (…, 3) lightness, green-red, blue-yellow (Ottosson 2020)."""
    encoded = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    lab: npt.NDArray[np.float64] = np.cbrt(linear @ RGB_TO_LMS.T) @ LMS_TO_LAB.T
    return lab


RGB_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
LMS_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
