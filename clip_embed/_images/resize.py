"""Resize with antialiasing: torch's integer kernels where the processor has them, else Pillow.

Both round within one grey level of each other; where neighbouring pixels jump between black and
white, the order of the two passes shows as well.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image

from clip_embed._engine.fork import loading
from clip_embed._types import Resample, UInt8

if TYPE_CHECKING:
    import torch

FAST_FILTERS = ("bicubic", "bilinear")


@cache
def _has_kernels() -> bool:
    """Whether torch's vector code for uint8 runs here.

    It needs a fifth of Pillow's time and no thread but its own. What torch has for other
    processors is ten times slower than Pillow and starts a pool of threads.
    """
    with loading():
        import torch

        for name in ("pyarrow", "torch.nn.functional", "torch.utils.dlpack"):  # what is imported below
            import_module(name)

    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def resize(
    picture: Image.Image | UInt8,
    extent: tuple[float, float],
    size: tuple[int, int],
    resample: Resample,
    *,
    with_torch: bool,
) -> UInt8:
    """Resize an RGB image or a uint8 (height, width, 3) array to `size`: uint8 (height, width, 3).

    `extent` and `size` are (width, height). The extent is what of the picture holds the image: a
    scaled JPEG ends within its last pixels. `resample` is one of FAST_FILTERS. Without torch it is
    Pillow's resize.
    """
    pixels = _as_tensor(picture) if with_torch and _has_kernels() else None
    if pixels is None:
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        return np.asarray(image.resize(size, Image.Resampling[resample.upper()], box=(0, 0, *extent)))
    from torch.nn.functional import interpolate

    width, height = size
    if pixels.shape[3] == extent[0] and pixels.shape[2] == extent[1]:
        small = interpolate(pixels, size=(height, width), mode=resample, antialias=True)
    else:
        # interpolate() rounds the size down: without the tiny surplus a row might go missing.
        factors = (height / extent[1] * (1 + 1e-9), width / extent[0] * (1 + 1e-9))
        small = interpolate(pixels, scale_factor=factors, mode=resample, antialias=True)
    return cast("UInt8", small[0].permute(1, 2, 0).numpy())[:height, :width, :3]


def _as_tensor(picture: Image.Image | UInt8) -> torch.Tensor | None:
    """Return (1, channels, height, width) over the picture's own memory; None where Pillow has it in pieces.

    Pillow keeps RGB in four bytes a pixel and hands them out by Arrow's interface; making an
    array of three costs as much as the resize.
    """
    import torch

    if isinstance(picture, np.ndarray) and picture.flags.writeable:
        return torch.from_numpy(picture)[None].permute(0, 3, 1, 2)  # pyright: ignore[reportUnknownMemberType]
    import pyarrow as pa
    from torch.utils.dlpack import from_dlpack

    to_arrow = cast("Callable[[object], Any]", pa.array)  # its stubs do not know Pillow's images
    if isinstance(picture, Image.Image):
        width, height = picture.size
        try:
            values = to_arrow(picture).flatten()
        except ValueError:  # above 16 MB
            return None
    else:
        height, width = picture.shape[:2]
        values = to_arrow(picture.reshape(-1))
    return from_dlpack(values).view(1, height, width, -1).permute(0, 3, 1, 2)
