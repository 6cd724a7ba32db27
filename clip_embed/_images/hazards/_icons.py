"""ICO and ICNS: files that hold whole images, which may be larger than the icon says."""

from __future__ import annotations

from struct import unpack_from

from clip_embed._images.hazards._jpeg2000 import SIGNATURE as JP2
from clip_embed._images.hazards._jpeg2000 import START as CODESTREAM
from clip_embed._images.hazards._jpeg2000 import check_codestream, check_jp2
from clip_embed._images.hazards._limits import check_size
from clip_embed._images.hazards._pictures import PNG, check_png
from clip_embed._types import ImagePolicy
from clip_embed.errors import ImageError

_MAX_IMAGES = 1_000


def check_ico(encoded: bytes, policy: ImagePolicy) -> None:
    """Raise ImageError where one of the images inside, PNG or BMP, may not be decoded."""
    count = int.from_bytes(encoded[4:6], "little")
    if count > _MAX_IMAGES:
        raise ImageError(f"an icon of more than {_MAX_IMAGES:,} images")
    for entry in range(6, min(6 + 16 * count, len(encoded) - 15), 16):
        at = int.from_bytes(encoded[entry + 12 : entry + 16], "little")
        if encoded.startswith(PNG, at):
            check_png(encoded, policy, at)
        elif at + 16 <= len(encoded):
            old = encoded[at] == 12  # OS/2's header
            width, height = unpack_from("<HH" if old else "<ii", encoded, at + 4)
            check_size(max(1, abs(width)), max(1, abs(height) // 2), policy)


def check_icns(encoded: bytes, policy: ImagePolicy) -> None:
    """Raise ImageError where one of the images inside, PNG or JPEG 2000, may not be decoded."""
    at = 8
    for _ in range(_MAX_IMAGES):
        if at + 8 > len(encoded):
            return
        length = int.from_bytes(encoded[at + 4 : at + 8])
        inner = at + 8
        if encoded.startswith(PNG, inner):
            check_png(encoded, policy, inner)
        elif encoded.startswith(CODESTREAM, inner):
            check_codestream(encoded, policy, inner)
        elif encoded.startswith(JP2, inner):
            check_jp2(encoded, policy, inner)
        at += max(8, length)
    raise ImageError(f"an icon of more than {_MAX_IMAGES:,} images")
