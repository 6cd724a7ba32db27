"""What every store does, whichever engine is behind it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeAlias, cast

import numpy as np

from clip_embed import Stamp
from clip_embed._types import Float32
from clip_embed_qdrant._errors import StoreError
from clip_embed_qdrant._filters import Condition

ETAG, KEY = "_etag", "_key"
CONTENT, SAME_AS = "_content", "_same_as"
OURS = frozenset((ETAG, KEY, CONTENT, SAME_AS))
"""The fields of a payload that are ours: the state of the image when it was read, its key, its content."""
VECTOR = "image"
FORMAT = 1

Payload: TypeAlias = dict[str, Any]
IndexKind = Literal["keyword", "integer", "float", "bool", "datetime", "geo", "text"]


@dataclass(frozen=True, slots=True)
class Vectors:
    """One set of vectors in a store."""

    stamp: Stamp
    model: str | None
    """Hub name or folder of the model; None for a model of the user's own."""
    name: str

    def as_facts(self) -> dict[str, Any]:
        """Return it in the form of JSON."""
        return {"model": self.model, "vector": self.name, "stamp": self.stamp.to_json()}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Vectors:
        """Return what `as_facts` gave; ValueError, KeyError or TypeError where it is something else."""
        return cls(Stamp.from_json(facts["stamp"]), facts["model"], facts["vector"])


@dataclass(frozen=True, slots=True)
class Meta:
    """What a store says about its vectors; it lies beside them, as JSON."""

    used: Vectors
    """Those that are searched."""
    sources: Mapping[str, str] = field(default_factory=dict[str, str])
    """Where the images came from last, by prefix of their keys."""
    beside: Vectors | None = None
    """During a migration, those of the new model; after it has switched, those of the old one."""

    @property
    def stamp(self) -> Stamp:
        """That of the vectors in use."""
        return self.used.stamp

    def switched(self) -> Meta:
        """Return it with those in use and those beside exchanged."""
        return self if self.beside is None else replace(self, used=self.beside, beside=self.used)

    def to_json(self) -> str:
        """Return it as text."""
        facts: dict[str, Any] = {"format": FORMAT, **self.used.as_facts(), "sources": dict(self.sources)}
        if self.beside:
            facts["beside"] = self.beside.as_facts()
        return json.dumps(facts, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> Meta:
        """Return what `to_json` wrote; StoreError where it is something else, or of a later version."""
        try:
            facts = cast("dict[str, Any]", json.loads(text))
            beside = Vectors.from_facts(facts["beside"]) if "beside" in facts else None
            if facts["format"] == FORMAT:
                return cls(Vectors.from_facts(facts), facts["sources"], beside)
            error: Exception | None = None
        except (ValueError, KeyError, TypeError) as unreadable:
            error = unreadable
        raise StoreError(
            f"{where}: what it says of its vectors cannot be read; it may be of a later version of clip-embed"
        ) from error


@dataclass(frozen=True, slots=True)
class Points:
    """n points to write: ids, float32 vectors (n, d) of unit length, payloads; and their size as sent."""

    ids: Sequence[str]
    vectors: Float32
    payloads: Sequence[Payload]

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, start: int, stop: int) -> Points:
        """Return the points from start to stop."""
        return Points(self.ids[start:stop], self.vectors[start:stop], self.payloads[start:stop])


@dataclass(frozen=True, slots=True)
class Found:
    """A point that a store gave back: its cosine similarity if it was searched for, its vector on request."""

    id: str
    payload: Payload
    score: float = 0.0
    vector: Float32 | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """The `limit` points nearest to a unit vector (d,) among the vectors of a name, best first."""

    vector: Float32
    limit: int
    using: str
    condition: Condition | None = None
    threshold: float | None = None
    diversity: float | None = None
    """From 0, the nearest, to 1, those least like each other; None searches without."""
    candidates: int = 0
    """Among how many diversity chooses."""


@dataclass(frozen=True, slots=True)
class Condensed:
    """What there is to say about a store without reading it."""

    points: int
    indexed: int
    segments: int | None
    bytes: int | None


class Sink(Protocol):
    """A store as `ingest` and `search` use it.

    Each method may raise Unreachable, Rejected or another StoreError; the methods may be called by
    several threads.
    """

    where: str
    """Its name in messages."""
    streams: int
    """How many writes side by side make it faster."""
    vector: str
    """Name of the vectors that are in use: those that `write` and `fetch` are about."""

    def read_meta(self) -> Meta | None:
        """Ask for what it says about itself; None where there is no store yet."""
        ...

    def create(self, meta: Meta, dim: int) -> None:
        """Make an empty store."""
        ...

    def write_meta(self, meta: Meta) -> None:
        """Replace what it says about itself."""
        ...

    def open_for_writing(self) -> object:
        """Take what writing needs, or raise: StoreLocked where another process has it."""
        ...

    def index_fields(self, fields: Mapping[str, IndexKind]) -> None:
        """Make payload fields quick to filter by; idempotent."""
        ...

    def etags(self, ids: Sequence[str]) -> dict[str, str | None]:
        """Return the etag of each of the ids that is stored."""
        ...

    def write(self, points: Points) -> None:
        """Insert or replace points; when it returns, they outlive this process."""
        ...

    def write_beside(self, points: Points, name: str) -> None:
        """Give points that are there vectors of another name; Rejected where one of them is not there."""
        ...

    def vector_names(self) -> set[str]:
        """Return the names of vectors that are taken."""
        ...

    def add_vector(self, name: str, dim: int) -> None:
        """Make room for vectors of one more name; idempotent."""
        ...

    def drop_vector(self, name: str) -> None:
        """Remove all vectors of a name, and the name; idempotent."""
        ...

    def remove_vectors(self, ids: Sequence[str], name: str) -> None:
        """Remove the vectors of a name from points, which stay."""
        ...

    def delete(self, ids: Sequence[str]) -> None:
        """Remove points."""
        ...

    def flush(self) -> None:
        """Bring what is written to the disk."""
        ...

    def count(self, condition: Condition | None = None) -> int:
        """Return how many points there are."""
        ...

    def query(self, query: Query) -> list[Found]:
        """Return the nearest points, best first."""
        ...

    def fetch(self, ids: Sequence[str]) -> list[Found]:
        """Return those of the ids that are stored, with their vectors, in any order."""
        ...

    def matching(self, condition: Condition, limit: int, *, vector: str | None = None) -> list[Found]:
        """Return points that a filter lets through, in the order of their ids, with vectors of that name."""
        ...

    def scroll(self, *, with_vectors: bool = False) -> Iterator[list[Found]]:
        """Yield all points in pages, with key and etag alone or with all they have."""
        ...

    def condense(self) -> Condensed:
        """Return counts and sizes."""
        ...

    def optimize(self) -> None:
        """Build the index of vectors, where the store does not do so by itself."""
        ...

    def close(self) -> None:
        """Let go of it; idempotent."""
        ...


def as_vector(value: object) -> Float32:
    """Return a vector (d,) that an engine gave back as float32."""
    return np.asarray(value, np.float32)
