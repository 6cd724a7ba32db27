"""TIFF, and EXIF blocks, which are TIFFs without pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from clip_embed._images.hazards._limits import check_size
from clip_embed._types import ImagePolicy
from clip_embed.errors import ImageError

_MAX_PIECES = 250_000  # strips or tiles
_MAX_NAMED_BYTES = 64 * 1024 * 1024  # by all tags, beyond the block's own size
# Bytes of a value of each type.
_SIZES = {
    **dict.fromkeys((1, 2, 6, 7), 1),
    **dict.fromkeys((3, 8), 2),
    **dict.fromkeys((4, 9, 11, 13), 4),
    **dict.fromkeys((5, 10, 12, 16, 17, 18), 8),
}
_WHOLE_NUMBERS = (1, 3, 4, 16)
_PIECES = (273, 279, 324, 325)  # offsets and lengths of strips and of tiles
_TILE_WIDTH, _TILE_LENGTH = 322, 323


class _Tag(NamedTuple):
    tag: int
    kind: int
    values: int
    """How many it has."""
    at: int
    """Where its values stand."""
    size: int
    """Bytes that all its values take."""


def check_tags(block: bytes) -> None:
    """Raise ImageError where the tags name far more bytes than there are.

    Several may name the same ones, and each gets a copy: 2 MB of tags can ask for 100 GB.
    """
    named = sum(min(tag.size, max(0, len(block) - tag.at)) for tag in _tags(block))
    if named > _MAX_NAMED_BYTES + len(block):
        raise ImageError(f"its tags name {named:,} bytes of a block that has {len(block):,}")


def check_tiff(encoded: bytes, policy: ImagePolicy) -> None:
    """Raise ImageError for tiles larger than an image may be, and for very many of them."""
    check_tags(encoded)
    order = _order(encoded)
    tile = {_TILE_WIDTH: 1, _TILE_LENGTH: 1}
    for tag in _tags(encoded):
        if tag.tag in _PIECES and tag.values > _MAX_PIECES:
            raise ImageError(f"a TIFF of more than {_MAX_PIECES:,} strips or tiles")
        if tag.tag in tile:
            if tag.kind not in _WHOLE_NUMBERS:
                raise ImageError("a TIFF whose tile size is no whole number")
            value = int.from_bytes(encoded[tag.at : tag.at + _SIZES[tag.kind]], order)
            tile[tag.tag] = max(tile[tag.tag], value)
    check_size(tile[_TILE_WIDTH], tile[_TILE_LENGTH], policy, "tiles of ")


def _order(block: bytes) -> Literal["little", "big"]:
    return "little" if block.startswith(b"II") else "big"


def _tags(block: bytes) -> Iterator[_Tag]:
    """Yield the tags of the first directory."""
    order = _order(block)

    def number(at: int, size: int) -> int:
        return int.from_bytes(block[at : at + size], order)

    big = 43 in block[2:4]
    word, entry = (8, 20) if big else (4, 12)
    start = number(8 if big else 4, word)
    first = start + (8 if big else 2)
    count = number(start, first - start)
    for at in range(first, min(first + count * entry, len(block) - entry + 1), entry):
        kind, values = number(at + 2, 2), number(at + 4, word)
        size = values * _SIZES.get(kind, 0)
        place = at + 4 + word
        yield _Tag(number(at, 2), kind, values, place if size <= word else number(place, word), size)
