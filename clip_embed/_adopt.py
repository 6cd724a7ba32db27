"""Vectors made elsewhere, taken in once it is shown that they are of this space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from clip_embed._embedder import ClipEmbedder
from clip_embed._images.source import ImageInput
from clip_embed._stamp import MIN_COSINE
from clip_embed._types import Float32
from clip_embed._vectors import unit_rows
from clip_embed.errors import ImageBatchError, SpaceMismatch

if TYPE_CHECKING:
    import pyarrow as pa

_MAX_CHECKED = 16


def adopt(
    vectors: str | Path | npt.NDArray[np.floating],
    images: Sequence[ImageInput] | str | Path,
    embedder: ClipEmbedder,
    *,
    column: str = "vector",
) -> pa.Table:
    """Take in vectors that another program made: a table of `image` (path) and stamped `vector`.

    >>> table = adopt("vectors.npy", "files.txt", clip)                  # one path in each line
    >>> table = adopt("vectors.parquet", "path", clip, column="emb")     # a column of the same file
    >>> pyarrow.parquet.write_table(table, "adopted.parquet")

    `vectors` is a float array (n, d), a .npy file or a Parquet file, whose `column` has them. `images`
    names in the same order what they were made of: a list of paths, a text file of them, or the
    column of the Parquet file. Up to 16 of the images, spread evenly, are embedded here: every
    cosine to the vector that was given must reach 0.995. Rows are scaled to unit length.

    Raises SpaceMismatch where a vector is not what this model gives for its image, or nothing could be
    checked; ValueError where the two do not fit each other.
    """
    rows, names = _read(vectors, images, column)
    if len(rows) != len(names):
        raise ValueError(f"there are {len(rows):,} vectors and {len(names):,} images: they must be as many")
    if rows.ndim != 2 or rows.shape[1] != embedder.dim:
        raise SpaceMismatch(
            f"the vectors are an array of shape {rows.shape}, this model gives vectors of {embedder.dim} "
            "dimensions: they were made by another model"
        )
    units = unit_rows(rows)
    if len(broken := np.flatnonzero(~(np.isfinite(units).all(axis=1) & units.any(axis=1)))):
        raise ValueError(f"vector {broken[0]} ({names[broken[0]]}) is not finite, or all zeros")
    _check(units, names, embedder)
    return _table(units, names, embedder)


def _check(units: Float32, names: Sequence[ImageInput], embedder: ClipEmbedder) -> None:
    """Raise SpaceMismatch unless the vectors are those of their images."""
    spread = np.linspace(0, len(names) - 1, min(_MAX_CHECKED, len(names)))
    places: npt.NDArray[np.int64] = np.unique(spread.astype(np.int64))
    chosen: list[ImageInput] = [names[place] for place in cast("list[int]", places.tolist())]
    try:
        found = embedder.embed_images(chosen)
    except ImageBatchError as error:
        if not len(error.batch.indices):
            raise SpaceMismatch(
                f"none of the images could be read to check the vectors with: {error}"
            ) from error
        places, found = places[error.batch.indices], error.batch.vectors
    cosines = (found * units[places]).sum(axis=1)
    worst = int(cosines.argmin()) if len(cosines) else 0
    if len(cosines) and not cosines[worst] >= MIN_COSINE:
        raise SpaceMismatch(
            f"the vector of {names[places[worst]]} has a cosine of {cosines[worst]:.3f} to what this "
            f"model gives for it, {MIN_COSINE} is needed: another model made it, or the order "
            "is not that of the images"
        )


def _read(
    vectors: object, images: Sequence[ImageInput] | str | Path, column: str
) -> tuple[npt.NDArray[np.floating], Sequence[ImageInput]]:
    """Return the vectors (n, d) and what they were made of."""
    if isinstance(vectors, np.ndarray):
        return cast("npt.NDArray[np.floating]", vectors), _names(images)
    if not isinstance(vectors, (str, Path)):
        raise TypeError(f"vectors must be a float array or a file, not {type(vectors).__name__}")
    file = Path(vectors)
    if file.suffix == ".npy":
        return np.load(file, mmap_mode="r", allow_pickle=False), _names(images)
    import pyarrow.parquet as pq

    table = cast("Any", pq).read_table(file)
    wanted = [column, *([str(images)] if isinstance(images, (str, Path)) else [])]
    if missing := [name for name in wanted if name not in table.column_names]:
        raise ValueError(f"{file} has no column {missing[0]!r}; it has {', '.join(table.column_names)}")
    rows = np.array(table[column].to_pylist(), np.float32)
    return rows, table[str(images)].to_pylist() if isinstance(images, (str, Path)) else images


def _names(images: Sequence[ImageInput] | str | Path) -> Sequence[ImageInput]:
    """Return the lines of a text file, or the list itself."""
    if isinstance(images, (str, Path)):
        return Path(images).read_text("utf-8").splitlines()
    return images


def _table(units: Float32, names: Sequence[ImageInput], embedder: ClipEmbedder) -> pa.Table:
    import pyarrow as pa

    from clip_embed.arrow import stamp_vectors, vector_array

    make_table = cast("Any", pa).table
    stamped = stamp_vectors(vector_array(units, np.ones(len(units), np.bool_)), embedder)
    paths = pa.array([str(name) if isinstance(name, (str, Path)) else None for name in names], pa.string())
    return cast("pa.Table", make_table({"image": paths, "vector": stamped}))
