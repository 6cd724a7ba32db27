"""Cross-modal retrieval, measured: whether captions find their images, and images their captions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from clip_embed._embedder import ClipEmbedder, Images
from clip_embed._types import Float32, ImageFailure
from clip_embed._vectors import Vectors, given_vectors
from clip_embed.errors import ImageBatchError

Ranks = npt.NDArray[np.int64]
_BLOCK_BYTES = 64 * 1024 * 1024  # of scores at once
_TIE = 1e-6  # closer than rounding lets two scores be told apart: counted against the model


@dataclass(frozen=True, slots=True)
class Retrieval:
    """How well n images and m captions find each other; `print` shows it beside chance.

    A rank is the number of wrong candidates that score at least as high as the right one, 0 where it
    comes first: of equals, the right one counts as the last.
    """

    image_ranks: Ranks
    """int64 (m,): for each caption, among the images."""
    caption_ranks: Ranks
    """int64 (n,): for each image, the rank of its best caption among those of others and the distractors."""
    other_captions: Ranks
    """int64 (n,): how many those are."""
    distractors: int
    """How many captions belong to no image."""
    failures: tuple[ImageFailure, ...] = ()
    """Images that could not be embedded; they and their captions are left out."""

    def text_to_image(self, k: int) -> float:
        """recall@k: the share of captions whose image is among the k best."""
        return _share(self.image_ranks < k)

    def image_to_text(self, k: int) -> float:
        """recall@k: the share of images that have one of their captions among the k best."""
        return _share(self.caption_ranks < k)

    def right_caption(self, of: int) -> float:
        """CLIP's own task: how often an image scores its caption highest of so many.

        The others are drawn at random from all there are; this is the expected value, not a sample.
        Raises ValueError where there are fewer.
        """
        most = int(self.other_captions.min()) + 1
        if not 1 <= of <= most:
            raise ValueError(
                f"there are {most:,} captions to choose from, not {of:,}: give distractors, texts of no image"
            )
        pairs = zip(self.caption_ranks.tolist(), self.other_captions.tolist(), strict=True)
        return float(np.mean([_all_lower(rank, others, of - 1) for rank, others in pairs]))

    def __str__(self) -> str:
        images, captions = len(self.caption_ranks), len(self.image_ranks)
        total = captions + self.distractors
        lines = [
            f"{images:,} images, {captions:,} captions of theirs, {self.distractors:,} of no image"
            + (f"; {len(self.failures):,} images failed and are left out" if self.failures else ""),
            f"{'':14}{'recall@1':>10}{'recall@5':>10}{'recall@10':>10}",
        ]
        for name, recall, candidates in (
            ("text → image", self.text_to_image, images),
            ("image → text", self.image_to_text, total),
        ):
            lines.append(f"{name:14}" + "".join(f"{recall(k):>10.1%}" for k in (1, 5, 10)))
            lines.append(f"{'  chance':14}" + "".join(f"{min(1, k / candidates):>10.1%}" for k in (1, 5, 10)))
        sizes = [2**power for power in range(1, 16) if 2**power <= self.other_captions.min() + 1]
        lines += [
            f"right caption of {size:>6,}: {self.right_caption(size):6.1%}, chance {1 / size:.2%}"
            for size in sizes[::2]
        ]
        return "\n".join(lines)


def evaluate_retrieval(
    embedder: ClipEmbedder,
    images: Images | Vectors,
    captions: Iterable[str | Sequence[str]] | Vectors,
    *,
    distractors: Iterable[str] | Vectors = (),
) -> Retrieval:
    """Measure retrieval in both directions on images and their captions; memory grows with n + m, not n × m.

    `captions` gives for each image its text or several, `distractors` more texts, which belong to none.
    Vectors in place of images, captions (one row each) or distractors are as in `ClipEmbedder.scores`. An
    image that fails is left out with its captions. Raises ValueError where there is not one caption or list
    for each image, one is empty, no image is left, or a vector has a NaN or is all zeros.
    """
    texts, owners = _captions(embedder, captions)
    pictures, kept, failures = images_with_vectors(embedder, images)
    given = len(pictures) + len(failures)
    described = set(owners.tolist())
    if given != len(described) or described != set(range(given)):
        raise ValueError(f"{given} images need as many captions, or lists of captions, none empty")
    if not len(pictures):
        raise ValueError("no image is left to evaluate")
    place = np.full(given, -1, np.int64)
    place[kept] = np.arange(len(kept))
    chosen = place[owners] >= 0
    others = _texts(embedder, distractors)
    for what, rows in (("image", pictures), ("caption", texts), ("distractor", others)):
        check_rows(rows, what)
    return rank(pictures, texts[chosen], place[owners[chosen]], others, failures)


def rank(
    images: Float32,
    captions: Float32,
    owners: Ranks,
    distractors: Float32,
    failures: tuple[ImageFailure, ...] = (),
) -> Retrieval:
    """Rank n images and m captions, of which `owners` (m,) says whose each is, all of them unit vectors.

    In blocks of images, so that never all scores are in memory.
    """
    n = len(images)
    own = np.einsum("md,md->m", images[owners], captions)
    best = np.full(n, -np.inf, np.float32)
    np.maximum.at(best, owners, own)
    image_ranks = np.zeros(len(captions), np.int64)
    caption_ranks = np.zeros(n, np.int64)
    rows = max(1, _BLOCK_BYTES // (4 * (len(captions) + len(distractors))))
    for start in range(0, n, rows):
        block = images[start : start + rows]
        scores = block @ captions.T
        mine = (owners >= start) & (owners < start + rows)
        scores[owners[mine] - start, np.flatnonzero(mine)] = -np.inf
        image_ranks += (scores >= own - _TIE).sum(axis=0)
        limit = best[start : start + rows, None] - _TIE
        caption_ranks[start : start + rows] = (scores >= limit).sum(axis=1)
        caption_ranks[start : start + rows] += ((block @ distractors.T) >= limit).sum(axis=1)
    total = len(captions) + len(distractors)
    return Retrieval(
        image_ranks, caption_ranks, total - np.bincount(owners, minlength=n), len(distractors), failures
    )


def images_with_vectors(
    embedder: ClipEmbedder, images: object
) -> tuple[Float32, npt.NDArray[np.int64], tuple[ImageFailure, ...]]:
    """Return the vectors of the images that have one, their places, and the failures."""
    vectors = given_vectors(images, embedder)
    if vectors is not None:
        return vectors, np.arange(len(vectors)), ()
    try:
        vectors = embedder.embed_images(cast("Images", images))
    except ImageBatchError as error:
        return error.batch.vectors, error.batch.indices, tuple(error.failures)
    return vectors, np.arange(len(vectors)), ()


def check_rows(rows: Float32, what: str = "image") -> None:
    """Refuse rows (n, d) of which one has no direction, and name it. `what` is it that has the vectors."""
    if (lost := ~(np.isfinite(rows).all(axis=1) & rows.any(axis=1))).any():
        where = f"{what} {int(lost.argmax())}"
        raise ValueError(f"{where} has no vector: it has a NaN, or is all zeros; leave out such rows first")


def _captions(embedder: ClipEmbedder, captions: object) -> tuple[Float32, Ranks]:
    """Return the vectors of all captions and the place of the image of each."""
    vectors = given_vectors(captions, embedder)
    if vectors is not None:
        return vectors, np.arange(len(vectors))
    if isinstance(captions, str):
        raise TypeError("captions must be a list: one text, or a list of texts, for each image")
    lists = [_read_caption(place, each) for place, each in enumerate(cast("Iterable[object]", captions))]
    owners = [place for place, texts in enumerate(lists) for _ in texts]
    return embedder.embed_texts([text for texts in lists for text in texts]), np.array(owners, np.int64)


def _read_caption(place: int, given: object) -> list[str]:
    """Return the captions of one image; an empty one would count as a caption that finds nothing."""
    found: list[object] = [given]
    if isinstance(given, Iterable) and not isinstance(given, str):
        found = list(cast("Iterable[object]", given))
    for text in found:
        if not isinstance(text, str):
            raise TypeError(f"the caption of image {place} must be a text, or a list of texts, not {text!r}")
        if not text.strip():
            raise ValueError(f"a caption of image {place} is empty: leave it out, or its image with it")
    return cast("list[str]", found)


def _texts(embedder: ClipEmbedder, texts: object) -> Float32:
    vectors = given_vectors(texts, embedder)
    return embedder.embed_texts(cast("Iterable[str]", texts)) if vectors is None else vectors


def _all_lower(rank: int, others: int, drawn: int) -> float:
    """Return the chance that none of `rank` better ones is among so many drawn from the others."""
    if drawn > others - rank:
        return 0.0
    return math.exp(
        math.lgamma(others - rank + 1)
        - math.lgamma(others - rank - drawn + 1)
        - math.lgamma(others + 1)
        + math.lgamma(others - drawn + 1)
    )


def _share(hits: npt.NDArray[np.bool_]) -> float:
    return float(hits.mean()) if len(hits) else math.nan
