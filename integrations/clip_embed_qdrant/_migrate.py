"""From one model to another without downtime: two sets of vectors side by side until one is dropped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from clip_embed import ClipEmbedder
from clip_embed._types import Float32
from clip_embed._vectors import unit_rows
from clip_embed_qdrant._entries import EtagKind, normal_key
from clip_embed_qdrant._errors import StoreError
from clip_embed_qdrant._filters import All, HasId, HasVector, Not
from clip_embed_qdrant._ingest import Ingest
from clip_embed_qdrant._options import Options
from clip_embed_qdrant._origins import check_listed
from clip_embed_qdrant._place import Place, vectors_of
from clip_embed_qdrant._report import IngestReport
from clip_embed_qdrant._shown import Show, shown
from clip_embed_qdrant._sink import KEY, VECTOR, Query, Vectors
from clip_embed_qdrant._sources import open_source
from clip_embed_qdrant._target import Beside

_Question: TypeAlias = tuple[str, tuple[Float32, Float32], All]
"""Its name, its vector in each set, and what may be found."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far two models agree on what is nearest, among the images that have vectors of both."""

    k: int
    images: int
    """How many have both."""
    overlaps: Mapping[str, float]
    """For each query, a text or the key of a stored image, the share of the k nearest in common."""

    @property
    def mean(self) -> float:
        """Mean overlap@k; 1 for two models that find the same."""
        return float(np.mean(list(self.overlaps.values()))) if self.overlaps else float("nan")

    def __str__(self) -> str:
        if not self.overlaps:
            return "no image has vectors of both models yet"
        least = min(self.overlaps, key=lambda query: self.overlaps[query])
        return (
            f"overlap@{self.k} {self.mean:.2f} on {len(self.overlaps):,} queries among {self.images:,} "
            f"images, least {self.overlaps[least]:.2f} for {least!r}"
        )


