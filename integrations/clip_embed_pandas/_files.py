"""Frames with vectors in Parquet files that plain pandas reads too."""

from __future__ import annotations

import io
import json
from base64 import b64decode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clip_embed._frames.vectors import measure
from clip_embed.arrow import stamp_type

_PARQUET: Any = pq
_KEY = b"clip_embed_arrow"
"""Where a file names the columns whose types pandas cannot name, and so makes objects of."""


def to_parquet(frame: pd.DataFrame, file: str | Path, *, compression: str | None = "snappy") -> None:
    """Write a frame to a Parquet file that keeps the dimension and the stamp of its vectors.

    `read_parquet` gives the frame back with its dtypes and index, and DuckDB, polars and every reader of
    Parquet find lists of floats; plain `pd.read_parquet`, which fails on files that `DataFrame.to_parquet`
    makes of such columns, reads them as arrays, and structs of Arrow as dicts. Paths (`pathlib`) are written
    as text. `compression` is one of Arrow's ("zstd", "gzip", "lz4"), None for none. Raises TypeError for a
    column that Parquet has no type for, such as PIL images.
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
    names = [table.column_names[place] for place, dtype in enumerate(frame.dtypes) if not _has_name(dtype)]
    for facts in known["columns"]:
        if facts["field_name"] in names:
            facts["pandas_type"], facts["numpy_type"] = "object", "object"
    metadata |= {b"pandas": json.dumps(known).encode(), _KEY: json.dumps(names).encode()}
    _PARQUET.write_table(table.replace_schema_metadata(metadata), file, compression=compression)


def read_parquet(
    file: str | Path, *, columns: Sequence[str] | None = None, filters: object = None
) -> pd.DataFrame:
    """Read a Parquet file as pandas does, its vectors as columns of Arrow with their dimension and stamp.

    Vectors are columns of fixed-size lists of float32, as `to_parquet` and `DataFrame.to_parquet` write them;
    other columns of Arrow are what they were when `to_parquet` wrote them. `file` may be a folder of such
    files; `columns` and `filters` are those of `pd.read_parquet`.
    """
    source = _PARQUET.ParquetDataset(file)
    schema = source.schema
    vectors = [schema.names[place] for place, kind in enumerate(schema.types) if _holds_vectors(kind)]
    metadata: dict[bytes, bytes] = schema.metadata or {}
    nameless = _nameless(metadata) & {*schema.names}
    names: set[str] = {*vectors, *json.loads(metadata.get(_KEY, b"[]")), *nameless}
    if columns is not None:
        names &= {*columns}
    options = {"columns": columns, "filters": filters}
    frame = _read_renamed(file, names, options) if nameless else pd.read_parquet(file, **cast("Any", options))
    if not names:
        return frame
    table = _PARQUET.read_table(file, columns=sorted(names), filters=filters)
    written = table.schema if names <= {*vectors} else _written_schema(source.files[0])
    for place, column in enumerate(map(str, frame.columns)):
        if column not in names:
            continue
        field = table.schema.field(column)
        values = table[column].cast(_vector_type(field) if column in vectors else written.field(column).type)
        if column in vectors:
            measure(values)
        frame.isetitem(place, pd.arrays.ArrowExtensionArray(values))
    return frame


def _has_name(dtype: Any) -> bool:  # noqa: ANN401
    """Whether pandas can read the name of a type in a file: not those of Arrow with parameters."""
    return not isinstance(dtype, pd.ArrowDtype) or _is_name(str(dtype))


def _is_name(text: str) -> bool:
    """Whether pandas finds a type by this name."""
    try:
        pd.api.types.pandas_dtype(text)
    except (TypeError, ValueError, NotImplementedError):
        return False
    return True


def _nameless(metadata: Mapping[bytes, bytes]) -> set[str]:
    """Return the columns for which a file has a name of pandas' that pandas cannot read."""
    known: list[dict[str, str]] = json.loads(metadata.get(b"pandas", b"{}")).get("columns", [])
    return {facts["field_name"] for facts in known if not _is_name(facts["numpy_type"])}


def _read_renamed(file: str | Path, names: set[str], options: dict[str, Any]) -> pd.DataFrame:
    """Read what `DataFrame.to_parquet` wrote and pandas cannot read: nulls stand for the columns of Arrow."""
    table = _PARQUET.read_table(file, use_pandas_metadata=True, **options)
    metadata: dict[bytes, bytes] = table.schema.metadata
    known = json.loads(metadata[b"pandas"])
    for facts in known["columns"]:
        if not _is_name(facts["numpy_type"]):
            facts["pandas_type"], facts["numpy_type"] = "object", "object"
    for name in names & {*table.column_names}:
        table = table.set_column(table.column_names.index(name), name, pa.nulls(len(table)))
    renamed = io.BytesIO()
    _PARQUET.write_table(
        table.replace_schema_metadata(metadata | {b"pandas": json.dumps(known).encode()}), renamed
    )
    renamed.seek(0)
    return pd.read_parquet(renamed)


def _written_schema(file: str) -> Any:  # noqa: ANN401 - a pa.Schema
    """Return the schema as it was written: Parquet gives parts of nested types other names."""
    content = _PARQUET.read_metadata(file).metadata[b"ARROW:schema"]
    return cast("Any", pa).ipc.read_schema(pa.py_buffer(b64decode(content)))


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _vector_type(field: Any) -> Any:  # noqa: ANN401 - a pa.Field
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


def _holds_vectors(kind: Any) -> bool:  # noqa: ANN401 - a pa.DataType
    return bool(pa.types.is_fixed_size_list(kind) and pa.types.is_float32(kind.value_type))
