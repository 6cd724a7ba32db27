"""Visual search: what is like some images and unlike others, copies, and a selection that differs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from clip_embed._embedder import ClipEmbedder, Images
from clip_embed._evaluate import images_with_vectors
from clip_embed._ranking import (
    LEAST_CANDIDATES,
    Places,
    best,
    check_count,
    cover,
    diversify,
    group_alike,
    steer,
)
from clip_embed._types import Float32, ImageFailure
from clip_embed._vectors import Vectors, given_vectors


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """Images that were chosen from n, in the order of choice; iterates over (index, score)."""

    indices: npt.NDArray[np.int64]
    """int64 (k,): places in the input."""
    scores: Float32
    """float32 (k,): cosine similarities."""
    failures: tuple[ImageFailure, ...] = ()
    """Images that could not be embedded; they are never chosen."""

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[int, float]]:
        return zip(self.indices.tolist(), self.scores.tolist(), strict=True)


@dataclass(frozen=True, slots=True, eq=False)
class Duplicates:
    """Images that look like others of the same input, in groups."""

    groups: tuple[tuple[int, ...], ...]
    """For each group, in order, the places of its images in the input: at least two, the first one first."""
    scores: tuple[tuple[float, ...], ...]
    """The cosine similarity of each to the first of its group, 1 for that one."""
    failures: tuple[ImageFailure, ...] = ()
    """Images that could not be embedded; they are in no group."""

    @property
    def extra(self) -> tuple[int, ...]:
        """All but the first of each group, in order: what would go if one of each were kept."""
        return tuple(sorted(place for group in self.groups for place in group[1:]))


def similar(
    embedder: ClipEmbedder,
    images: Images | Vectors,
    like: Images | Vectors,
    *,
    unlike: Images | Vectors = (),
    k: int = 10,
    threshold: float | None = None,
    diversity: float | None = None,
) -> Matches:
    """Return the k of n images that are most like some and least like others, best first.

    >>> similar(clip, photos, ["car.jpg"], unlike=["truck.jpg"], k=5)
    >>> similar(clip, photos, clip.embed_images(["car.jpg"]) + clip.embed_texts(["at night"]))  # arithmetic
    >>> similar(clip, photos, clip.embed_texts(["a car"]), diversity=0.3)    # cars that differ

    `images`, `like` and `unlike` are lists of images, or vectors as in `ClipEmbedder.scores`, so texts and
    sums are queries too; each row counts as much as any other, whatever its length. The query is the mean of
    what is liked; what is not is taken from twice that. `threshold` is the least score. `diversity` from 0 to
    1 prefers images that differ from those before them (maximal marginal relevance among the 100 best, or
    4 × k). An image of the query that is among `images` comes out as well, with a score near 1; of equals the
    first comes first. An image that fails is listed in `failures`; one of the query raises ImageBatchError.
    """
    liked, unliked = _query(embedder, like), _query(embedder, unlike)
    if not len(liked) and not len(unliked):
        raise ValueError("similar to what? Give at least one image or vector to like, or not to")
    query = steer(liked, unliked)
    vectors, kept, failures = images_with_vectors(embedder, images)
    scores = np.where(vectors.any(axis=1), vectors @ query, np.float32(np.nan))
    if threshold is not None:
        scores = np.where(scores >= threshold, scores, np.float32(np.nan))
    places: Places = best(scores, k)
    if diversity is not None:
        places = best(scores, max(LEAST_CANDIDATES, 4 * k))
        places = places[diversify(vectors[places], scores[places], k, diversity)]
    return Matches(kept[places], np.clip(scores[places], -1, 1), failures)


def duplicates(embedder: ClipEmbedder, images: Images | Vectors, *, threshold: float = 0.95) -> Duplicates:
    """Return the images that look like another one of them, in groups.

    In input order each image joins the earliest group whose first image it has a cosine similarity of at
    least `threshold` to, so no chain joins what is not alike: 0.95 finds copies, crops and bursts with CLIP,
    0.9999 the same pixels. `images` as in `similar`. Time grows with the square of their number, memory does
    not. An image that fails is listed in `failures`.
    """
    vectors, kept, failures = images_with_vectors(embedder, images)
    usable = np.asarray(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1), np.bool_)
    rows, groups, cosines = group_alike(vectors, usable, threshold)
    ends = np.flatnonzero(np.diff(groups)) + 1
    places: list[list[int]] = [part.tolist() for part in np.split(kept[rows], ends) if len(part)]
    scores: list[list[float]] = [part.tolist() for part in np.split(cosines, ends) if len(part)]
    return Duplicates(tuple(map(tuple, places)), tuple(map(tuple, scores)), failures)


def diverse(embedder: ClipEmbedder, images: Images | Vectors, k: int = 10) -> Matches:
    """Return k of n images that differ most from each other: what a collection is made of, at a glance.

    The first is the most typical one, each next the one least like those before. A score is the cosine
    similarity to the nearest of those, NaN for the first. `images` as in `similar`; time grows with n × k.
    """
    k = check_count(k)
    vectors, kept, failures = images_with_vectors(embedder, images)
    usable = np.flatnonzero(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1))
    places, cosines = cover(vectors[usable], k)
    return Matches(kept[usable[places]], np.clip(cosines, -1, 1), failures)


def _query(embedder: ClipEmbedder, examples: Images | Vectors) -> Float32:
    """Return the vectors of examples (a, d). Raises ValueError for one without a direction."""
    given = given_vectors(examples, embedder)
    rows = embedder.embed_images(cast("Images", examples)) if given is None else given
    if not (np.isfinite(rows).all() and rows.any(axis=1).all()):
        raise ValueError("a vector of the query is not finite, or all zeros")
    return rows
