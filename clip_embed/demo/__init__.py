"""The demo's photos, with one plain description and a few tags each; SOURCES.md says whose they are.

>>> from clip_embed.demo import captions, photos, tags
>>> [path.name for path in photos()][:2]
"""

from __future__ import annotations

import csv
from pathlib import Path

__all__ = ["captions", "photos", "tags"]

_FOLDER = Path(__file__).parent / "photos"


def photos() -> list[Path]:
    """Return the files of the demo's photos, sorted by name."""
    return [_FOLDER / name for name in captions()]


def captions() -> dict[str, str]:
    """Return file name -> description, sorted by name."""
    return _column("caption")


def tags() -> dict[str, list[str]]:
    """Return file name -> what the photo shows, the main thing first ("car", "red"), sorted by name."""
    return {name: words.split() for name, words in _column("tags").items()}


def _column(name: str) -> dict[str, str]:
    with (_FOLDER / "captions.csv").open(encoding="utf-8", newline="") as stream:
        return dict(sorted((row["file"], row[name]) for row in csv.DictReader(stream)))
