"""Columns of vectors, compared with a query where they lie in memory."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import pyarrow as pa

from clip_embed._embedder import ClipEmbedder
from clip_embed._engine.cores import usable_cores
from clip_embed._frames.embedding import Bools
from clip_embed._ranking import Places, best
from clip_embed._types import Float32
from clip_embed.arrow import Column, check_stamps, read_vectors

_BLOCK = 1 << 16  # numbers that a core keeps in its own cache from one use to the next
_ROUNDING = 1e-4  # more than float32 makes of a sum of a thousand products
_Memory: TypeAlias = "list[tuple[int, ...]]"


@dataclass(slots=True)
class Part:
    """Consecutive rows of a column: float32 (n, d) as they are stored, and which of them are present."""

    rows: Float32
    present: Bools
    _lengths: Float32 | None = None

    @property
    def is_measured(self) -> bool:
        """Whether the lengths are known."""
        return self._lengths is not None

    def lengths(self) -> Float32:
        """Return the lengths of the rows (n,); NaN where there is no vector, or one without a direction."""
        if self._lengths is None:
            self._pass(None)
        return cast("Float32", self._lengths)

    def cosines(self, query: Float32) -> Float32:
        """Return float32 (n,). The first time lengths are measured as well, while rows are at hand."""
        products = self._pass(query)
        with np.errstate(invalid="ignore", over="ignore"):
            return np.asarray(products / self.lengths(), np.float32)

    def estimates(self, query: Float32) -> Float32:
        """Return `cosines` up to rounding: once lengths are known, as fast as the product of a matrix."""
        if self._lengths is None:
            return self.cosines(query)
        with np.errstate(invalid="ignore", over="ignore"):
            return np.asarray(self.rows @ query / self._lengths, np.float32)

    def cosines_at(self, query: Float32, places: Places) -> Float32:
        """Return `cosines` of some of the rows."""
        if 4 * len(places) > len(self.rows):  # rather than copy them
            return self.cosines(query)[places]
        return Part(self.rows[places], self.present[places]).cosines(query)

    def _pass(self, query: Float32 | None) -> Float32:
        """Return the products with the query, without one nothing of use; lengths are kept if they were not.

        Blocks of rows come from memory once, and whatever is done with them is done while a core has them in
        its cache. Equal rows have equal products, which those of a whole matrix with a vector need not be.
        """
        n, dim = self.rows.shape
        products = np.empty(n, np.float32)
        squares = np.empty(n, np.float32) if self._lengths is None else None
        step = max(1, _BLOCK // max(dim, 1))
        starts = iter(range(0, n, step))  # shared: a thread takes the next block when it is free

        def work(_: int) -> None:
            with np.errstate(invalid="ignore", over="ignore"):  # each thread has its own
                for start in starts:
                    block, here = self.rows[start : start + step], slice(start, start + step)
                    if squares is not None:
                        _dot(block, block, squares[here])
                    if query is not None:
                        _dot(block, query, products[here])

        if n <= step:
            work(0)
        else:
            with ThreadPoolExecutor(threads := usable_cores()) as pool:
                list(pool.map(work, range(threads)))
        if squares is not None:
            squares[~(self.present & np.isfinite(squares) & (squares > 0))] = np.nan
            self._lengths = np.sqrt(squares)
        return products


def _dot(rows: Float32, others: Float32, out: Float32) -> None:
    """Write the inner product of each row (n, d) with its other one, or with the only one, to `out` (n,).

    One BLAS call for each row, none of which starts threads of its own.
    """
    np.matmul(rows[:, None, :], others[..., :, None], out=out[:, None, None])


@dataclass(frozen=True, slots=True)
class VectorColumn:
    """A column of n vectors of dimension d."""

    parts: Sequence[Part]
    dim: int

    @property
    def valid(self) -> Bools:
        """bool (n,): which rows have a vector that can be compared."""
        return np.isfinite(_joined([part.lengths() for part in self.parts]))

    def cosines(self, query: Float32) -> Float32:
        """Return the cosine similarity with a unit vector (d,): float32 (n,), NaN without a vector."""
        return _joined([part.cosines(query) for part in self.parts])

    def most_alike(self, query: Float32, k: int) -> tuple[Places, Float32]:
        """Return the places of the k rows most like a unit vector (d,), best first, and their cosines.

        Of equals the first; no rows without a vector. What may be among the best by an estimate is computed
        again row by row: a product of matrices gives equal rows cosines that differ by rounding.
        """
        estimates = _joined([part.estimates(query) for part in self.parts])
        least = estimates[best(estimates, k)].min(initial=np.inf) - _ROUNDING
        near = np.flatnonzero(estimates >= least)
        starts = np.cumsum([0, *(len(part.rows) for part in self.parts)])
        cosines = _joined(
            [
                part.cosines_at(query, near[(start <= near) & (near < end)] - start)
                for part, start, end in zip(self.parts, starts[:-1], starts[1:], strict=True)
            ]
        )
        chosen = best(cosines, k)
        return near[chosen], cosines[chosen]

    def units(self) -> Float32:
        """Return float32 (n, d): rows of unit length, zeros where there is no vector."""
        blocks = [np.empty((0, self.dim), np.float32)]
        for part in self.parts:
            lengths = part.lengths()[:, None]
            with np.errstate(invalid="ignore", over="ignore"):
                blocks.append(np.where(np.isfinite(lengths), part.rows / lengths, np.float32(0)))
        return np.concatenate(blocks)


def _joined(parts: Sequence[Float32]) -> Float32:
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.float32), *parts])


def open_vectors(
    column: Column, embedder: ClipEmbedder, where: str, owner: object | None = None
) -> VectorColumn:
    """Take a column of vectors that are to be compared with those of `embedder`.

    A fixed-size list of float32 is not copied, any other list of floats is. Lengths are measured once for
    the same memory of the same `owner`, an object that lives as long as the column, by default itself.
    Raises SpaceMismatch for another dimension or another model's stamp, also of a part of the column;
    TypeError for anything but lists of floats. Warns where nothing says which model made them. `where`
    names the column.
    """
    kind: Any = column.type
    chunks: list[Any] = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    fixed = pa.types.is_fixed_size_list(kind) and pa.types.is_float32(kind.value_type)
    if not fixed or any(chunk.values.null_count and chunk.flatten().null_count for chunk in chunks):
        rows, valid = read_vectors(column, embedder, where)
        return VectorColumn([Part(rows, valid)], rows.shape[1])
    check_stamps(column, kind.list_size, embedder, where)
    parts = _remembered(column, "", chunks) if owner is None else _remembered(owner, where, chunks)
    return VectorColumn(parts, kind.list_size)


def flat_rows(array: Any) -> Float32:  # noqa: ANN401 - a pa.FixedSizeListArray of float32
    """Return float32 (n, d), the numbers of fixed-size lists where they lie; any numbers for null."""
    dim: int = array.type.list_size
    values = array.values.slice(array.offset * dim, len(array) * dim)
    if not len(values):
        return np.empty((0, dim), np.float32)
    numbers: Float32 = np.frombuffer(values.buffers()[1], np.float32, len(values), values.offset * 4)
    numbers.flags.writeable = False  # Arrow's arrays never change
    return numbers.reshape(-1, dim)


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of a column as long as its owner lives.

    The chunks are held, so that no other numbers can come to lie at their addresses meanwhile.
    """

    owner: weakref.ref[object]
    chunks: Sequence[Any]
    parts: list[Part]


