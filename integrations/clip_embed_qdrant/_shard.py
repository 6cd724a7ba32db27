"""One shard of Qdrant Edge, with what it does not watch over itself.

Edge validates after it has written its log, holds the GIL in every call and knows no collections. So
what is written has been checked before (`_upload.py`), and a process that was forked is refused here:
in it a query would hang.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import qdrant_edge as edge

from clip_embed_qdrant._errors import Rejected, StoreError, StoreLocked
from clip_embed_qdrant._filters import Condition, edge_filter
from clip_embed_qdrant._sink import ETAG, KEY, Condensed, Found, IndexKind, Points, Query, as_vector

_FLUSH_EVERY = 20_000  # points: what a log holds is read again when the shard is opened
_PAGE = 1_000
_KINDS = {
    "keyword": edge.PayloadSchemaType.Keyword,
    "integer": edge.PayloadSchemaType.Integer,
    "float": edge.PayloadSchemaType.Float,
    "bool": edge.PayloadSchemaType.Bool,
    "datetime": edge.PayloadSchemaType.Datetime,
    "geo": edge.PayloadSchemaType.Geo,
    "text": edge.PayloadSchemaType.Text,
}


_COSINE, _FLOAT16 = edge.Distance.Cosine, edge.VectorStorageDatatype.Float16


def create_shard(folder: Path, vector: str, dim: int) -> None:
    """Make an empty shard in a folder that does not exist yet, and close it."""
    params = edge.EdgeVectorParams(size=dim, distance=_COSINE, datatype=_FLOAT16)
    edge.EdgeShard.create(str(folder), edge.EdgeConfig(vectors={vector: params}, wal_enabled=True)).close()


class Shard:
    """An open shard. Raises StoreLocked where another process, or a forked child of one, has it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pid = os.getpid()
        self._turn = threading.RLock()
        self._unflushed = 0
        try:
            self._shard = edge.EdgeShard.load(str(folder))
        except Exception as error:
            if "WouldBlock" in str(error):
                raise StoreLocked(
                    f"{folder} is open in another process, or in a forked child of one: let that end first"
                ) from None
            raise StoreError(f"{folder} cannot be opened: {error}") from error

    def etags(self, ids: Sequence[str]) -> dict[str, str | None]:
        """Return the etag of each of the ids that is stored."""
        with self._turn:
            records = self._own().retrieve(list(ids), [ETAG], False)
        return {str(record.id): (record.payload or {}).get(ETAG) for record in records}

    def write(self, points: Points, name: str) -> None:
        """Insert or replace points with vectors of a name; when it returns they are in the log."""
        rows = points.vectors.tolist()
        made = [
            edge.Point(id_, {name: row}, payload)
            for id_, row, payload in zip(points.ids, rows, points.payloads, strict=True)
        ]
        self._write(edge.UpdateOperation.upsert_points(made), len(made))

    def write_beside(self, points: Points, name: str) -> None:
        """Give points that are there vectors of another name; Rejected where one of them is not there."""
        rows = points.vectors.tolist()
        made = [edge.PointVectors(id_, {name: row}) for id_, row in zip(points.ids, rows, strict=True)]
        self._write(edge.UpdateOperation.update_vectors(made), len(made))

    def add_vector(self, name: str, dim: int) -> None:
        """Make room for vectors of one more name; idempotent."""
        self._update(edge.UpdateOperation.create_dense_vector(name, dim, _COSINE, datatype=_FLOAT16))

    def drop_vector(self, name: str) -> None:
        """Remove all vectors of a name, and the name; idempotent."""
        self._update(edge.UpdateOperation.delete_vector_name(name))

    def remove_vectors(self, ids: Sequence[str], name: str) -> None:
        """Remove the vectors of a name from points."""
        self._update(edge.UpdateOperation.delete_vectors(list(ids), [name]))

    def delete(self, ids: Sequence[str]) -> None:
        """Remove points."""
        self._update(edge.UpdateOperation.delete_points(list(ids)))

    def index_fields(self, fields: Mapping[str, IndexKind]) -> None:
        """Make payload fields quick to filter by."""
        known = self._own().info().payload_schema
        for name, kind in fields.items():
            if name not in known:
                self._update(edge.UpdateOperation.create_field_index(name, _KINDS[kind]))

    def flush(self) -> None:
        """Bring what is written from the log to its place."""
        with self._turn:
            self._own().flush()
            self._unflushed = 0

    def count(self, condition: Condition | None) -> int:
        """Return how many points there are."""
        with self._turn:
            return self._own().count(edge.CountRequest(filter=edge_filter(condition)))

    def query(self, query: Query) -> list[Found]:
        """Return the nearest points, best first."""
        row = query.vector.tolist()
        nearest = edge.Query.Nearest(row, using=query.using)
        condition = edge_filter(query.condition)
        request = edge.QueryRequest(
            limit=query.limit,
            query=nearest,
            filter=condition,
            score_threshold=query.threshold,
            with_payload=True,
        )
        if query.diversity is not None:
            first = edge.Prefetch(
                query.candidates, query=nearest, filter=condition, score_threshold=query.threshold
            )
            choice = edge.Mmr(row, 1 - query.diversity, query.candidates, using=query.using)
            request = edge.QueryRequest(
                limit=query.limit, query=choice, prefetches=[first], with_payload=True
            )
        with self._turn:
            try:
                points = self._own().query(request)
            except StoreError:
                raise
            except Exception as error:
                raise StoreError(f"{self._folder} could not be searched: {error}") from error
        return [Found(str(point.id), point.payload or {}, point.score) for point in points]

    def fetch(self, ids: Sequence[str], name: str) -> list[Found]:
        """Return those of the ids that are stored, with their vectors of a name."""
        with self._turn:
            return [_found(record, name) for record in self._own().retrieve(list(ids), True, [name])]

    def matching(self, condition: Condition, limit: int, name: str | None) -> list[Found]:
        """Return points that a filter lets through, in the order of their ids."""
        request = edge.ScrollRequest(
            limit=limit,
            filter=edge_filter(condition),
            with_payload=True,
            with_vector=False if name is None else [name],
        )
        with self._turn:
            records, _ = self._own().scroll(request)
        return [_found(record, name) for record in records]

    def scroll(self, name: str | None) -> Iterator[list[Found]]:
        """Yield all points in pages: with all they have and the vectors of a name, or with key and etag."""
        offset: Any = None
        while True:
            request = edge.ScrollRequest(
                offset=offset,
                limit=_PAGE,
                with_payload=[KEY, ETAG] if name is None else True,
                with_vector=False if name is None else [name],
            )
            with self._turn:
                records, offset = self._own().scroll(request)
            yield [_found(record, name) for record in records]
            if offset is None:
                return

    def condense(self) -> Condensed:
        """Return counts and sizes."""
        with self._turn:
            info = self._own().info()
        return Condensed(
            info.points_count, info.indexed_vectors_count, info.segments_count, folder_bytes(self._folder)
        )

    def optimize(self) -> None:
        """Build the index; holds the GIL for all of it, minutes for a million points."""
        self._own().optimize()

    def close(self) -> None:
        """Flush and let go."""
        with self._turn:
            self._own().flush()
            self._shard.close()

    def _own(self) -> edge.EdgeShard:
        if self._pid != os.getpid():
            raise StoreError(
                f"{self._folder} was opened before this process was forked: open it in the child, or start "
                'workers with the "spawn" method'
            )
        return self._shard

    def _write(self, operation: edge.UpdateOperation, count: int) -> None:
        with self._turn:
            self._update(operation)
            self._unflushed += count
            if self._unflushed >= _FLUSH_EVERY:
                self.flush()

    def _update(self, operation: edge.UpdateOperation) -> None:
        try:
            with self._turn:
                self._own().update(operation)
        except StoreError:
            raise
        except Exception as error:
            kind = Rejected if "No point with id" in str(error) else StoreError
            raise kind(f"{self._folder} could not be written: {error}") from error


def _found(record: edge.Record, name: str | None) -> Found:
    given = cast("dict[str | None, object]", record.vector or {})
    return Found(
        str(record.id), record.payload or {}, vector=as_vector(given[name]) if name in given else None
    )


def folder_bytes(folder: Path) -> int:
    """Return how much disk a folder takes."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            facts = Path(parent, name).stat()
            total += getattr(facts, "st_blocks", facts.st_size // 512) * 512
    return total
