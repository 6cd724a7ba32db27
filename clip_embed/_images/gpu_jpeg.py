"""JPEG on a GPU: nvJPEG through torchvision, where that is installed with CUDA, beside the cores that decode.

Only what it decodes as libjpeg-turbo does: whole baseline files in YCbCr, upright, of usual sizes. It says
nothing of files that are damaged, so all others are the CPU's, and so is everything where
its pixels of eight fixed images are not those of the CPU's fast path.
"""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from clip_embed._images.gpu_resize import Job, first_line, resize_on, together
from clip_embed._images.jpeg import frame_marker, is_plain
from clip_embed._images.pixels import finish, is_long, prepare_pixels, resized
from clip_embed._images.resize import FAST_FILTERS
from clip_embed._images.source import opened, orientation
from clip_embed._models.fidelity import photo_like
from clip_embed._types import ImagePolicy, ImageSpec, UInt8
from clip_embed.errors import ImageError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

Codec = Callable[[Sequence[bytes]], "list[torch.Tensor]"]
"""JPEG files -> uint8 (3, height, width) each, RGB, on the device."""

MAX_GREY = 0.7
"""Mean difference from the CPU's pixels, in grey levels: the bound that scaled decoding has as well."""
_FAILURES = (RuntimeError, AttributeError)
"""What a codec raises. An AttributeError is that of a torchvision without its compiled part."""
_BASELINE = (0xC0, 0xC1)
_END = b"\xff\xd9"
_MAX_PIXELS = 50_000_000  # on the device each takes some 30 bytes while it is resized


class GpuJpeg:
    """Decodes and resizes on one device, for one thread at a time."""

    def __init__(self, codec: Codec, spec: ImageSpec, policy: ImagePolicy) -> None:
        self._codec = codec
        self._spec = spec
        self._policy = policy
        self._turn = threading.Lock()

    def decode(self, files: Sequence[bytes]) -> list[UInt8 | None]:
        """Return what a model takes of each file, uint8 (height, width, 3), in order; None for the CPU's.

        All are the CPU's while another thread decodes here: no thread waits for a turn.
        """
        if not self._turn.acquire(blocking=False):
            return [None] * len(files)
        try:
            return self._decode(files)
        except _FAILURES as error:  # of memory, or a file that it does not take
            logger.info("%d images are decoded on the CPU: %s", len(files), first_line(error))
            return [None] * len(files)
        finally:
            self._turn.release()

    def check(self) -> str | None:
        """Decode fixed images here and on the CPU; return why this is not to be used, None where it is."""
        files = _check_files()
        try:
            found = self._decode(files)
        except _FAILURES as error:
            return f"it fails: {first_line(error)}"
        if any(pixels is None for pixels in found):
            return "it does not decode the images that it is checked with"
        right = [prepare_pixels(None, file, self._spec, self._policy) for file in files]
        rows = cast("list[UInt8]", found)
        off = max(float(np.abs(a.astype(np.float32) - b).mean()) for a, b in zip(rows, right, strict=True))
        if off <= MAX_GREY:
            return None
        return f"its pixels are {off:.2f} grey levels from the CPU's on average (at most {MAX_GREY})"

    def _fit_size(self, file: bytes) -> tuple[int, int] | None:
        """Return (width, height) by the header, None where the file is the CPU's."""
        if not file.endswith(_END):
            return None
        try:
            with opened(None, file, self._policy) as image:
                fit = is_plain(file, image) and self._is_usual(file, cast("JpegImageFile", image))
                return image.size if fit else None
        except ImageError:
            return None

    def _is_usual(self, file: bytes, image: JpegImageFile) -> bool:
        layers = image.layer
        return (
            frame_marker(file) in _BASELINE
            and image.mode == "RGB"
            and [layer[0] for layer in layers] in ([1, 2, 3], [0, 1, 2])
            and image.info.get("adobe_transform", 1) == 1
            and orientation(image, self._policy) == 1
            and image.width * image.height <= _MAX_PIXELS
            and not is_long(image.size, self._spec)
        )

    def _decode(self, files: Sequence[bytes]) -> list[UInt8 | None]:
        import torch

        sizes = {place: size for place, file in enumerate(files) if (size := self._fit_size(file))}
        found: list[UInt8 | None] = [None] * len(files)
        if not sizes:
            return found
        with torch.inference_mode():
            decoded = dict(zip(sizes, self._codec([files[place] for place in sizes]), strict=True))
            jobs = {
                place: Job((3, height, width), (width, height), resized((width, height), self._spec))
                for place, (width, height) in sizes.items()
                if tuple(decoded[place].shape) == (3, height, width)
            }
            for job, places in together(jobs):
                planes = torch.stack([decoded[place] for place in places])
                small = resize_on(planes, job.extent, job.target, self._spec.resample).cpu().numpy()
                for place, row in zip(places, small, strict=True):
                    pixels = finish(row, self._spec, self._policy.background)
                    found[place] = np.ascontiguousarray(pixels)
        return found


def open_gpu_jpeg(device: str, spec: ImageSpec, policy: ImagePolicy) -> GpuJpeg | str:
    """Return a decoder on a CUDA device that was checked, or why there is none."""
    if spec.prepare or spec.resample not in FAST_FILTERS:
        return "it cannot do this model's preprocessing"
    codec = _nvjpeg(device)
    if isinstance(codec, str):
        logger.info("no nvJPEG: %s", codec)
        return codec
    found = GpuJpeg(codec, spec, policy)
    if why := found.check():
        logger.warning("no nvJPEG on %s: %s", device, why)
        return why
    return found


def _nvjpeg(device: str) -> Codec | str:
    try:
        vision: Any = import_module("torchvision.io")
    except (ImportError, OSError, RuntimeError) as error:  # not there, or made for another torch
        return f"torchvision cannot be used: {first_line(error)}"
    import torch

    def decode(files: Sequence[bytes]) -> list[torch.Tensor]:
        given = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
        return cast(
            "list[torch.Tensor]", vision.decode_jpeg(given, mode=vision.ImageReadMode.RGB, device=device)
        )

    return decode


@cache
def _check_files() -> tuple[bytes, ...]:
    """Return fixed images as cameras and web sites save them."""
    files: list[bytes] = []
    for picture in photo_like((480, 640)):
        Image.fromarray(picture).save(buffer := io.BytesIO(), "JPEG", quality=90, subsampling="4:2:0")
        files.append(buffer.getvalue())
    return tuple(files)
