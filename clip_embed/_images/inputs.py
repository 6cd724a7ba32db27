"""What stands for many images: lists, columns and arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from clip_embed._images.source import describe
from clip_embed._series import loaded

_MANY = "images must be an iterable of images or a uint8 array (n, height, width, 3)"


def iterate(images: object) -> Iterable[object]:
    """Return the images one by one; TypeError for a single image, and for a frame."""
    if isinstance(images, np.ndarray):
        return _rows(cast("np.ndarray[Any, np.dtype[Any]]", images))
    if isinstance(images, (str, Path, bytes, Image.Image, Mapping)):
        raise _single()
    if (column := loaded("pyarrow", images, "Array", "ChunkedArray")) is not None:
        from clip_embed.arrow import image_values

        return image_values(column)
    if (frame := _frame(images)) is not None:
        name = next(iter(frame.columns), "img")
        raise TypeError(f"images must be one column, not a {type(frame).__name__}: give df[{name!r}]")
    if not isinstance(images, Iterable):
        raise TypeError(f"{_MANY}, not {describe(images)}")
    return cast("Iterable[object]", images)


def _rows(array: np.ndarray[Any, np.dtype[Any]]) -> Iterable[object]:
    """Return the images of an array: of their pixels, or of one dimension with objects or texts."""
    if (array.dtype == np.uint8 and array.ndim == 4) or (array.ndim == 1 and array.dtype.kind in "OUT"):
        return array
    raise _single() if array.ndim == 3 else TypeError(f"{_MANY}, not {describe(array)}")


def _single() -> TypeError:
    return TypeError("images must be a list of images; for a single one wrap it in a list: [image]")


def _frame(images: object) -> Any:  # noqa: ANN401 - a frame of pandas or polars
    found = loaded("pandas", images, "DataFrame")
    return loaded("polars", images, "DataFrame") if found is None else found
