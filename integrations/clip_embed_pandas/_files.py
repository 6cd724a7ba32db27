"""Frames with vectors in Parquet files that plain pandas reads too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

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
            vectors = table[str(column)].cast(_as_written(table.schema.field(str(column)).type))
            frame.isetitem(place, pd.arrays.ArrowExtensionArray(vectors))
    return frame


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _as_written(kind: Any) -> Any:  # noqa: ANN401 - a pa.FixedSizeListType
    """Return the type with the name of its numbers that pandas compares too; Parquet calls them "element"."""
    metadata = kind.field(0).metadata
    return cast("Any", pa).list_(pa.field("item", pa.float32(), metadata=metadata), kind.list_size)


def _vector_places(schema: Any) -> list[int]:  # noqa: ANN401 - a pa.Schema
    types = pa.types
    return [
        place
        for place, kind in enumerate(schema.types)
        if types.is_fixed_size_list(kind) and types.is_float32(kind.value_type)
    ]
