"""What the header of an image says of it, as payload: only what is asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, Literal, cast

from PIL import ExifTags, Image

from clip_embed._images.source import opened, read_encoded
from clip_embed._types import ImagePolicy
from clip_embed.errors import ImageError
from clip_embed_qdrant._sink import Payload

Fact = Literal["dimensions", "date", "camera", "gps"]
FACTS: tuple[Fact, ...] = ("dimensions", "date", "camera", "gps")

_DATES = (ExifTags.Base.DateTimeOriginal, ExifTags.Base.DateTimeDigitized, ExifTags.Base.DateTime)


def read_facts(image: object, facts: Collection[Fact], policy: ImagePolicy) -> Payload:
    """Return the facts that an image has: width and height, taken (ISO), camera, location (lat, lon).

    One that cannot be read has none: the embedder says why.
    """
    try:
        encoded = read_encoded(image, policy)
        with opened(image, encoded, policy) as header:
            return _facts(header, facts)
    except ImageError:
        return {}


def _facts(image: Image.Image, facts: Collection[Fact]) -> Payload:
    found: Payload = {}
    if "dimensions" in facts:
        found |= {"width": image.width, "height": image.height}
    if not set(facts) & {"date", "camera", "gps"}:
        return found
    exif = image.getexif()
    details = cast("Mapping[int, Any]", exif.get_ifd(ExifTags.IFD.Exif))
    if "date" in facts and (taken := _taken({**exif, **details})):
        found["taken"] = taken
    if "camera" in facts and (camera := _camera(exif)):
        found["camera"] = camera
    if "gps" in facts and (place := _place(cast("Mapping[int, Any]", exif.get_ifd(ExifTags.IFD.GPSInfo)))):
        found["location"] = place
    return found


def _taken(tags: Mapping[int, Any]) -> str | None:
    for tag in _DATES:
        try:
            return datetime.strptime(str(tags[tag]).strip("\0 "), "%Y:%m:%d %H:%M:%S").isoformat()
        except (KeyError, ValueError):
            continue
    return None


def _camera(tags: Mapping[int, Any]) -> str | None:
    """Return maker and model, the maker not twice."""
    maker, model = (str(tags.get(tag, "")).strip("\0 ") for tag in (ExifTags.Base.Make, ExifTags.Base.Model))
    if not model:
        return maker or None
    return model if model.lower().startswith(maker.lower()) else f"{maker} {model}"


def _place(tags: Mapping[int, Any]) -> dict[str, float] | None:
    try:
        latitude = _degrees(tags[2]) * (-1 if tags[1] == "S" else 1)
        longitude = _degrees(tags[4]) * (-1 if tags[3] == "W" else 1)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    inside = abs(latitude) <= 90 and abs(longitude) <= 180
    return {"lat": latitude, "lon": longitude} if inside else None


def _degrees(parts: Any) -> float:  # noqa: ANN401 - three rationals of Pillow
    degrees, minutes, seconds = (float(part) for part in parts)
    return degrees + minutes / 60 + seconds / 3600
