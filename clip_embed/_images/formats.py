"""The formats that are read, each by the one plugin of Pillow that reads it, within a time limit.

Pillow knows others. Left out are those that run another program (EPS, WMF), hand over to a plugin of
the user's process (BUFR, GRIB, HDF5), or are hardly met and written with less care.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from functools import cache
from importlib import import_module
from time import monotonic
from typing import IO, Protocol, TypeAlias, cast

from PIL import Image

from clip_embed._images.hazards import check_structure
from clip_embed._types import ImagePolicy
from clip_embed.errors import ImageError

_Opener: TypeAlias = tuple[Callable[[IO[bytes], str], Image.Image], Callable[[bytes], bool | str] | None]
_MODULES = {
    "JPEG": "Jpeg",
    "PNG": "Png",
    "WEBP": "WebP",
    "GIF": "Gif",
    "TIFF": "Tiff",
    "AVIF": "Avif",
    "BMP": "Bmp",
    "JPEG2000": "Jpeg2K",
    "ICO": "Ico",
    "ICNS": "Icns",
    "PSD": "Psd",
    "DDS": "Dds",
    "QOI": "Qoi",
    "PPM": "Ppm",
    "PCX": "Pcx",
    "TGA": "Tga",  # last: nothing at its start says that it is one
}
FORMATS = (*_MODULES, "MPO", "HEIF")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


class _Heif(Protocol):
    """What is used of the module pillow_heif."""

    def HeifImageFile(self, fp: io.BytesIO) -> Image.Image: ...  # noqa: N802 - its class


_read = io.BytesIO.read  # super() at each of 60 reads of a JPEG's header would be felt


class _TimedBytes(io.BytesIO):
    """A file whose reads fail when the time is over: how a decoder is stopped that keeps asking for more."""

    def __init__(self, encoded: bytes, seconds: float) -> None:
        super().__init__(encoded)
        self._seconds = seconds
        self._end = monotonic() + seconds

    def read(self, size: int | None = -1, /) -> bytes:
        if monotonic() > self._end:
            raise ImageError(f"decoding took longer than max_seconds = {self._seconds:g}", retryable=True)
        return _read(self, size)


@cache
def _opener(name: str) -> _Opener | None:
    """Return what opens a format and what recognises it; None where this build of Pillow has no codec."""
    import_module(f"PIL.{_MODULES[name]}ImagePlugin")
    return cast("_Opener | None", Image.OPEN.get(name))


def open_encoded(encoded: bytes, policy: ImagePolicy) -> Image.Image:
    """Open an encoded image by its header.

    Unlike `Image.open` it does not warn of large images on the terminal: the policy's check comes next.
    Raises ImageError for other formats and for files that cost more than their pixels explain.
    """
    check_structure(encoded, policy)
    file = _TimedBytes(encoded, policy.max_seconds)
    for name in _MODULES:
        opener = _opener(name)
        if opener is None:
            continue
        opens, accepts = opener
        accepted = accepts is None or accepts(encoded[:16])
        if not accepted or isinstance(accepted, str):  # a text says that this Pillow has no such codec
            continue
        try:
            file.seek(0)
            return opens(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # it only looked like this format
            continue
    if encoded[4:8] == b"ftyp" and encoded[8:12] in _HEIF_BRANDS:
        return _open_heif(file)
    raise ImageError(f"not an image, or not one of the formats that are read: {', '.join(_MODULES)}, HEIC")


def _open_heif(file: io.BytesIO) -> Image.Image:
    try:
        heif = cast("_Heif", import_module("pillow_heif"))
    except ImportError:
        reason = "HEIC needs pillow-heif: pip install 'clip-embed[heic]'"
        raise ImageError(reason, retryable=True) from None
    file.seek(0)
    return heif.HeifImageFile(file)  # not registered: that is for the user's process to decide
