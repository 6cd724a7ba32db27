"""The server by HTTP."""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from qdrant_client import QdrantClient, models

from .state import ABORTS, STATUSES, Fault, Wire


class _Handler(BaseHTTPRequestHandler):
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
        if self.server.wire.api_key and self.headers.get("api-key") != self.server.wire.api_key:
            return self._send(STATUSES["auth"], {"status": {"error": ABORTS["auth"][1]}})
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
        elif fault.kind in STATUSES:
            headers = {"Retry-After": str(round(fault.seconds))} if fault.seconds else {}
            self._send(STATUSES[fault.kind], {"status": {"error": ABORTS[fault.kind][1]}}, headers)
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


def listen(wire: Wire) -> ThreadingHTTPServer:
    """Return a server on a free port that answers once it is started."""
    server = _HttpServer(("127.0.0.1", 0), _Handler)
    server.wire = wire
    return server
