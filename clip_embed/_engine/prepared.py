"""What a decode thread makes of images, and who makes it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from clip_embed._images.pixels import Stored
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


@dataclass(frozen=True, slots=True)
class Decoded:
    """One decoded image that has yet to be resized."""

    content: bytes
    """As of `Prepared`."""
    image: Stored


T = TypeVar("T")
Prepare: TypeAlias = Callable[[Sequence[object]], "list[Prepared | ImageError]"]
"""Reads and decodes some images: one outcome for each, in order."""

_WAITING_BYTES = 16 * 1024 * 1024  # of decoded images that wait to be resized together


def one_by_one(prepare: Callable[[object], Prepared]) -> Prepare:
    """Return what prepares images one after the other by a function that raises ImageError."""
    return lambda sources: [attempt(prepare, source) for source in sources]


def in_halves(
    decode: Callable[[object], Prepared | Decoded], resize: Callable[[Sequence[Stored]], list[UInt8]]
) -> Prepare:
    """Return what decodes images one after the other and resizes together what is left to be resized."""

    def prepare(sources: Sequence[object]) -> list[Prepared | ImageError]:
        outcomes: dict[int, Prepared | ImageError] = {}
        waiting: dict[int, Decoded] = {}
        room = _WAITING_BYTES
        for place, source in enumerate(sources):
            found = attempt(decode, source)
            if isinstance(found, Decoded):
                waiting[place] = found
                room -= found.image.nbytes
            else:
                outcomes[place] = found
            if waiting and (room <= 0 or place == len(sources) - 1):
                rows = resize([each.image for each in waiting.values()])
                for (at, each), pixels in zip(waiting.items(), rows, strict=True):
                    outcomes[at] = Prepared(each.content, pixels)
                waiting, room = {}, _WAITING_BYTES
        return [outcomes[place] for place in range(len(sources))]

    return prepare


def attempt(work: Callable[[object], T], source: object) -> T | ImageError:
    """Return what is made of an image, or why nothing is."""
    try:
        return work(source)
    except ImageError as error:  # a fresh one: the traceback of this keeps the encoded image alive
        return ImageError(str(error), retryable=error.retryable)


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
