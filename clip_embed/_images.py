"""From anything that names an image to the uint8 array that a model takes."""

from __future__ import annotations

import errno
import io
import stat
import struct
import threading
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from clip_embed._types import ImagePolicy, ImageSpec, UInt8
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
# Up to this many times the pixels that are kept, an image is resized whole. `resize(box=)` takes
# the two passes in another order from Pillow 13 on, and each clips what overshoots.
_WHOLE_RESIZE = 8
# Pillow loads lazily and not thread-safely; the same object may stand twice in one input.
_PIL_LOCKS = tuple(threading.Lock() for _ in range(64))


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
    if encoded is None and not isinstance(source, (Image.Image, np.ndarray)):
        raise ImageError(
            f"{type(source).__name__} is not an image: give a path, bytes, PIL image or uint8 array"
        )
    if encoded is not None and not encoded:
        raise ImageError("the file is empty")
    try:
        if encoded is not None:
            with Image.open(io.BytesIO(encoded)) as image:
                return _to_rgb(image, policy)
        if isinstance(source, np.ndarray):
            return _from_array(cast("UInt8", source))
        with _PIL_LOCKS[id(source) // 64 % len(_PIL_LOCKS)]:
            return _to_rgb(cast("Image.Image", source), policy)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("not an image, or a format that Pillow does not read") from None
    except _DECODER_ERRORS as error:
        reason = f"cannot decode: {error or type(error).__name__}"
        raise ImageError(reason, retryable=isinstance(error, MemoryError)) from None


def _from_array(array: UInt8) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ImageError(f"an array must be uint8 (height, width, 3), not {array.dtype} {array.shape}")
    return Image.fromarray(array)


def _to_rgb(image: Image.Image, policy: ImagePolicy) -> Image.Image:
    width, height = image.size
    if width * height > policy.max_pixels:
        raise ImageError(
            f"{width} × {height} pixels are more than the policy's max_pixels = {policy.max_pixels:,}"
        )
    if width == 0 or height == 0:
        raise ImageError("the image has no pixels")
    image.load()
    if policy.exif:
        image = ImageOps.exif_transpose(image)
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


def to_pixels(image: Image.Image, spec: ImageSpec, background: tuple[int, int, int]) -> UInt8:
    """Bring an RGB image into the form a model takes: uint8 (height, width, 3).

    Gives the very pixels of transformers' PIL image processors. Of an image longer than 8 times
    its width only the part that is kept is made, so that 1 × 100,000 pixels cost no more memory
    than a square; there, resampling may round, and clip what overshoots, in another order.
    """
    if spec.prepare is not None:
        return spec.prepare(image)
    resample = Image.Resampling[spec.resample.upper()]
    if spec.pad:
        return _fit(image, spec, resample, background)
    height, width = _resized(image, spec.size)
    crop_height, crop_width = spec.crop or (height, width)
    keep_height, keep_width = min(crop_height, height), min(crop_width, width)
    top, left = (height - keep_height) // 2, (width - keep_width) // 2
    if height * width <= _WHOLE_RESIZE * keep_height * keep_width:
        whole = image.resize((width, height), resample)
        part = whole.crop((left, top, left + keep_width, top + keep_height))
    else:
        y, x = image.height / height, image.width / width
        right = min((left + keep_width) * x, image.width)
        bottom = min((top + keep_height) * y, image.height)
        part = image.resize((keep_width, keep_height), resample, box=(left * x, top * y, right, bottom))
    kept = np.asarray(part)
    if (keep_height, keep_width) == (crop_height, crop_width):
        return kept
    pixels = np.zeros((crop_height, crop_width, 3), np.uint8)
    top, left = -((keep_height - crop_height) // 2), -((keep_width - crop_width) // 2)
    pixels[top : top + keep_height, left : left + keep_width] = kept
    return pixels


def _resized(image: Image.Image, size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width after the resize."""
    if not isinstance(size, int):
        return size
    short, long = sorted(image.size)
    longer = int(size * long / short)
    return (longer, size) if image.width <= image.height else (size, longer)


def _fit(
    image: Image.Image, spec: ImageSpec, resample: Image.Resampling, background: tuple[int, int, int]
) -> UInt8:
    height, width = (spec.size, spec.size) if isinstance(spec.size, int) else spec.size
    scale = min(height / image.height, width / image.width)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = Image.new("RGB", (width, height), background)
    canvas.paste(image.resize(size, resample), ((width - size[0]) // 2, (height - size[1]) // 2))
    return np.asarray(canvas)
