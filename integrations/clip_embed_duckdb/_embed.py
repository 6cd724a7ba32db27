"""The arguments of a function as vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from clip_embed.errors import ClipEmbedError, SpaceMismatch
from clip_embed_duckdb._columns import Column, blobs_and_paths, is_text, plain, sql_name, text_lists
from clip_embed_duckdb._images import ImageColumn
from clip_embed_duckdb._slot import OnError, Slot, State
from clip_embed_duckdb._stored import Bools, Vectors, is_constant, stored_vectors

Rows = npt.NDArray[np.int64]

_TELLING = frozenset({"clip_embedding", "clip_error", "clip_moderate"})  # these say themselves why one failed


@dataclass(slots=True)
class Call:
    """One call of one function, by one thread, for at most 2,048 rows."""

    name: str
    slot: Slot
    state: State
    on_error: OnError
    check: Callable[[], None]
    """Raises KeyboardInterrupt once the call is to end."""

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
                f"STRUCT(bytes BLOB, path VARCHAR) or {self._vector}, not {sql_name(column.type)}"
            )
        outcomes = None if self.name in _TELLING else self.slot.outcomes
        images = ImageColumn(self.slot, self.state, len(column), *parts, self.fail, outcomes)
        if images.left:
            self.state.load()
            self.slot.progress.leave_out()
            self.state.stream.run(images, self.check)
        return images.vectors

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
            wanted = "a VARCHAR" if texts_only else f"a VARCHAR (a text) or {self._vector}"
            raise TypeError(f"{self.name}: the query must be {wanted}, not {sql_name(column.type)}")
        return vectors.first() if is_constant(vectors) else vectors, vectors.valid

    def labels(self, column: Column) -> list[tuple[tuple[str, ...], Rows]]:
        """Return each set of labels with the rows that have it, none for NULL.

        Raises TypeError where the column holds no lists of texts, ValueError for a NULL among them.
        """
        column = plain(column)
        if pa.types.is_null(column.type):
            return []
        sets = text_lists(column)
        if sets is None:
            wanted = "a list of texts, VARCHAR[]"
            raise TypeError(f"{self.name}: the labels must be {wanted}, not {sql_name(column.type)}")
        for labels, _ in sets:
            if None in labels:
                raise ValueError(f"{self.name}: a NULL stands among the labels {list(labels)}")
        return cast("list[tuple[tuple[str, ...], Rows]]", sets)

    @property
    def _vector(self) -> str:
        dim = self.slot.dim
        return f"a vector of {dim} numbers (FLOAT[{dim}], FLOAT[], DOUBLE[] or TINYINT[{dim}])"

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
