"""The arguments of a function as vectors."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import cast

import numpy as np
import pyarrow as pa

from clip_embed.errors import ClipEmbedError, ImageError, SpaceMismatch
from clip_embed_duckdb._columns import Column, blobs_and_paths, is_text, plain, sql_name
from clip_embed_duckdb._files import FileReader
from clip_embed_duckdb._slot import OnError, Slot, State
from clip_embed_duckdb._stored import Bools, Vectors, is_constant, stored_vectors


@dataclass(slots=True)
class Call:
    """One call of one function, by one thread, for at most 2,048 rows."""

    name: str
    slot: Slot
    state: State
    on_error: OnError

    def images(self, column: Column) -> Vectors:
        """Embed images, or read stored vectors. Raises TypeError for any other column."""
        column = plain(column)
        vectors = self._stored(column, "image")
        if vectors is not None:
            for row, reason in vectors.reasons.items():
                self.fail([row], None, reason)
            return vectors
        parts = blobs_and_paths(column)
        if parts is None:
            raise TypeError(
                f"{self.name}: the image must be a BLOB (an encoded image), a VARCHAR (a path), a "
                f"STRUCT(bytes BLOB, path VARCHAR) or a vector FLOAT[{self.slot.dim}], "
                f"not {sql_name(column.type)}"
            )
        return _Embedding(self, *parts).run(len(column))

    def queries(self, column: Column, *, texts_only: bool = False) -> tuple[Vectors, Bools]:
        """Return the query of each row, or one for all rows; and which rows have one, bool (n,).

        Raises TypeError where the column holds neither texts nor vectors.
        """
        column = plain(column)
        if pa.types.is_null(column.type):
            return Vectors.none(1, self.slot.dim), np.zeros(len(column), np.bool_)
        if is_text(column.type):
            return self._texts(column.cast(pa.string()).dictionary_encode())
        vectors = None if texts_only else self._stored(column, "query")
        if vectors is None:
            wanted = "a VARCHAR" if texts_only else f"a VARCHAR (a text) or a vector FLOAT[{self.slot.dim}]"
            raise TypeError(f"{self.name}: the query must be {wanted}, not {sql_name(column.type)}")
        return vectors.first() if is_constant(vectors) else vectors, vectors.valid

    def _stored(self, column: Column, argument: str) -> Vectors | None:
        try:
            return stored_vectors(column, self.slot.dim)
        except SpaceMismatch as error:
            raise SpaceMismatch(
                f"{self.name}: the {argument} must be FLOAT[{self.slot.dim}] where it is a vector, "
                f"not {sql_name(column.type)}: {error}"
            ) from None

    def _texts(self, coded: Column) -> tuple[Vectors, Bools]:
        """Embed the texts of a dictionary column, each once."""
        texts = cast("list[str]", coded.dictionary.to_pylist())
        present = cast("Bools", np.asarray(coded.is_valid()))
        if not texts:
            return Vectors.none(1, self.slot.dim), present
        rows = self.state.load().embed_texts(texts)
        if len(texts) > 1:
            rows = rows[np.asarray(coded.indices.fill_null(0))]
        return Vectors(rows, np.ones(len(rows), np.float32), np.ones(len(rows), np.bool_)), present

    def fail(self, rows: Sequence[int], path: str | None, reason: str) -> None:
        """Raise for a failed image where failures are not to be NULL."""
        if self.on_error == "raise":
            name = f"image {path!r}" if path is not None else f"image in row {rows[0]} of this batch of rows"
            raise ClipEmbedError(
                f"{self.name}: the {name} failed: {reason}\nregister(con, on_error='null') gives NULL instead"
            )


class _Embedding:
    """Embeds the images of one chunk; files are read a few at a time, as the decoder takes them."""

    def __init__(self, call: Call, blobs: Column | None, paths: Column | None) -> None:
        self._call = call
        self._blobs = blobs
        self._places: dict[str, list[int]] = {}
        embedded = None if blobs is None else np.asarray(blobs.is_valid())
        for row, path in enumerate(cast("list[str | None]", [] if paths is None else paths.to_pylist())):
            if path is not None and (embedded is None or not embedded[row]):
                self._places.setdefault(path, []).append(row)
        self._path_of = {rows[0]: path for path, rows in self._places.items()}
        self._reasons: dict[int, str] = {}

    def run(self, n: int) -> Vectors:
        result = Vectors.none(n, self._call.slot.dim)
        result.reasons = self._reasons
        if not self._places and (self._blobs is None or self._blobs.null_count == n):
            return result
        embedder = self._call.state.load()
        with closing(self._items()) as items, embedder.stream_images(items) as batches:
            for batch in batches:
                for key, vector in zip(batch.keys, batch.vectors, strict=True):
                    rows = cast("list[int]", key)
                    result.rows[rows] = vector
                    result.valid[rows] = True
                for failure in batch.failures:
                    self._fail(cast("list[int]", failure.key), failure.reason)
        return result

    def _items(self) -> Generator[tuple[object, bytes]]:
        """Yield (the rows that hold the image, its encoded bytes)."""
        for row, value in enumerate(() if self._blobs is None else self._blobs):
            self._call.slot.check_abort()
            if value.is_valid:
                yield [row], value.as_py()
        if not self._places:
            return
        slot = self._call.slot
        with slot.open_connection() as con:
            reader = FileReader(con, slot.search_path, self._call.state.embedder.policy)
            for path, content in reader.read(list(self._places)):
                slot.check_abort()
                if isinstance(content, ImageError):
                    self._fail(self._places[path], str(content))
                else:
                    yield self._places[path], content

    def _fail(self, rows: list[int], reason: str) -> None:
        self._call.fail(rows, self._path_of.get(rows[0]), reason)
        self._reasons.update(dict.fromkeys(rows, reason))
