"""Frames with vectors in Parquet files that plain pandas reads too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clip_embed._frames.vectors import measure
from clip_embed.arrow import stamp_type

_PARQUET: Any = pq


def to_parquet(frame: pd.DataFrame, file: str | Path) -> None:
    """Write a frame to a Parquet file that keeps the dimension and the stamp of its vectors.

    `read_parquet` gives the frame back with its dtypes and index, and DuckDB, polars and every reader of
    Parquet find lists of floats; plain `pd.read_parquet`, which fails on files that `DataFrame.to_parquet`
    makes of such columns, reads them as arrays. Paths (`pathlib`) are written as text. Raises TypeError for
    a column that Parquet has no type for, such as PIL images.
    """
    texts: Any = frame.copy(deep=False)
    for place, dtype in enumerate(frame.dtypes):
        if dtype == "object":
            texts.isetitem(place, texts.iloc[:, place].map(_as_text))
    try:
        table = cast("Any", pa).Table.from_pandas(texts)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise TypeError(
            f"Parquet has no type for a column ({error}): drop it, or keep paths or bytes in its place"
        ) from error
    metadata: dict[bytes, bytes] = dict(table.schema.metadata)
    known = json.loads(metadata[b"pandas"])
    vectors = {table.column_names[place] for place in _vector_places(table.schema)}
    for facts in known["columns"]:
        if facts["field_name"] in vectors:  # pandas cannot read the names of these types
            facts["pandas_type"], facts["numpy_type"] = "list[float32]", "object"
    metadata[b"pandas"] = json.dumps(known).encode()
    _PARQUET.write_table(table.replace_schema_metadata(metadata), file)


def read_parquet(file: str | Path) -> pd.DataFrame:
    """Read a Parquet file as pandas does, its vectors as columns of Arrow with their dimension and stamp.

    Vectors are columns of fixed-size lists of float32, as `to_parquet` writes them.
    """
    frame = pd.read_parquet(file)
    schema = _PARQUET.read_schema(file)
    names = [schema.names[place] for place in _vector_places(schema)]
    if not names:
        return frame
    table = _PARQUET.read_table(file, columns=names)
    for place, column in enumerate(frame.columns):
        if str(column) in names:
            vectors = table[str(column)].cast(_as_written(table.schema.field(str(column))))
            measure(vectors)
            frame.isetitem(place, pd.arrays.ArrowExtensionArray(vectors))
    return frame


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _as_written(field: Any) -> Any:  # noqa: ANN401 - a pa.Field
    """Return the type of a column of vectors as `embed` makes it.

    Parquet calls the numbers "element", and pandas compares that name too; polars keeps the stamp as the
    metadata of its own type.
    """
    metadata = field.type.field(0).metadata
    outer: dict[bytes, bytes] = field.metadata or {}
    if outer.get(b"ARROW:extension:name") == b"clip_embed.vectors":
        return stamp_type(outer[b"ARROW:extension:metadata"].decode(), field.type.list_size)
    inner = pa.field("item", pa.float32(), metadata=metadata)
    return cast("Any", pa).list_(inner, field.type.list_size)


def _vector_places(schema: Any) -> list[int]:  # noqa: ANN401 - a pa.Schema
    types = pa.types
    return [
        place
        for place, kind in enumerate(schema.types)
        if types.is_fixed_size_list(kind) and types.is_float32(kind.value_type)
    ]
