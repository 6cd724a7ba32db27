"""Vectors as columns of a Ray dataset."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import pyarrow as pa
from ray.data import Dataset

from clip_embed import ClipEmbedder
from clip_embed._frames.embedding import embed_rows
from clip_embed.arrow import image_values, stamp_vectors, vector_array
from clip_embed_ray._stage import Actors, AnyModel, Work, require, the_embedder


def embed(
    dataset: Dataset,
    column: str,
    *,
    into: str = "embedding",
    model: AnyModel = None,
    concurrency: int | tuple[int, int] | None = None,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
) -> Dataset:
    """Return the dataset with two more columns: the images' vectors, and why an image failed.

    >>> import ray
    >>> from clip_embed_ray import embed
    >>> files = ray.data.read_parquet("files.parquet")                 # a column "path"
    >>> embed(files, "path", model="offline").write_parquet("vectors")

    `column` holds paths that every node can read, encoded images (`ray.data.read_binary_files`),
    structs with "bytes" or "path", or decoded ones (`ray.data.read_images(mode="RGB")`). `into` is a
    fixed-size list of d float32 of unit length, stamped with the model: null for null and where an image
    failed; `into` + "_error" has the reason. Columns of these names are replaced. Rows keep their order
    within a block.

    `model` is what `ClipEmbedder` takes, or a ClipEmbedder, whose settings count and whose weights each
    actor loads for itself; left out it is the default model. Actors and what each has are as in Ray's
    `map_batches`. Left out, an actor has one GPU and its share of the node's cores, where there are no GPUs
    1 core, or 4 on nodes with 8 and more; and there are as many actors as have work.

    Nothing runs until the dataset is read. Raises ValueError where there is no such column, as far as Ray
    knows the columns by then, and what `ClipEmbedder` raises.
    """
    embedder = the_embedder(model)
    actors = Actors(concurrency, num_cpus, num_gpus)
    return actors.run(dataset, column, embedder, partial(_begin, column, into))


def _begin(column: str, into: str, embedder: ClipEmbedder) -> Work:
    embedder.load()
    return partial(_embed, column, into, embedder)


def _embed(column: str, into: str, embedder: ClipEmbedder, table: pa.Table) -> Iterator[pa.Table]:
    require(table.column_names, [column])
    images = _values(table.column(column))
    present = (([row], image) for row, image in enumerate(images) if image is not None)
    rows, valid, reasons = embed_rows(present, table.num_rows, embedder)
    kept = [name for name in table.column_names if name not in (into, f"{into}_error")]
    vectors = stamp_vectors(vector_array(rows, valid), embedder)
    result = cast("Any", table.select(kept)).append_column(into, vectors)
    yield result.append_column(f"{into}_error", pa.array(reasons, pa.string()))


def _values(column: Any) -> Iterator[Any]:  # noqa: ANN401 - pyarrow's
    """Yield the images of a column; those that Ray has decoded are tensors, an extension type of its own."""
    if "tensor" not in getattr(column.type, "extension_name", ""):
        return image_values(column)
    return (row for chunk in column.chunks for row in chunk.to_numpy(zero_copy_only=False))