class Migration:
    """The vectors of a second model beside those in use. `ImageStore.migration` makes it.

    >>> migration = store.migration(ClipEmbedder("google/siglip2-base-patch16-224"))
    >>> print(migration.run("photos/"))  # again at any time; searches are answered by the old model
    >>> print(migration.compare(["a red car", "a boat"]))
    >>> migration.switch()  # from now on by the new one; again, and it is the old one
    >>> migration.drop()  # the vectors that are not in use
    """

    def __init__(self, place: Place, to: ClipEmbedder | None) -> None:
        self._place = place
        self._sink = place.sink
        self._where = place.sink.where
        self._to = to
        place.existing()
        meta = place.current()
        if meta.beside is None:
            if to is None:
                raise StoreError(f"{self._where} is not being migrated: give the embedder of the new model")
            if to.space == meta.stamp.space:
                raise ValueError(f"{self._where} holds vectors of this model already")
        elif to is not None:
            place.checked(meta.beside, to)

    def run(
        self,
        source: object,
        *,
        image: str = "image",
        key: str = "path",
        etag: EtagKind = "stat",
        prefix: str = "",
        shard: tuple[int, int] = (0, 1),
        on_error: Literal["skip", "raise"] = "skip",
        patience: float = 600.0,
        storage_options: Mapping[str, object] | None = None,
        progress: Show = True,
    ) -> IngestReport:
        """Embed the images of a source that lack a vector beside the one in use; return what was done.

        The arguments are those of `ingest`, as they were there. Only images that are stored in their present
        state get a vector; new and changed ones are listed as failed: ingest them first. Interrupted, it goes
        on where it was. Raises IngestStopped as `ingest` does.
        """
        opened = open_source(
            source, columns=(image, key, []), policy=self._embedder.policy, storage_options=storage_options
        )
        options = Options(etag, (), shard, normal_key(prefix), on_error, patience)
        check_listed(opened)
        beside = self._begin()
        target = Beside(self._sink, beside.name)
        with shown(progress, "Migrating", opened.total) as show:
            return Ingest(target, self._embedder, opened, options, show).run()

    def compare(self, texts: Iterable[str] = (), *, k: int = 10, sample: int = 50) -> Comparison:
        """Ask both models the same and say how far their k nearest agree.

        The queries are `texts`, and `sample` stored images, for which no model is loaded. Only images that
        have vectors of both models are looked at, so that a migration under way is judged fairly.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        sets = self._both()
        both = All(tuple(HasVector(each.name) for each in sets))
        images = self._sink.count(both)
        overlaps: dict[str, float] = {}
        for name, rows, condition in [*self._sampled(both, sample), *self._asked(both, texts)]:
            first, second = (
                {point.id for point in self._sink.query(Query(row, k, each.name, condition))}
                for row, each in zip(rows, sets, strict=True)
            )
            if first:
                overlaps[name] = len(first & second) / len(first)
        return Comparison(k, images, overlaps)

    def missing(self) -> int:
        """Return how many images lack the vector that is not in use."""
        used, beside = self._both()
        return self._sink.count(All((HasVector(used.name), Not(HasVector(beside.name)))))

    def switch(self, *, partial: bool = False) -> None:
        """Search with the other model from now on; the vectors of this one stay until `drop`.

        Raises StoreError while images lack the other vector, unless `partial`: those are not found then.
        Other processes go on with the model they opened the store with. Called again, it goes back.
        """
        self._sink.open_for_writing()
        meta = self._place.current()
        if (missing := self.missing()) and not partial:
            raise StoreError(
                f"{missing:,} images in {self._where} have no vector of the other model: run the migration "
                "again, its report says why; or switch with partial=True, and they are not found"
            )
        self._sink.flush()
        left = self._place.loaded
        self._place.note(meta.switched(), self._to)
        self._to = left

    def drop(self) -> None:
        """Remove the vectors that are not in use: the old ones after `switch`, before it the new ones.

        Raises StoreError where images would be left without any.
        """
        self._sink.open_for_writing()
        meta = self._place.current()
        used, beside = self._both()
        if stranded := self._sink.count(All((HasVector(beside.name), Not(HasVector(used.name))))):
            raise StoreError(
                f"{stranded:,} images in {self._where} have only the vector that would be dropped: ingest "
                "them again, or prune them if they are gone"
            )
        self._sink.drop_vector(beside.name)
        self._place.note(replace(meta, beside=None))

    @property
    def _embedder(self) -> ClipEmbedder:
        """That of the vectors which are not in use."""
        if self._to is None:
            self._to = self._place.checked(self._both()[1], None)
        return self._to

    def _both(self) -> tuple[Vectors, Vectors]:
        """Return the vectors in use and those beside them."""
        meta = self._place.existing()
        if meta.beside is None:
            raise StoreError(f"{self._where} has vectors of one model alone: run the migration first")
        return meta.used, meta.beside

    def _begin(self) -> Vectors:
        """Make room for the second vectors; what a crash left of it is used."""
        self._sink.open_for_writing()
        meta = self._place.current()
        fresh = meta.beside is None
        if fresh:
            taken = self._sink.vector_names()
            names = (f"{VECTOR}-{number}" for number in range(2, len(taken) + 3))
            name = next(each for each in (VECTOR, *names) if each not in taken)
            self._place.note(replace(meta, beside=vectors_of(self._embedder, name)))
        beside = self._both()[1]
        try:
            self._sink.add_vector(beside.name, beside.stamp.dim)
        except StoreError:
            if fresh:  # a server before 1.18, a key that may only write points
                self._place.note(meta)
            raise
        return beside

    def _sampled(self, both: All, count: int) -> Iterator[_Question]:
        """Yield stored images as queries, which are not to find themselves."""
        used, beside = self._both()
        points = self._sink.matching(both, count, vector=used.name) if count else []
        ids = HasId(tuple(point.id for point in points))
        others = {
            point.id: point.vector
            for point in (self._sink.matching(All((both, ids)), count, vector=beside.name) if points else [])
        }
        for point in points:
            other = others.get(point.id)
            if point.vector is not None and other is not None:
                rows = unit_rows(point.vector[None])[0], unit_rows(other[None])[0]
                yield str(point.payload.get(KEY, point.id)), rows, All((both, Not(HasId((point.id,)))))

    def _asked(self, both: All, texts: Iterable[str]) -> Iterator[_Question]:
        for text in texts:
            models = self._place.embedder, self._embedder
            first, second = (model.embed_texts([text])[0] for model in models)
            yield text, (first, second), both
