"""How an ingest goes about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from clip_embed_qdrant._entries import EtagKind, Source
from clip_embed_qdrant._facts import FACTS, Fact


@dataclass(frozen=True, slots=True)
class Options:
    """How an ingest goes about it; `ImageStore.ingest` says what each means."""

    etag: EtagKind = "stat"
    facts: tuple[Fact, ...] = ()
    shard: tuple[int, int] = (0, 1)
    prefix: str = ""
    on_error: Literal["skip", "raise"] = "skip"
    patience: float = 600.0
    on_duplicate: Literal["embed", "link"] = "embed"
    only: frozenset[str] | None = None
    """The keys to look at, the folders, which end in a slash, and the tar files; None for all."""

    def __post_init__(self) -> None:
        """Refuse what would silently mean something else."""
        if self.etag not in ("stat", "sha256"):
            raise ValueError(f"etag must be 'stat' or 'sha256', not {self.etag!r}")
        if self.on_error not in ("skip", "raise"):
            raise ValueError(f"on_error must be 'skip' or 'raise', not {self.on_error!r}")
        if self.on_duplicate not in ("embed", "link"):
            raise ValueError(f"on_duplicate must be 'embed' or 'link', not {self.on_duplicate!r}")
        if unknown := set(self.facts) - set(FACTS):
            raise ValueError(f"there is no fact {min(unknown)!r}; there are {', '.join(FACTS)}")
        if not _is_share(self.shard):
            raise ValueError(f"shard must be (i, n) with 0 <= i < n, not {self.shard!r}")

    @property
    def links(self) -> bool:
        """Whether images of the same content share a vector."""
        return self.on_duplicate == "link"

    @property
    def is_whole(self) -> bool:
        """Whether all that the source lists is looked at."""
        return self.shard[1] == 1 and self.only is None

    def is_wanted(self, key: str) -> bool:
        """Whether a key is one to look at."""
        if self.only is None or key in self.only:
            return True
        return any(name in self.only or f"{name}/" in self.only for name in _above(key))


def _above(key: str) -> Iterator[str]:
    """Yield the folders, or the tar file, that a key lies in."""
    while (end := key.rfind("/")) >= 0:
        key = key[:end]
        yield key


def _is_share(shard: object) -> bool:
    match shard:
        case (int(index), int(of)):
            return 0 <= index < of
        case _:
            return False


@dataclass(frozen=True, slots=True)
class Job:
    """What `retry` does again."""

    source: Source
    options: Options
