"""Few-shot classification: labels learned from examples, on vectors of a model that stays as it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
import numpy.typing as npt

from clip_embed._classify import Classification, softmax
from clip_embed._embedder import ClipEmbedder, Images
from clip_embed._evaluate import check_rows
from clip_embed._progress import Progress
from clip_embed._stamp import Stamp, check_stamp
from clip_embed._types import Float32
from clip_embed._vectors import Vectors, given_vectors, unit_rows
from clip_embed.errors import MissingExtra

Method = Literal["probe", "mean"]
_Codes = npt.NDArray[np.int64]
_Rule = tuple[Float32, Float32]  # weights (k, d) and biases (k,) of a softmax
_SCHEMA = 1
_SHOWN = 5  # labels
_SCALES = np.geomspace(1, 1000, 25)
_C = 5.0  # of the regression, on centred vectors of mean square length 1


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Shares of the examples that are named right, learned and without learning; `print` shows them.

    "mean" and "probe" are cross-validated: each image is judged by a classifier that never saw it, though it
    may have seen a copy of it. NaN where a label has a single example, or scikit-learn is missing.
    """

    images: int
    labels: int
    fewest: int
    """Examples of the rarest label."""
    folds: int
    """In how many parts the examples were judged, 0 where it could not be done."""
    commonest: float
    """The share of the commonest label: what naming it for every image would reach."""
    one_prompt: float
    """Zero-shot with "a photo of a {}" alone."""
    zero_shot: float
    """Zero-shot with the default templates."""
    mean: float
    probe: float

    def __str__(self) -> str:
        rows = [
            ("chance", 1 / self.labels),
            ("commonest label", self.commonest),
            ('zero-shot, "a photo of a {}"', self.one_prompt),
            ("zero-shot, default templates", self.zero_shot),
            ("nearest mean", self.mean),
            ("logistic probe", self.probe),
        ]
        head = f"{self.images:,} images, {self.labels:,} labels, at least {self.fewest:,} of each"
        lines = [
            f"{name:30}{'–':>6}" if np.isnan(share) else f"{name:30}{share:6.1%} ± {self._error(share):.1%}"
            for name, share in rows[2:]
        ]
        lines[-2:] = [f"{line}, {self.folds} folds" for line in lines[-2:]]
        return "\n".join([head, *(f"{name:30}{share:6.1%}" for name, share in rows[:2]), *lines])

    def _error(self, share: float) -> float:
        return float(np.sqrt(share * (1 - share) / self.images))


