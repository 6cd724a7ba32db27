"""Collections that others made: refused, or taken in on one's word."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import AsyncQdrantClient, QdrantClient, models
from qdrant_wire import serve

from clip_embed import ClipEmbedder, SpaceMismatch
from clip_embed.testing import FakeModel
from clip_embed_qdrant import ImageStore, StoreError


@pytest.fixture(params=["memory", "grpc", "http"])
def others(request: pytest.FixtureRequest) -> Iterator[tuple[QdrantClient, dict[str, Any]]]:
    """A client for filling collections, and what opens a store beside them."""
    with serve() as wire:
        port = wire.grpc_port if request.param == "grpc" else None
        arguments = {"location": wire.url, "grpc_port": port}
        yield wire.engine, {"client": wire.engine} if request.param == "memory" else arguments


def make(client: QdrantClient, name: str, vectors: Any, folder: Path) -> None:  # noqa: ANN401
    """A collection with the vector of one picture, and nothing of ours."""
    client.create_collection(name, vectors)
    row = ClipEmbedder(FakeModel()).embed_images([folder / "red.png"])[0].tolist()
    named = {next(iter(vectors)): row} if isinstance(vectors, dict) else row
    client.upsert(name, [models.PointStruct(id=7, vector=named, payload={"title": "mine"})])


@pytest.mark.parametrize("name", ["", "photo"])
def test_adopted_vectors_are_found(
    name: str, others: tuple[QdrantClient, dict[str, Any]], pictures: Path, embedder: ClipEmbedder
) -> None:
    """Refused first, then taken in on one's word, with the payload they had; ingest adds to them."""
    client, arguments = others
    params = models.VectorParams(size=16, distance=models.Distance.COSINE)
    make(client, "theirs", {name: params} if name else params, pictures)
    opened = {**arguments, "collection": "theirs", "embedder": embedder, "vector": name}
    with pytest.raises(StoreError, match=r"nothing in the collection .*theirs says which model"):
        ImageStore(**opened)
    with ImageStore(**opened, adopt=True) as store:
        hit = store.search(text="red", k=1)[0]
        assert (hit.key, hit.payload) == ("7", {"title": "mine"})
        assert store.ingest(pictures).written == 8
        assert store.prune([("red.png", pictures / "red.png")], other_source=True) == 7
        assert store.status().points == 2
    with ImageStore(**{**opened, "vector": "image"}) as store:
        assert store.search(text="red", k=1)[0].score == pytest.approx(1, abs=0.05)


def test_what_cannot_be_adopted(
    others: tuple[QdrantClient, dict[str, Any]], pictures: Path, embedder: ClipEmbedder
) -> None:
    """Another dimension, another name, another distance, and no embedder to say whose they are."""
    client, arguments = others
    cosine, dot = models.Distance.COSINE, models.Distance.DOT
    make(client, "theirs", models.VectorParams(size=16, distance=cosine), pictures)
    make(client, "dotted", models.VectorParams(size=16, distance=dot), pictures)
    for changes, error, message in (
        ({"vector": "image"}, StoreError, "no vectors called 'image'"),
        ({"vector": "", "embedder": ClipEmbedder(FakeModel(24))}, SpaceMismatch, "16 dimensions"),
        ({"vector": "", "collection": "dotted"}, StoreError, "not by cosine"),
        ({"vector": "", "embedder": None}, TypeError, "give embedder="),
    ):
        options = {**arguments, "collection": "theirs", "embedder": embedder, "adopt": True, **changes}
        with pytest.raises(error, match=message):
            ImageStore(**options)


def test_contradictions(embedder: ClipEmbedder, tmp_path: Path) -> None:
    """A folder with a collection, a server without one, neither or both, a client of another kind."""
    client = QdrantClient(":memory:")
    for arguments, message in (
        ({}, "give either"),
        ({"location": tmp_path, "client": client}, "give either"),
        ({"location": tmp_path, "collection": "c"}, "needs a collection"),
        ({"location": "http://localhost"}, "needs a collection"),
        ({"client": client}, "needs a collection"),
        (
            {"location": "localhost:6333", "collection": "c"},
            "is localhost:6333 a server, http://localhost:6333",
        ),
        ({"location": ":memory:"}, r'QdrantClient\(":memory:"\)'),
        ({"location": "s3://bucket/photos.clip"}, "is no folder"),
        ({"client": AsyncQdrantClient(":memory:"), "collection": "c"}, "not AsyncQdrantClient"),
    ):
        with pytest.raises(TypeError, match=message):
            ImageStore(**arguments, embedder=embedder)  # type: ignore[arg-type]
    client.close()
