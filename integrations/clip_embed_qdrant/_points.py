"""Points in the form in which a client sends them fastest."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, cast

from qdrant_client import QdrantClient, models
from qdrant_client import grpc as messages
from qdrant_client.conversions.conversion import GrpcToRest, payload_to_grpc

from clip_embed_qdrant._sink import Points

_TIMEOUT = 5  # seconds; what the client takes where it was given none


def as_batch(points: Points, vector: str) -> models.Batch:
    """Return points for HTTP, or for the engine in a client.

    They have been checked: validating each number again would take most of the time.
    """
    rows = points.vectors.tolist()
    return models.Batch.model_construct(
        ids=list(points.ids),
        vectors={vector: rows} if vector else rows,
        payloads=list(points.payloads),
    )


def as_named(points: Points, name: str) -> list[models.PointVectors]:
    """Return their vectors alone, under a name, for HTTP or for the engine in a client."""
    rows = points.vectors.tolist()
    return [
        models.PointVectors.model_construct(id=id_, vector={name: row})
        for id_, row in zip(points.ids, rows, strict=True)
    ]


def upsert_by_grpc(client: QdrantClient, collection: str, points: Points, vector: str) -> models.UpdateResult:
    """Insert or replace points and wait until that is done.

    The client's own `upsert` takes twice the CPU time: it makes a number of Python of each of a vector.
    """
    made = [
        messages.PointStruct(id=id_, payload=payload_to_grpc(payload), vectors=vectors)
        for (id_, vectors), payload in zip(_messages(points, vector), points.payloads, strict=True)
    ]
    sent: Any = messages.UpsertPoints(collection_name=collection, wait=True, points=made)
    answer = cast("Any", client.grpc_points).Upsert(sent, timeout=_timeout(client))
    return GrpcToRest.convert_update_result(answer.result)


def update_by_grpc(client: QdrantClient, collection: str, points: Points, name: str) -> models.UpdateResult:
    """Give points that are there vectors of another name and wait until that is done."""
    made = [messages.PointVectors(id=id_, vectors=vectors) for id_, vectors in _messages(points, name)]
    sent: Any = messages.UpdatePointVectors(collection_name=collection, wait=True, points=made)
    answer = cast("Any", client.grpc_points).UpdateVectors(sent, timeout=_timeout(client))
    return GrpcToRest.convert_update_result(answer.result)


def _timeout(client: QdrantClient) -> int:
    return client.init_options.get("timeout") or _TIMEOUT


def _messages(points: Points, name: str) -> Iterator[tuple[Any, Any]]:
    """Yield id and vectors of each point; the empty name is that of vectors without one."""
    head = _head(points.vectors.shape[1])
    rows = points.vectors.astype("<f4", copy=False)
    for id_, row in zip(points.ids, rows, strict=True):
        dense = messages.Vector(dense=messages.DenseVector.FromString(head + row.tobytes()))
        named = messages.Vectors(vector=dense)
        if name:
            named = messages.Vectors(vectors=messages.NamedVectors(vectors={name: dense}))
        yield messages.PointId(uuid=id_), named


@lru_cache
def _head(dim: int) -> bytes:
    """Return what stands before the numbers of a vector: field and length."""
    encoded: bytes = messages.DenseVector(data=[0.0] * dim).SerializeToString()
    return encoded[: -4 * dim]
