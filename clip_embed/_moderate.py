"""Moderation: which images a person should look at first, by rules that are data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt

from clip_embed._classify import sigmoid
from clip_embed._embedder import ClipEmbedder, Images
from clip_embed._evaluate import check_rows, images_with_vectors
from clip_embed._types import Float32
from clip_embed._vectors import Vectors, given_vectors, has_direction
from clip_embed._warn import warn_caller

Bools = npt.NDArray[np.bool_]
_FEW = 5  # examples: a threshold of fewer is chance


@dataclass(frozen=True, slots=True)
class Category:
    """One kind of content: what shows it, what looks like it and is none, and from which score it counts.

    Texts are whole sentences ("a photo of a burning house"). `against` keeps harmless look-alikes out ("a
    photo of a camp fire"), so it matters as much as `shows`.
    """

    name: str
    shows: tuple[str, ...]
    against: tuple[str, ...]
    threshold: float = 0.5
    """Between 0 and 1; `calibrate` finds it from examples."""

    def __post_init__(self) -> None:
        if not _is_text(self.name):
            raise ValueError(f"a category must have a name, not {self.name!r}")
        for field, texts in (("shows", self.shows), ("against", self.against)):
            if isinstance(texts, str) or not texts or not all(map(_is_text, texts)):
                raise ValueError(f"category {self.name!r}: {field} must be a list of texts, none empty")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"category {self.name!r}: the threshold must lie between 0 and 1")


@dataclass(frozen=True, slots=True)
class ModerationPolicy:
    """What an image is checked for; JSON, so that it can be kept, reviewed and versioned."""

    categories: tuple[Category, ...]

    def __post_init__(self) -> None:
        names = [category.name for category in self.categories]
        if not names or len(set(names)) < len(names):
            raise ValueError("a policy needs categories, each with a name of its own")

    @classmethod
    def starter(cls) -> ModerationPolicy:
        """Return a neutral one to begin with: calibrate it on images of your own before you rely on it."""
        return _STARTER

    def to_json(self) -> str:
        """Return the policy as JSON."""
        return json.dumps([asdict(category) for category in self.categories], indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` gave. Raises ValueError for anything else."""
        try:
            rows = cast("list[dict[str, Any]]", json.loads(text))
            return cls(tuple(map(_read_category, rows)))
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"this is no policy: {error}") from error


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _read_category(row: dict[str, Any]) -> Category:
    """Return what stands in JSON; `Category` judges it, a single text in place of a list included."""
    shows, against = (
        tuple(row[side]) if isinstance(row[side], list) else row[side] for side in ("shows", "against")
    )
    return Category(row["name"], shows, against, row["threshold"])


# What most photos show: without it, whatever is nearer to a burning car than to a sunset would be a fire.
_PLAIN = (
    "a photo of a thing",
    "a photo of a place",
    "a photo of a person",
    "a photo of an animal",
    "a photo of a plant",
    "a photo of food",
    "a photo of a building",
    "a photo of a vehicle",
    "a photo of a car",
    "a photo",
)
_STARTER = ModerationPolicy(
    (
        Category(
            "weapon",
            (
                "a photo of a gun",
                "a photo of a person holding a rifle",
                "a close look at a knife used as a weapon",
            ),
            ("a photo of a tool", "a photo of kitchenware", "a photo of a person with a camera", *_PLAIN),
        ),
        Category(
            "fire",
            ("a photo of a burning building", "a photo of a car on fire", "a photo of a wildfire"),
            (
                "a photo of a forest",
                "a photo of a sunset",
                "a photo of autumn leaves",
                "a photo of a candle",
                *_PLAIN,
            ),
        ),
        Category(
            "alcohol and tobacco",
            ("a photo of a bottle of wine", "a photo of a glass of beer", "a photo of a burning cigarette"),
            ("a photo of a bottle of water", "a photo of a cup of coffee", "a photo of a pen", *_PLAIN),
        ),
        Category(
            "text instead of a picture",
            ("a screenshot of text", "a photo of a document", "a meme with a caption"),
            _PLAIN,
        ),
    )
)


@dataclass(frozen=True, slots=True)
class Decision:
    """What was found in one image."""

    verdict: str
    """"flag" from a category's threshold on, else "pass"; "unchecked" where the image could not be read."""
    reason: str
    """The category of the highest score over its threshold, or why the image failed; empty for "pass"."""
    scores: Mapping[str, float]
    """For each category, between 0 and 1; empty for "unchecked"."""


_NO_VECTOR = Decision("unchecked", "there is no vector: it has a NaN, or is all zeros", {})


@dataclass(frozen=True, slots=True)
class Calibration:
    """A policy whose thresholds fit examples, and how well they do on them."""

    policy: ModerationPolicy
    precision: Mapping[str, float]
    """For each category: of the images flagged, the share that should be; NaN where none is."""
    recall: Mapping[str, float]
    """Of the images that should be flagged, the share that is; NaN where there is none."""
    examples: Mapping[str, int]
    """How many images have the category: below some dozens the figures say little."""

    def __str__(self) -> str:
        width = max(len(category.name) for category in self.policy.categories)
        lines = [f"{'category':{width}}  examples  threshold  precision  recall"]
        lines += [
            f"{each.name:{width}}  {self.examples[each.name]:>8,}  {each.threshold:>9.3f}  "
            f"{_percent(self.precision[each.name]):>9}  {_percent(self.recall[each.name]):>6}"
            for each in self.policy.categories
        ]
        return "\n".join(lines)


