"""A Qdrant server for tests: real gRPC and HTTP sockets in front of the client's own engine, with faults.

What travels is what travels to a server, by the client's own converters; what is missing is the server.
Only the requests that clip_embed_qdrant sends are understood.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from qdrant_client import QdrantClient, models
from qdrant_client import grpc as pb
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc, grpc_to_payload
from qdrant_client.grpc import collections_service_pb2_grpc as collections_grpc
from qdrant_client.grpc import points_service_pb2_grpc as points_grpc

_COMPLETED = pb.UpdateResult(operation_id=0, status=pb.UpdateStatus.Completed)
_ABORTS = {
    "down": (grpc.StatusCode.UNAVAILABLE, "service down"),
    "cut": (grpc.StatusCode.UNAVAILABLE, "Socket closed"),
    "error": (grpc.StatusCode.INTERNAL, "Service internal error"),
    "rate": (grpc.StatusCode.RESOURCE_EXHAUSTED, "Write rate limit exceeded"),
    "auth": (grpc.StatusCode.UNAUTHENTICATED, "Invalid API key"),
    "full": (grpc.StatusCode.INTERNAL, "Service internal error: No space left on device"),
    "gone": (grpc.StatusCode.NOT_FOUND, "Collection photos doesn't exist"),
}
_STATUSES = {"down": 503, "error": 500, "rate": 429, "auth": 401, "full": 500, "gone": 404}


@dataclass
class Fault:
    """What goes wrong the next `times` times that an operation of these names is asked for."""

    kind: str
    """One of those above, "slow" (answers after `seconds`), "applied" (does it, then breaks) or "poison"."""
    times: int = 1_000_000
    operations: tuple[str, ...] = ("upsert",)
    seconds: float = 0.0
    """How long it takes, or what Retry-After says, if that is not zero."""
    poison: str = ""
    """A request with this text in a payload is refused, and no other."""
    after: int = 0
    """How many such operations go well before."""


@dataclass
class Wire:
    """A running server: where it listens, what is in it, what it was asked and what goes wrong."""

    http_port: int = 0
    grpc_port: int = 0
    engine: QdrantClient = field(default_factory=lambda: QdrantClient(":memory:"))
    faults: list[Fault] = field(default_factory=list)
    asked: list[tuple[str, int]] = field(default_factory=list)
    """Name of each operation and how many points came with it."""
    keeps: bool = True
    """Whether it stores what is upserted; False for timing the way there alone."""
    turn: threading.RLock = field(default_factory=threading.RLock)

    @property
    def url(self) -> str:
        """Where it listens by HTTP."""
        return f"http://127.0.0.1:{self.http_port}"

    def fault(self, operation: str, points: list[models.PointStruct] | None = None) -> Fault | None:
        """Note an operation and return what goes wrong with it."""
        with self.turn:
            self.asked.append((operation, len(points or ())))
            for each in self.faults:
                if operation not in each.operations or not each.times:
                    continue
                if each.after:
                    each.after -= 1
                    continue
                if each.poison and not any(
                    each.poison in json.dumps(point.payload) for point in points or ()
                ):
                    continue
                each.times -= 1
                return each
        return None

    def upsert(self, collection: str, points: list[models.PointStruct]) -> None:
        """Store points."""
        if self.keeps:
            with self.turn:
                self.engine.upsert(collection, points)


class _Answers:
    """What both gRPC services share."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    def enter(
        self,
        operation: str,
        context: Any,  # noqa: ANN401
        points: list[models.PointStruct] | None = None,
    ) -> Fault | None:
        """Let go wrong what is to go wrong before the operation."""
        fault = self.wire.fault(operation, points)
        if fault is None:
            return None
        if fault.kind == "slow":
            time.sleep(fault.seconds)
        elif fault.kind == "poison":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "Wrong input: Validation error in body")
        elif fault.kind in _ABORTS:
            if fault.kind == "rate" and fault.seconds:
                context.set_trailing_metadata((("retry-after", str(round(fault.seconds))),))
            context.abort(*_ABORTS[fault.kind])
        return fault


