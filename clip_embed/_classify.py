"""Zero-shot classification: which of some labels an image fits best."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from clip_embed._engine.fork import outlive_forks
from clip_embed._types import Float32
from clip_embed._vectors import unit_rows

DEFAULT_TEMPLATES: tuple[str, ...] = (
    "{}",
    "a photo of {}",
    "a photo of a {}",
    "a picture with a {} in it",
    "a close look at a {}",
    "a {} seen from far away",
    "a drawing of a {}",
)
"""Sentences that each label is put into; the mean of their vectors suffers less from one phrasing."""

_MOST_SETS = 16  # of labels that are remembered


@dataclass(frozen=True, slots=True)
class Classification:
    """What `ClipEmbedder.classify` found for n images and k labels."""

    labels: tuple[str, ...]
    """(k,), as given."""
    probabilities: Float32
    """float32 (n, k), rows in input order that sum to 1: how the labels share an image among them.

    They say nothing about labels that were not offered: an image of none of them still gets one.
    """

    @property
    def best(self) -> tuple[str, ...]:
        """(n,): the likeliest label of each image; of equals the first."""
        places: list[int] = self.probabilities.argmax(axis=1).tolist()
        return tuple(self.labels[place] for place in places)

    def top(self, k: int) -> list[list[tuple[str, float]]]:
        """The k likeliest labels of each image with their probabilities, likeliest first."""
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :k]
        return [
            [(self.labels[place], float(row[place])) for place in places]
            for places, row in zip(order, self.probabilities, strict=True)
        ]


class LabelVectors:
    """The vectors of sets of labels, of which those used last are made only once. Thread-safe."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[tuple[str, ...], ...], Float32] = OrderedDict()
        self.begin_child()
        outlive_forks(self)

    def begin_child(self) -> None:
        """Make the lock, anew after a fork."""
        self._lock = threading.Lock()

    def get(
        self, embed_texts: Callable[[Iterable[str]], Float32], labels: Sequence[str], templates: Sequence[str]
    ) -> Float32:
        """Return float32 (k, d), unit rows: for each label the mean direction of its sentences.

        Raises TypeError for a single str, ValueError for labels or templates that cannot tell images apart.
        """
        _check(labels, templates)
        name = tuple(labels), tuple(templates)
        with self._lock:
            if name not in self._known:
                sentences = [template.replace("{}", label) for label in labels for template in templates]
                rows = embed_texts(sentences).reshape(len(labels), len(templates), -1)
                self._known[name] = unit_rows(rows.mean(axis=1))
                if len(self._known) > _MOST_SETS:
                    self._known.popitem(last=False)
            self._known.move_to_end(name)
            return self._known[name]


def _check(labels: Sequence[str], templates: Sequence[str]) -> None:
    for name, texts in (("labels", labels), ("templates", templates)):
        if isinstance(texts, str):
            raise TypeError(f"{name} must be a list of texts; for a single one wrap it in a list")
        if blank := [text for text in texts if not text.strip()]:
            raise ValueError(f"{name} must not be empty texts, as {blank[0]!r} is")
    if len(labels) < 2:
        raise ValueError("give at least two labels to choose from; for a single text there is `scores`")
    if twice := [label for place, label in enumerate(labels) if label in labels[:place]]:
        raise ValueError(f"the label {twice[0]!r} stands twice among the labels")
    if not templates:
        raise ValueError('give at least one template, such as "a photo of {}"')
    if plain := [template for template in templates if "{}" not in template]:
        raise ValueError(f"the template {plain[0]!r} has no {{}} for the label")


def softmax(logits: Float32) -> Float32:
    """float32 (n, k) -> float32 (n, k), rows that sum to 1."""
    powers = np.exp((logits - logits.max(axis=1, keepdims=True)).astype(np.float64))
    shares: Float32 = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares
