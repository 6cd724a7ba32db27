"""A Series of vectors, of pandas or polars, as a column of Arrow; imports neither of them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

EXTENSION = "clip_embed.vectors"
"""What polars calls the type of our vectors, which carries the stamp."""


def loaded(module: str, value: object, *types: str) -> Any:  # noqa: ANN401 - an object of that module
    """Return the value where it is of one of these types, None otherwise; imports nothing."""
    if (library := sys.modules.get(module)) is None:
        return None
    return value if isinstance(value, tuple(getattr(library, name) for name in types)) else None


def series_column(values: object) -> pa.ChunkedArray[Any] | None:
    """Return a Series that may hold vectors as a column of Arrow, with its stamp; None for anything else."""
    if (series := loaded("pandas", values, "Series")) is not None:
        if hasattr(series.dtype, "pyarrow_dtype"):
            column: pa.ChunkedArray[Any] = series.array.__arrow_array__()
            return column
        return _column_of_rows(series) if series.dtype == "object" else None
    if (series := loaded("polars", values, "Series")) is not None:
        inner = getattr(_storage(series).dtype, "inner", None)
        return polars_column(series) if inner is not None and inner.is_float() else None
    return None


def polars_column(series: Any) -> pa.ChunkedArray[Any]:  # noqa: ANN401 - a pl.Series
    """Return a column of vectors of polars as Arrow's, with its stamp; the numbers are not copied."""
    import pyarrow as pa

    from clip_embed.arrow import stamp_type

    parts = [part.to_arrow() for part in _storage(series).get_chunks()]  # of them all it would be a copy
    dtype = series.dtype
    if hasattr(dtype, "ext_name") and dtype.ext_name() == EXTENSION and dtype.ext_metadata() is not None:
        parts = [part.cast(stamp_type(dtype.ext_metadata(), part.type.list_size)) for part in parts]
    return pa.chunked_array(parts)


def _storage(series: Any) -> Any:  # noqa: ANN401 - a pl.Series
    return series.ext.storage() if hasattr(series.dtype, "ext_storage") else series


def _column_of_rows(series: Any) -> pa.ChunkedArray[Any] | None:  # noqa: ANN401 - a pd.Series of objects
    """Return arrays or lists of floats, as plain `pd.read_parquet` gives them; None for other objects."""
    missing = series.isna().to_numpy(bool)
    present = [row for row, gone in zip(series.array, missing, strict=True) if not gone]
    if not all(type(row) in (list, np.ndarray) for row in present):
        return None
    numbers = np.asarray(present[0] if present else 0)
    if numbers.ndim != 1 or numbers.dtype.kind != "f" or not len(numbers):
        return None
    import pyarrow as pa

    rows = [None if gone else np.asarray(row) for row, gone in zip(series.array, missing, strict=True)]
    return pa.chunked_array([pa.array(rows, pa.list_(pa.float32()))])