class _Points(_Answers, points_grpc.PointsServicer):
    def Upsert(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        points = (
            [GrpcToRest.convert_point_struct(point) for point in request.points] if self.wire.keeps else []
        )
        fault = self.enter("upsert", context, points)
        try:
            self.wire.upsert(request.collection_name, points)
        except ValueError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if fault and fault.kind == "applied":
            context.abort(grpc.StatusCode.UNAVAILABLE, "connection lost after it was applied")
        if fault and fault.kind == "late":
            late = pb.UpdateResult(operation_id=0, status=pb.UpdateStatus.WaitTimeout)
            return pb.PointsOperationResponse(result=late)
        return pb.PointsOperationResponse(result=_COMPLETED)

    def UpdateVectors(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        points = [GrpcToRest.convert_point_vectors(point) for point in request.points]
        self.enter("vectors", context)
        try:
            with self.wire.turn:
                self.wire.engine.update_vectors(request.collection_name, points)
        except KeyError as error:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Not found: No point with id {error} found")
        return pb.PointsOperationResponse(result=_COMPLETED)

    def DeleteVectors(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.enter("remove vectors", context)
        ids = [GrpcToRest.convert_point_id(each) for each in request.points_selector.points.ids]
        chosen = models.PointIdsList(points=ids)
        with self.wire.turn:
            self.wire.engine.delete_vectors(request.collection_name, list(request.vectors.names), chosen)
        return pb.PointsOperationResponse(result=_COMPLETED)

    def CreateVectorName(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.enter("add vector", context)
        dense = models.DenseVectorConfig(
            size=request.dense_config.size,
            distance=GrpcToRest.convert_distance(request.dense_config.distance),
            datatype=GrpcToRest.convert_datatype(request.dense_config.datatype),
        )
        with self.wire.turn:
            self.wire.engine.create_vector_name(
                request.collection_name, request.vector_name, models.DenseVectorNameConfig(dense=dense)
            )
        return pb.PointsOperationResponse(result=_COMPLETED)

    def DeleteVectorName(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.enter("drop vector", context)
        with self.wire.turn:
            self.wire.engine.delete_vector_name(request.collection_name, request.vector_name)
        return pb.PointsOperationResponse(result=_COMPLETED)

    def Delete(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.enter("delete", context)
        ids = [GrpcToRest.convert_point_id(each) for each in request.points.points.ids]
        with self.wire.turn:
            self.wire.engine.delete(request.collection_name, models.PointIdsList(points=ids))
        return pb.PointsOperationResponse(result=_COMPLETED)

    def CreateFieldIndex(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.enter("index", context)
        return pb.PointsOperationResponse(result=_COMPLETED)

    def Get(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.enter("retrieve", context)
        with self.wire.turn:
            records = self.wire.engine.retrieve(
                request.collection_name,
                [GrpcToRest.convert_point_id(each) for each in request.ids],
                with_payload=GrpcToRest.convert_with_payload_interface(request.with_payload),
                with_vectors=GrpcToRest.convert_with_vectors_selector(request.with_vectors),
            )
        return pb.GetResponse(result=[RestToGrpc.convert_record(record) for record in records])

    def Count(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.enter("count", context)
        chosen = GrpcToRest.convert_filter(request.filter) if request.HasField("filter") else None
        with self.wire.turn:
            count = self.wire.engine.count(request.collection_name, count_filter=chosen).count
        return pb.CountResponse(result=pb.CountResult(count=count))

    def Scroll(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.enter("scroll", context)
        with self.wire.turn:
            records, offset = self.wire.engine.scroll(
                request.collection_name,
                GrpcToRest.convert_filter(request.filter) if request.HasField("filter") else None,
                limit=request.limit,
                offset=GrpcToRest.convert_point_id(request.offset) if request.HasField("offset") else None,
                with_payload=GrpcToRest.convert_with_payload_interface(request.with_payload),
                with_vectors=GrpcToRest.convert_with_vectors_selector(request.with_vectors),
            )
        further = None if offset is None else RestToGrpc.convert_extended_point_id(offset)
        found = [RestToGrpc.convert_record(record) for record in records]
        return pb.ScrollResponse(result=found, next_page_offset=further)

    def Query(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.enter("query", context)
        with self.wire.turn:
            asked = [GrpcToRest.convert_query_points(request)]
            answer = self.wire.engine.query_batch_points(request.collection_name, asked)[0]
        return pb.QueryResponse(result=[RestToGrpc.convert_scored_point(point) for point in answer.points])


class _Collections(_Answers, collections_grpc.CollectionsServicer):
    def CollectionExists(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.enter("exists", context)
        exists = self.wire.engine.collection_exists(request.collection_name)
        return pb.CollectionExistsResponse(result=pb.CollectionExists(exists=exists))

    def Get(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.enter("info", context)
        info = self.wire.engine.get_collection(request.collection_name)
        return pb.GetCollectionInfoResponse(result=RestToGrpc.convert_collection_info(info))

    def Create(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.enter("create", context)
        vectors = GrpcToRest.convert_vectors_config(request.vectors_config)
        metadata = grpc_to_payload(request.metadata)
        self.wire.engine.create_collection(request.collection_name, vectors, metadata=metadata)
        return pb.CollectionOperationResponse(result=True)

    def Update(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.enter("update", context)
        metadata = grpc_to_payload(request.metadata)
        self.wire.engine.update_collection(request.collection_name, metadata=metadata)
        return pb.CollectionOperationResponse(result=True)


class _Http(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _HttpServer

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PATCH(self) -> None:
        self._answer("PATCH")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urllib.parse.urlparse(self.path).path
        found = re.match(r"^/collections/([^/]+)(/.*)?$", path)
        if not found:
            return self._send(404, {"status": {"error": "Not found"}})
        try:
            self._do(method, urllib.parse.unquote(found[1]), found[2] or "", json.loads(body or b"{}"))
        except KeyError as error:
            self._send(404, {"status": {"error": f"Not found: No point with id {error} found"}})
        except ValueError as error:
            self._send(404 if "not found" in str(error) else 400, {"status": {"error": str(error)}})

    def _do(self, method: str, name: str, path: str, body: dict[str, Any]) -> None:
        wire = self.server.wire
        if path.startswith("/vectors/"):
            body["vector_name"] = urllib.parse.unquote(path.removeprefix("/vectors/"))
            path = "/vectors"
        operation, points = _OPERATIONS[method, path], None
        if operation == "upsert":
            given = models.PointsBatch(**body).batch if "batch" in body else models.PointsList(**body).points
            points = _as_points(given)
        fault = wire.fault(operation, points)
        if fault and self._fails(fault):
            return
        with wire.turn:
            if operation == "upsert":
                wire.upsert(name, points or [])
                answer: object = {"operation_id": 0, "status": "completed"}
            else:
                answer = _ACTIONS[operation](wire.engine, name, body)
        if fault and fault.kind == "applied":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if fault and fault.kind == "late":
            answer = {"operation_id": 0, "status": "wait_timeout"}
        self._send(200, {"result": answer, "status": "ok", "time": 0.0})

    def _fails(self, fault: Fault) -> bool:
        if fault.kind == "slow":
            time.sleep(fault.seconds)
        elif fault.kind == "cut":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault.kind == "poison":
            self._send(400, {"status": {"error": "Wrong input: Validation error in body"}})
        elif fault.kind in _STATUSES:
            headers = {"Retry-After": str(round(fault.seconds))} if fault.seconds else {}
            self._send(_STATUSES[fault.kind], {"status": {"error": _ABORTS[fault.kind][1]}}, headers)
        return fault.kind not in ("slow", "applied", "late")

    def _send(self, code: int, content: object, headers: dict[str, str] | None = None) -> None:
        encoded = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(encoded)


def _as_points(given: models.Batch | list[models.PointStruct]) -> list[models.PointStruct]:
    """Return the points of either form in which they come."""
    if isinstance(given, list):
        return given
    vectors: Any = given.vectors
    rows = (
        [{name: values[place] for name, values in vectors.items()} for place in range(len(given.ids))]
        if isinstance(vectors, dict)
        else vectors
    )
    return [
        models.PointStruct(id=id_, vector=row, payload=payload)
        for id_, row, payload in zip(given.ids, rows, given.payloads or (), strict=True)
    ]


def _json(model: Any) -> Any:  # noqa: ANN401
    return json.loads(model.model_dump_json())


def _create(engine: QdrantClient, name: str, body: dict[str, Any]) -> object:
    wanted = models.CreateCollection(**body)
    return engine.create_collection(name, wanted.vectors, metadata=wanted.metadata)


def _update(engine: QdrantClient, name: str, body: dict[str, Any]) -> object:
    return engine.update_collection(name, metadata=body["metadata"])


def _retrieve(engine: QdrantClient, name: str, body: dict[str, Any]) -> object:
    wanted = models.PointRequest(**body)
    found = engine.retrieve(name, wanted.ids, wanted.with_payload, wanted.with_vector or False)
    return [_json(record) for record in found]


def _delete(engine: QdrantClient, name: str, body: dict[str, Any]) -> object:
    engine.delete(name, models.PointIdsList(**body))
    return {"operation_id": 0, "status": "completed"}


def _vectors(engine: QdrantClient, name: str, body: dict[str, Any]) -> object:
    engine.update_vectors(name, models.UpdateVectors(**body).points)
    return {"operation_id": 0, "status": "completed"}


def _remove_vectors(engine: QdrantClient, name: str, body: dict[str, Any]) -> object:
    wanted = models.DeleteVectors(**body)
    engine.delete_vectors(name, wanted.vector, models.PointIdsList(points=wanted.points or []))
    return {"operation_id": 0, "status": "completed"}


def _add_vector(engine: QdrantClient, name: str, body: dict[str, Any]) -> object:
    engine.create_vector_name(name, body.pop("vector_name"), models.DenseVectorNameConfig(**body))
    return {"operation_id": 0, "status": "completed"}


def _drop_vector(engine: QdrantClient, name: str, body: dict[str, Any]) -> object:
    engine.delete_vector_name(name, body["vector_name"])
    return {"operation_id": 0, "status": "completed"}


def _scroll(engine: QdrantClient, name: str, body: dict[str, Any]) -> object:
    wanted = models.ScrollRequest(**body)
    found, offset = engine.scroll(
        name,
        wanted.filter,
        limit=wanted.limit or 10,
        offset=wanted.offset,
        with_payload=wanted.with_payload,
        with_vectors=wanted.with_vector or False,
    )
    return {"points": [_json(record) for record in found], "next_page_offset": offset}


def _query(engine: QdrantClient, name: str, body: dict[str, Any]) -> object:
    return _json(engine.query_batch_points(name, [models.QueryRequest(**body)])[0])


def _count(engine: QdrantClient, name: str, body: dict[str, Any]) -> object:
    return {"count": engine.count(name, count_filter=models.CountRequest(**body).filter).count}


_OPERATIONS = {
    ("GET", "/exists"): "exists",
    ("GET", ""): "info",
    ("PUT", ""): "create",
    ("PATCH", ""): "update",
    ("PUT", "/index"): "index",
    ("PUT", "/points"): "upsert",
    ("POST", "/points"): "retrieve",
    ("POST", "/points/delete"): "delete",
    ("PUT", "/points/vectors"): "vectors",
    ("POST", "/points/vectors/delete"): "remove vectors",
    ("PUT", "/vectors"): "add vector",
    ("DELETE", "/vectors"): "drop vector",
    ("POST", "/points/scroll"): "scroll",
    ("POST", "/points/query"): "query",
    ("POST", "/points/count"): "count",
}
_ACTIONS = {
    "exists": lambda engine, name, _: {"exists": engine.collection_exists(name)},
    "info": lambda engine, name, _: _json(engine.get_collection(name)),
    "create": _create,
    "update": _update,
    "index": lambda *_: {"operation_id": 0, "status": "completed"},
    "retrieve": _retrieve,
    "delete": _delete,
    "vectors": _vectors,
    "remove vectors": _remove_vectors,
    "add vector": _add_vector,
    "drop vector": _drop_vector,
    "scroll": _scroll,
    "query": _query,
    "count": _count,
}


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    wire: Wire

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing where a client has gone: that is what tests are about."""


@contextmanager
def serve(**options: Any) -> Iterator[Wire]:  # noqa: ANN401
    """Run a server on free ports; `options` are fields of Wire."""
    wire = Wire(**options)
    limits = [("grpc.max_receive_message_length", -1)]
    server = grpc.server(futures.ThreadPoolExecutor(8), options=limits)
    points_grpc.add_PointsServicer_to_server(_Points(wire), server)
    collections_grpc.add_CollectionsServicer_to_server(_Collections(wire), server)
    wire.grpc_port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    http = _HttpServer(("127.0.0.1", 0), _Http)
    http.wire = wire
    wire.http_port = http.server_address[1]
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield wire
    finally:
        server.stop(0).wait()
        http.shutdown()
        http.server_close()
        thread.join()
        wire.engine.close()
