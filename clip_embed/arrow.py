"""Columns of images in, columns of vectors out: what DuckDB, pandas and other Arrow tools share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import lru_cache, partial
from queue import SimpleQueue
from typing import Any, TypeAlias, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clip_embed._embedder import ClipEmbedder
from clip_embed._engine.cores import limit_torch, usable_cores
from clip_embed._engine.pool import Pool
from clip_embed._frames.embedding import embed_rows
from clip_embed._images.source import Pixels
from clip_embed._stamp import Stamp, check_stamp
from clip_embed._types import Float32
from clip_embed._vectors import unit_rows
from clip_embed.errors import ImageError, SpaceMismatch

__all__ = [
    "embed_images",
    "encode",
    "image_values",
    "prepare",
    "read_vectors",
    "stamp_vectors",
    "vector_array",
    "vector_type",
]

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


def prepare(column: Column, embedder: ClipEmbedder) -> tuple[pa.FixedSizeBinaryArray, pa.StringArray]:
    """Do the first half of `embed_images`, which needs no GPU: (pixels, why each image failed).

    Each of the n pixels is the model's uint8 (height, width, 3) as bytes, for `encode` with an embedder of
    the same model, perhaps on another machine; 150,528 bytes an image for 224 × 224. `column`, nulls,
    failures and errors are as in `embed_images`; no cache is asked.
    """
    image_values(column)  # refuses what holds no images
    height, width = embedder.model.image_spec.shape
    rows = np.zeros((len(column), height, width, 3), np.uint8)
    valid = np.zeros(len(column), np.bool_)
    reasons: list[str | None] = [None] * len(column)

    def put(row: int) -> None:
        try:
            (image,) = image_values(column.slice(row, 1))
            if image is not None:
                rows[row], valid[row] = embedder.prepare_image(image), True
        except ImageError as error:
            reasons[row] = str(error)

    workers = embedder.settings.workers
    _for_each(range(len(column)), put, usable_cores() if workers == "auto" else workers)
    buffers = [pa.array(valid).buffers()[1], pa.py_buffer(cast("Any", rows))]
    pixels = pa.FixedSizeBinaryArray.from_buffers(pa.binary(height * width * 3), len(column), buffers)
    return cast("pa.FixedSizeBinaryArray", pixels), pa.array(reasons, pa.string())


def _for_each(rows: range, put: Callable[[int], None], workers: int) -> None:
    """Call `put` for each row, in so many threads."""
    finished: SimpleQueue[Future[None]] = SimpleQueue()
    pool = Pool(workers, partial(limit_torch, 1))
    try:
        for row in rows:
            pool.submit(partial(put, row), finished.put)
        for _ in rows:
            finished.get().result()
    finally:
        pool.close()


def encode(pixels: Column, embedder: ClipEmbedder) -> tuple[Vectors, pa.StringArray]:
    """Do the second half of `embed_images`: a column of n pixels, as `prepare` gives it, to vectors.

    Returns as `embed_images`, null for null. The pixels are binary of any kind. Raises ValueError where an
    image is of another size than the model's, TypeError for a column that is not binary.
    """
    if not (_is_bytes(pixels.type) or pa.types.is_fixed_size_binary(pixels.type)):
        raise TypeError(f"a column of {pixels.type} holds no pixels: give what `prepare` made")
    rows, valid, reasons = embed_rows(_pixels(pixels, embedder), len(pixels), embedder)
    return vector_array(rows, valid), pa.array(reasons, pa.string())


def _pixels(column: Column, embedder: ClipEmbedder) -> Iterator[tuple[list[int], Pixels]]:
    """Yield the images of a column with their row, none for null; they are not copied."""
    height, width = embedder.model.image_spec.shape
    for row, scalar in enumerate(column):
        buffer = scalar.as_buffer()
        if buffer is None:
            continue
        if buffer.size != height * width * 3:
            raise ValueError(
                f"row {row} has {buffer.size:,} bytes; {embedder.name} takes uint8 ({height}, {width}, 3), "
                f"{height * width * 3:,} bytes: prepare images with the model that encodes them"
            )
        yield [row], Pixels(np.frombuffer(buffer, np.uint8).reshape(height, width, 3))


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
    check_stamps(column, dim, embedder, where)
    values: Any = present.flatten().cast(pa.float32())
    if values.null_count:
        raise TypeError(f"{where}: a vector has NULL among its numbers")
    rows: Float32 = np.zeros((len(column), dim), np.float32)
    rows[valid] = unit_rows(values.to_numpy().reshape(-1, dim))
    return rows, valid


def check_stamps(column: Column, dim: int, embedder: ClipEmbedder, where: str) -> None:
    """Check the stamp of a column and of each part: frames join columns of two models without a word."""
    parts = column.chunks if isinstance(column, pa.ChunkedArray) else []
    for kind in {stamp_text(each.type): each.type for each in [column, *parts]}.values():
        check_stamp(stamp_of(kind, where), dim, embedder, where)


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
    if not isinstance(column, (pa.Array, pa.ChunkedArray)):  # pyright: ignore[reportUnnecessaryIsInstance]
        kind = type(cast("object", column)).__name__
        raise TypeError(f"the images must be a column of Arrow, not {kind}: pyarrow.array(images) makes one")
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
