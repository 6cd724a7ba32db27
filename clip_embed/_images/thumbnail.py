"""Small pictures, to be shown."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image

from clip_embed._images.source import opened, orientation, read_encoded, to_rgb, upright
from clip_embed._types import ImagePolicy


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A small JPEG as the address of itself (a data: URL), and its pixels."""

    url: str
    width: int
    height: int


def make_thumbnail(source: object, policy: ImagePolicy, edge: int) -> Thumbnail:
    """Return an image, upright, with a longer edge of at most `edge` pixels. Raises ImageError."""
    encoded = read_encoded(source, policy)
    with opened(source, encoded, policy) as image:
        if encoded is not None:  # else it is the caller's own, and stays as it is
            image.draft(None, (edge, edge))  # a JPEG is decoded no larger than needed
        image.load()
        small = to_rgb(upright(image, orientation(image, policy)), policy)
        small = small if encoded is not None else small.copy()
    small.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=82)
    content = base64.b64encode(stream.getvalue()).decode("ascii")
    return Thumbnail(f"data:image/jpeg;base64,{content}", small.width, small.height)
