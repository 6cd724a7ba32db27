"""A store in a collection of a Qdrant server or cluster, or of a client of the user's own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar, cast

import grpc  # type: ignore[import-untyped]
from qdrant_client import QdrantClient, models

from clip_embed_qdrant._answers import ask, is_absent
from clip_embed_qdrant._errors import StoreError, Unreachable, Unstamped
from clip_embed_qdrant._filters import Condition, client_filter
from clip_embed_qdrant._points import as_batch, as_named, update_by_grpc, upsert_by_grpc
from clip_embed_qdrant._sink import ETAG, KEY, Condensed, Found, IndexKind, Meta, Points, Query, as_vector

T = TypeVar("T")
logger = logging.getLogger(__name__)

_META = "clip_embed"
_PAGE = 1_000
_COSINE = models.Distance.COSINE
_NOBODY = "00000000-0000-0000-0000-000000000000"


class ServerSink:
    """A `Sink` over a client. A new collection has a named vector in float16, and metadata with the space."""

    def __init__(
        self, client: QdrantClient, collection: str, *, vector: str, on_disk: bool, where: str
    ) -> None:
        self._client = client
        self._collection = collection
        self.vector = vector
        self._on_disk = on_disk
        self.where = f"{where}/{collection}"
        self._is_local = _is_local(client)
        self.streams = 1 if self._is_local else 3
        self._by_grpc = not self._is_local and bool(client.init_options.get("prefer_grpc"))
        # The engine inside the client is made for one thread.
        self._turn: AbstractContextManager[object] = threading.RLock() if self._is_local else nullcontext()

    def read_meta(self) -> Meta | None:
        """Ask for the collection's metadata; None where there is no collection.

        Raises StoreError for a collection that says nothing about its vectors.
        """
        if not self._ask(lambda: self._client.collection_exists(self._collection)):
            return None
        config = self._ask(lambda: self._client.get_collection(self._collection)).config
        text = (config.metadata or {}).get(_META)
        if text is None:
            raise Unstamped(
                f"nothing in the collection {self.where} says which model made its vectors: give "
                f"adopt=True if it is that of the embedder, or another collection"
            )
        return Meta.from_json(cast("str", text), self.where)

    def adopted_dim(self) -> int:
        """Return the dimension of the vectors in a collection that others made; StoreError for other ones."""
        named = self._vectors()
        found = named.get(self.vector)
        if found is None:
            raise StoreError(
                f"the collection {self.where} has no vectors called {self.vector!r}; it has "
                f"{', '.join(map(repr, named))}: name them by vector="
            )
        if found.distance != _COSINE:
            raise StoreError(f"the collection {self.where} compares by {found.distance}, not by cosine")
        return found.size

    def create(self, meta: Meta, dim: int) -> None:
        """Make an empty collection."""
        params = models.VectorParams(
            size=dim, distance=_COSINE, datatype=models.Datatype.FLOAT16, on_disk=self._on_disk or None
        )
        self._ask(
            lambda: self._client.create_collection(
                self._collection, vectors_config={meta.used.name: params}, metadata={_META: meta.to_json()}
            )
        )
        try:
            self.read_meta()
        except Unstamped as error:  # an older server takes the request and leaves that out
            raise StoreError(
                f"{self.where} does not keep a collection's metadata, which say what model its vectors "
                "are of: a later version of Qdrant is needed"
            ) from error

    def write_meta(self, meta: Meta) -> None:
        """Replace the collection's metadata."""
        self._ask(lambda: self._client.update_collection(self._collection, metadata={_META: meta.to_json()}))

    def open_for_writing(self) -> None:
        """Try whether writing is allowed, by removing a point that does not exist."""
        self.delete([_NOBODY])

    def index_fields(self, fields: Mapping[str, IndexKind]) -> None:
        """Make payload fields quick to filter by; the engine inside the client has no indexes."""
        for name, kind in () if self._is_local else fields.items():
            schema = models.PayloadSchemaType(kind)
            self._ask(partial(self._client.create_payload_index, self._collection, name, schema))

    def etags(self, ids: Sequence[str]) -> dict[str, str | None]:
        """Return the etag of each of the ids that is stored."""
        records = self._ask(
            lambda: self._client.retrieve(
                self._collection, list(ids), with_payload=[ETAG], with_vectors=False
            )
        )
        return {str(record.id): (record.payload or {}).get(ETAG) for record in records}

    def write(self, points: Points) -> None:
        """Insert or replace points; returns when the server has done so."""
        if self._by_grpc:
            self._done(partial(upsert_by_grpc, self._client, self._collection, points, self.vector))
        else:
            batch = as_batch(points, self.vector)
            self._done(partial(self._client.upsert, self._collection, batch, wait=True))

    def write_beside(self, points: Points, name: str) -> None:
        """Give points that are there vectors of another name; returns when the server has done so."""
        if self._by_grpc:
            self._done(partial(update_by_grpc, self._client, self._collection, points, name))
        else:
            named = as_named(points, name)
            self._done(partial(self._client.update_vectors, self._collection, named, wait=True))

    def vector_names(self) -> set[str]:
        """Return the names of vectors that are taken."""
        return set(self._vectors())

    def add_vector(self, name: str, dim: int) -> None:
        """Make room for vectors of one more name; idempotent."""
        dense = models.DenseVectorConfig(
            size=dim, distance=_COSINE, datatype=models.VectorStorageDatatype.FLOAT16
        )
        config = models.DenseVectorNameConfig(dense=dense)
        self._done(partial(self._client.create_vector_name, self._collection, name, config, wait=True))
        if self._on_disk:
            diff = {name: models.VectorParamsDiff(on_disk=True)}
            self._ask(partial(self._client.update_collection, self._collection, vectors_config=diff))

    def drop_vector(self, name: str) -> None:
        """Remove all vectors of a name, and the name; idempotent."""
        self._done(partial(self._client.delete_vector_name, self._collection, name, wait=True))

    def remove_vectors(self, ids: Sequence[str], name: str) -> None:
        """Remove the vectors of a name from points."""
        chosen = models.PointIdsList(points=list(ids))
        self._done(partial(self._client.delete_vectors, self._collection, [name], chosen, wait=True))

    def delete(self, ids: Sequence[str]) -> None:
        """Remove points."""
        chosen = models.PointIdsList(points=list(ids))
        self._done(lambda: self._client.delete(self._collection, chosen, wait=True))

    def flush(self) -> None:
        """Nothing is left to do: a write returns when it is done."""

    def count(self, condition: Condition | None = None) -> int:
        """Return how many points there are."""
        chosen = client_filter(condition)
        return self._ask(lambda: self._client.count(self._collection, count_filter=chosen)).count

    def query(self, query: Query) -> list[Found]:
        """Return the nearest points, best first."""
        row = query.vector.tolist()
        wanted: Any = row
        if query.diversity is not None:
            mmr = models.Mmr(diversity=query.diversity, candidates_limit=query.candidates)
            wanted = models.NearestQuery(nearest=row, mmr=mmr)
        answer = self._ask(
            lambda: self._client.query_points(
                self._collection,
                wanted,
                using=query.using or None,
                query_filter=client_filter(query.condition),
                limit=query.limit,
                score_threshold=query.threshold,
                with_payload=True,
            )
        )
        return [Found(str(point.id), point.payload or {}, point.score) for point in answer.points]

    def fetch(self, ids: Sequence[str]) -> list[Found]:
        """Return those of the ids that are stored, with their vectors."""
        records = self._ask(
            lambda: self._client.retrieve(
                self._collection, list(ids), with_payload=True, with_vectors=_named(self.vector)
            )
        )
        return [_found(record, self.vector) for record in records]

    def matching(self, condition: Condition, limit: int, *, vector: str | None = None) -> list[Found]:
        """Return points that a filter lets through, in the order of their ids."""
        page = partial(
            self._client.scroll,
            self._collection,
            client_filter(condition),
            limit=limit,
            with_payload=True,
            with_vectors=False if vector is None else _named(vector),
        )
        return [_found(record, vector) for record in self._ask(page)[0]]

    def scroll(self, *, with_vectors: bool = False) -> Iterator[list[Found]]:
        """Yield all points in pages."""
        offset: Any = None
        while True:
            page = partial(
                self._client.scroll,
                self._collection,
                limit=_PAGE,
                offset=offset,
                with_payload=True if with_vectors else [KEY, ETAG],
                with_vectors=_named(self.vector) if with_vectors else False,
            )
            records, offset = self._ask(page)
            yield [_found(record, self.vector) for record in records]
            if offset is None:
                return

    def condense(self) -> Condensed:
        """Return counts; a server does not say what it takes on disk."""
        info = self._ask(lambda: self._client.get_collection(self._collection))
        return Condensed(self.count(), info.indexed_vectors_count or 0, info.segments_count, None)

    def optimize(self) -> None:
        """Raise StoreError: a server builds its index by itself."""
        raise StoreError(f"{self.where}: a Qdrant server optimises its collections by itself")

    def close(self) -> None:
        """The client stays open where it is the user's own; `ImageStore` closes one that it made."""

    def _vectors(self) -> dict[str, models.VectorParams]:
        params = self._ask(lambda: self._client.get_collection(self._collection)).config.params.vectors
        return params if isinstance(params, dict) else {"": params} if params else {}

    def _done(self, write: Callable[[], models.UpdateResult]) -> None:
        status = self._ask(write).status
        if status != models.UpdateStatus.COMPLETED:
            raise Unreachable(f"{self.where} did not say in time that it had written (it said {status})")

    def _ask(self, request: Callable[[], T]) -> T:
        with self._turn:
            return ask(request, self.where)


