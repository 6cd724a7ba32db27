"""What a decode thread makes of images, and who makes it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from clip_embed._types import Float32, UInt8
from clip_embed.errors import ImageError


@dataclass(frozen=True, slots=True)
class Prepared:
    """One decoded image: its pixels, or the vector (d,) where it is known already."""

    content: bytes
    """Digest of what the vector depends on."""
    pixels: UInt8 | None
    vector: Float32 | None = None

    @property
    def size(self) -> int:
        """Bytes that it holds until it is embedded."""
        return 0 if self.pixels is None else self.pixels.nbytes


Prepare: TypeAlias = Callable[[Sequence[object]], "list[Prepared | ImageError]"]
"""Reads and decodes some images: one outcome for each, in order."""


def one_by_one(prepare: Callable[[object], Prepared]) -> Prepare:
    """Return what prepares images one after the other by a function that raises ImageError."""

    def outcome(source: object) -> Prepared | ImageError:
        try:
            return prepare(source)
        except ImageError as error:  # a fresh one: the traceback of this keeps the encoded image alive
            return ImageError(str(error), retryable=error.retryable)

    return lambda sources: [outcome(source) for source in sources]


def beside(cores: int, on_cores: Prepare, elsewhere: Prepare) -> Prepare:
    """Return what prepares on so many cores at once, and elsewhere what comes while all of them are busy."""
    free = threading.Semaphore(cores)

    def prepare(sources: Sequence[object]) -> list[Prepared | ImageError]:
        if not free.acquire(blocking=False):
            return elsewhere(sources)
        try:
            return on_cores(sources)
        finally:
            free.release()

    return prepare
