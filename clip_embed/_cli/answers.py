"""Answers of DuckDB as a box for people, as JSON or CSV for programs."""

from __future__ import annotations

import base64
import json
import math
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import time
from decimal import Decimal
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
from duckdb.sqltypes import DuckDBPyType

from clip_embed._cli.table import format_box, format_cell, one_line, shorten

Row: TypeAlias = Sequence[Any]
Plain: TypeAlias = Callable[[Any], Any]

SHOWN = 100
NUMBERS = frozenset(
    "bigint decimal double float hugeint integer smallint tinyint ubigint uhugeint uinteger usmallint utinyint".split()  # noqa: SIM905, E501 - one line
)
_WIDEST_KIND = 24
_QUOTED = re.compile('[,"\r\n#]')  # what has a field quoted, as in DuckDB: readers may take # for a comment


@dataclass(frozen=True, slots=True)
class Column:
    """Name and type of one column of an answer."""

    name: str
    kind: DuckDBPyType


class Writer(Protocol):
    """Takes the answers of one statement after the other."""

    def explain(self, plans: Sequence[Row]) -> bool:
        """Show the rows of an EXPLAIN in a form of their own; False where they are rows like any others."""
        ...

    def begin(self, query: str, columns: Sequence[Column]) -> None:
        """Start the answer of a query."""
        ...

    def add(self, row: Row) -> bool:
        """Take a row; False where the answer is full and the row was not taken."""
        ...

    def end(self, seconds: float) -> None:
        """Finish the answer, which took that long."""
        ...


class BoxWriter:
    """Prints the first rows of each answer in a box, on a terminal no wider than that."""

    def __init__(self, *, timed: bool = False) -> None:
        self._timed = timed

    def explain(self, plans: Sequence[Row]) -> bool:
        print("\n".join(plan for _, plan in plans))
        return True

    def begin(self, query: str, columns: Sequence[Column]) -> None:
        self._columns = columns
        self._rows: list[list[str]] = []
        self._full = False

    def add(self, row: Row) -> bool:
        self._full = len(self._rows) == SHOWN
        if not self._full:
            pairs = zip(row, self._columns, strict=True)
            self._rows.append([show_value(value, column) for value, column in pairs])
        return not self._full

    def end(self, seconds: float) -> None:
        names = [one_line(column.name) for column in self._columns]
        kinds = [shorten(one_line(kind_name(column.kind)), _WIDEST_KIND) for column in self._columns]
        right = [column.kind.id in NUMBERS for column in self._columns]
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(format_box(names, kinds, self._rows, right=right, width=width))
        if self._full:
            print(f"… the first {SHOWN} rows; COPY (…) TO 'answer.csv' writes all")
        elif self._timed:
            print(f"{len(self._rows)} row{'s' * (len(self._rows) != 1)}", end="")
        if self._timed:
            print(f"{' ' if self._full else ', '}{seconds:.2f} s")


class JsonWriter:
    """Prints each answer as one array of objects, a row in a line.

    Vectors are arrays of numbers, BLOBs text in base64, NaN and infinities "NaN", "Infinity" and "-Infinity",
    a DECIMAL with more digits than a float holds is text, dates and intervals are as DuckDB writes them; of
    columns with one name the second is called name_1.
    """

    def explain(self, plans: Sequence[Row]) -> bool:
        return False

    def begin(self, query: str, columns: Sequence[Column]) -> None:
        self._names = _distinct([column.name for column in columns])
        self._plain = [plain_form(column.kind) for column in columns]
        self._count = 0
        sys.stdout.write("[")

    def add(self, row: Row) -> bool:
        values = [plain(value) for plain, value in zip(self._plain, row, strict=True)]
        line = json.dumps(dict(zip(self._names, values, strict=True)), ensure_ascii=False)
        sys.stdout.write(f",\n{line}" if self._count else f"\n{line}")
        self._count += 1
        return True

    def end(self, seconds: float) -> None:
        sys.stdout.write("\n]\n" if self._count else "]\n")


class CsvWriter:
    """Prints each answer with a line of names, an empty line between two answers.

    NULL is an empty field, an empty text is quoted: DuckDB writes CSV so, and reads it back by
    `read_csv(…, allow_quoted_nulls = false)`; so it does nan, inf and -inf. BLOBs are in base64, vectors and
    structs in JSON.
    """

    def __init__(self) -> None:
        self._answers = 0

    def explain(self, plans: Sequence[Row]) -> bool:
        return False

    def begin(self, query: str, columns: Sequence[Column]) -> None:
        if self._answers:
            sys.stdout.write("\n")
        self._answers += 1
        self._plain = [plain_form(column.kind) for column in columns]
        _write_fields([column.name for column in columns])

    def add(self, row: Row) -> bool:
        pairs = zip(self._plain, row, strict=True)
        _write_fields([str(value) if _is_odd(value) else plain(value) for plain, value in pairs])
        return True

    def end(self, seconds: float) -> None:
        pass


def plain_form(kind: DuckDBPyType) -> Plain:
    """Return what turns the values of a type into what JSON knows."""
    if kind.id == "float":
        return _short
    if kind.id in ("list", "array"):
        part = plain_form(cast("DuckDBPyType", kind.children[0][1]))
        return lambda values: None if values is None else [part(value) for value in values]
    if kind.id == "struct" and all(name for name, _ in kind.children):
        parts = {name: plain_form(cast("DuckDBPyType", child)) for name, child in kind.children}
        return lambda fields: (
            None if fields is None else {name: part(fields[name]) for name, part in parts.items()}
        )
    return _plain


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever DuckDB gives
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return _odd_name(value) if _is_odd(value) else value
    if isinstance(value, Decimal):
        number = float(value)
        return number if Decimal(repr(number)) == value else str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, time):
        return value.isoformat()
    if isinstance(value, dict):
        fields = cast("dict[object, Any]", value)
        return {str(name): _plain(part) for name, part in fields.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in cast("Sequence[Any]", value)]
    return str(value)


def _short(value: float | None) -> float | str | None:
    """Return the shortest number that is the same FLOAT: 0.1, not 0.10000000149011612."""
    if value is None:
        return None
    return _odd_name(value) if _is_odd(value) else float(str(np.float32(value)))


def _is_odd(value: object) -> bool:
    """Whether it is one of the numbers that JSON does not have."""
    return isinstance(value, float) and not math.isfinite(value)


def _odd_name(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _distinct(names: Sequence[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        number, free = 0, name
        while free in found:
            number += 1
            free = f"{name}_{number}"
        found.append(free)
    return found


def _write_fields(values: Sequence[Any]) -> None:
    sys.stdout.write(",".join(map(_field, values)) + "\n")


def _field(value: Any) -> str:  # noqa: ANN401 - what `plain_form` gives
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    # Not by the module csv: before Python 3.12 it cannot tell NULL from an empty text.
    return '"' + text.replace('"', '""') + '"' if not text or _QUOTED.search(text) else text


def show_value(value: Any, column: Column, widest: int = 80) -> str:  # noqa: ANN401 - whatever DuckDB gives
    """Return a value in one line, for people."""
    if isinstance(value, float):
        return f"{value:.6g}" if column.kind.id == "float" else f"{value:.15g}"
    if isinstance(value, bool):
        return str(value).lower()
    return shorten(format_cell(value, widest), widest)


def kind_name(kind: DuckDBPyType) -> str:
    """Name a type as DuckDB does, but NULL without its quotation marks."""
    return str(kind).strip('"')