def _named(name: str) -> list[str] | bool:
    """Return how to ask for vectors of a name; those without one come where all are asked for."""
    return [name] if name else True


def _found(record: models.Record, name: str | None) -> Found:
    given: Any = record.vector
    vector: Any = cast("dict[str | None, Any]", given).get(name) if isinstance(given, dict) else given
    return Found(str(record.id), record.payload or {}, vector=None if vector is None else as_vector(vector))


def connect(url: str, *, api_key: str | None, timeout: float, grpc_port: int | None) -> QdrantClient:
    """Return a client of a server: by gRPC, or by HTTP where `grpc_port` is None or nobody listens there."""
    client = _client(url, api_key, timeout, grpc_port)
    if grpc_port is not None:
        try:
            client.collection_exists(_META)
        except grpc.RpcError as error:
            if is_absent(error):
                logger.info("%s does not answer by gRPC on port %s, HTTP is taken", url, grpc_port)
                client.close()
                client = _client(url, api_key, timeout, None)
    return client


def _client(url: str, api_key: str | None, timeout: float, grpc_port: int | None) -> QdrantClient:
    return QdrantClient(
        url=url,
        api_key=api_key,
        timeout=max(1, round(timeout)),
        prefer_grpc=grpc_port is not None,
        grpc_port=grpc_port or 6334,
        check_compatibility=False,  # it would ask in a thread of its own and warn from there
    )


def _is_local(client: QdrantClient) -> bool:
    """Whether a client has its engine inside (":memory:" or `path=`)."""
    try:
        _ = client.http
    except (AttributeError, NotImplementedError):
        return True
    return False
