"""What a function is given by name: a classifier or a policy, from Python, from a file or as text."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from clip_embed.errors import ClipEmbedError, ImageError
from clip_embed_duckdb._columns import Column, is_text, plain, sql_name
from clip_embed_duckdb._embed import Call
from clip_embed_duckdb._files import FileReader

T = TypeVar("T")
Rows = npt.NDArray[np.int64]


def rows_by_name(call: Call, column: Column, what: str) -> list[tuple[str, Rows]]:
    """Return each name in a column with its rows, none for NULL. Raises TypeError for anything but texts."""
    column = plain(column)
    if not (is_text(column.type) or pa.types.is_null(column.type)):
        raise TypeError(f"{call.name}: the {what} must be a VARCHAR, not {sql_name(column.type)}")
    coded = column.cast(pa.string()).dictionary_encode()
    codes = np.asarray(coded.indices.fill_null(-1))
    names = cast("list[str]", coded.dictionary.to_pylist())
    return [(name, np.flatnonzero(codes == code)) for code, name in enumerate(names)]


def find(call: Call, name: str, what: str, kind: type[T], parse: Callable[[bytes, str], T]) -> T:
    """Return what has this name, or what is in this file, read through DuckDB where it has changed.

    `parse` takes the file's content and its name, and raises ValueError where that is none.
    """
    known = call.slot.named
    stamp, value = known.get((what, name), (b"", None))
    if isinstance(value, kind) and stamp is None:
        return value
    with closing(call.slot.open_connection()) as con:
        reader = FileReader(con, call.slot.search_path, call.state.embedder.policy)
        ((_, file),) = reader.find([name])
        if not isinstance(file, ImageError):
            if isinstance(value, kind) and stamp and file.stamp == stamp:
                return value
            ((_, content),) = reader.read([file])
            if not isinstance(content, ImageError):
                try:
                    found = parse(content, name)
                except ValueError as error:
                    raise ValueError(f"{call.name}: {error}") from None
                known[what, name] = file.stamp, found
                return found
            file = content
    raise ClipEmbedError(f"{call.name}: there is no {what} {name!r}, and as a file: {file}")
