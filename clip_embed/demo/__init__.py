"""The demo's photos, with one plain description each; SOURCES.md says whose they are.

>>> from clip_embed.demo import photos, captions
>>> [path.name for path in photos()][:2]
"""

from __future__ import annotations

import csv
from pathlib import Path

__all__ = ["captions", "photos"]

_FOLDER = Path(__file__).parent / "photos"


def photos() -> list[Path]:
    """Return the files of the demo's photos, sorted by name."""
    return [_FOLDER / name for name in captions()]


def captions() -> dict[str, str]:
    """Return file name -> description, sorted by name."""
    with (_FOLDER / "captions.csv").open(encoding="utf-8", newline="") as stream:
        return dict(sorted((row["file"], row["caption"]) for row in csv.DictReader(stream)))
