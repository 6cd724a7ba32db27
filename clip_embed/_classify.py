"""Zero-shot classification: which of some labels an image fits best."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt

from clip_embed._engine.fork import outlive_forks
from clip_embed._templates import NOTHING, resolve_templates
from clip_embed._types import Float32
from clip_embed._vectors import unit_rows

Labels: TypeAlias = "Sequence[str] | Mapping[str, str | Sequence[str]]"
_Name: TypeAlias = tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]  # words of each label, templates
_MOST_SETS = 16  # of labels that are remembered


@dataclass(frozen=True, slots=True)
class Classification:
    """What `ClipEmbedder.classify` found for n images and k labels."""

    labels: tuple[str, ...]
    """(k,), as given."""
    probabilities: Float32
    """float32 (n, k), rows in input order that sum to 1: how the labels share an image among them.

    They say nothing about labels that were not offered: an image of none of them still gets one, unless
    there is a label for that (`other=`). With `multi=True` each is a probability for itself, against none.
    """

    def __post_init__(self) -> None:
        missing = np.isnan(self.probabilities).any(axis=1)
        if missing.any():
            raise ValueError(
                f"the vector of image {int(missing.argmax())} has a NaN: leave out such rows first"
            )

    @property
    def best(self) -> tuple[str, ...]:
        """(n,): the likeliest label of each image; of equals the first."""
        places: list[int] = self.probabilities.argmax(axis=1).tolist()
        return tuple(self.labels[place] for place in places)

    def above(self, threshold: float) -> list[tuple[str, ...]]:
        """(n,): the labels of each image that have at least this probability, likeliest first."""
        return [
            tuple(label for label, share in row if share >= threshold) for row in self.top(len(self.labels))
        ]

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
        self._known: OrderedDict[_Name, Float32] = OrderedDict()
        self.begin_child()
        outlive_forks(self)

    def begin_child(self) -> None:
        """Make the lock, anew after a fork."""
        self._lock = threading.Lock()

    def get(
        self,
        embed_texts: Callable[[Iterable[str]], Float32],
        words: Sequence[Sequence[str]],
        templates: Sequence[str] | str,
    ) -> Float32:
        """Return float32 (k, d), unit rows: for each label the mean direction of its sentences."""
        sentences = resolve_templates(templates)
        name = tuple(tuple(each) for each in words), sentences
        with self._lock:
            if name not in self._known:
                self._known[name] = _mean_directions(embed_texts, words, sentences)
                if len(self._known) > _MOST_SETS:
                    self._known.popitem(last=False)
            self._known.move_to_end(name)
            return self._known[name]


def _mean_directions(
    embed_texts: Callable[[Iterable[str]], Float32], words: Sequence[Sequence[str]], templates: Sequence[str]
) -> Float32:
    rows = embed_texts(
        [template.replace("{}", word) for each in words for word in each for template in templates]
    )
    ends = np.cumsum([len(each) * len(templates) for each in words])[:-1]
    return unit_rows(np.stack([part.mean(axis=0) for part in np.split(rows, ends)]))


def read_labels(labels: Labels, other: str | None, *, multi: bool) -> dict[str, tuple[str, ...]]:
    """Return for each label, in order, the words for it, those for `other` last.

    Raises TypeError for a single str, ValueError for labels that cannot tell images apart.
    """
    if isinstance(labels, str):
        raise TypeError("labels must be a list of texts; for a single one wrap it in a list")
    pairs: list[tuple[str, str | Sequence[str]]] = (
        list(labels.items()) if isinstance(labels, Mapping) else [(label, label) for label in labels]
    )
    if other is not None:
        pairs.append((other, NOTHING))
    names = [name for name, _ in pairs]
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise ValueError(f"the label {twice[0]!r} stands twice among the labels")
    if len(names) < 2 and not (multi and other is None and names):
        raise ValueError("give at least two labels to choose from; for a single text there is `scores`")
    return {name: _read_words(name, words) for name, words in pairs}


def _read_words(label: object, words: object) -> tuple[str, ...]:
    """Return the words of one label. Raises TypeError for what is no text, ValueError for empty ones."""
    found: tuple[object, ...] = (words,)
    if isinstance(words, Iterable) and not isinstance(words, str):
        found = tuple(cast("Iterable[object]", words))
    for text in (label, *found):
        if not isinstance(text, str):
            raise TypeError(f"labels must be texts, not {text!r}")
        if not text.strip() or not found:
            raise ValueError(f"labels must not be empty texts, as {text if found else ''!r} is")
    return cast("tuple[str, ...]", found)


def shares_of(logits: Float32, *, multi: bool, other: bool) -> Float32:
    """Return the probabilities of k labels, float32 (n, k), from the logits of their vectors.

    With `multi` the last vector is that of nothing, which each label competes with for itself; `other`, then
    the label before it, is as likely as that none of them is there, going by the likeliest.
    """
    if not multi:
        return softmax(logits)
    shares = sigmoid(logits[:, :-1] - logits[:, -1:])
    if other:
        shares[:, -1] = 1 - shares[:, :-1].max(axis=1)
    return shares


def softmax(logits: Float32) -> Float32:
    """float32 (n, k) -> float32 (n, k), rows that sum to 1."""
    powers = np.exp((logits - logits.max(axis=1, keepdims=True)).astype(np.float64))
    shares: Float32 = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares


def sigmoid(logits: npt.NDArray[np.floating]) -> Float32:
    """float32, any shape -> float32 between 0 and 1."""
    shares: Float32 = (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
    return shares
