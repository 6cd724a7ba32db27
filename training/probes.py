"""Colour probes, a test set: emoji of the vendor that is not trained on, tinted as nothing in training is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from emoji_sources import OBJECTS, drawing
from evaluation import Scorer, look
from features import on_white
from PIL import Image, ImageOps

VENDOR = "twitter"
PAINTS = {"red": "#d01c1c", "yellow": "#f2d21b", "green": "#1f9a3a", "blue": "#2352c8", "purple": "#7a2a9c"}
GROUNDS = ("#ffffff", "#5a8c46", "#78a0c8", "#968c82", "#3c3c3c")


def probes(cache: Path) -> tuple[list[str], list[Image.Image]]:
    """Names of the objects, and five pictures of each, in the order of PAINTS, on a ground of one colour.

    The drawing's grey levels run from black over the paint to white, where training turns hues.
    """
    names: list[str] = []
    pictures: list[Image.Image] = []
    points = [(name, point) for name, codes in OBJECTS.items() for point in codes.split()]
    for number, (name, point) in enumerate(points):
        original = drawing(cache, VENDOR, point)
        if original is not None:
            names.append(name)
            ground = Image.new("RGBA", (120, 120), GROUNDS[number % len(GROUNDS)])
            for paint in PAINTS.values():
                tinted = ImageOps.colorize(
                    ImageOps.autocontrast(original.convert("L")), "black", "white", paint
                )
                picture = ground.copy()
                left, top = ((120 - length) // 2 for length in original.size)
                picture.paste(tinted, (left, top), original.getchannel("A"))
                pictures.append(picture)
    return names, pictures


def probe_hits(scorer: Scorer) -> npt.NDArray[np.bool_]:
    """(objects × 5,): whether "a COLOUR OBJECT" prefers the picture in its colour to the other four."""
    names, pictures = probes(scorer.cache)
    pixels = np.stack([on_white(picture) for picture in pictures])
    images = scorer.images(look(pixels, "probes", scorer.cache)).reshape(len(names), len(PAINTS), -1)
    queries = [f"a {colour} {name}" for name in names for colour in PAINTS]
    texts = scorer.texts(queries).reshape(images.shape)
    best = np.einsum("opd,oqd->oqp", images, texts).argmax(axis=2)
    return (best == np.arange(len(PAINTS))).ravel()
