"""The photos that everything is selected on, and the pictures that nothing may be trained on."""

from __future__ import annotations

import io
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from packages import fetch
from PIL import Image

from clip_embed.demo import photos as demo_photos

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("benchmarks", "tools")]
from build_photos import rcc_entries
from offline_quality import captioned

PHOTOS = tomllib.loads(Path(__file__).with_name("validation_photos.toml").read_text(encoding="utf-8"))
GCOMPRIS = "usr/share/gcompris-qt/rcc"


def validation_photos(folder: Path) -> list[tuple[Image.Image, tuple[str, ...]]]:
    """(photo, queries that ask for it), in the order of the file."""
    pairs: list[tuple[Image.Image, tuple[str, ...]]] = []
    for name, queries in PHOTOS["gcompris"].items():
        resource_file, _, path = name.partition("!")
        content = _resources(folder, resource_file)[path]
        pairs.append((Image.open(io.BytesIO(content)).convert("RGBA"), tuple(queries)))
    for name, queries in PHOTOS["scikit-image"].items():
        file = fetch("scikit-image", folder) / "skimage" / "data" / name
        pairs.append((Image.open(file).convert("RGBA"), tuple(queries)))
    return pairs


@cache
def _resources(folder: Path, name: str) -> dict[str, bytes]:
    return rcc_entries((fetch("gcompris", folder) / GCOMPRIS / name).read_bytes())


def stamps(folder: Path) -> list[tuple[Path, str]]:
    """The Tux Paint stamps, a test set: (picture, first line of its description), sorted by path."""
    return captioned(fetch("stamps", folder))


def kept_apart(folder: Path) -> Iterator[Image.Image]:
    """Every test and validation picture: what looks like one of them is not trained on."""
    yield from (picture for picture, _ in validation_photos(folder))
    for path in (*demo_photos(), *(path for path, _ in stamps(folder))):
        yield Image.open(path)