_known: dict[tuple[int, str], _Known] = {}


def measure(column: pa.ChunkedArray[Any]) -> None:
    """Measure the lengths of vectors that were made or read just now: their first search need not."""
    for part in _remembered(column, "", column.chunks):
        part.lengths()


def _remembered(owner: object, name: str, chunks: Sequence[Any]) -> list[Part]:
    """Return the parts of a column, which know their lengths where the same memory was seen before."""
    key = id(owner), name
    known = _known.get(key)
    if known and known.owner() is owner and _memory(known.chunks) == _memory(chunks):
        return known.parts

    def forget(_: object) -> None:
        _known.pop(key, None)

    parts = [Part(flat_rows(chunk), _present(chunk)) for chunk in chunks]
    _known[key] = _Known(weakref.ref(owner, forget), chunks, parts)
    return parts


def _present(chunk: Any) -> Bools:  # noqa: ANN401 - a pa.Array
    if not chunk.null_count:
        return np.ones(len(chunk), np.bool_)
    return np.asarray(chunk.is_valid(), np.bool_)


def _memory(chunks: Sequence[Any]) -> _Memory:
    """Return where Arrow's arrays, which never change, have their numbers."""
    return [
        (chunk.offset, len(chunk), *(buffer.address if buffer else 0 for buffer in chunk.buffers()))
        for chunk in chunks
    ]
