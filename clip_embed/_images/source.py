"""From anything that names an image to an upright RGB image: sources, policy, every format and mode."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile

from clip_embed._engine.fork import Locks
from clip_embed._images.files import check_bytes, read_file
from clip_embed._images.formats import FORMATS, open_encoded
from clip_embed._images.hazards import check_size, check_tags
from clip_embed._types import ImagePolicy, UInt8
from clip_embed.errors import ImageError


@dataclass(slots=True, eq=False)
class Encoded:
    """The file of an image that is fetched, once, by the thread that decodes it: for integrations."""

    fetch: Callable[[], bytes] | None
    name: str = "an image"
    size: int = 0
    """Bytes that it keeps in memory until it is decoded."""
    digest: bytes = b""
    """SHA-256 of the content once it is read, where there is a cache."""

    def take(self) -> bytes:
        """Return the content and let go of it."""
        fetch, self.fetch = self.fetch, None
        if fetch is None:
            raise ValueError(f"{self.name} was fetched before")
        return fetch()

    def keep(self) -> bytes:
        """Return the content and keep it, so that it can be taken once more."""
        if self.fetch is None:
            raise ValueError(f"{self.name} was fetched before")
        content = self.fetch()
        self.fetch = lambda: content
        return content


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """What `prepare` made of an image, perhaps on another machine: only the model is left to run."""

    array: UInt8
    """(height, width, 3), as the model takes it."""


ImageInput: TypeAlias = str | Path | bytes | Image.Image | UInt8 | Mapping[str, object] | Encoded | Pixels

# What Pillow's decoders raise on bytes that are not the picture they claim to be.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
    AttributeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,  # where the user turns warnings into errors
)
# Pillow loads lazily and not thread-safely; the same object may stand twice in one input.
_PIL_LOCKS = Locks(64)
_MAX_NAME = 4096  # no path is longer, but a data: URL may be
_SCHEME = re.compile(r"(https?://|data:)", re.IGNORECASE)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def describe(source: object) -> str:
    """Name an image for a message: its path, or what kind of value it is."""
    if isinstance(source, (str, Path)):
        name = str(source)
        return name if len(name) <= _MAX_NAME else f"{name[:100]}… ({len(name):,} characters)"
    if isinstance(source, bytes):
        return f"{len(source):,} bytes"
    if isinstance(source, Encoded):
        return source.name
    if isinstance(source, Mapping):
        path = cast("Mapping[str, object]", source).get("path")
        return str(path) if path else "mapping"
    if isinstance(source, np.ndarray):
        array = cast("np.ndarray[tuple[int, ...], np.dtype[np.generic]]", source)
        return f"{array.dtype} array {array.shape}"
    return type(source).__name__


def bytes_held(source: object) -> int:
    """Bytes in memory of an image that is handed in by value."""
    if isinstance(source, Encoded):
        return source.size
    if isinstance(source, Mapping):
        source = cast("Mapping[str, object]", source).get("bytes")
    if isinstance(source, Image.Image):
        return source.width * source.height * len(source.getbands())
    if isinstance(source, np.ndarray):
        return cast("UInt8", source).nbytes
    return len(source) if isinstance(source, bytes) else 0


def read_encoded(source: object, policy: ImagePolicy) -> bytes | None:
    """Return the encoded file of an image given as path, bytes or mapping; None for pixels.

    Raises ImageError where it cannot be read or the policy forbids it.
    """
    if isinstance(source, Mapping):
        mapping = cast("Mapping[str, object]", source)
        source = mapping.get("bytes") if mapping.get("bytes") is not None else mapping.get("path")
        if not isinstance(source, (str, Path, bytes)):
            raise ImageError("the mapping holds neither 'bytes' nor a 'path'")
    if isinstance(source, (str, Path)):
        source = _read(source, policy)
    elif isinstance(source, Encoded):
        source = source.take()
    if not isinstance(source, bytes):
        return None
    check_bytes(len(source), policy)
    return source


def _read(name: str | Path, policy: ImagePolicy) -> bytes:
    scheme = _SCHEME.match(name) if isinstance(name, str) else None
    if not name:
        raise ImageError("the path is empty")
    if scheme is None:
        return read_file(Path(name), policy)
    if scheme[0].lower() == "data:":
        raise ImageError("data: URLs are not read; decode it and give the bytes")
    if not policy.urls:
        raise ImageError(
            "URLs are not read unless the policy says so, ImagePolicy(urls=True); or download the file and "
            "give its path or its bytes"
        )
    from clip_embed._images.urls import fetch

    return fetch(cast("str", name), policy)


def decode(source: object, encoded: bytes | None, policy: ImagePolicy) -> Image.Image:
    """Decode to an upright RGB image: EXIF orientation applied, transparency over the background.

    `encoded` is what `read_encoded` gave for `source`. Raises ImageError with the reason.
    """
    with opened(source, encoded, policy) as image:
        image.load()
        return to_rgb(upright(image, orientation(image, policy)), policy)


@contextmanager
def opened(source: object, encoded: bytes | None, policy: ImagePolicy) -> Generator[Image.Image]:
    """Give the image by its header, within the policy's size and not decoded yet.

    What a decoder raises inside becomes an ImageError with the reason.
    """
    if encoded is None and not isinstance(source, (Image.Image, np.ndarray)):
        raise ImageError(
            f"{type(source).__name__} is not an image: give a path, bytes, PIL image or uint8 array"
        )
    if encoded is not None and not encoded:
        raise ImageError("the file is empty")
    try:
        if encoded is not None:
            with open_encoded(encoded, policy) as image:
                yield _within(image, policy)
        elif isinstance(source, np.ndarray):
            yield Image.fromarray(checked_array(cast("UInt8", source), policy))
        else:
            with _PIL_LOCKS[id(source) // 64]:
                yield _may_be_loaded(cast("Image.Image", source), policy)
    except ImageError:
        raise
    except _DECODER_ERRORS as error:
        reason = f"cannot decode: {str(error) or type(error).__name__}"
        raise ImageError(reason, retryable=isinstance(error, MemoryError)) from None


def checked_array(array: UInt8, policy: ImagePolicy) -> UInt8:
    """Return an array that is an image within the policy, uint8 (height, width, 3)."""
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ImageError(f"an array must be uint8 (height, width, 3), not {array.dtype} {array.shape}")
    check_size(array.shape[1], array.shape[0], policy)
    return array


def _within(image: Image.Image, policy: ImagePolicy) -> Image.Image:
    check_size(*image.size, policy)
    return image


def _may_be_loaded(image: Image.Image, policy: ImagePolicy) -> Image.Image:
    """Return a PIL image that was handed in, unless its pixels are still in a file that is not to be read."""
    if isinstance(image, ImageFile) and image.tile and image.format not in FORMATS:
        raise ImageError(
            f"{image.format} is not one of the formats that are read; to have it decoded all the same, "
            "call its load() first"
        )
    return _within(image, policy)


def orientation(image: Image.Image, policy: ImagePolicy) -> int:
    """Return how the image is stored, EXIF's 1 to 8; 1 is upright, and where the policy ignores it.

    The header of a JPEG says it; other formats may say it behind the pixels, so load them first.
    """
    if not policy.exif:
        return 1
    check_tags(_exif_block(image.info))
    value: object = image.getexif().get(ExifTags.Base.Orientation)
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def _exif_block(info: Mapping[str | tuple[int, int], object]) -> bytes:
    """Return the EXIF block that Pillow will parse; a PNG may have it as hexadecimal text."""
    block, text = info.get("exif"), info.get("Raw profile type exif")
    if not isinstance(block, bytes):
        block = bytes.fromhex("".join(text.split("\n")[3:])) if isinstance(text, str) else b""
    return block.removeprefix(b"Exif\0\0")


def upright(image: Image.Image, turn: int) -> Image.Image:
    """Return an image that is stored as `orientation` says the right way up."""
    return image if turn == 1 else image.transpose(_UPRIGHT[turn])


def to_rgb(image: Image.Image, policy: ImagePolicy) -> Image.Image:
    """Bring a loaded image of any mode to RGB, transparency over the policy's background."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise ImageError("floating-point pixels have no fixed range: convert the image to 8 bits first")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float32)
        values /= 257  # 65,535 -> 255; in place, as they may take gigabytes
        np.clip(np.rint(values, out=values), 0, 255, out=values)
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        canvas = Image.new("RGBA", layer.size, (*policy.background, 255))
        canvas.alpha_composite(layer)
        return canvas.convert("RGB")
    return image.convert("RGB")
