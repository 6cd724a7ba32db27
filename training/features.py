"""What the frozen image tower gives for every view of every drawing: computed once, kept in the cache folder.

A drawing has a view as it is on white and a staged one: mirrored, turned, tinted, at some place and
size on a plain, drawn or textured ground. Of a flag there is only the first, of Fluent's emoji, most of which
repeat Noto's, only one of the two. The random choices hang on the drawing's name only.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from drawings import Drawing
from emoji_sources import TEXTURES, photos
from PIL import Image, ImageFilter
from recoloured_renders import GROUNDS, SIDE, composed, ground

from clip_embed._types import Float32, UInt8
from clip_embed.offline._packages import IMAGE_WEIGHTS
from clip_embed.offline._towers import ImageTower

CHUNK = 240
BATCH = 12
VERSION = 1
"""Raise it when views are made otherwise: the features in the cache are then made anew."""


@dataclass(frozen=True, slots=True)
class Features:
    """Features of n views, in the order of the drawings; float16, as they are stored."""

    drawing: npt.NDArray[np.int64]
    """(n,): number of the drawing."""
    view: npt.NDArray[np.int64]
    """(n,): 0 for the drawing as it is, else staged."""
    features: npt.NDArray[np.float16]
    """(n, 1280): mean of the last feature map."""
    focused: npt.NDArray[np.float16]
    """(n, 1280): mean weighted by the class activation map."""


def views_of(drawing: Drawing, textures: list[Image.Image]) -> dict[int, UInt8]:
    """Number of the view, 0 for the drawing as it is -> uint8 (260, 260, 3)."""
    random = np.random.default_rng([zlib.crc32(f"{drawing.source}/{drawing.name}".encode()), 1])
    original, flag = drawing.open(), drawing.texts[0].startswith("flag")
    wanted = {0} if flag else {int(random.integers(2))} if drawing.source == "fluent" else {0, 1}
    views: dict[int, UInt8] = {}
    if 0 in wanted:
        views[0] = on_white(original)
    if 1 in wanted:
        kind = GROUNDS[random.integers(len(GROUNDS))]
        views[1] = composed([_varied(original, random)], ground(kind, textures, random), random)[0]
    return views


def on_white(picture: Image.Image) -> UInt8:
    """uint8 (260, 260, 3): laid over white, padded to a square with white, resized bicubically."""
    picture, side = picture.convert("RGBA"), max(picture.size)
    square = Image.new("RGBA", (side, side), (255, 255, 255, 255))
    square.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.asarray(square.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def _varied(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    if random.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if random.random() < 0.5:
        alpha = picture.getchannel("A")
        hue, *others = picture.convert("RGB").convert("HSV").split()
        turn = int(random.integers(256))
        turned = hue.point([(level + turn) % 256 for level in range(256)])
        picture = Image.merge("HSV", (turned, *others)).convert("RGB")
        picture.putalpha(alpha)
    if random.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(max(picture.size) / 200))
    return picture.rotate(random.uniform(-20, 20), Image.Resampling.BICUBIC, expand=True)


def see(tower: ImageTower, pixels: UInt8) -> tuple[Float32, Float32]:
    """uint8 (n, 260, 260, 3) -> features and focused features, (n, 1280) each."""
    seen = [tower(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)]
    return np.concatenate([part.features for part in seen]), np.concatenate([part.focused for part in seen])


def extract(drawings: Sequence[Drawing], cache: Path, workers: int = 2) -> Features:
    """The features of all views, from the cache where they are there; else by `workers` processes."""
    folder = cache / "features"
    folder.mkdir(parents=True, exist_ok=True)
    starts = list(range(0, len(drawings), CHUNK))
    chunks = [drawings[start : start + CHUNK] for start in starts]
    files = [folder / f"{_digest(chunk)}.npz" for chunk in chunks]
    todo = [(chunk, cache, file) for chunk, file in zip(chunks, files, strict=True) if not file.exists()]
    if todo:
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            for number, _ in enumerate(pool.map(_extract_chunk, todo), start=1):
                print(f"features: {number} of {len(todo)} chunks", flush=True)
    parts = [np.load(file) for file in files]
    numbers = [part["drawing"] + start for part, start in zip(parts, starts, strict=True)]
    columns = [np.concatenate([part[name] for part in parts]) for name in ("view", "features", "focused")]
    return Features(np.concatenate(numbers), *columns)


def _digest(chunk: Sequence[Drawing]) -> str:
    names = "\n".join(f"{drawing.source}/{drawing.name}" for drawing in chunk)
    return hashlib.sha256(f"{VERSION} {IMAGE_WEIGHTS.sha256}\n{names}".encode()).hexdigest()[:16]


def _extract_chunk(work: tuple[Sequence[Drawing], Path, Path]) -> None:
    drawings, cache, file = work
    torch.set_num_threads(1)
    tower, textures = ImageTower("cpu"), photos(cache, TEXTURES)
    views = [views_of(drawing, textures) for drawing in drawings]
    features, focused = see(tower, np.stack([pixels for seen in views for pixels in seen.values()]))
    scratch = file.with_suffix(".part.npz")
    np.savez(
        scratch,
        drawing=np.repeat(np.arange(len(views)), [len(view) for view in views]),
        view=np.array([number for seen in views for number in seen]),
        features=features.astype(np.float16),
        focused=focused.astype(np.float16),
    )
    scratch.rename(file)
