"""The limit that every format shares."""

from __future__ import annotations

from clip_embed._types import ImagePolicy
from clip_embed.errors import ImageError

# Per pixel of its length a line costs as much memory as 10 of its pixels: rows and resize weights.
_MAX_SIDE = 1_000_000


def check_size(width: int, height: int, policy: ImagePolicy, what: str = "") -> None:
    """Raise ImageError where an image, or what of it is decoded at once, is too large or empty."""
    if width * height > policy.max_pixels:
        raise ImageError(
            f"{what}{width} × {height} pixels are more than the policy's max_pixels = {policy.max_pixels:,}"
        )
    if max(width, height) > _MAX_SIDE:
        raise ImageError(f"{what}{width} × {height} pixels: no side may be longer than {_MAX_SIDE:,}")
    if width < 1 or height < 1:
        raise ImageError("the image has no pixels")
