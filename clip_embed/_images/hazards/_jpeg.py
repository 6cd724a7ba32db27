"""JPEG: segments before the pixels, scans over them."""

from __future__ import annotations

from collections.abc import Iterator

from clip_embed._images.hazards._tiff import check_tags
from clip_embed._types import ImagePolicy
from clip_embed.errors import ImageError

_MAX_SEGMENTS = 1_000  # before the pixels; an ICC profile may have 255
_MIN_SCANS, _MAX_SCANS = 20, 100  # usual are 1 and 10; 20 for the largest images, each takes long
_SCANNED_PIXELS = 2_000_000_000
_BARE = frozenset({0x00, 0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})  # no length follows
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})


def check_jpeg(encoded: bytes, _policy: ImagePolicy) -> None:
    """Raise ImageError for thousands of segments, of scans, or of EXIF tags over the same bytes."""
    exif: list[bytes] = []
    frame = b""
    progressive = False
    for count, (marker, start, end) in enumerate(_segments(encoded)):
        if count == _MAX_SEGMENTS:
            raise ImageError(f"a JPEG of more than {_MAX_SEGMENTS:,} segments before its pixels")
        if marker == 0xE1 and encoded.startswith(b"Exif\0\0", start):
            exif.append(encoded[start + 6 : end])
        elif marker in _FRAMES:
            frame, progressive = encoded[start:end], marker in _PROGRESSIVE
        elif marker == 0xDA and (progressive or encoded[start : start + 1] != frame[5:6]):
            _check_scans(encoded, end, int.from_bytes(frame[1:3]) * int.from_bytes(frame[3:5]))
    if exif:
        check_tags(b"".join(exif))


def _segments(encoded: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment up to the first scan, as Pillow finds them."""
    at = encoded.find(b"\xff", 2)
    while 0 <= at < len(encoded) - 4:
        marker = encoded[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        end = at + 2 + (0 if marker in _BARE else max(2, int.from_bytes(encoded[at + 2 : at + 4])))
        yield marker, at + 4, end
        if marker == 0xDA:
            return
        at = encoded.find(b"\xff", end)


def _check_scans(encoded: bytes, at: int, pixels: int) -> None:
    limit = min(max(_SCANNED_PIXELS // max(1, pixels), _MIN_SCANS), _MAX_SCANS)
    if encoded.count(b"\xff\xda") <= limit:  # misses no scan; those of previews count as well
        return
    scans = 1
    while 0 <= (at := encoded.find(b"\xff", at)) < len(encoded) - 4 and encoded[at + 1] != 0xD9:
        marker = encoded[at + 1]
        scans += marker == 0xDA
        if scans > limit:
            raise ImageError(f"a JPEG of more than {limit} scans over its {pixels:,} pixels")
        if marker == 0xFF:
            at += 1
        else:
            at += 2 + (0 if marker in _BARE else max(2, int.from_bytes(encoded[at + 2 : at + 4])))
