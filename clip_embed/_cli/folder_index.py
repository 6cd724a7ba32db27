"""The vectors of a folder's photos, kept between two searches.

They lie in a Parquet file in the user's cache folder, one per folder and space. A photo is
embedded again when its size or modification time changes; failures are tried again each time.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clip_embed._cli.signals import keeping
from clip_embed._embedder import ClipEmbedder
from clip_embed._images.folders import find_images
from clip_embed._models.space import cache_dir
from clip_embed._types import EmbeddedBatch, Float32, ImageFailure
from clip_embed.arrow import vector_array

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class FolderIndex:
    """Photos of a folder: `paths` (n), relative and sorted, their unit `vectors` (n, d), failures."""

    paths: list[str]
    vectors: Float32
    embedded: int = 0
    """How many of them were embedded now rather than remembered."""
    failures: list[ImageFailure] = field(default_factory=list[ImageFailure])


def find_photos(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the image files below a folder: POSIX path relative to it -> (bytes, mtime in ns), sorted.

    What the system tells nothing about has (0, 0), and fails with its reason when it is read.
    """
    found = {
        name: (facts.st_size, facts.st_mtime_ns) if facts else (0, 0)
        for name, facts, _ in find_images(folder)
    }
    return dict(sorted(found.items()))


def index_folder(
    folder: Path,
    photos: dict[str, tuple[int, int]],
    embedder: ClipEmbedder,
    progress: Callable[[int, int], object],
) -> FolderIndex:
    """Bring the vectors of `photos` (from `find_photos`) up to date and keep them.

    `progress` is called with the numbers of photos that were finished and, among them, failed.
    """
    file = _index_file(folder, embedder.space)
    known = _read(file, embedder.dim)
    vectors = {path: known[path, *stamp] for path, stamp in photos.items() if (path, *stamp) in known}
    progress(len(vectors), 0)
    missing = [path for path in photos if path not in vectors]
    failures: list[ImageFailure] = []
    with embedder.stream_images([(path, folder / path) for path in missing]) as batches:
        try:
            for batch in batches:
                vectors |= _by_path(batch)
                failures += batch.failures
                progress(len(batch.vectors) + len(batch.failures), len(batch.failures))
        finally:  # an interrupt loses nothing that is done, nor waits for what is not
            paths = [path for path in photos if path in vectors]
            empty = np.empty((0, embedder.dim), np.float32)
            with keeping():
                rows = np.stack([vectors[path] for path in paths]) if paths else empty
                if vectors.keys() & set(missing) or len(known) > len(paths):
                    _write(file, paths, [photos[path] for path in paths], rows)
    return FolderIndex(paths, rows, len(missing) - len(failures), failures)


def _by_path(batch: EmbeddedBatch) -> dict[str, Float32]:
    return {str(key): vector for key, vector in zip(batch.keys, batch.vectors, strict=True)}


def _index_file(folder: Path, space: str) -> Path:
    name = hashlib.sha256(f"{folder.resolve()}\0{space}".encode("utf-8", "surrogateescape")).hexdigest()
    return cache_dir() / "folders" / f"{name[:32]}.parquet"


def _read(file: Path, dim: int) -> dict[tuple[str, int, int], Float32]:
    """Return (path, bytes, mtime) -> vector; empty where the file is missing or unreadable."""
    try:
        table = pq.read_table(file)  # pyright: ignore[reportUnknownMemberType]
        rows = pc.list_flatten(table["vector"]).to_numpy().reshape(-1, dim)
        names = cast("list[bytes]", table["path"].to_pylist())
        sizes, times = (cast("list[int]", table[name].to_pylist()) for name in ("size", "mtime_ns"))
        stamps = zip(map(os.fsdecode, names), sizes, times, strict=True)
        return dict(zip(stamps, rows, strict=True))
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return {}


def _write(file: Path, paths: list[str], stamps: list[tuple[int, int]], rows: Float32) -> None:
    columns: list[pa.Array[Any]] = [
        pa.array([os.fsencode(path) for path in paths], pa.binary()),  # a name need not be UTF-8
        pa.array([size for size, _ in stamps], pa.int64()),
        pa.array([mtime for _, mtime in stamps], pa.int64()),
        vector_array(rows, np.ones(len(rows), np.bool_)),
    ]
    table = pa.Table.from_arrays(columns, ["path", "size", "mtime_ns", "vector"])
    partial = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, partial)  # pyright: ignore[reportUnknownMemberType]
        partial.replace(file)
    except OSError as error:
        logger.warning("the vectors could not be kept for the next search: %s", error)
