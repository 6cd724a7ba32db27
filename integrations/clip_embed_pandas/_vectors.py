"""Columns of vectors of a frame: those that it has, and those of its images."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, TypeAlias, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from clip_embed import ClipEmbedder, SpaceMismatch
from clip_embed._frames.embedding import embed_images_of
from clip_embed._frames.vectors import Part, VectorColumn, flat_rows, measure, open_vectors
from clip_embed._types import Float32
from clip_embed.arrow import stamp_vectors, vector_array
from clip_embed_pandas._columns import images_of, pick, vector_column

Data: TypeAlias = "pd.DataFrame | pd.Series[Any]"


def compared(data: Data, column: Hashable | None, clip: ClipEmbedder) -> VectorColumn:
    """Return the vectors of a frame that are to be compared: those it has, or those of its images."""
    if isinstance(data, pd.DataFrame):
        name, series = pick(data, column, "vectors", "images", "numbers", dim=clip.dim)
        where = f"column {name!r}"
    else:
        series, where = data, "the column"
    vectors = vector_column(series)
    if vectors is not None:
        return open_vectors(vectors, clip, where)
    rows, valid, _ = embed_images_of(images_of(series, where), len(series), clip)
    return VectorColumn([Part(rows, valid)], clip.dim)


def embed_series(
    series: Any,  # noqa: ANN401
    clip: ClipEmbedder,
    where: str,
    *,
    warn: bool = True,
) -> tuple[Any, list[str | None]]:
    """Return the stamped vectors of a column of images as a pandas array, and why each image failed."""
    rows, valid, reasons = embed_images_of(images_of(series, where), len(series), clip, warn=warn)
    vectors = pa.chunked_array([stamp_vectors(vector_array(rows, valid), clip)])
    measure(vectors)
    return pd.arrays.ArrowExtensionArray(vectors), reasons


def to_numpy(data: Data, column: Hashable | None = None) -> Float32:
    """Return a column of vectors as float32 (n, d): the memory of the column itself, read-only.

    Where the column has NA or came in parts (after `pd.concat`) it is a copy, with NaN for NA.
    """
    name, series = pick(as_frame(data), column, "vectors", "numbers")
    vectors: Any = vector_column(series)
    if vectors is None:
        raise TypeError(f"column {name!r} of {series.dtype} holds no vectors")
    array = vectors.chunk(0) if vectors.num_chunks == 1 else vectors.combine_chunks()
    if not (pa.types.is_fixed_size_list(array.type) and pa.types.is_float32(array.type.value_type)):
        array = _fixed_size(array, f"column {name!r}")
    rows = flat_rows(array)
    if not array.null_count:
        return rows
    return np.where(np.asarray(array.is_valid())[:, None], rows, np.float32(np.nan))


def as_frame(data: Data) -> pd.DataFrame:
    """Return a frame that may be given more columns; the data stay where they are."""
    if isinstance(data, pd.DataFrame):
        return data.copy(deep=False)
    return data.to_frame("image" if data.name is None else data.name)


def _fixed_size(array: Any, where: str) -> Any:  # noqa: ANN401 - a pa.Array of lists
    lengths: list[int] = cast("Any", pc).list_value_length(array).drop_null().unique().to_pylist()
    if len(lengths) > 1:
        raise SpaceMismatch(f"{where}: the vectors have different dimensions: {sorted(lengths)}")
    return array.cast(pa.list_(pa.float32(), lengths[0] if lengths else 0))
