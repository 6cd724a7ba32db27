"""Tables and columns by the names that people give them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import cast

import duckdb

from clip_embed.errors import ClipEmbedError

_PART = re.compile(r'"((?:[^"]|"")*)"|([^".]+)')
_FIND = """
SELECT database_name, schema_name, table_name, false FROM duckdb_tables()
WHERE lower(table_name) = lower($name)
UNION ALL
SELECT database_name, schema_name, view_name, true FROM duckdb_views()
WHERE lower(view_name) = lower($name)
"""
_COLUMNS = """
SELECT column_name, data_type, comment FROM duckdb_columns()
WHERE database_name = ? AND schema_name = ? AND table_name = ? ORDER BY column_index
"""


@dataclass(frozen=True, slots=True)
class Column:
    """One column as the catalog has it."""

    name: str
    type: str
    comment: str | None

    @property
    def sql(self) -> str:
        """The name as it stands in a statement."""
        return quote(self.name)


@dataclass(frozen=True, slots=True)
class Table:
    """One table or view; as text it is the full name that any connection understands."""

    database: str
    schema: str
    name: str
    is_view: bool = False

    def __str__(self) -> str:
        return ".".join(quote(part) for part in (self.database, self.schema, self.name))

    def columns(self, con: duckdb.DuckDBPyConnection) -> dict[str, Column]:
        """Return the columns in order, by their names in small letters: DuckDB does not tell case."""
        rows = ask(con, _COLUMNS, [self.database, self.schema, self.name])
        columns = [
            Column(str(name), str(type_), None if comment is None else str(comment))
            for name, type_, comment in rows
        ]
        return {column.name.lower(): column for column in columns}

    def column(self, con: duckdb.DuckDBPyConnection, name: str) -> Column:
        """Return a column; ClipEmbedError where there is none of this name."""
        columns = self.columns(con)
        if (found := columns.get(name.lower())) is None:
            names = ", ".join(column.name for column in columns.values())
            raise ClipEmbedError(f"{self} has no column {name!r}; it has {names}")
        return found


def find_table(con: duckdb.DuckDBPyConnection, name: str) -> Table:
    """Return the table or view that a name means, written as in SQL: photos, main.photos, "my photos".

    Raises ClipEmbedError where there is none, or where the name means several.
    """
    parts = _parts(name)
    rows = ask(con, _FIND, {"name": parts[-1]})
    tables = [Table(str(row[0]), str(row[1]), str(row[2]), bool(row[3])) for row in rows]
    found = [table for table in tables if _fits(table, parts)]
    if not found:
        raise ClipEmbedError(f"there is no table {name!r} in the database")
    if len(found) > 1 and len(parts) < 3:
        database, schema = ask(con, "SELECT current_database(), current_schema()")[0]
        temporary = [table for table in found if table.database == "temp" and len(parts) == 1]
        here = [table for table in found if (table.database, table.schema) == (database, schema)]
        found = temporary or here or found
    if len(found) > 1:
        raise ClipEmbedError(
            f"{name!r} may be {' or '.join(str(table) for table in found)}: give one of these names"
        )
    return found[0]


def ask(
    con: duckdb.DuckDBPyConnection, query: str, parameters: list[object] | dict[str, object] | None = None
) -> list[tuple[object, ...]]:
    """Return the rows of a query; ClipEmbedError where the connection is not free for it."""
    try:
        found = cast("duckdb.DuckDBPyRelation | None", con.sql(query, params=parameters))
        return [] if found is None else found.fetchall()  # 1.5 has nothing to give for a statement
    except duckdb.Error as error:
        if not is_busy(error):
            raise
        raise ClipEmbedError(
            "the connection has a result that is not read to its end: read it, or give con.cursor()"
        ) from error


def is_busy(error: duckdb.Error) -> bool:
    """Whether it says that another result of the connection is open."""
    return type(error).__name__ == "ResourceInUseException"  # DuckDB 1.5 has none


def quote(name: str) -> str:
    """Return a name as it stands in a statement, whatever it is made of."""
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    """Return a text as it stands in a statement."""
    return "'" + value.replace("'", "''") + "'"


def _parts(name: str) -> list[str]:
    """Return one to three parts of a name; what is not in double quotes stands for itself."""
    parts: list[str] = []
    place = -1
    while place < len(name) and (match := _PART.match(name, place + 1)):
        quoted, plain = match.groups()
        parts.append(plain if quoted is None else str(quoted).replace('""', '"'))
        place = match.end()
        if name[place : place + 1] not in ("", "."):
            break
    if place != len(name) or not 1 <= len(parts) <= 3:
        raise ClipEmbedError(f'{name!r} is no name of a table; write it as after FROM: photos, "my.photos"')
    return parts


def _fits(table: Table, parts: list[str]) -> bool:
    """Whether a table of the right name is in the right place."""
    place = [part.lower() for part in parts[:-1]]
    where = (table.database.lower(), table.schema.lower())
    return len(place) == 0 or (place[0] in where if len(place) == 1 else tuple(place) == where)