def moderate(
    embedder: ClipEmbedder,
    images: Images | Vectors,
    policy: ModerationPolicy | None = None,
) -> list[Decision]:
    """Return a decision for each of n images, in input order; one that fails is "unchecked", never "pass".

    `policy` is by default the starter's. A score says how much closer an image is to the texts that show a
    category than to those against it, by the model's temperature. `images` are as in `ClipEmbedder.scores`.
    CLIP sees likeness, not intent, and misses what is small, hidden or new: let people decide what is
    flagged, and look at samples of what is not.
    """
    policy = policy or ModerationPolicy.starter()
    if not isinstance(policy, ModerationPolicy):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"policy must be a ModerationPolicy, not {policy!r}: its from_json reads a file's text"
        )
    vectors, kept, failures = images_with_vectors(embedder, images)
    scores = _scores(embedder, vectors, policy)
    found = {
        int(place): _decide(row, policy) if has_direction(vector) else _NO_VECTOR
        for place, vector, row in zip(kept, vectors, scores, strict=True)
    }
    found |= {failure.index: Decision("unchecked", failure.reason, {}) for failure in failures}
    return [found[place] for place in sorted(found)]


def calibrate(
    embedder: ClipEmbedder,
    policy: ModerationPolicy,
    images: Images | Vectors,
    labels: Sequence[str | Sequence[str]],
    *,
    precision: float | None = None,
) -> Calibration:
    """Set each threshold from examples: `labels` says which categories each image has, "" or [] for none.

    Without `precision` the threshold is that of the best F1; with it, the lowest that reaches this precision
    (1 where none does, which flags next to nothing). Measure on other images than those it was set on. A
    category without examples keeps its threshold; fewer than 5 are warned of. Raises ValueError for a
    label that is no category, ImageBatchError as `embed_images`.
    """
    wanted = list(map(_categories, labels))
    names = [category.name for category in policy.categories]
    if unknown := set[str]().union(*wanted) - set(names):
        raise ValueError(f"{min(unknown)!r} is no category of the policy; there are {', '.join(names)}")
    given = given_vectors(images, embedder)
    vectors = embedder.embed_images(cast("Images", images)) if given is None else given
    if len(vectors) != len(wanted):
        raise ValueError(f"{len(vectors)} images need as many labels, not {len(wanted)}")
    check_rows(vectors)
    scores = _scores(embedder, vectors, policy)
    categories: list[Category] = []
    figures: dict[str, tuple[float, float, int]] = {}
    for place, category in enumerate(policy.categories):
        truth = np.array([category.name in each for each in wanted], np.bool_)
        if truth.any():
            category = replace(category, threshold=_threshold(scores[:, place], truth, precision))
        categories.append(category)
        figures[category.name] = (*_quality(scores[:, place] >= category.threshold, truth), int(truth.sum()))
    _warn_of_few({name: count for name, (_, _, count) in figures.items()})
    return Calibration(
        ModerationPolicy(tuple(categories)),
        {name: precise for name, (precise, _, _) in figures.items()},
        {name: found for name, (_, found, _) in figures.items()},
        {name: count for name, (_, _, count) in figures.items()},
    )


def _warn_of_few(examples: Mapping[str, int]) -> None:
    if few := [f"{name!r} has {count}" for name, count in examples.items() if 0 < count < _FEW]:
        warn_caller(
            f"thresholds set from too few examples: {', '.join(few)}; they hold for other images from some "
            "dozens on"
        )


def _percent(share: float) -> str:
    return "–" if np.isnan(share) else f"{share:.1%}"


def _categories(label: str | Sequence[str]) -> set[str]:
    if isinstance(label, str):
        return {label} if label else set()
    if not isinstance(label, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f'a label must be the name of a category, a list of them, or "", not {label!r}')
    return set(label)


def _scores(embedder: ClipEmbedder, vectors: Float32, policy: ModerationPolicy) -> Float32:
    """Return float32 (n, c): of each side the nearest text counts, so that one good match is enough."""
    columns: list[Float32] = []
    for category in policy.categories:
        shows = embedder.scores(vectors, embedder.embed_texts(category.shows)).max(axis=1)
        against = embedder.scores(vectors, embedder.embed_texts(category.against)).max(axis=1)
        columns.append(sigmoid((shows - against) * embedder.logit_scale))
    return np.stack(columns, axis=1)


def _decide(scores: Float32, policy: ModerationPolicy) -> Decision:
    named = {each.name: float(score) for each, score in zip(policy.categories, scores, strict=True)}
    over = [each.name for each in policy.categories if named[each.name] >= each.threshold]
    if not over:
        return Decision("pass", "", named)
    return Decision("flag", max(over, key=named.__getitem__), named)


def _threshold(scores: Float32, truth: Bools, precision: float | None) -> float:
    """Return the threshold of the best F1, or the lowest of this precision, of equals the lowest.

    It lies halfway to the next score below, so that rounding does not decide about any example.
    """
    order = np.argsort(-scores, kind="stable")
    falling, hits = scores[order], np.cumsum(truth[order])
    lasts = np.flatnonzero(np.append(falling[:-1] != falling[1:], True))  # equal scores are flagged together
    flagged, hits = lasts + 1, hits[lasts]
    if precision is None:
        quality = 2 * hits / (flagged + truth.sum())  # F1
        good = lasts[quality == quality.max()]
    else:
        good = lasts[hits / flagged >= precision]
    if not len(good):
        return 1.0
    lowest, below = np.append(falling, np.float32(0))[good[-1] :][:2]
    halfway = (lowest + below) / np.float32(2)
    return float(halfway if halfway > below else lowest)


def _quality(flagged: Bools, truth: Bools) -> tuple[float, float]:
    """Return precision and recall, NaN where there is nothing to divide by."""
    hits = int((flagged & truth).sum())
    return (
        hits / int(flagged.sum()) if flagged.any() else np.nan,
        hits / int(truth.sum()) if truth.any() else np.nan,
    )
