"""Which columns a function takes, and what is in them."""

from __future__ import annotations

from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

Column: TypeAlias = Any  # a pa.Array: its stubs know nested types only by their element
Kind: TypeAlias = Any  # a pa.DataType
Counts = npt.NDArray[np.int64]

_SQL_NAMES = {
    "bool": "BOOLEAN",
    "bool8": "BOOLEAN",
    "date32[day]": "DATE",
    "decimal128(38, 0)": "HUGEINT",  # or DECIMAL(38,0), which looks the same: sums are more common
    "double": "DOUBLE",
    "float": "FLOAT",
    "int8": "TINYINT",
    "int16": "SMALLINT",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "month_day_nano_interval": "INTERVAL",
    "null": "NULL",
    "time64[ns]": "TIME_NS",
    "time64[us]": "TIME",
    "time_tz": "TIME WITH TIME ZONE",
    "timestamp[ms]": "TIMESTAMP_MS",
    "timestamp[ns]": "TIMESTAMP_NS",
    "timestamp[s]": "TIMESTAMP_S",
    "timestamp[us]": "TIMESTAMP",
    "uint8": "UTINYINT",
    "uint16": "USMALLINT",
    "uint32": "UINTEGER",
    "uint64": "UBIGINT",
}


def plain(column: Column) -> Column:
    """Return one contiguous array without dictionary or view types, however the column came."""
    if hasattr(column, "combine_chunks"):
        column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if types.is_list_view(column.type) or types.is_large_list_view(column.type):
        # Not cast: pyarrow's makes wrong offsets of it. Only a setting of DuckDB brings this type.
        column = pa.array(column.to_pylist(), pa.list_(column.type.value_type))
    return column


def blobs_and_paths(column: Column) -> tuple[Column | None, Column | None] | None:
    """Return the encoded images and the paths of a column; None where it holds neither.

    DuckDB hands over a UUID or a JSON as a VARCHAR, a BIT or a GEOMETRY as a BLOB, and nothing tells them
    apart: they are paths of no file and broken images. With `arrow_lossless_conversion` they are neither.
    """
    kind = column.type
    if types.is_null(kind):
        return None, None
    if _is_blob(kind):
        return column, None
    if is_text(kind):
        return None, column
    if not types.is_struct(kind):
        return None
    fields = dict(zip((part.name.lower() for part in _fields(kind)), column.flatten(), strict=True))
    blobs, paths = fields.get("bytes"), fields.get("path")
    if paths is not None:
        paths = plain(paths)
    known = blobs is not None or paths is not None
    fits = (blobs is None or _is_blob(blobs.type) or types.is_null(blobs.type)) and (
        paths is None or is_text(paths.type) or types.is_null(paths.type)
    )
    return (blobs, paths) if known and fits else None


def text_lists(column: Column) -> list[tuple[tuple[str | None, ...], Counts]] | None:
    """Return each list of texts with its rows, int64 (k,); None where the column holds no such lists.

    NULL rows have no list. That DuckDB repeats a constant for each row costs little.
    """
    kind = column.type
    if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        return None
    present = np.flatnonzero(np.asarray(column.is_valid()))
    texts = plain(column.drop_null().flatten())
    if types.is_null(texts.type):
        texts = texts.cast(pa.string())
    if not is_text(texts.type):
        return None
    lengths: Counts = np.asarray(cast("Any", pc).list_value_length(column.drop_null()), np.int64)
    coded = texts.cast(pa.string()).dictionary_encode(null_encoding="encode")
    codes: Counts = np.asarray(coded.indices, np.int64)
    names = cast("list[str | None]", coded.dictionary.to_pylist())
    if len(present) and (lengths == lengths[0]).all():
        table = codes.reshape(len(present), -1)
        first: list[int] = table[0].tolist()
        if (table == table[0]).all():
            return [(tuple(names[code] for code in first), present)]
    rows_of: dict[tuple[int, ...], list[int]] = {}
    ends = np.cumsum(lengths)
    for row, start, end in zip(present.tolist(), (ends - lengths).tolist(), ends.tolist(), strict=True):
        rows_of.setdefault(tuple(codes[start:end].tolist()), []).append(row)
    return [(tuple(names[code] for code in chosen), np.array(rows)) for chosen, rows in rows_of.items()]


def _fields(nested: Kind) -> list[Any]:
    return [nested.field(index) for index in range(nested.num_fields)]


def is_text(kind: Kind) -> bool:
    """Whether a type is one of the string types."""
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_blob(kind: Kind) -> bool:
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _is_variant(kind: Kind) -> bool:
    """Whether it is DuckDB's VARIANT and not a STRUCT of such fields, which may all be NULL."""
    names = [part.name for part in _fields(kind)]
    return names == ["metadata", "value"] and not kind.field(0).nullable


def sql_name(kind: Kind) -> str:
    """Name an Arrow type as DuckDB does, as far as it tells: a TIMETZ comes as TIME, a UUID as VARCHAR."""
    if isinstance(kind, pa.BaseExtensionType):
        name = str(getattr(kind, "type_name", kind.extension_name.removeprefix("arrow.")))
        return _SQL_NAMES.get(name, name.upper())
    if is_text(kind):
        return "VARCHAR"
    if _is_blob(kind):
        return "BLOB"
    if types.is_fixed_size_list(kind):
        return f"{sql_name(kind.value_type)}[{kind.list_size}]"
    if types.is_list(kind) or types.is_large_list(kind):
        return f"{sql_name(kind.value_type)}[]"
    if types.is_map(kind):
        return f"MAP({sql_name(kind.key_type)}, {sql_name(kind.item_type)})"
    if types.is_struct(kind) and _is_variant(kind):
        return "VARIANT"
    if types.is_struct(kind) or types.is_union(kind):
        parts = ", ".join(f"{part.name} {sql_name(part.type)}" for part in _fields(kind))
        return f"{'STRUCT' if types.is_struct(kind) else 'UNION'}({parts})"
    if types.is_timestamp(kind) and kind.tz is not None:
        return "TIMESTAMP WITH TIME ZONE"
    other = f"DECIMAL({kind.precision},{kind.scale})" if types.is_decimal(kind) else str(kind).upper()
    return _SQL_NAMES.get(str(kind), other)
