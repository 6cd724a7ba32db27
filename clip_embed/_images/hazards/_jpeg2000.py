"""JPEG 2000: what its header makes the codec allocate for a tile before it has read a pixel."""

from __future__ import annotations

from struct import unpack_from

from clip_embed._images.hazards._limits import check_size
from clip_embed._types import ImagePolicy
from clip_embed.errors import ImageError

START = b"\xff\x4f\xff\x51"
SIGNATURE = b"\0\0\0\x0cjP  \r\n\x87\n"
_MAX_TILES = 16_384
_MAX_BLOCKS = 500_000  # blocks and precincts of one tile; the codec takes 700 bytes for each
_MAX_MARKERS = 200_000
_SIZ, _COD, _COC, _SOT, _SOD, _END = 0x51, 0x52, 0x53, 0x90, 0x93, 0xD9
_KNOWN = frozenset({*range(0x50, 0x54), 0x55, 0x57, 0x58, *range(0x5C, 0x65), *range(0x74, 0x79), _SOT})


def check_jp2(encoded: bytes, policy: ImagePolicy, at: int = 0) -> None:
    """Check the codestream in the boxes of a JP2 file, as `check_codestream`."""
    for _ in range(_MAX_MARKERS):
        if at + 16 > len(encoded):
            return
        length, kind = unpack_from(">I4s", encoded, at)
        head = 16 if length == 1 else 8
        if kind == b"jp2c":
            check_codestream(encoded, policy, at + head)
            return
        if length == 1:
            length = int.from_bytes(encoded[at + 8 : at + 16])
        if length < head:
            return
        at += length
    raise ImageError("a JPEG 2000 of very many boxes")


def check_codestream(encoded: bytes, policy: ImagePolicy, at: int = 0) -> None:
    """Raise ImageError for too many pixels, tiles, or blocks in a tile, and for unknown markers."""
    if not encoded.startswith(START, at) or at + 42 > len(encoded):
        return
    tile_pixels, components = _check_siz(encoded, at + 6, policy)
    at += 2
    part = at  # where the tile-part began
    for _ in range(_MAX_MARKERS):
        if at + 4 > len(encoded) or encoded[at] != 0xFF or encoded[at + 1] == _END:
            return
        marker = encoded[at + 1]
        if marker == _SOD:
            length = int.from_bytes(encoded[part + 6 : part + 10])
            if not length:  # the last one
                return
            at = part + max(14, length)
            continue
        if marker not in _KNOWN:
            raise ImageError("a JPEG 2000 with an unknown marker in its header")
        if marker == _SOT:
            part = at
        elif marker in (_COD, _COC):
            _check_coding(encoded, at, tile_pixels * components)
        at += 2 + max(2, int.from_bytes(encoded[at + 2 : at + 4]))
    raise ImageError("a JPEG 2000 of very many tile parts")


def _check_siz(encoded: bytes, at: int, policy: ImagePolicy) -> tuple[int, int]:
    """Return the pixels of the largest tile and the number of components."""
    right, bottom, left, top, across, down, tiles_left, tiles_top, components = unpack_from(
        ">IIIIIIIIH", encoded, at + 2
    )
    width, height = right - left, bottom - top
    check_size(width, height, policy)
    if components > 4 or not across or not down:
        raise ImageError(f"a JPEG 2000 of {components} components in tiles of {across} × {down} pixels")
    tiles = -(-(right - tiles_left) // across) * -(-(bottom - tiles_top) // down)
    if not 1 <= tiles <= _MAX_TILES:
        raise ImageError(f"a JPEG 2000 of {tiles:,} tiles, more than {_MAX_TILES:,}")
    return min(width, across) * min(height, down), components


def _check_coding(encoded: bytes, at: int, samples: int) -> None:
    """Raise ImageError where the blocks of a tile are so small that there are very many of them."""
    length = int.from_bytes(encoded[at + 2 : at + 4])
    style = at + 4 if encoded[at + 1] == _COD else at + 5
    first = style + 5 if encoded[at + 1] == _COD else style + 1
    levels, across, down = (*encoded[first : first + 3], 0, 0, 0)[:3]
    blocks = samples >> min(12, (across & 15) + (down & 15) + 4)
    precincts = 0
    if encoded[style] & 1:
        sizes = encoded[first + 5 : min(first + 5 + levels + 1, at + 2 + length)]
        for below, size in enumerate(reversed(sizes)):  # the last is that of the whole resolution
            precincts += samples >> min(64, 2 * below + (size & 15) + (size >> 4))
    if blocks + 3 * precincts > _MAX_BLOCKS:
        raise ImageError(f"a JPEG 2000 of more than {_MAX_BLOCKS:,} blocks in a tile")
