"""Points in the form in which a client sends them fastest."""

from __future__ import annotations

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


def upsert_by_grpc(client: QdrantClient, collection: str, points: Points, vector: str) -> models.UpdateResult:
    """Insert or replace points and wait until that is done.

    The client's own `upsert` takes twice the CPU time: it makes a number of Python of each of a vector.
    """
    sent: Any = messages.UpsertPoints(
        collection_name=collection, wait=True, points=_as_messages(points, vector)
    )
    timeout = client.init_options.get("timeout") or _TIMEOUT
    answer = cast("Any", client.grpc_points).Upsert(sent, timeout=timeout)
    return GrpcToRest.convert_update_result(answer.result)


def _as_messages(points: Points, vector: str) -> list[Any]:
    head = _head(points.vectors.shape[1])
    rows = points.vectors.astype("<f4", copy=False)
    made: list[Any] = []
    for id_, row, payload in zip(points.ids, rows, points.payloads, strict=True):
        dense = messages.Vector(dense=messages.DenseVector.FromString(head + row.tobytes()))
        named = messages.Vectors(vector=dense)
        if vector:
            named = messages.Vectors(vectors=messages.NamedVectors(vectors={vector: dense}))
        id_message = messages.PointId(uuid=id_)
        made.append(messages.PointStruct(id=id_message, payload=payload_to_grpc(payload), vectors=named))
    return made


@lru_cache
def _head(dim: int) -> bytes:
    """Return what stands before the numbers of a vector: field and length."""
    encoded: bytes = messages.DenseVector(data=[0.0] * dim).SerializeToString()
    return encoded[: -4 * dim]
