"""Scores a person can read: how a match compares with what texts about something else reach."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self, cast

import numpy as np
import numpy.typing as npt

from clip_embed._embedder import ClipEmbedder, Images
from clip_embed._evaluate import images_with_vectors
from clip_embed._ranking import best
from clip_embed._stamp import Stamp, check_stamp
from clip_embed._types import Float32
from clip_embed._vectors import Vectors, given_vectors
from clip_embed._visual import Matches

GOOD = 90.0
"""The relevance from which a match counts as one, unless another is asked for."""
NULL_TEXTS = tuple(
    f"a {thing.replace('_', ' ')}"
    for thing in """
    abacus accordion anvil armadillo artichoke bagpipe ballerina banjo barometer bathtub beaver
    billiard_table blacksmith bonsai broom cactus cannon canoe catapult chandelier chessboard chimpanzee
    cobra corkscrew crutch dentist dinosaur dolphin doorbell dragonfly drill eclipse escalator excavator
    ferret fireplace flamingo fossil giraffe globe glacier gondola goose gymnast hammock harp hedgehog
    helicopter hockey_match hourglass igloo jellyfish jigsaw judge kangaroo kayak kettle koala lighthouse
    llama lobster loom magnet mammoth microscope mosque mushroom nurse octopus orchestra ostrich otter owl
    oyster padlock parachute parrot pelican penguin piano pineapple plumber pottery_wheel pumpkin puppet
    pyramid raccoon radar_dish rollercoaster saxophone scarecrow sewing_machine shark skeleton skier sloth
    snowman soldier spider stethoscope submarine sumo_fight surgeon sushi_plate swimmer syringe tambourine
    telescope tent thermometer tractor treadmill trophy trumpet turtle typewriter umbrella unicycle
    vacuum_cleaner violin volcano walrus wedding wheelchair wigwam xylophone yoga_class zebra
    """.split()  # noqa: SIM905 - a list of so many lines is hard to read
)
"""Texts about so many things that few of them are in any one collection."""
_LEAST = 10  # images that a collection must have
_BLOCK = 4096
_LOWEST = 50  # spreads below the mode, where the percentile has long been 0 and exp has not overflowed


@dataclass(frozen=True, slots=True, eq=False)
class Relevance:
    """How scores of texts are to be read in one collection of images, as `fit_relevance` found it.

    A cosine similarity of 0.24 may be a good match for one text and a bad one for another. The relevance of
    an image for a text is a percentile from 0 to 100: 95 says that the image fits better than the best
    image of the collection fits 95 of 100 texts about something else. Images of no relevance get about 0,
    not 50.
    """

    centre: Float32 = field(repr=False)
    """float32 (d,): the mean of the collection's unit vectors; it scores what any image does."""
    middle: float
    """Where the best scores of other texts lie, above that of the centre: their mode."""
    spread: float
    """How far they spread: scale of a Gumbel distribution, which best scores follow."""
    images: int
    """How many images the collection had; refit it when it has grown by a lot."""
    stamp: Stamp = field(repr=False)

    def rate(
        self, embedder: ClipEmbedder, images: Images | Vectors, texts: Iterable[str] | Vectors
    ) -> Float32:
        """Return the relevance of n images for m texts, float32 (n, m) from 0 to 100.

        Arguments and errors as in `ClipEmbedder.scores`; SpaceMismatch for another model's embedder.
        """
        check_stamp(self.stamp, self.stamp.dim, embedder, "the relevance")
        given = given_vectors(texts, embedder)
        queries = embedder.embed_texts(cast("Iterable[str]", texts)) if given is None else given
        above = embedder.scores(images, queries) - queries @ self.centre
        below = np.minimum((self.middle - above.astype(np.float64)) / self.spread, _LOWEST)
        return np.asarray(100 * np.exp(-np.exp(below)), np.float32)

    def find(
        self,
        embedder: ClipEmbedder,
        images: Images | Vectors,
        text: str,
        *,
        k: int = 10,
        least: float = GOOD,
    ) -> Matches:
        """Return the best k of n images whose relevance for a text is at least so much: none, where none is.

        Scores are relevances. Images that fail are listed in `failures`.
        """
        vectors, kept, failures = images_with_vectors(embedder, images)
        rated = self.rate(embedder, vectors, [text])[:, 0]
        places = best(np.where(rated >= least, rated, np.float32(np.nan)), k)
        return Matches(kept[places], rated[places], failures)

    def to_json(self) -> str:
        """Return it as JSON, to be kept beside the collection."""
        facts = {"centre": self.centre.tolist(), "middle": self.middle, "spread": self.spread}
        return json.dumps({**facts, "images": self.images, "stamp": self.stamp.to_json()})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` gave. Raises ValueError for anything else."""
        try:
            facts = cast("dict[str, object]", json.loads(text))
            stamp = Stamp.from_json(str(facts["stamp"]))
            centre = np.array(facts["centre"], np.float32)
            middle, spread, count = (float(str(facts[name])) for name in ("middle", "spread", "images"))
            if centre.shape != (stamp.dim,) or not spread > 0:
                raise ValueError("damaged")  # noqa: TRY301 - told as the others
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"this is no relevance that clip-embed fitted: {error!r}") from error
        return cls(centre, middle, spread, int(count), stamp)


def fit_relevance(
    embedder: ClipEmbedder, images: Images | Vectors, *, null_texts: Sequence[str] = NULL_TEXTS
) -> Relevance:
    """Learn how scores are to be read in a collection of n images: `rate` then gives percentiles.

    >>> relevance = fit_relevance(clip, vectors)
    >>> relevance.rate(clip, vectors, ["a red car"]).max()      # below 90: no good match

    `null_texts` are texts about something else: of the default's 130 a few may be in the collection, which
    does no harm. Write them as your queries are written. `images` as in `ClipEmbedder.scores`; those that
    fail are left out. Raises ValueError for fewer than 10 images or texts.
    """
    vectors, _, _ = images_with_vectors(embedder, images)
    blocks = (vectors[start : start + _BLOCK] for start in range(0, len(vectors), _BLOCK))
    return relevance_of(embedder, blocks, null_texts)


def relevance_of(
    embedder: ClipEmbedder, blocks: Iterable[Float32], null_texts: Sequence[str] = NULL_TEXTS
) -> Relevance:
    """Fit the relevance to unit vectors that come in blocks (n, d); rows without a direction do not count."""
    if len(null_texts) < _LEAST:
        raise ValueError(f"give at least {_LEAST} texts about something else, not {len(null_texts)}")
    texts = embedder.embed_texts(null_texts)
    total = np.zeros(embedder.dim, np.float64)
    count = 0
    scores = np.full(len(texts), -np.inf, np.float32)
    for block in blocks:
        rows = block[np.isfinite(block).all(axis=1) & block.any(axis=1)]
        if len(rows):
            total += rows.sum(axis=0, dtype=np.float64)
            count += len(rows)
            scores = np.maximum(scores, (rows @ texts.T).max(axis=0))
    if count < _LEAST:
        raise ValueError(f"relevance is fitted to a collection of at least {_LEAST} images, not {count}")
    centre = (total / count).astype(np.float32)
    middle, spread = _gumbel(scores - texts @ centre)
    return Relevance(centre, middle, spread, count, embedder.stamp())


def _gumbel(values: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Return mode and scale by the quartiles: the few texts that do describe an image move neither."""
    low, median, high = np.quantile(values.astype(np.float64), (0.25, 0.5, 0.75))
    spread = (high - low) / (np.log(-np.log(0.25)) - np.log(-np.log(0.75)))
    spread = float(max(spread, 1e-6))
    return float(median + spread * np.log(np.log(2))), spread
