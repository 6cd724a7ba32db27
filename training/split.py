"""Which drawings are trained on: fixed by what the files look like, before anything is trained."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from drawings import Drawing
from PIL import Image

NEAR = 3
"""Bits of 64 by which the hashes of two copies of a picture may differ."""
VALIDATION_SHARE = 20
"""One group of this many is kept for validation."""
TRAIN, VALIDATION, DROPPED = 0, 1, 2


def perceptual_hash(picture: Image.Image) -> int:
    """64 bits: whether each of 8 × 8 cells is darker than the one to its right, over white."""
    picture = picture.convert("RGBA")
    flat = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    flat.alpha_composite(picture)
    cells = np.asarray(flat.convert("L").resize((9, 8), Image.Resampling.BOX)).astype(int)
    return int.from_bytes(np.packbits(cells[:, :-1] < cells[:, 1:]).tobytes(), "big")


def split(
    drawings: Sequence[Drawing], hashes: Sequence[int], kept_apart: Sequence[int]
) -> npt.NDArray[np.int64]:
    """(n,): TRAIN, VALIDATION or DROPPED for each drawing with its perceptual hash.

    Dropped are look-alikes of the pictures in `kept_apart`, the hashes of every test and validation picture.
    Look-alikes of one another and drawings of one thing by two vendors fall on the same side.
    """
    codes = np.array(hashes, dtype=np.uint64)
    group = np.arange(len(codes))
    first: dict[str, int] = {}
    for number, (drawing, code) in enumerate(zip(drawings, codes, strict=True)):
        alike = np.flatnonzero(_distance(codes[:number], code) <= NEAR)
        partners = [*alike, first.setdefault(drawing.concept, number)]
        lowest = min(int(group[partner]) for partner in partners)
        for partner in {int(group[partner]) for partner in partners}:
            group[group == partner] = lowest
        group[number] = lowest
    names = np.array([f"{drawing.source}/{drawing.name}" for drawing in drawings])
    sides = np.array([_side(min(names[group == leader].tolist())) for leader in group])
    apart = np.array(kept_apart, dtype=np.uint64)
    for number, code in enumerate(codes):
        if np.any(_distance(apart, code) <= NEAR):
            sides[number] = DROPPED
    return sides


def _distance(codes: npt.NDArray[np.uint64], code: np.uint64) -> npt.NDArray[np.uint8]:
    return np.bitwise_count(codes ^ code)


def _side(name: str) -> int:
    return VALIDATION if zlib.crc32(name.encode()) % VALIDATION_SHARE == 0 else TRAIN
