"""`ImageStore`: images in Qdrant, found by text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from qdrant_client import QdrantClient

from clip_embed import ClipEmbedder
from clip_embed._images.source import ImageInput
from clip_embed_qdrant._copy import Copy
from clip_embed_qdrant._entries import EtagKind, Source, all_or_nothing, normal_key
from clip_embed_qdrant._errors import StoreError
from clip_embed_qdrant._facts import Fact
from clip_embed_qdrant._filters import Where, parse_where
from clip_embed_qdrant._ingest import Ingest
from clip_embed_qdrant._migrate import Migration
from clip_embed_qdrant._options import Job, Options
from clip_embed_qdrant._origins import check_listed, check_origin, other_prefixes, warn_of_other
from clip_embed_qdrant._place import Address, Place, Status
from clip_embed_qdrant._report import IngestReport
from clip_embed_qdrant._search import Example, Hits, check_numbers, query_vector, run_query, without
from clip_embed_qdrant._shown import Show, shown
from clip_embed_qdrant._sink import CONTENT, SAME_AS, VECTOR, IndexKind, Query
from clip_embed_qdrant._sources import open_source
from clip_embed_qdrant._tables import Columns
from clip_embed_qdrant._target import Target
from clip_embed_qdrant._upload import Patience
from clip_embed_qdrant._verify import Verification, prune, verify


class ImageStore:
    """Images in Qdrant: filled by `ingest`, searched by `search`.

    >>> from clip_embed import ClipEmbedder
    >>> from clip_embed_qdrant import ImageStore
    >>> with ImageStore("photos.clip", embedder=ClipEmbedder("offline")) as store:
    ...     print(store.ingest("photos/"))
    ...     for hit in store.search(text="a red car", k=5):
    ...         print(f"{hit.score:.3f} {hit.key}")

    `location` is a folder, in which Qdrant Edge keeps the store in this process, or the URL of a Qdrant
    server or cluster with `collection`; `client` is a QdrantClient of your own, also with `collection`.
    Without `embedder` the model that made the vectors is loaded by the name that the store notes; for a
    new store, the default model. One process at a time writes to a folder; others may search meanwhile.

    Servers: gRPC is taken where somebody listens on `grpc_port`, else HTTP; `timeout` is that of one request
    in seconds. New collections have one named vector `vector` in float16, cosine; `on_disk=True` keeps
    it out of memory. A collection that does not say which model made its vectors is refused, unless
    `adopt=True` says that it is the embedder's. `indexes` names payload fields that are filtered by, with
    their kind ("keyword", "integer", "float", "bool", "datetime", "geo", "text"); made before anything else.
    A server that does not answer is an error at once, or asked again for `patience` seconds.

    Raises SpaceMismatch where the store holds vectors of another space than the embedder's,
    StoreError where it cannot be opened.
    """

    def __init__(
        self,
        location: str | Path | None = None,
        *,
        collection: str | None = None,
        client: QdrantClient | None = None,
        embedder: ClipEmbedder | None = None,
        api_key: str | None = None,
        timeout: float = 60.0,
        grpc_port: int | None = 6334,
        adopt: bool = False,
        vector: str = VECTOR,
        on_disk: bool = False,
        indexes: Mapping[str, IndexKind] | None = None,
        patience: float = 0.0,
    ) -> None:
        address = Address(location, collection, client, api_key, timeout, grpc_port, vector, on_disk)
        self._indexes: dict[str, IndexKind] = dict(indexes or {})
        self._place = Place(address, embedder, self._indexes, adopt=adopt, patience=patience)
        self._sink = self._place.sink
        self.last_report: IngestReport | None = None
        """That of the last `ingest` or `retry`, also where it was interrupted."""

    def __repr__(self) -> str:
        return f"ImageStore({self._sink.where!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder or the connection; a client of yours stays open. Idempotent."""
        self._place.close()

    @property
    def embedder(self) -> ClipEmbedder:
        """The embedder that was given, or one of the model that the store notes."""
        return self._place.embedder

    def ingest(
        self,
        source: object,
        *,
        image: str = "image",
        key: str = "path",
        payload: Sequence[str] | None = None,
        etag: EtagKind = "stat",
        facts: Sequence[Fact] = (),
        prefix: str = "",
        shard: tuple[int, int] = (0, 1),
        on_error: Literal["skip", "raise"] = "skip",
        on_duplicate: Literal["embed", "link"] = "embed",
        patience: float = 600.0,
        storage_options: Mapping[str, object] | None = None,
        progress: Show = True,
    ) -> IngestReport:
        """Embed what is new or changed in a source and write it; return what was done.

        `source` is a folder, a pattern ("photos/**/*.jpg"), a URL of fsspec ("s3://bucket/photos", with
        `storage_options`), Parquet, CSV or tar files (webdataset; a path, a pattern, a range in braces, a
        URL), an Arrow table, dataset or reader, a DuckDB relation, or an iterable of (key, image[, payload]).
        In tables `image` and `key` name the columns, `payload` those to take along, by default all that a
        payload can hold. Files bring `path` and `size`, and what `facts` ask of their headers: "dimensions",
        "date" and "camera" of the EXIF block, "gps" too only if it is named here.

        The key of a file is its path relative to the source, with `prefix` in front; the id of a point
        follows from its key. An image is skipped, undecoded, while its etag is the stored one: size and
        time for `etag="stat"`, its content for "sha256" (always for images handed in by value).
        `shard=(i, n)` takes the i-th of n shares, counted from 0, so that n machines fill one collection.

        With `on_duplicate="link"` an image whose bytes are those of another takes its vector, and searches
        show the two as one hit; to tell, every new or changed image is read first. A failed image is listed
        in the report and stops nothing, unless `on_error="raise"`. Where the store does not answer, requests
        are repeated for `patience` seconds; then, or where it refuses the key, is gone or full, IngestStopped
        is raised with the report. `progress` is called with the report so far, a few times a second; True
        shows a bar on a terminal and in a notebook. Called again, ingest goes on from where it was, whatever
        ended it. A folder, pattern or URL that lists no image is a StoreError.
        """
        opened = self._open(source, (image, key, payload), storage_options)
        options = Options(etag, tuple(facts), shard, normal_key(prefix), on_error, patience, on_duplicate)
        return self._run(opened, options, progress)

    def retry(self, report: IngestReport, *, progress: Show = True) -> IngestReport:
        """Try the failures of a report again that may work now; return what was done.

        The source of that ingest is listed again, and only the failed images in it are looked at.
        """
        if not isinstance(report.job, Job):
            raise TypeError("this report is not one of `ingest` or `retry`")
        source, options = report.job.source, report.job.options
        if not source.repeatable:
            raise ValueError("the source was an iterator, which is used up: call ingest with a new one")
        keys = frozenset(failure.key for failure in report.failed if failure.retryable)
        return self._run(source, replace(options, only=keys), progress)

    def search(
        self,
        *,
        text: str | None = None,
        image: ImageInput | None = None,
        vector: npt.NDArray[np.floating] | None = None,
        like: Sequence[Example] = (),
        unlike: Sequence[Example] = (),
        where: Where | None = None,
        k: int = 10,
        threshold: float | None = None,
        diversity: float | None = None,
        group_by: str | None = None,
        group_size: int = 1,
    ) -> Hits:
        """Return the k images that fit best, best first, with their cosine similarity.

        Ask by `text`, by `image`, by `vector` (d,), by stored images you `like` (their keys), or by several
        of them, which are averaged; `unlike` leads away from others. Images named by key are no hits.

        `where` filters by payload: {"camera": "X100"}, {"album": ["a", "b"]} for one of several,
        {"size": {"$gte": 1000, "$lt": 9000}}, {"taken": {"$gte": "2024-05-01"}}, {"album": None} where it is
        missing, and {"$or": […]}, {"$and": […]}, {"$not": {…}}; also $ne, $in, $nin, $exists. `threshold` is
        the least score. `diversity` from 0 to 1 prefers hits that differ from each other (MMR);
        `group_by` allows `group_size` hits for each value of a payload field.
        """
        check_numbers(k, group_size, diversity)
        meta = self._place.existing()
        condition = parse_where(where)
        wanted, named = query_vector(
            self.embedder, self._sink, text=text, image=image, vector=vector, like=like, unlike=unlike
        )
        query = Query(wanted, k, meta.used.name, without(condition, named), threshold, diversity)
        try:
            hits = run_query(self._sink, query, group_by, group_size)
        except StoreError:
            self._place.current()  # says so where the vectors are gone because the model was switched
            raise
        return Hits(hits, title=text or "Search", sources=meta.sources)

    def status(self) -> Status:
        """Say what is in the store; loads no model."""
        return self._place.status()

    def verify(
        self,
        source: object,
        *,
        image: str = "image",
        key: str = "path",
        etag: EtagKind = "stat",
        prefix: str = "",
        storage_options: Mapping[str, object] | None = None,
    ) -> Verification:
        """Compare a source with the store: what is missing, changed, unreadable or no longer there.

        Nothing is decoded or changed. `source` and the rest are as in `ingest`, and as they were there.
        Takes 8 bytes of memory for each image.
        """
        opened, prefix = self._open(source, (image, key, []), storage_options), normal_key(prefix)
        others = other_prefixes(self._place.current().sources, prefix)
        policy = self._place.policy
        return verify(self._sink, opened, prefix=prefix, others=others, kind=etag, policy=policy)

    def prune(
        self,
        source: object,
        *,
        image: str = "image",
        key: str = "path",
        prefix: str = "",
        storage_options: Mapping[str, object] | None = None,
        other_source: bool = False,
    ) -> int:
        """Remove what the source no longer lists; return how many points that were.

        Only keys that begin with `prefix` are looked at, and of them none below another prefix that was
        ingested. Raises StoreError, and removes nothing, where the source lists no image at all, has a
        folder or a file that cannot be read, or is another than the store was filled from, unless
        `other_source`.
        """
        self._place.existing()
        sources = self._place.current().sources
        opened, prefix = self._open(source, (image, key, []), storage_options), normal_key(prefix)
        if not other_source:
            check_origin(sources, self._sink.where, opened, prefix)
        others = other_prefixes(sources, prefix)
        return prune(self._sink, all_or_nothing(opened), prefix=prefix, others=others)

    def optimize(self) -> None:
        """Build the index that makes searching a store in a folder faster from some 100,000 images on.

        Takes a minute or two for each 100,000, in a process of its own. StoreError for servers.
        """
        self._place.existing()
        self._sink.optimize()

    def copy_to(
        self,
        url: str | None,
        collection: str,
        *,
        client: QdrantClient | None = None,
        api_key: str | None = None,
        timeout: float = 60.0,
        grpc_port: int | None = 6334,
        on_disk: bool = False,
        patience: float = 600.0,
        progress: Show = True,
    ) -> IngestReport:
        """Copy all points to a collection of a server or of a client of yours; nothing is embedded.

        The collection is made where there is none. What it has in the same state is skipped, so that a
        copy that was interrupted goes on from there; a warning says where it was filled from another source,
        whose images of the same key are replaced. Options are as in the constructor and in `ingest`.
        Raises SpaceMismatch where the collection holds vectors of another space.
        """
        meta = self._place.existing()
        address = Address(url, collection, client, api_key, timeout, grpc_port, meta.used.name, on_disk)
        target = Place(address, None, self._indexes, adopt=False)
        try:
            target.begin(replace(meta, beside=None, sources={}))
            noted = target.current().sources
            for prefix, root in meta.sources.items():
                warn_of_other(noted, target.sink.where, root, prefix)
            with shown(progress, "Copying", self._sink.count) as show:
                copy = Copy(self._sink, target.sink, patience, show)
                try:
                    return copy.run()
                finally:
                    if copy.report.written or copy.report.skipped:
                        target.note_sources(meta.sources)
        finally:
            target.close()

    def migration(self, to: ClipEmbedder | None = None) -> Migration:
        """Return what moves the store to the model of `to` while searches go on.

        Once vectors of a second model are there, `to` may be left out if the store notes its name.
        """
        return Migration(self._place, to)

    def _run(self, source: Source, options: Options, progress: Show) -> IngestReport:
        if options.only is None:
            check_listed(source)  # before a store is made
        patience = Patience(options.patience)
        patience.ask(partial(self._place.prepare, source.root, options.prefix))
        if options.links:
            patience.ask(partial(self._sink.index_fields, {CONTENT: "keyword", SAME_AS: "keyword"}))
        origin = {} if source.root is None else {options.prefix: source.root}
        noted = partial(self._place.note_sources, origin)
        target = Target(self._sink, migrating=self._place.existing().beside is not None, begun=noted)
        with shown(progress, "Ingesting", source.total) as show:
            job = Ingest(target, self.embedder, source, options, show)
            try:
                report = job.run()
            finally:
                self.last_report = job.report
        if report.skipped:  # also where all was stored already: a folder that moved
            noted()
        return report

    def _open(self, source: object, columns: Columns, options: Mapping[str, object] | None) -> Source:
        return open_source(source, columns=columns, policy=self._place.policy, storage_options=options)
