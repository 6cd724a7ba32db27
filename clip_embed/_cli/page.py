"""Answers of DuckDB as a page: tables in which images are thumbnails."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import duckdb

from clip_embed import ImageError, ImagePolicy
from clip_embed._cli.answers import NUMBERS, Column, Row, kind_name, show_value
from clip_embed._cli.gallery import thumbnail, write_page
from clip_embed._cli.table import format_cell
from clip_embed._images.folders import is_image_name
from clip_embed.errors import ClipEmbedError
from clip_embed_duckdb._files import FileReader

ROWS = 1000
BYTES = 32 * 1024 * 1024  # of one page; browsers are slow beyond that
_IN_A_LIST = 12
_LONGEST_TEXT = 500
_STYLE = """
body { max-width: none }
section { margin: 1.2rem 0 2rem; overflow-x: auto }
pre { font: 13px/1.4 ui-monospace, monospace; margin: 0 0 .6rem; white-space: pre-wrap }
table { border-collapse: collapse }
th, td { border: 1px solid var(--line); padding: 5px 9px; text-align: left; vertical-align: top }
th { position: sticky; top: 0; background: Canvas; font-weight: 600 }
th small, figure .none { display: block; font-weight: normal; font-size: 12px }
th small, .none { color: var(--soft) }
td { max-width: 34rem; overflow-wrap: anywhere }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
figure { display: inline-block; vertical-align: top; margin: 1px 6px 4px 0; max-width: 200px }
figcaption { font-size: 13px }
figure img { display: block; width: auto; height: auto; max-width: 200px; max-height: 150px }
""".strip()


class PageWriter:
    """Writes answers to an HTML file: those up to `write`, or where `latest` each in place of the last.

    A BLOB, a path (a text that ends like an image's name) or a STRUCT with bytes or a path is a
    thumbnail. Files are read through DuckDB, as its settings allow. A page ends at 1,000 rows an
    answer and at 32 MiB, and says so.
    """

    def __init__(
        self,
        file: Path,
        connection: duckdb.DuckDBPyConnection,
        policy: ImagePolicy,
        *,
        latest: bool = False,
    ) -> None:
        if not os.access(file.absolute().parent, os.W_OK):  # better now than after an hour's query
            raise ClipEmbedError(f"cannot write {file}: {file.absolute().parent} is no folder to write to")
        self.file = file
        self._images = _Images(connection, policy)
        self._latest = latest
        self._sections: list[str] = []

    def explain(self, plans: Sequence[Row]) -> bool:
        """Leave plans out of the page."""
        return True

    def begin(self, query: str, columns: Sequence[Column]) -> None:
        if self._latest:
            self._sections = []
        heads = "".join(
            f"<th>{_escape(column.name)}<small>{_escape(kind_name(column.kind))}</small></th>"
            for column in columns
        )
        self._columns = columns
        self._parts = [f"<section>\n<pre>{_escape(query)}</pre>\n<table>\n<tr>{heads}</tr>"]
        self._size = sum(map(len, self._sections))
        self._rows, self._full = 0, False

    def add(self, row: Row) -> bool:
        self._full = self._rows == ROWS or self._size > BYTES
        if not self._full:
            cells = [self._cell(value, column) for value, column in zip(row, self._columns, strict=True)]
            self._parts.append(f"<tr>{''.join(cells)}</tr>")
            self._size += len(self._parts[-1])
            self._rows += 1
        return not self._full

    def end(self, seconds: float) -> None:
        note = f"the first {self._rows:,} rows" if self._full else f"{self._rows:,} rows"
        self._sections.append("\n".join([*self._parts, "</table>", f"<p>{note}</p>\n</section>"]))
        if self._latest:
            self.write()

    def write(self) -> bool:
        """Write the answers so far; False where there are none."""
        if self._sections:
            write_page(self.file, "clip-embed sql", "\n".join(self._sections), style=_STYLE)
        return bool(self._sections)

    def _cell(self, value: Any, column: Column) -> str:  # noqa: ANN401 - whatever DuckDB gives
        if value is None:
            return '<td class="none">NULL</td>'
        if column.kind.id in NUMBERS:
            return f'<td class="number">{_escape(show_value(value, column))}</td>'
        return f"<td>{self._images.markup(value) or _escape(show_value(value, column, _LONGEST_TEXT))}</td>"


class _Images:
    """Turns values that are images into thumbnails."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, policy: ImagePolicy) -> None:
        self._connection = connection
        self._policy = policy
        self._reader: FileReader | None = None

    def markup(self, value: Any) -> str | None:  # noqa: ANN401 - whatever DuckDB gives
        """Return the thumbnails of a value, None where it is no image."""
        if isinstance(value, bytes):
            return self._figure(value, "")
        if isinstance(value, str):
            content = self._read(value) if is_image_name(value) else None
            return None if content is None else self._figure(content, value)
        if isinstance(value, dict):
            return self._of_struct(cast("dict[object, Any]", value))
        if isinstance(value, (list, tuple)):
            return self._of_list(cast("Sequence[Any]", value))
        return None

    def _of_struct(self, fields: dict[object, Any]) -> str | None:
        names = {str(name).lower(): name for name in fields}
        content, path = fields.get(names.get("bytes")), fields.get(names.get("path"))
        if not isinstance(content, bytes):
            content = self._read(path) if isinstance(path, str) else None
        if content is None:
            return None
        rest = {
            name: part for name, part in fields.items() if part is not None and not isinstance(part, bytes)
        }
        return self._figure(content, path if isinstance(path, str) and len(rest) == 1 else format_cell(rest))

    def _of_list(self, parts: Sequence[Any]) -> str | None:
        if not parts or not isinstance(parts[0], (bytes, str, dict)):
            return None
        shown = [(part, self.markup(part)) for part in parts[:_IN_A_LIST]]
        if not any(markup for _, markup in shown):
            return None
        rest = f"<p>… {len(parts):,}</p>" if len(parts) > len(shown) else ""
        return "".join(markup or f"<div>{_escape(format_cell(part))}</div>" for part, markup in shown) + rest

    def _figure(self, content: bytes, caption: str) -> str:
        name = caption or format_cell(content)
        try:
            picture = thumbnail(content, name, self._policy)
        except ImageError as error:
            picture, caption = f'<span class="none">{_escape(str(error))}</span>', name
        return f"<figure>{picture}<figcaption>{_escape(caption)}</figcaption></figure>"

    def _read(self, path: str) -> bytes | None:
        """Return the content of a file; None where there is none, or it may not be read."""
        with suppress(duckdb.Error):
            if self._reader is None:
                own = self._connection.duplicate()
                folders = own.sql("SELECT current_setting('file_search_path')").fetchall()[0][0]
                self._reader = FileReader(own, folders, self._policy)
            found = [file for _, file in self._reader.find([path]) if not isinstance(file, ImageError)]
            for _, content in self._reader.read(found):
                return None if isinstance(content, ImageError) else content
        return None


def _escape(text: str) -> str:
    return html.escape(text)
