"""What a file may cost beyond its pixels, judged by its structure before a decoder sees it.

Pillow and its codecs do as a file says: one that says a thousand times "once more over the whole
image" keeps a core busy for hours, one whose tiles or tags are larger than the image fills the
memory. The limits here are far above what cameras, editors and the web write.
"""

from __future__ import annotations

from collections.abc import Callable

from clip_embed._images.hazards._avif import check_avif
from clip_embed._images.hazards._icons import check_icns, check_ico
from clip_embed._images.hazards._jpeg import check_jpeg
from clip_embed._images.hazards._jpeg2000 import SIGNATURE as JP2
from clip_embed._images.hazards._jpeg2000 import START as CODESTREAM
from clip_embed._images.hazards._jpeg2000 import check_codestream, check_jp2
from clip_embed._images.hazards._limits import check_size
from clip_embed._images.hazards._pictures import PNG, check_gif, check_png
from clip_embed._images.hazards._tiff import check_tags, check_tiff
from clip_embed._types import ImagePolicy

__all__ = ["check_size", "check_structure", "check_tags"]

_CHECKS: tuple[tuple[tuple[bytes, ...], Callable[[bytes, ImagePolicy], None]], ...] = (
    ((b"\xff\xd8",), check_jpeg),
    ((PNG,), check_png),
    ((b"GIF8",), check_gif),
    ((b"II", b"MM"), check_tiff),
    ((CODESTREAM,), check_codestream),
    ((JP2,), check_jp2),
    ((b"\0\0\1\0",), check_ico),
    ((b"icns",), check_icns),
)


def check_structure(encoded: bytes, policy: ImagePolicy) -> None:
    """Raise ImageError where decoding the file may cost more than its pixels explain."""
    for magics, check in _CHECKS:
        if encoded.startswith(magics):
            check(encoded, policy)
    if encoded[4:8] == b"ftyp":
        check_avif(encoded, policy)
