"""A Qdrant server for tests: real gRPC and HTTP sockets in front of the client's own engine, with faults.

What travels is what travels to a server, by the client's own converters; what is missing is the server.
Only the requests that clip_embed_qdrant sends are understood.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from .by_grpc import add_services
from .by_http import listen
from .state import Fault, Wire

__all__ = ["Fault", "Wire", "serve"]


@contextmanager
def serve(tls: tuple[Path, Path] | None = None, **options: Any) -> Iterator[Wire]:  # noqa: ANN401
    """Run a server on free ports; `tls` are its key and certificate, `options` fields of Wire."""
    wire = Wire(**options, scheme="https" if tls else "http")
    limits = [("grpc.max_receive_message_length", -1)]
    server = grpc.server(futures.ThreadPoolExecutor(8), options=limits)
    add_services(server, wire)
    http = listen(wire)
    if tls:
        key, certificate = tls
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        http.socket = context.wrap_socket(http.socket, server_side=True)
        pair = (key.read_bytes(), certificate.read_bytes())
        wire.grpc_port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    else:
        wire.grpc_port = server.add_insecure_port("127.0.0.1:0")
    server.start()
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
