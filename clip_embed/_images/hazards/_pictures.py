"""PNG and GIF: chunks and blocks."""

from __future__ import annotations

from struct import unpack_from

from clip_embed._images.hazards._limits import check_size
from clip_embed._types import ImagePolicy
from clip_embed.errors import ImageError

PNG = b"\x89PNG\r\n\x1a\n"
_MAX_CHUNKS = 10_000  # of a PNG, and one more for each KB
_MAX_BLOCKS = 100_000  # of a GIF, of at most 255 bytes, before its first frame


def check_png(encoded: bytes, policy: ImagePolicy, at: int = 0) -> None:
    """Raise ImageError for millions of chunks, each of which is kept, or for too large a size."""
    at += len(PNG)
    left = _MAX_CHUNKS + len(encoded) // 1024
    while at + 8 <= len(encoded):
        length, kind = unpack_from(">I4s", encoded, at)
        if kind == b"IHDR" and at + 16 <= len(encoded):
            width, height = unpack_from(">II", encoded, at + 8)
            check_size(width, height, policy)
        left -= 1
        if left < 0:
            raise ImageError("a PNG of very many tiny chunks")
        if kind == b"IEND":
            return
        at += 12 + length


def check_gif(encoded: bytes, policy: ImagePolicy) -> None:
    """Raise ImageError for millions of blocks before the first frame, or for a frame that is too large."""
    if len(encoded) < 13:
        return
    palette = 3 << ((encoded[10] & 7) + 1) if encoded[10] & 0x80 else 0
    at, inside = 13 + palette, False
    for _ in range(_MAX_BLOCKS):
        if at + 9 >= len(encoded) or (not inside and encoded[at] in b";,"):
            break
        if inside:
            inside = encoded[at] > 0
            at += 1 + encoded[at]
        else:
            inside = encoded[at] == ord("!")
            at += 1 + inside
    else:
        raise ImageError(f"a GIF of more than {_MAX_BLOCKS:,} blocks before its first frame")
    if at + 9 < len(encoded) and encoded[at] == ord(","):
        screen = unpack_from("<HH", encoded, 6)
        left, top, width, height = unpack_from("<HHHH", encoded, at + 1)
        check_size(max(screen[0], left + width), max(screen[1], top + height), policy)
