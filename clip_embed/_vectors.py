"""What is done with rows of vectors everywhere."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from clip_embed._types import Float32


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
