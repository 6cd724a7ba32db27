"""Columns of polars as vectors that know their model, and as images."""

from __future__ import annotations

from itertools import islice
from typing import Any, cast

import polars as pl

from clip_embed import ClipEmbedder
from clip_embed._frames.columns import (
    LOOKED_AT,
    Content,
    choose,
    content_of_values,
    is_nothing,
    list_names,
    no_images,
    vectors_or_numbers,
)
from clip_embed._frames.embedding import Bools
from clip_embed._frames.vectors import VectorColumn, open_vectors
from clip_embed._series import EXTENSION, polars_column
from clip_embed._types import Float32
from clip_embed.arrow import vector_array


class ClipVectors(pl.BaseExtension):
    """The type of vectors that carry the stamp of their model: d float32 each, `Array(Float32, d)` below.

    It survives filter, sort, join, concat and Parquet; frames of two models do not concat. `.ext.storage()`
    gives the plain array for polars' own operations; numpy, Arrow and DuckDB see lists of float32.
    """

    def __init__(self, dim: int, stamp: str) -> None:
        super().__init__(EXTENSION, pl.Array(pl.Float32, dim), stamp)

    def _string_repr(self) -> str:
        return "clip vectors"

    def __repr__(self) -> str:
        return f"ClipVectors({cast('Any', self.ext_storage()).size})"


def vector_dtype(clip: ClipEmbedder) -> ClipVectors:
    """Return the type of the vectors of an embedder."""
    return ClipVectors(clip.dim, clip.stamp().to_json())


def to_series(name: str, rows: Float32, valid: Bools, clip: ClipEmbedder) -> pl.Series:
    """Return rows (n, d) as a column of vectors, null where not valid."""
    plain = pl.Series(name, vector_array(rows, valid), pl.Array(pl.Float32, clip.dim))
    return plain.ext.to(vector_dtype(clip))


def to_vectors(series: pl.Series, clip: ClipEmbedder, where: str, owner: object) -> VectorColumn | None:
    """Take a column of vectors that is to be compared with those of an embedder; None where it has none.

    `owner` is what has the column and lives on: polars makes another Series whenever one is asked for.
    """
    if content(series) != "vectors":
        return None
    return open_vectors(polars_column(series), clip, where, owner)


def pick(frame: pl.DataFrame, column: str | None, *wanted: Content, dim: int | None = None) -> pl.Series:
    """Return the column that is named, else the only one that fits; ValueError where there is none.

    `dim` says which vectors without a stamp are meant, others being numbers.
    """
    if column is not None:
        if column not in frame.columns:
            raise ValueError(f"there is no column {column!r}; the columns are {list_names(frame.columns)}")
        return frame[column]
    series = frame.get_columns()
    contents: list[Content] = [_meant(each, dim) for each in series]
    chosen = choose(
        frame.columns, contents, wanted, empty=not len(frame), look=lambda at: _values(series[at])
    )
    return series[chosen]


def first_images(frame: pl.DataFrame) -> pl.Series | None:
    """Return the first column that holds images, None where there is none."""
    return next((series for series in frame.get_columns() if content(series) == "images"), None)


def content(series: pl.Series) -> Content:
    """Say what a column holds, by its type and where that does not tell by its first values."""
    dtype: Any = series.dtype
    if isinstance(dtype, pl.BaseExtension):
        dtype = dtype.ext_storage()
    if isinstance(dtype, (pl.Array, pl.List)):
        return "vectors" if cast("Any", dtype.inner).is_float() else "other"
    if dtype == pl.Binary:
        return "images"
    if isinstance(dtype, pl.Struct):
        return "images" if {"bytes", "path"} & {field.name for field in dtype.fields} else "other"
    if not _is_open(dtype):
        return "other"
    return content_of_values(_values(series))


def _values(series: pl.Series) -> list[object]:
    """Return some values of a column that stand for something."""
    return list(islice((value for value in series if not is_nothing(value)), LOOKED_AT))


def _meant(series: pl.Series, dim: int | None) -> Content:
    """Return `content`, lists of floats that are no vectors of ours told from those that are."""
    kind = content(series)
    if kind != "vectors":
        return kind
    dtype: Any = series.dtype
    is_extension = isinstance(dtype, pl.BaseExtension)
    plain = series.ext.storage() if is_extension else series
    size = next((len(value) for value in plain if value is not None), None)
    return vectors_or_numbers(is_extension and dtype.ext_name() == EXTENSION, size, dim)


def check_images(series: pl.Series, where: str) -> pl.Series:
    """Return a column that may hold images; TypeError for any other."""
    if _is_open(series.dtype):
        return series
    kind = content(series)
    if kind != "images":
        raise no_images(where, "vectors already" if kind == "vectors" else series.dtype)
    return series


def _is_open(dtype: Any) -> bool:  # noqa: ANN401
    """Whether the type leaves open what the values are."""
    return dtype in (pl.String, pl.Object, pl.Null, pl.Categorical) or isinstance(dtype, pl.Enum)
