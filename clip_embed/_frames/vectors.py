"""Columns of vectors, compared with queries where they lie in memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa

from clip_embed._embedder import ClipEmbedder
from clip_embed._frames.embedding import Bools
from clip_embed._stamp import check_stamp
from clip_embed._types import Float32
from clip_embed.arrow import Column, read_vectors, stamp_of

_BLOCK = 256  # rows whose numbers stay in a core's own cache

# Parts of columns that are alive: Arrow's columns never change, and pandas keeps the object.
_PARTS: dict[int, tuple[weakref.ref[Any], list[Part]]] = {}


@dataclass(slots=True)
class Part:
    """Consecutive rows of a column: float32 (n, d) as they are stored, and which of them are present."""

    rows: Float32
    present: Bools
    _lengths: Float32 | None = None

    def lengths(self) -> Float32:
        """Return the lengths of the rows (n,); NaN where there is no vector, or one without a direction."""
        if self._lengths is None:
            self._pass(None)
        return cast("Float32", self._lengths)

    def cosines(self, queries: Float32) -> Float32:
        """Return float32 (n, m). The first time lengths are measured as well, while rows are at hand."""
        with np.errstate(invalid="ignore", over="ignore"):
            products = self._pass(queries) if self._lengths is None else self.rows @ queries.T
            return np.asarray(products / self.lengths()[:, None], np.float32)

    def _pass(self, queries: Float32 | None) -> Float32:
        """Measure the lengths and multiply with the queries, in blocks that a core keeps in its cache."""
        lengths = np.empty(len(self.rows), np.float32)
        products = np.empty((len(self.rows), 0 if queries is None else len(queries)), np.float32)
        with np.errstate(invalid="ignore", over="ignore"):
            for start in range(0, len(lengths), _BLOCK):
                block = self.rows[start : start + _BLOCK]
                lengths[start : start + _BLOCK] = np.sqrt(np.einsum("nd,nd->n", block, block))
                if queries is not None:
                    products[start : start + _BLOCK] = block @ queries.T
        lengths[~(self.present & np.isfinite(lengths) & (lengths > 0))] = np.nan
        self._lengths = lengths
        return products


@dataclass(frozen=True, slots=True)
class VectorColumn:
    """A column of n vectors of dimension d."""

    parts: Sequence[Part]
    dim: int

    @property
    def valid(self) -> Bools:
        """bool (n,): which rows have a vector that can be compared."""
        lengths = [np.empty(0, np.float32), *(part.lengths() for part in self.parts)]
        return np.asarray(np.isfinite(np.concatenate(lengths)), np.bool_)

    def cosines(self, queries: Float32) -> Float32:
        """Return the cosine similarity with m unit vectors (m, d): float32 (n, m), NaN without a vector."""
        blocks = [part.cosines(queries) for part in self.parts]
        return np.concatenate([np.empty((0, len(queries)), np.float32), *blocks])

    def units(self) -> Float32:
        """Return float32 (n, d): rows of unit length, zeros where there is no vector."""
        blocks = [np.empty((0, self.dim), np.float32)]
        for part in self.parts:
            lengths = part.lengths()[:, None]
            with np.errstate(invalid="ignore", over="ignore"):
                blocks.append(np.where(np.isfinite(lengths), part.rows / lengths, np.float32(0)))
        return np.concatenate(blocks)


def open_vectors(column: Column, embedder: ClipEmbedder, where: str) -> VectorColumn:
    """Take a column of vectors that are to be compared with those of `embedder`.

    A fixed-size list of float32 is not copied, any other list of floats is. Raises SpaceMismatch for
    another dimension or another model's stamp, also of a part of the column; TypeError for anything but
    lists of floats. Warns where nothing says which model made them. `where` names the column.
    """
    kind: Any = column.type
    chunks: list[Any] = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    fixed = pa.types.is_fixed_size_list(kind) and pa.types.is_float32(kind.value_type)
    if not fixed or any(chunk.values.null_count and chunk.flatten().null_count for chunk in chunks):
        rows, valid = read_vectors(column, embedder, where)
        return VectorColumn([Part(rows, valid)], rows.shape[1])
    for each in _kinds([column, *chunks]):  # concat joins columns of two models without a word
        check_stamp(stamp_of(each, where), kind.list_size, embedder, where)
    parts = _remembered(
        column, lambda: [Part(flat_rows(chunk), np.asarray(chunk.is_valid(), np.bool_)) for chunk in chunks]
    )
    return VectorColumn(parts, kind.list_size)


def _kinds(columns: Sequence[Any]) -> list[Any]:
    """Return the types of columns, those with another stamp each."""
    return list({str(column.type.field(0).metadata): column.type for column in columns}.values())


def flat_rows(array: Any) -> Float32:  # noqa: ANN401 - a pa.FixedSizeListArray of float32
    """Return float32 (n, d), the numbers of fixed-size lists where they lie; any numbers for null."""
    dim: int = array.type.list_size
    values = array.values.slice(array.offset * dim, len(array) * dim)
    if not len(values):
        return np.empty((0, dim), np.float32)
    numbers: Float32 = np.frombuffer(values.buffers()[1], np.float32, len(values), values.offset * 4)
    numbers.flags.writeable = False  # Arrow's arrays never change
    return numbers.reshape(-1, dim)


def _remembered(column: Column, make: Callable[[], list[Part]]) -> list[Part]:
    """Return the parts of a column, whose lengths are measured once in its lifetime."""
    key = id(column)
    if (known := _PARTS.get(key)) is not None and known[0]() is column:
        return known[1]

    def forget(_: object) -> None:
        _PARTS.pop(key, None)

    parts = make()
    _PARTS[key] = weakref.ref(column, forget), parts
    return parts
