"""A Ray dataset into a Qdrant collection."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import pyarrow as pa
from ray.data import Dataset

from clip_embed import ClipEmbedder
from clip_embed_qdrant import ImageStore, IngestFailure, IngestReport, IngestStopped
from clip_embed_qdrant._entries import EtagKind
from clip_embed_ray._stage import Actors, AnyModel, Work, require, the_embedder

_COUNTS = ("seen", "skipped", "embedded", "written", "retries")
_FAILURE: Any = pa.struct(
    [("key", pa.string()), ("source", pa.string()), ("reason", pa.string()), ("retryable", pa.bool_())]
)
_TALLY: Any = pa.schema(
    [*((name, pa.int64()) for name in _COUNTS), ("failed", pa.list_(_FAILURE)), ("stopped", pa.string())]
)


def write_qdrant(
    dataset: Dataset,
    url: str,
    collection: str,
    *,
    image: str = "image",
    key: str = "path",
    payload: Sequence[str] | None = None,
    model: AnyModel = None,
    etag: EtagKind = "stat",
    api_key: str | None = None,
    timeout: float = 60.0,
    grpc_port: int | None = 6334,
    on_disk: bool = False,
    patience: float = 600.0,
    concurrency: int | tuple[int, int] | None = None,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    progress: Callable[[IngestReport], object] | None = None,
) -> IngestReport:
    """Embed the images of a dataset and write them to a collection of a Qdrant server; return what was done.

    >>> import ray
    >>> from clip_embed_ray import write_qdrant
    >>> files = ray.data.read_binary_files("s3://bucket/photos", include_paths=True)
    >>> print(write_qdrant(files, "http://qdrant:6333", "photos", image="bytes", model="offline"))

    Each actor writes what it embeds, by `ImageStore.ingest`: `image`, `key`, `payload`, `etag` and `patience`
    are as there, the address as in `ImageStore`, the model and the actors as in `embed`. Ids follow from
    keys and what the collection has in the same state is skipped before it is decoded, so that work
    that Ray repeats after a node is lost changes nothing, nor does a second call. `progress` is called with
    the report so far whenever a piece of work is done. What was done twice counts twice in the report.

    Raises IngestStopped, with the report, where the server is gone for good, full or refuses the key.
    """
    if "://" not in url:
        raise ValueError(
            f"{url!r} is no URL: actors on several machines need a server; one process can fill a "
            "folder by ImageStore"
        )
    embedder = the_embedder(model)
    open_store = partial(
        ImageStore,
        url,
        collection=collection,
        api_key=api_key,
        timeout=timeout,
        grpc_port=grpc_port,
        on_disk=on_disk,
    )
    started = time.monotonic()
    with open_store(embedder=embedder) as store:  # the collection is there before the actors are
        report = store.ingest([], patience=patience)
    ingest = {"image": image, "key": key, "payload": payload, "etag": etag, "patience": patience}
    actors = Actors(concurrency, num_cpus, num_gpus)
    tallies = actors.run(dataset, image, embedder, partial(_begin, open_store, ingest))
    for batch in cast("Any", tallies).iter_batches(batch_format="pyarrow", batch_size=None):
        for tally in batch.to_pylist():
            report = _add(report, tally, time.monotonic() - started)
            if tally["stopped"] is not None:
                raise IngestStopped(tally["stopped"], report)
            if progress:
                progress(report)
    return replace(report, seconds=time.monotonic() - started)


def _begin(open_store: Callable[..., ImageStore], ingest: Mapping[str, Any], embedder: ClipEmbedder) -> Work:
    return partial(_write, open_store(embedder=embedder), ingest)


def _write(store: ImageStore, ingest: Mapping[str, Any], table: pa.Table) -> Iterator[pa.Table]:
    """Yield one row: what an ingest of the table came to."""
    require(table.column_names, [ingest["image"], ingest["key"]])
    stopped = None
    try:
        report = store.ingest(table, **ingest)
    except IngestStopped as error:
        report, stopped = error.report, error.reason
    tally: dict[str, object] = {name: getattr(report, name) for name in _COUNTS}
    fields = ("key", "source", "reason", "retryable")
    failed = [{name: getattr(failure, name) for name in fields} for failure in report.failed]
    yield pa.Table.from_pylist([tally | {"failed": failed, "stopped": stopped}], _TALLY)


def _add(report: IngestReport, tally: Mapping[str, Any], seconds: float) -> IngestReport:
    """Return the report with what one more piece of work came to."""
    for failure in tally["failed"]:
        report.failed.add(IngestFailure(**failure))
    sums = {name: getattr(report, name) + tally[name] for name in _COUNTS}
    return replace(report, **sums, seconds=seconds)
