"""From anything that names an image to an upright RGB image: sources, policy, every format and mode."""

from __future__ import annotations

import errno
import io
import stat
import struct
import zlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Protocol, TypeAlias, cast

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from clip_embed._fork import Locks
from clip_embed._types import ImagePolicy, UInt8
from clip_embed.errors import ImageError

ImageInput: TypeAlias = str | Path | bytes | Image.Image | UInt8 | Mapping[str, object]

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
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
# Pillow loads lazily and not thread-safely; the same object may stand twice in one input.
_PIL_LOCKS = Locks(64)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _Heif(Protocol):
    """What is used of the module pillow_heif."""

    def HeifImageFile(self, fp: io.BytesIO) -> Image.Image: ...  # noqa: N802 - its class


def describe(source: object) -> str:
    """Name an image for a message: its path, or what kind of value it is."""
    if isinstance(source, (str, Path)):
        return str(source)
    if isinstance(source, bytes):
        return f"{len(source):,} bytes"
    if isinstance(source, Mapping):
        path = cast("Mapping[str, object]", source).get("path")
        return str(path) if path else "mapping"
    if isinstance(source, np.ndarray):
        array = cast("np.ndarray[tuple[int, ...], np.dtype[np.generic]]", source)
        return f"{array.dtype} array {array.shape}"
    return type(source).__name__


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
        source = _read_file(source, policy)
    if not isinstance(source, bytes):
        return None
    if len(source) > policy.max_bytes:
        raise ImageError(f"{len(source):,} bytes are more than the policy's max_bytes = {policy.max_bytes:,}")
    return source


def _read_file(name: str | Path, policy: ImagePolicy) -> bytes:
    if isinstance(name, str) and name.lower().startswith(("http://", "https://")):
        raise ImageError("URLs are not read; download the file and give its path or its bytes")
    try:
        return _permitted(Path(name), policy).read_bytes()
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError("no such file", retryable=True) from None
    except OSError as error:
        reason = f"cannot read the file: {error.strerror or error}"
        raise ImageError(reason, retryable=error.errno != errno.ENAMETOOLONG) from None
    except (ValueError, RuntimeError) as error:  # a null byte in the name, a loop of symbolic links
        raise ImageError(f"cannot read the file: {error}") from None


def _permitted(path: Path, policy: ImagePolicy) -> Path:
    if policy.roots is not None:
        path = path.resolve(strict=True)
        if not any(path.is_relative_to(Path(root).resolve()) for root in policy.roots):
            raise ImageError("the file lies outside the policy's roots")
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):  # reading a pipe or a device may never end
        raise ImageError("it is a folder" if stat.S_ISDIR(facts.st_mode) else "it is not a regular file")
    if facts.st_size > policy.max_bytes:
        raise ImageError(
            f"{facts.st_size:,} bytes are more than the policy's max_bytes = {policy.max_bytes:,}"
        )
    return path


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
            with _open_encoded(encoded) as image:
                yield _within(image, policy)
        elif isinstance(source, np.ndarray):
            yield Image.fromarray(checked_array(cast("UInt8", source)))
        else:
            with _PIL_LOCKS[id(source) // 64]:
                yield _within(cast("Image.Image", source), policy)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("not an image, or a format that Pillow does not read") from None
    except _DECODER_ERRORS as error:
        reason = f"cannot decode: {error or type(error).__name__}"
        raise ImageError(reason, retryable=isinstance(error, MemoryError)) from None


def _open_encoded(encoded: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(encoded))
    except UnidentifiedImageError:
        if encoded[4:8] != b"ftyp" or encoded[8:12] not in _HEIF_BRANDS:
            raise
    try:
        heif = cast("_Heif", import_module("pillow_heif"))
    except ImportError:
        reason = "HEIC needs pillow-heif: pip install 'clip-embed[heic]'"
        raise ImageError(reason, retryable=True) from None
    return heif.HeifImageFile(io.BytesIO(encoded))  # not registered: that is for the user's process to decide


def checked_array(array: UInt8) -> UInt8:
    """Return the array if it is an image, uint8 (height, width, 3); else raise ImageError."""
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ImageError(f"an array must be uint8 (height, width, 3), not {array.dtype} {array.shape}")
    return array


def _within(image: Image.Image, policy: ImagePolicy) -> Image.Image:
    width, height = image.size
    if width * height > policy.max_pixels:
        raise ImageError(
            f"{width} × {height} pixels are more than the policy's max_pixels = {policy.max_pixels:,}"
        )
    if width == 0 or height == 0:
        raise ImageError("the image has no pixels")
    return image


def orientation(image: Image.Image, policy: ImagePolicy) -> int:
    """Return how the image is stored, EXIF's 1 to 8; 1 is upright, and where the policy ignores it.

    The header of a JPEG says it; other formats may say it behind the pixels, so load them first.
    """
    value: object = image.getexif().get(ExifTags.Base.Orientation) if policy.exif else 1
    return value if isinstance(value, int) and value in _UPRIGHT else 1


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
        values = np.asarray(image).astype(np.float32) / 257  # 65,535 -> 255
        return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        canvas = Image.new("RGBA", layer.size, (*policy.background, 255))
        canvas.alpha_composite(layer)
        return canvas.convert("RGB")
    return image.convert("RGB")