@dataclass(frozen=True, slots=True, eq=False)
class Classifier:
    """Names images by one of k labels, as `fit` learned it; small, and kept in a file without code.

    >>> fit(clip, images, labels).save("birds.classifier")
    >>> Classifier.load("birds.classifier").predict(clip, ["new.jpg"]).best
    """

    labels: tuple[str, ...]
    weights: Float32
    """float32 (k, d)"""
    bias: Float32
    """float32 (k,)"""
    method: Method
    model: str
    """The embedder's name, to know which to open; `stamp` decides whether it fits."""
    stamp: Stamp
    accuracy: Accuracy

    def __repr__(self) -> str:
        shown = ", ".join(self.labels[:_SHOWN]) + ", …" * (len(self.labels) > _SHOWN)
        return f"<Classifier of {len(self.labels):,} labels ({shown}), method {self.method}, of {self.model}>"

    def predict(self, embedder: ClipEmbedder, images: Images | Vectors) -> Classification:
        """Return the labels' probabilities for each of n images, as `ClipEmbedder.classify` does.

        `images` are as there. Raises SpaceMismatch where the classifier was fitted with another model.
        """
        check_stamp(self.stamp, self.stamp.dim, embedder, f"the classifier of {len(self.labels)} labels")
        given = given_vectors(images, embedder)
        vectors = embedder.embed_images(cast("Images", images)) if given is None else given
        return Classification(self.labels, softmax(vectors @ self.weights.T + self.bias))

    def save(self, file: str | Path) -> None:
        """Write the classifier: safetensors, the facts as JSON in its header."""
        save: Any = import_module("safetensors.numpy").save

        facts = {
            "classifier": str(_SCHEMA),
            "labels": json.dumps(self.labels, ensure_ascii=False),
            "method": self.method,
            "model": self.model,
            "stamp": self.stamp.to_json(),
            "accuracy": json.dumps(asdict(self.accuracy)),
        }
        tensors = {"weights": np.ascontiguousarray(self.weights), "bias": self.bias}
        target = Path(file)
        try:
            target.write_bytes(save(tensors, facts))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{target}: there is no folder {target.parent}, make it first") from error

    @classmethod
    def load(cls, file: str | Path) -> Self:
        """Read what `save` wrote; runs nothing. Raises ValueError for anything else."""
        return cls.from_bytes(Path(file).read_bytes(), str(file))

    @classmethod
    def from_bytes(cls, content: bytes, name: str = "these bytes") -> Self:
        """Read the content of such a file; `name` stands for it in messages."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            tensors = load(content)
            size = int.from_bytes(content[:8], "little")
            facts = cast("dict[str, str]", json.loads(content[8 : 8 + size])["__metadata__"])
            labels = tuple(map(str, json.loads(facts["labels"])))
            stamp = Stamp.from_json(facts["stamp"])
            weights, bias = tensors["weights"], tensors["bias"]
            method = cast("Method", facts["method"])
            accuracy = Accuracy(**json.loads(facts["accuracy"]))
            fits = weights.shape == (len(labels), stamp.dim) and bias.shape == (len(labels),)
            if facts["classifier"] != str(_SCHEMA) or not fits or weights.dtype != np.float32:
                raise ValueError("of another version, or damaged")  # noqa: TRY301 - told as the others
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{name} is no classifier that clip-embed saved: {error!r}") from error
        return cls(labels, weights, bias, method, facts["model"], stamp, accuracy)


def fit(
    embedder: ClipEmbedder,
    images: Images | Vectors,
    labels: Sequence[str],
    *,
    method: Method = "probe",
    folds: int = 5,
) -> Classifier:
    """Learn n labels from as many images; `print(classifier.accuracy)` compares it with zero-shot.

    "probe" is a logistic regression (scikit-learn), "mean" compares with the mean vector of each label, which
    is as good with one or two examples of each. `images` are as in `ClipEmbedder.scores`. Accuracy is
    measured in `folds` parts, fewer where a label has fewer examples, which takes most of the time: 0
    measures nothing. Keep bursts and copies out (`duplicates`), which flatter it. Equal in, equal out.

    Raises ValueError for fewer than two labels, MissingExtra without scikit-learn, else as `embed_images`.
    """
    if method not in ("probe", "mean"):
        raise ValueError(f"method must be 'probe' or 'mean', not {method!r}")
    names = _names(labels)
    given = given_vectors(images, embedder)
    vectors = embedder.embed_images(cast("Images", images)) if given is None else given
    if len(vectors) != len(labels):
        raise ValueError(f"{len(vectors)} images need as many labels, not {len(labels)}")
    check_rows(vectors)
    codes = np.array([names.index(label) for label in labels], np.int64)
    rules = {"mean": _fit_mean, "probe": _fit_probe}
    used = min(folds, int(np.bincount(codes).min()))
    used = used if used > 1 else 0
    with Progress("Fitting", 1 + 2 * used, unit="fits") as progress:
        weights, bias = rules[method](vectors, codes, len(names))
        progress.add(1)
        accuracy = _measure(embedder, vectors, codes, names, used, progress)
    return Classifier(tuple(names), weights, bias, method, embedder.name, embedder.stamp(), accuracy)


def _names(labels: Sequence[str]) -> list[str]:
    """Return the different labels, sorted."""
    if isinstance(labels, str):
        raise TypeError("labels must be a list: one text for each image")
    for place, label in enumerate(labels):
        if not isinstance(label, str) or not label.strip():  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"label {place} must be a text that is not empty, not {label!r}")
    names = sorted({str(label) for label in labels})
    if len(names) < 2:
        raise ValueError("give at least two different labels to learn to tell apart")
    return names


def _fit_mean(vectors: Float32, codes: _Codes, count: int) -> _Rule:
    """Return the unit means, scaled so that held-out examples are as likely as can be."""
    sums = np.zeros((count, vectors.shape[1]), np.float32)
    np.add.at(sums, codes, vectors)
    means = unit_rows(sums)
    cosines = vectors @ means.T
    others = unit_rows(sums[codes] - vectors)  # the mean without the example itself
    rows = np.arange(len(codes))
    cosines[rows, codes] = np.einsum("nd,nd->n", vectors, others)
    judged = np.bincount(codes, minlength=count)[codes] > 1
    if not judged.any():
        return means * np.float32(_SCALES[-1] ** 0.5), np.zeros(count, np.float32)
    likelihoods = [
        np.log(np.maximum(softmax(cosines * np.float32(scale))[rows, codes], 1e-9))[judged].mean()
        for scale in _SCALES
    ]
    best = np.float32(_SCALES[int(np.argmax(likelihoods))])
    return means * best, np.zeros(count, np.float32)


def _fit_probe(vectors: Float32, codes: _Codes, count: int) -> _Rule:
    """Return a logistic regression on centred vectors, as weights for the vectors themselves."""
    try:
        linear: Any = import_module("sklearn.linear_model")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "sklearn":
            raise
        raise MissingExtra("scikit-learn", "probe", 'method="probe"') from error
    centre = vectors.mean(axis=0)
    spread = float(np.sqrt(np.square(vectors - centre).sum(axis=1).mean())) or 1.0
    model = linear.LogisticRegression(C=_C, max_iter=2000)
    model.fit((vectors - centre).astype(np.float64) / spread, codes)
    weights, bias = model.coef_, model.intercept_
    if count == 2:  # it gives one row, for the second label against the first
        weights = np.concatenate([-weights / 2, weights / 2])
        bias = np.concatenate([-bias / 2, bias / 2])
    weights = weights / spread
    return weights.astype(np.float32), np.asarray(bias - weights @ centre, np.float32)


def _measure(
    embedder: ClipEmbedder,
    vectors: Float32,
    codes: _Codes,
    names: Sequence[str],
    folds: int,
    progress: Progress,
) -> Accuracy:
    counts = np.bincount(codes)

    def zero_shot(**templates: Any) -> float:  # noqa: ANN401 - at most the one of classify
        found = embedder.classify(vectors, names, **templates).probabilities.argmax(axis=1)
        return float((found == codes).mean())

    return Accuracy(
        images=len(codes),
        labels=len(names),
        fewest=int(counts.min()),
        folds=folds,
        commonest=float(counts.max() / len(codes)),
        one_prompt=zero_shot(templates=["a photo of a {}"]),
        zero_shot=zero_shot(),
        mean=_cross_validate(_fit_mean, vectors, codes, folds, progress),
        probe=_cross_validate(_fit_probe, vectors, codes, folds, progress),
    )


def _cross_validate(
    rule: Callable[[Float32, _Codes, int], _Rule],
    vectors: Float32,
    codes: _Codes,
    folds: int,
    progress: Progress,
) -> float:
    """Return the share named right by rules that were fitted to the other folds, labels spread evenly."""
    if not folds:
        return float("nan")
    part = np.empty(len(codes), np.int64)
    order = np.random.default_rng(0).permutation(len(codes))
    for code in np.unique(codes):
        members = order[codes[order] == code]
        part[members] = np.arange(len(members)) % folds
    right = 0
    for fold in range(folds):
        seen, held = part != fold, part == fold
        try:
            weights, bias = rule(vectors[seen], codes[seen], int(codes.max()) + 1)
        except MissingExtra:
            return float("nan")
        progress.add(1)
        right += int(((vectors[held] @ weights.T + bias).argmax(axis=1) == codes[held]).sum())
    return right / len(codes)
