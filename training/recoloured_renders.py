"""Pictures for choosing the colour part: emoji objects in eleven colours on plain and photo-like grounds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from emoji_sources import OBJECTS, OTHERS, VENDORS, drawing, photos, reference_colours
from PIL import Image, ImageFilter

from clip_embed.offline._colour import LMS_TO_LAB, RGB_TO_LMS, oklab
from clip_embed.offline._colour_words import COLOUR_TERMS

SIDE = 260
GROUNDS = ("plain", "scene", "photo")
"""One colour; a drawn sky over a grainy floor; a blurred piece of a photo."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Pictures that share their ground and place: the recolours of one emoji, or one emoji as it is."""

    vendor: str
    name: str
    """The object, or "" for the pictures that are mixed in."""
    colours: tuple[int, ...]
    """Index in COLOUR_TERMS of each picture, -1 where it was not recoloured."""
    pixels: npt.NDArray[np.uint8]
    """(len(colours), 260, 260, 3) RGB."""


def scenes(folder: Path, seed: int = 0) -> Iterator[Scene]:
    """Every recolourable object of every vendor on each ground, then the others; the same for equal seeds."""
    random = np.random.default_rng(seed)
    reference, samples = reference_colours(folder), photos(folder)
    for vendor in VENDORS:
        for name, point in _object_points():
            for variants in _recolours(drawing(folder, vendor, point), reference, random):
                for kind in GROUNDS:
                    pixels = composed(variants, ground(kind, samples, random), random)
                    yield Scene(vendor, name, tuple(range(len(COLOUR_TERMS))), pixels)
        for number in sorted(set(OTHERS) - {int(point, 16) for _, point in _object_points()}):
            other = drawing(folder, vendor, f"{number:x}")
            if other is not None:
                backdrop = ground(GROUNDS[random.integers(len(GROUNDS))], samples, random)
                yield Scene(vendor, "", (-1,), composed([other], backdrop, random))


def _object_points() -> list[tuple[str, str]]:
    return [(name, point) for name, points in OBJECTS.items() for point in points.split()]


def _recolours(
    original: Image.Image | None, reference: dict[str, npt.NDArray[np.uint8]], random: np.random.Generator
) -> Iterator[list[Image.Image]]:
    """The original in each of the colour terms, once; nothing where it cannot be recoloured."""
    area = None if original is None else _main_area(original)
    if original is not None and area is not None:
        yield [_recoloured(original, area, reference[term], random) for term in COLOUR_TERMS]


def _main_area(original: Image.Image) -> npt.NDArray[np.bool_] | None:
    """(height, width): the pixels of the main hue; None where it has none worth recolouring."""
    opaque = np.asarray(original)[..., 3] > 100
    hue, saturation, value = (
        np.asarray(band).astype(int) for band in original.convert("RGB").convert("HSV").split()
    )
    vivid = opaque & (saturation > 70) & (value > 60)
    counts = np.bincount(hue[vivid], minlength=256)
    main_hue = np.argmax([np.roll(counts, 12 - h)[:25].sum() for h in range(256)])
    area = vivid & (np.abs((hue - main_hue + 128) % 256 - 128) < 20)
    return area if area.sum() > 0.2 * opaque.sum() else None


def _recoloured(
    original: Image.Image,
    area: npt.NDArray[np.bool_],
    reference: npt.NDArray[np.uint8],
    random: np.random.Generator,
) -> Image.Image:
    """The original with the area in one of the reference colours (k, 3), its shading kept."""
    pixels = np.array(original)
    target = oklab(reference[random.integers(len(reference))])
    lightness = oklab(pixels[..., :3])[..., 0][area]
    shaded = np.clip(target[0] + 0.6 * (lightness - np.median(lightness)), 0.02, 1)
    pixels[..., :3][area] = _from_oklab(np.column_stack([shaded, np.tile(target[1:], (len(shaded), 1))]))
    return Image.fromarray(pixels)


def _from_oklab(lab: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Inverse of `oklab`: (k, 3) -> sRGB (k, 3), colours outside sRGB clipped."""
    linear = np.clip((lab @ np.linalg.inv(LMS_TO_LAB).T) ** 3 @ np.linalg.inv(RGB_TO_LMS).T, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    rgb: npt.NDArray[np.uint8] = np.rint(encoded * 255).astype(np.uint8)
    return rgb


def composed(
    drawings: list[Image.Image], backdrop: Image.Image, random: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """The drawings, all at one random place and size, each on the ground: (k, 260, 260, 3)."""
    size = np.array(drawings[0].size) * SIDE * random.uniform(0.45, 0.9) / max(drawings[0].size)
    width, height = (max(1, int(length)) for length in size)
    place = int(random.integers(SIDE - width + 1)), int(random.integers(SIDE - height + 1))
    pictures: list[npt.NDArray[np.uint8]] = []
    for original in drawings:
        picture = backdrop.convert("RGBA")
        picture.alpha_composite(original.resize((width, height), Image.Resampling.BICUBIC), place)
        pictures.append(np.asarray(picture.convert("RGB")))
    return np.stack(pictures)


def ground(kind: str, photos: list[Image.Image], random: np.random.Generator) -> Image.Image:
    """A background: one colour, a drawn sky over a grainy floor, or a blurred piece of a photo."""
    if kind == "plain":
        tone = (
            (255, 255, 255) if random.random() < 0.5 else tuple(int(x) for x in random.integers(120, 245, 3))
        )
        return Image.new("RGB", (SIDE, SIDE), tone)
    if kind == "photo":
        photo = photos[random.integers(len(photos))]
        side = int(min(photo.size) * random.uniform(0.4, 0.9))
        left, top = (int(random.integers(length - side + 1)) for length in photo.size)
        piece = photo.crop((left, top, left + side, top + side)).resize((SIDE, SIDE))
        return piece.filter(ImageFilter.GaussianBlur(3))
    sky = np.array([random.integers(90, 190), random.integers(150, 215), random.integers(200, 255)])
    floor = np.array([(70, 110, 50), (120, 120, 120), (180, 160, 120), (90, 70, 55)][random.integers(4)])
    height = np.linspace(0, 1, SIDE)[:, None, None]
    drawn = np.where(
        height < random.uniform(0.35, 0.7), sky + 0.4 * (255 - sky) * height, floor * (0.8 + 0.4 * height)
    )
    grain = random.normal(0, 14, (SIDE, SIDE, 1))
    return Image.fromarray(np.clip(drawn + grain, 0, 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(1)
    )
