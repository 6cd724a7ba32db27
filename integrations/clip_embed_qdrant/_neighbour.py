"""Reading from a shard that another process has open: that process answers.

Whoever opens a shard listens on a local socket (a pipe on Windows) whose address and key lie in
owner.json, readable by its user alone. Questions and answers are JSON; nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any, Self, cast

import numpy as np

from clip_embed_qdrant import _filters
from clip_embed_qdrant._errors import StoreError
from clip_embed_qdrant._filters import Condition
from clip_embed_qdrant._shard import Shard
from clip_embed_qdrant._sink import Condensed, Found, Query, as_vector

_GONE = (OSError, EOFError, ValueError)  # the other end went away in the middle


class Answering:
    """A thread that answers other processes from an open shard."""

    def __init__(self, shard: Shard, owner: Path) -> None:
        self._shard = shard
        self._owner = owner
        self._pid = os.getpid()
        key = secrets.token_bytes(32)
        self._listener = Listener(authkey=key, backlog=16)
        facts = {"pid": os.getpid(), "address": self._listener.address, "key": key.hex()}
        descriptor = os.open(owner, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(facts, file)
        self._closed = False
        threading.Thread(target=self._accept, name="clip-embed-answers", daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        if self._closed or self._pid != os.getpid():
            return
        self._closed = True
        with suppress(OSError):  # wakes the thread, which waits in accept
            facts = json.loads(self._owner.read_text("utf-8"))
            Client(facts["address"], authkey=bytes.fromhex(facts["key"])).close()
        self._listener.close()
        self._owner.unlink(missing_ok=True)

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection = self._listener.accept()
            except (*_GONE, AuthenticationError):
                if self._closed:
                    return
                continue
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        with connection, suppress(*_GONE):
            while True:
                verb, argument = json.loads(connection.recv_bytes())
                try:
                    answer = {"answer": _VERBS[verb](self._shard, argument)}
                except (StoreError, ValueError) as error:
                    answer = {"error": str(error)}
                connection.send_bytes(json.dumps(answer).encode())


class Neighbour:
    """What can be read through the process that has the shard open."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    def of(cls, owner: Path) -> Self | None:
        """Return the process that owner.json names; None where it does not answer."""
        try:
            facts = json.loads(owner.read_text("utf-8"))
            return cls(Client(facts["address"], authkey=bytes.fromhex(facts["key"])))
        except (*_GONE, KeyError, AuthenticationError):
            return None

    @staticmethod
    def pid(owner: Path) -> int | None:
        """Return the id of that process, where it is known."""
        try:
            return int(json.loads(owner.read_text("utf-8"))["pid"])
        except (OSError, ValueError, KeyError):
            return None

    def count(self, condition: Condition | None) -> int:
        """Return how many points there are."""
        return int(self._ask("count", _packed(condition)))

    def query(self, query: Query) -> list[Found]:
        """Return the nearest points, best first."""
        names = ("limit", "using", "threshold", "diversity", "candidates")
        facts = {name: getattr(query, name) for name in names}
        facts |= {"vector": query.vector.tolist(), "condition": _packed(query.condition)}
        return [Found(**point) for point in self._ask("query", facts)]

    def fetch(self, ids: Sequence[str], name: str) -> list[Found]:
        """Return those of the ids that are stored, with their vectors of a name."""
        return [_from_json(point) for point in self._ask("fetch", [list(ids), name])]

    def matching(self, condition: Condition, limit: int, name: str | None) -> list[Found]:
        """Return points that a filter lets through, in the order of their ids."""
        return [_from_json(point) for point in self._ask("matching", [_packed(condition), limit, name])]

    def condense(self) -> Condensed:
        """Return counts and sizes."""
        return Condensed(**self._ask("condense", None))

    def _ask(self, verb: str, argument: object) -> Any:  # noqa: ANN401 - JSON
        try:
            self._connection.send_bytes(json.dumps([verb, argument]).encode())
            answer = json.loads(self._connection.recv_bytes())
        except _GONE as error:
            raise StoreError(
                f"the process that had the store open ended meanwhile: try again ({error})"
            ) from error
        if "error" in answer:
            raise StoreError(answer["error"])
        return answer["answer"]


def _packed(condition: object) -> Any:  # noqa: ANN401 - JSON
    """Return a filter's tree as JSON: the names of its records with what is in them."""
    if isinstance(condition, tuple):
        return [_packed(part) for part in cast("tuple[object, ...]", condition)]
    if type(condition).__module__ != _filters.__name__:
        return condition
    fields = cast("Any", type(condition)).__dataclass_fields__
    return {type(condition).__name__: [_packed(getattr(condition, name)) for name in fields]}


def _unpacked(packed: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(packed, list):
        return tuple(_unpacked(part) for part in cast("list[object]", packed))
    kinds = {kind.__name__: kind for kind in _filters.CONDITIONS}
    if isinstance(packed, dict) and len(cast("dict[str, object]", packed)) == 1:
        ((name, parts),) = cast("dict[str, Any]", packed).items()
        if name in kinds:
            return kinds[name](*(_unpacked(part) for part in parts))
    return cast("object", packed)


def _count(shard: Shard, condition: object) -> object:
    return shard.count(_unpacked(condition))


def _query(shard: Shard, facts: dict[str, Any]) -> object:
    facts |= {"vector": np.array(facts["vector"], np.float32), "condition": _unpacked(facts["condition"])}
    return [asdict(point) for point in shard.query(Query(**facts))]


def _fetch(shard: Shard, arguments: tuple[list[str], str]) -> object:
    return [_to_json(point) for point in shard.fetch(*arguments)]


def _matching(shard: Shard, arguments: tuple[object, int, str | None]) -> object:
    condition, limit, name = arguments
    return [_to_json(point) for point in shard.matching(_unpacked(condition), limit, name)]


def _to_json(point: Found) -> dict[str, Any]:
    return asdict(point) | {"vector": None if point.vector is None else point.vector.tolist()}


def _from_json(facts: dict[str, Any]) -> Found:
    vector = facts["vector"]
    return Found(facts["id"], facts["payload"], vector=None if vector is None else as_vector(vector))


def _condense(shard: Shard, _: object) -> object:
    return asdict(shard.condense())


_VERBS: dict[str, Callable[[Shard, Any], object]] = {
    "count": _count,
    "query": _query,
    "fetch": _fetch,
    "matching": _matching,
    "condense": _condense,
}
