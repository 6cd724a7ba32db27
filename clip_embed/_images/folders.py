"""The image files below a folder, known by their names."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_SUFFIXES = frozenset(
    ".avif .bmp .gif .heic .heif .hif .jfif .jp2 .jpe .jpeg .jpg "  # noqa: SIM905 - twenty lines otherwise
    ".pbm .pgm .png .pnm .ppm .qoi .tga .tif .tiff .webp".split()
)


class Found(NamedTuple):
    """A file that is called an image, or a folder that could not be read."""

    name: str
    """POSIX path relative to the folder; a folder's ends with a slash."""
    facts: os.stat_result | None = None
    """None where the system tells nothing, as of a link to a file that is gone."""
    error: OSError | None = None
    """Why a folder could not be read."""


def is_image_name(name: str) -> bool:
    """Whether a file's name, or URL, ends as those of images do."""
    return os.path.splitext(name)[1].lower() in _SUFFIXES  # noqa: PTH122 - a third of the time of Path.suffix


def find_images(root: Path) -> Iterator[Found]:
    """Yield what is called an image below a folder, in the file system's order.

    Links to folders are not followed. Nothing else is passed over: what is broken or forbidden is found
    too, and fails when it is read. Raises OSError where `root` itself cannot be read.
    """
    waiting = [""]
    while waiting:
        inner = waiting.pop()
        try:
            with os.scandir(root / inner) as entries:
                for entry in entries:
                    name = f"{inner}{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(f"{name}/")
                    elif is_image_name(name):
                        facts = _look_at(entry)
                        if facts is None or not stat.S_ISDIR(facts.st_mode):
                            yield Found(name, facts)
        except OSError as error:
            if not inner:
                raise
            yield Found(inner, error=error)


def _look_at(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat()
    except OSError:
        return None
