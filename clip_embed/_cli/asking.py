"""Statements asked so that no value is lost on its way through Python.

To Python a month is 30 days, a nanosecond nothing, and infinity the end of the year 9999: columns of such
types, and lists and structs that hold them, come as the text that DuckDB makes of them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import duckdb
from duckdb.sqltypes import DuckDBPyType

from clip_embed._cli.answers import Column, Row

_FETCHED = 32  # rows at a time: they may hold images
_LOSSY = frozenset(
    {
        "date",
        "interval",
        "time_ns",
        "timestamp",
        "timestamp with time zone",
        "timestamp_ms",
        "timestamp_ns",
        "timestamp_s",
    }
)
_STREAM = re.compile(
    r"/dev/|\bpipe:", re.IGNORECASE
)  # can be read only once, and DuckDB reads it to know its types


def ask(
    connection: duckdb.DuckDBPyConnection, statement: duckdb.Statement, text: str | None
) -> tuple[list[Column], Iterable[Row]]:
    """Run a statement and return its columns and rows, read as they are asked for.

    `text` is that of the statement where it is one of its own, None for a part of one.
    """
    if text and statement.type == duckdb.StatementType.SELECT and not _STREAM.search(text):
        relation = cast("Any", connection.sql(statement))  # asks for the types, and runs nothing yet
        columns = [Column(name, kind) for name, kind in zip(relation.columns, relation.types, strict=True)]
        if casts := _casts(columns):
            return columns, _rows(connection.execute(f"SELECT {casts} FROM (\n{text}\n)"))  # noqa: S608 - the user's own
    answer = connection.execute(statement)
    columns = [Column(name, kind) for name, kind, *_ in answer.description or ()]
    return columns, _through_arrow(answer, columns) if _casts(columns) else _rows(answer)


def _text_type(kind: DuckDBPyType) -> str | None:
    """Return the type to which values are to be cast to reach Python whole, None where they do anyway."""
    if kind.id in _LOSSY:
        return "VARCHAR"
    if kind.id not in ("list", "array", "struct", "tuple", "map", "union"):
        return None
    parts = [(name, part) for name, part in kind.children if isinstance(part, DuckDBPyType)]
    wanted = [_text_type(part) for _, part in parts]
    if not any(wanted):
        return None
    types = [found or str(part) for found, (_, part) in zip(wanted, parts, strict=True)]
    if kind.id == "list":
        return f"{types[0]}[]"
    if kind.id == "array":
        return f"{types[0]}[{kind.children[1][1]}]"
    if kind.id == "map":
        return f"MAP({', '.join(types)})"
    if kind.id == "struct" and all(name for name, _ in parts):
        fields = [f"{_quote(name)} {type_}" for (name, _), type_ in zip(parts, types, strict=True)]
        return f"STRUCT({', '.join(fields)})"
    return "VARCHAR"


def _casts(columns: Sequence[Column], *, back: bool = False) -> str | None:
    """Return what to select, by position, None where all values may stay as they are.

    With `back` the columns come from Arrow, which has fewer types, and are cast to their own first.
    """
    types = [_text_type(column.kind) for column in columns]
    if not any(types):
        return None
    found: list[str] = []
    for place, (column, type_) in enumerate(zip(columns, types, strict=True), 1):
        value = f"#{place}::{column.kind}" if back and column.kind.id != "null" else f"#{place}"
        found.append(f"{value}::{type_}" if type_ else value)
    return ", ".join(found)


def _rows(answer: duckdb.DuckDBPyConnection) -> Iterator[Row]:
    while rows := answer.fetchmany(_FETCHED):
        yield from rows


def _through_arrow(answer: duckdb.DuckDBPyConnection, columns: Sequence[Column]) -> Iterator[Row]:
    """Yield the rows of what cannot be asked again: of RETURNING, EXECUTE, CALL, PIVOT or a stream."""
    with warnings.catch_warnings():  # that DuckDB copies the rows
        warnings.simplefilter("ignore")
        table = cast("Any", answer).to_arrow_table()
    names = [f"c{place}" for place in range(len(columns))]
    with duckdb.connect() as own:
        own.register("answer", table.rename_columns(names))
        casts = _casts(columns, back=True)
        yield from _rows(own.execute(f"SELECT {casts} FROM answer"))  # noqa: S608 - positions and types


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
