"""What is done with rows of vectors everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from clip_embed._series import loaded, series_column
from clip_embed._types import Float32
from clip_embed.errors import SpaceMismatch

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa
    import torch

    from clip_embed._embedder import ClipEmbedder

_Column: TypeAlias = "pa.Array[Any] | pa.ChunkedArray[Any] | pd.Series[Any] | pl.Series"
Vectors: TypeAlias = "npt.NDArray[np.floating] | torch.Tensor | _Column"
"""n vectors that are there already: an array or a tensor (n, d) of floats, a column of Arrow or a frame."""


def unit_rows(vectors: npt.NDArray[np.floating]) -> Float32:
    """Return the rows (n, d) scaled to unit length, as float32.

    A row of zeros stays as it is; one with a NaN or an infinity gets NaN.
    """
    squares = np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)  # the range of float32 is too short
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.sqrt(squares)[:, None].astype(vectors.dtype)
        units: Float32 = np.divide(vectors, np.where(norms > 0, norms, 1)).astype(np.float32)
    return units


def has_direction(unit: Float32) -> bool:
    """Whether a row (d,) of `unit_rows` can be compared with others: neither NaN nor all zeros."""
    return bool(unit.dot(unit) > 0)


def given_vectors(values: object, embedder: ClipEmbedder) -> Float32 | None:
    """Return n vectors as float32 (n, dim), rows of unit length; None for anything else.

    Vectors are a 2-D float array of numpy, such a tensor of torch, or a column of Arrow, pandas or polars
    without nulls, whose stamp is checked. Raises SpaceMismatch for another dimension, or a stamp of another
    space.
    """
    column = series_column(values)
    if column is None:
        column = loaded("pyarrow", values, "Array", "ChunkedArray")
    if column is not None and hasattr(column.type, "value_field"):  # a list of some kind
        return _column_vectors(column, embedder)
    tensor = loaded("torch", values, "Tensor")
    if tensor is not None and tensor.is_floating_point():
        values = tensor.detach().cpu().float().numpy()
    if not isinstance(values, np.ndarray):
        return None
    array = cast("np.ndarray[tuple[int, ...], np.dtype[np.generic]]", values)
    if array.ndim != 2 or array.dtype.kind != "f":
        return None
    if array.shape[1] != embedder.dim:
        raise SpaceMismatch(
            f"the vectors have {array.shape[1]} dimensions, those of this model have {embedder.dim}: "
            "they were made by another"
        )
    return unit_rows(array.astype(np.float32))


def _column_vectors(column: pa.Array[Any] | pa.ChunkedArray[Any], embedder: ClipEmbedder) -> Float32:
    from clip_embed.arrow import read_vectors

    rows, valid = read_vectors(column, embedder)
    if not valid.all():
        raise ValueError(f"the column has no vector in row {int(valid.argmin())}: leave out such rows first")
    return rows
