"""What is done with rows of vectors everywhere."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from clip_embed._types import Float32
from clip_embed.errors import SpaceMismatch


def unit_rows(vectors: npt.NDArray[np.floating]) -> Float32:
    """Return the rows (n, d) scaled to unit length, as float32.

    A row of zeros stays as it is; one with a NaN or an infinity gets NaN.
    """
    squares = np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)  # the range of float32 is too short
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.sqrt(squares)[:, None].astype(vectors.dtype)
        units: Float32 = np.divide(vectors, np.where(norms > 0, norms, 1)).astype(np.float32)
    return units


def has_direction(vector: Float32) -> bool:
    """Whether a vector (d,) can be compared with others: finite, and not all zeros."""
    return bool(np.isfinite(vector).all() and vector.any())


def given_vectors(values: object, dim: int) -> Float32 | None:
    """Return a 2-D float array as float32 (n, dim), rows of unit length; None for anything else.

    Raises SpaceMismatch for another dimension.
    """
    if not isinstance(values, np.ndarray):
        return None
    array = cast("np.ndarray[tuple[int, ...], np.dtype[np.generic]]", values)
    if array.ndim != 2 or array.dtype.kind != "f":
        return None
    if array.shape[1] != dim:
        raise SpaceMismatch(
            f"the vectors have {array.shape[1]} dimensions, those of this model have {dim}: "
            "they were made by another"
        )
    return unit_rows(array.astype(np.float32))
