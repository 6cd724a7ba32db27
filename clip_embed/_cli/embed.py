"""`clip-embed embed`: the vectors of a folder's photos as a Parquet file for other tools."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_embed._cache.memory import EmbeddingCache
from clip_embed._embedder import ClipEmbedder
from clip_embed._models.space import cache_dir
from clip_embed._progress import Progress
from clip_embed._types import EmbeddedBatch, Float32
from clip_embed.arrow import vector_array, vector_type

_ROWS = 4096  # in one row group
_COLUMNS = ("path", "embedding", "embedding_error")
_LISTED = 20  # failures that are named on the terminal


def write_vectors(folder: Path, target: Path, name: str, photos: Iterable[str], *, as_json: bool) -> int:
    """Write path, embedding and embedding_error of each photo, in order; return how many failed.

    `target` is there when all is done, or not at all. What was embedded stays in the cache on disk, so that
    a run that was ended goes on where it was.
    """
    wanted = list(photos)
    embedder = ClipEmbedder(name, cache=EmbeddingCache(cache_dir() / "embeddings.db"))
    click.echo(f"Loading {name} …", err=True)
    embedder.load()
    started = time.perf_counter()
    failures: list[str] = []
    click.echo(f"Embedding {len(wanted):,} photos", err=True)
    with (
        _writer(target, embedder) as rows,
        Progress("Embedding", len(wanted)) as progress,
        embedder.stream_images((path, folder / path) for path in wanted) as batches,
    ):
        for batch in batches:
            rows.add(batch)
            failures += [f"{failure.source}: {failure.reason}" for failure in batch.failures]
            progress.add(len(batch.vectors) + len(batch.failures), len(batch.failures))
    seconds = time.perf_counter() - started
    done = len(wanted) - len(failures)
    if as_json:
        facts = {"file": str(target), "embedded": done, "failed": len(failures), "model": name}
        click.echo(json.dumps({**facts, "dim": embedder.dim, "seconds": round(seconds, 3)}, indent=1))
    else:
        click.echo(f"{target}: {done:,} vectors of {embedder.dim} dimensions, {seconds:.1f} s.")
    for line in failures[:_LISTED]:
        click.echo(f"  {line}", err=True)
    if failures:
        more = len(failures) - _LISTED
        others = f"{more:,} more and all reasons" if more > 0 else "The reasons"
        click.echo(
            f"{len(failures):,} photos could not be used. {others} stand in embedding_error.", err=True
        )
    return len(failures)


class _Rows:
    """Rows on their way into the file, in groups of bounded size."""

    def __init__(self, writer: pq.ParquetWriter, kind: pa.DataType, dim: int) -> None:
        self._writer = writer
        self._kind = kind
        self._dim = dim
        self._waiting: list[tuple[str, Float32 | None, str | None]] = []

    def add(self, batch: EmbeddedBatch) -> None:
        """Take the vectors and failures of a batch, in the order of the input."""
        found = {
            int(index): (str(key), vector, None)
            for index, key, vector in zip(batch.indices, batch.keys, batch.vectors, strict=True)
        }
        failed = {failure.index: (str(failure.key), None, failure.reason) for failure in batch.failures}
        together = found | failed
        self._waiting += [together[index] for index in sorted(together)]
        if len(self._waiting) >= _ROWS:
            self.write()

    def write(self) -> None:
        """Write what waits."""
        paths, vectors, reasons = zip(*self._waiting, strict=True) if self._waiting else ((), (), ())
        self._waiting = []
        empty = np.zeros(self._dim, np.float32)
        matrix = np.array([empty if vector is None else vector for vector in vectors], np.float32)
        valid = np.array([vector is not None for vector in vectors], np.bool_)
        columns: list[pa.Array[Any]] = [
            pa.array([_printable(path) for path in paths], pa.string()),
            vector_array(matrix.reshape(-1, self._dim), valid).cast(self._kind),
            pa.array(reasons, pa.string()),
        ]
        self._writer.write_table(  # pyright: ignore[reportUnknownMemberType]
            pa.Table.from_arrays(columns, list(_COLUMNS)), row_group_size=_ROWS
        )


@contextmanager
def _writer(target: Path, embedder: ClipEmbedder) -> Generator[_Rows]:
    """Give a place for rows; the file takes its name once all are in it."""
    kind = vector_type(embedder)
    schema = pa.schema(list(zip(_COLUMNS, (pa.string(), kind, pa.string()), strict=True)))
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with pq.ParquetWriter(partial, schema) as writer:
            rows = _Rows(writer, kind, embedder.dim)
            yield rows
            rows.write()
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _printable(path: str) -> str:
    """Return a path as text; bytes that are no UTF-8 stand there as their hexadecimal codes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
