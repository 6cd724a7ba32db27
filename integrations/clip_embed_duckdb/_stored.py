"""Columns of vectors, read without a copy where they lie in memory as they should."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from clip_embed.errors import SpaceMismatch
from clip_embed_duckdb._columns import Column

Float32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

_BAD_VECTOR = "the vector holds a NULL, a NaN, an infinity or only zeros"


@dataclass(slots=True)
class Vectors:
    """n vectors and their lengths; rows that are not valid hold anything, and a length of 1."""

    rows: Float32
    norms: Float32
    valid: Bools
    reasons: dict[int, str] = field(default_factory=dict[int, str])
    """Why a row that was not NULL is not valid."""

    @classmethod
    def none(cls, n: int, dim: int) -> Vectors:
        """Return n rows without a vector."""
        return cls(np.zeros((n, dim), np.float32), np.ones(n, np.float32), np.zeros(n, np.bool_))

    def first(self) -> Vectors:
        """Return the first row alone."""
        return Vectors(self.rows[:1], self.norms[:1], self.valid[:1])

    def units(self) -> Float32:
        """Return float32 (n, d): rows of unit length, zeros where not valid."""
        return np.where(self.valid[:, None], self.rows / self.norms[:, None], np.float32(0))

    def cosines(self, others: Vectors) -> Float32:
        """Return the cosine similarity of each pair of rows, float32 (n,); `others` may be one row."""
        with np.errstate(invalid="ignore", over="ignore"):  # in rows that are not valid
            # Not `@`: its threads wait for each other, and rows must not depend on their neighbours.
            # np.vecdot was no faster within a query.
            if len(others.rows) == 1:
                products = np.einsum("ij,j->i", self.rows, others.rows[0])
            else:
                products = np.einsum("ij,ij->i", self.rows, others.rows)
            cosines: Float32 = products / (self.norms * others.norms)
        return np.clip(cosines, -1, 1)


def stored_vectors(column: Column, dim: int) -> Vectors | None:
    """Read a column of lists of floating-point numbers or of int8; None for a column of another type.

    Rows that hold a NULL, a NaN, an infinity or only zeros are not valid. Raises SpaceMismatch
    where a vector has another dimension.
    """
    kind = column.type
    fixed = pa.types.is_fixed_size_list(kind)
    if not (fixed or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return None
    inner = kind.value_type
    if not (pa.types.is_floating(inner) or pa.types.is_decimal(inner) or pa.types.is_int8(inner)):
        return None
    present = cast("Bools", np.asarray(column.is_valid()))
    _check_dimension(column, present, dim)
    if fixed:
        rows = _numbers(column.values.slice(column.offset * dim, len(column) * dim)).reshape(-1, dim)
    elif present.all():
        rows = _numbers(column.flatten()).reshape(-1, dim)
    else:
        rows = np.zeros((len(column), dim), np.float32)
        rows[present] = _numbers(column.flatten()).reshape(-1, dim)
    with np.errstate(invalid="ignore", over="ignore"):
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    valid = present & np.isfinite(norms) & (norms > 0)
    if (odd := np.flatnonzero(present & ~valid)).size:
        rows, norms = _rescale(rows, norms, odd)
        valid = present & np.isfinite(norms) & (norms > 0)
    norms[~valid] = 1
    return Vectors(rows, norms, valid, dict.fromkeys(np.flatnonzero(present & ~valid).tolist(), _BAD_VECTOR))


def _rescale(rows: Float32, norms: Float32, odd: npt.NDArray[np.int64]) -> tuple[Float32, Float32]:
    """Return rows and lengths with those whose squares are too large or too small for float32 at length 1."""
    exact = rows[odd].astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        exact /= np.sqrt(np.einsum("ij,ij->i", exact, exact))[:, None]
    rows, norms = rows.copy(), norms.copy()
    rows[odd] = exact
    norms[odd] = np.sqrt(np.einsum("ij,ij->i", rows[odd], rows[odd]))
    return rows, norms


def stored_form(vectors: Vectors, type_: str) -> Column:
    """Return the valid rows as a column of FLOAT[d] or, each scaled to ±127 and rounded, of TINYINT[d]."""
    units = vectors.units()[vectors.valid]
    if type_.startswith("TINYINT"):
        largest = np.abs(units).max(axis=1, keepdims=True, initial=np.finfo(np.float32).tiny)
        units = np.rint(units * (127 / largest)).astype(np.int8)
    make = cast("Any", pa.FixedSizeListArray)
    return make.from_arrays(pa.array(units.reshape(-1)), vectors.rows.shape[1])


def is_constant(vectors: Vectors) -> bool:
    """Whether all rows are one vector, as where DuckDB repeats a constant."""
    rows = vectors.rows
    if len(rows) < 2 or not vectors.valid.all():
        return False
    return bool((rows[0] == rows[-1]).all() and (rows == rows[0]).all())


def _check_dimension(column: Column, present: Bools, dim: int) -> None:
    if pa.types.is_fixed_size_list(column.type):
        wrong = [] if column.type.list_size == dim else [column.type.list_size]
    else:
        lengths = np.asarray(column.value_lengths())[present]
        wrong = lengths[lengths != dim].tolist()
    if wrong:
        raise SpaceMismatch(
            f"a vector of {int(wrong[0])} dimensions, made by another model: this one's have {dim}"
        )


def _numbers(flat: Column) -> Float32:
    """Return the numbers as float32, NaN for null."""
    flat = flat.cast(pa.float32())
    return np.asarray(flat.fill_null(np.nan) if flat.null_count else flat)
