"""What a server holds and what is to go wrong with it."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field

import grpc
from qdrant_client import QdrantClient, models

ABORTS = {
    "down": (grpc.StatusCode.UNAVAILABLE, "service down"),
    "cut": (grpc.StatusCode.UNAVAILABLE, "Socket closed"),
    "error": (grpc.StatusCode.INTERNAL, "Service internal error"),
    "rate": (grpc.StatusCode.RESOURCE_EXHAUSTED, "Write rate limit exceeded"),
    "auth": (grpc.StatusCode.UNAUTHENTICATED, "Invalid API key"),
    "full": (grpc.StatusCode.INTERNAL, "Service internal error: No space left on device"),
    "gone": (grpc.StatusCode.NOT_FOUND, "Collection photos doesn't exist"),
}
STATUSES = {"down": 503, "error": 500, "rate": 429, "auth": 401, "full": 500, "gone": 404}


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
    keeps_metadata: bool = True
    """Whether it is a server that knows them."""
    api_key: str = ""
    """What every request must carry, if it is not empty."""
    scheme: str = "http"
    turn: threading.RLock = field(default_factory=threading.RLock)

    @property
    def url(self) -> str:
        """Where it listens by HTTP."""
        return f"{self.scheme}://127.0.0.1:{self.http_port}"

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
