"""Columns of images in, columns of vectors out: what DuckDB, pandas and other Arrow tools share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, TypeAlias, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clip_embed._embedder import ClipEmbedder
from clip_embed._frames.embedding import embed_rows
from clip_embed._stamp import Stamp, check_stamp
from clip_embed._types import Float32
from clip_embed._vectors import unit_rows
from clip_embed.errors import SpaceMismatch

__all__ = ["embed_images", "image_values", "read_vectors", "stamp_vectors", "vector_array", "vector_type"]

_STAMP = b"clip_embed"
_read_stamp = lru_cache(8)(Stamp.from_json)
Column: TypeAlias = "pa.Array[Any] | pa.ChunkedArray[Any]"
Vectors: TypeAlias = "pa.FixedSizeListArray[Any, Any]"
Bools: TypeAlias = "np.ndarray[Any, np.dtype[np.bool_]]"


def embed_images(column: Column, embedder: ClipEmbedder) -> tuple[Vectors, pa.StringArray]:
    """Embed a column of n images: (float32 vectors of length d, why each failed).

    `column` holds binary (encoded images), strings (paths) or structs with "bytes" or "path".
    Null in gives null in both; a failed image gives a null vector and its reason. Raises
    TypeError for any other type of column.
    """
    present = (([row], value) for row, value in enumerate(image_values(column)) if value is not None)
    rows, valid, reasons = embed_rows(present, len(column), embedder)
    return vector_array(rows, valid), pa.array(reasons, pa.string())


def vector_array(rows: Float32, valid: Bools) -> Vectors:
    """float32 (n, d) and bool (n,) -> a column of n vectors, null where not valid."""
    return pa.FixedSizeListArray.from_arrays(  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        pa.array(rows.reshape(-1)), rows.shape[1], mask=pa.array(~valid) if len(valid) else None
    )


def stamp_vectors(vectors: Vectors, embedder: ClipEmbedder) -> Vectors:
    """Return a column of vectors whose type carries the embedder's stamp; the values are not copied.

    The stamp stands in the metadata of the inner field, where Parquet, pandas and Arrow keep it.
    """
    return cast("Vectors", vectors.cast(vector_type(embedder)))


def vector_type(embedder: ClipEmbedder) -> pa.DataType:
    """Return the type of stamped vectors: a fixed-size list of d float32, for a schema."""
    return stamp_type(embedder.stamp().to_json(), embedder.dim)


def stamp_type(stamp: str, dim: int) -> pa.DataType:
    """Return the type of vectors of dimension `dim` that carry a stamp, as `Stamp.to_json` gives it."""
    return pa.list_(pa.field("item", pa.float32(), metadata={_STAMP: stamp}), dim)


def read_vectors(column: Column, embedder: ClipEmbedder, where: str = "the column") -> tuple[Float32, Bools]:
    """Take stored vectors, to be compared with those of `embedder`: float32 (n, d), bool (n,) not null.

    `column` is a list of floats, of fixed size or not, with a stamp or without: rows of length d, scaled to
    unit length, zeros where null. Raises SpaceMismatch for vectors of another space or dimension, TypeError
    for a column of anything else; warns where nothing says which model made them. `where` names them.
    """
    kind: Any = column.type
    if not (_is_list(kind) and pa.types.is_floating(kind.value_type)):
        raise TypeError(f"{where}: a column of {kind} holds no vectors: give lists of floats")
    valid = np.asarray(column.is_valid().to_numpy(zero_copy_only=False), np.bool_)
    present = cast("Any", column).drop_null()
    if isinstance(column, pa.ChunkedArray):
        present = present.combine_chunks()
    lengths = cast("list[int]", cast("Any", pc).list_value_length(present).unique().to_pylist())
    if len(lengths) > 1:
        raise SpaceMismatch(f"{where}: the vectors have different dimensions: {sorted(lengths)}")
    dim: int = kind.list_size if pa.types.is_fixed_size_list(kind) else (*lengths, embedder.dim)[0]
    check_stamp(stamp_of(kind, where), dim, embedder, where)
    values: Any = present.flatten().cast(pa.float32())
    if values.null_count:
        raise TypeError(f"{where}: a vector has NULL among its numbers")
    rows: Float32 = np.zeros((len(column), dim), np.float32)
    rows[valid] = unit_rows(values.to_numpy().reshape(-1, dim))
    return rows, valid


def stamp_of(kind: Any, where: str) -> Stamp | None:  # noqa: ANN401 - one of pyarrow's list types
    """Return the stamp that a type of vectors carries. Raises SpaceMismatch where it cannot be read."""
    if (text := stamp_text(kind)) is None:
        return None
    try:
        return _read_stamp(text)
    except ValueError as error:
        raise SpaceMismatch(f"{where}: {error}") from error


def stamp_text(kind: Any) -> bytes | None:  # noqa: ANN401 - one of pyarrow's list types
    """Return the stamp in a type of vectors as it is written there, None where there is none."""
    return cast("dict[bytes, bytes]", kind.field(0).metadata or {}).get(_STAMP)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def image_values(column: Column) -> Iterator[Any]:
    """Yield the images of a column one by one, as `stream_images` takes them; None for null.

    A struct without bytes and without a path counts as null. Raises TypeError at once where the
    column holds no images.
    """
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_struct(kind):
        names = {field.name for field in cast("list[pa.Field[Any]]", list(kind))}
        if not names & {"bytes", "path"}:
            raise TypeError(f"a struct needs a field 'bytes' or 'path' to be an image; this one is {kind}")
        return (_struct_value(scalar.as_py()) for scalar in column)
    if not (pa.types.is_null(kind) or _is_bytes(kind) or _is_text(kind)):
        raise TypeError(
            f"a column of {kind} holds no images: give binary (encoded images), strings (paths) or "
            "structs with 'bytes' or 'path'"
        )
    return (scalar.as_py() for scalar in column)


def _struct_value(value: dict[str, object] | None) -> object:
    if value is None or (value.get("bytes") is None and value.get("path") is None):
        return None
    return value


def _is_bytes(kind: pa.DataType) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)
