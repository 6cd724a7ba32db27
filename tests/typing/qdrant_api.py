"""How users call clip_embed_qdrant; each line must type-check in mypy and pyright."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

from qdrant_client import QdrantClient

from clip_embed import ClipEmbedder
from clip_embed_qdrant import (
    Comparison,
    Failures,
    Hit,
    Hits,
    ImageStore,
    IngestFailure,
    IngestReport,
    Migration,
    Status,
    Verification,
)

clip = ClipEmbedder("offline")
ImageStore(Path("photos.clip"), embedder=clip, indexes={"album": "keyword"})
ImageStore("http://localhost:6333", collection="photos", api_key="secret", timeout=5, on_disk=True)
ImageStore(client=QdrantClient(":memory:"), collection="photos", embedder=clip, adopt=True)

with ImageStore("photos.clip") as store:
    report = store.ingest("photos/", etag="sha256", facts=["dimensions", "gps"], shard=(0, 4), progress=print)
    assert_type(report, IngestReport)
    assert_type(report.failed, Failures)
    assert_type(next(iter(report.failed)), IngestFailure)
    assert_type(store.ingest([("a", b"..."), ("b", "b.jpg")]), IngestReport)
    assert_type(store.retry(report), IngestReport)
    assert_type(store.search(text="red car", where={"size": {"$gte": 1}}, like=["a.jpg"]), Hits)
    assert_type(store.search(image="a.jpg")[0], Hit)
    assert_type(store.status(), Status)
    assert_type(store.verify("photos/"), Verification)
    assert_type(store.prune("photos/"), int)
    assert_type(store.copy_to("http://localhost:6333", "photos"), IngestReport)
    assert_type(store.ingest("photos/", on_duplicate="link").linked, int)
    assert_type(store.search(text="red car")[0].duplicates, tuple[str, ...])
    migration = store.migration(clip)
    assert_type(migration, Migration)
    assert_type(migration.run("photos/", etag="sha256", progress=print), IngestReport)
    assert_type(migration.compare(["red car"], k=5), Comparison)
    assert_type(migration.compare().mean, float)
    assert_type(migration.missing(), int)
    migration.switch(partial=True)
    migration.drop()
    store.optimize()
    store.search("red car")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    store.ingest("photos/", etag="md5")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
