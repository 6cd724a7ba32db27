"""Typed uses of what CLIP is used for: for `mypy --strict` and pyright, never run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from clip_embed import (
    Accuracy,
    Calibration,
    Category,
    Classification,
    Classifier,
    ClipEmbedder,
    Decision,
    Duplicates,
    LabelReport,
    Matches,
    ModerationPolicy,
    Relevance,
    Retrieval,
    Training,
    calibrate,
    diverse,
    duplicates,
    evaluate_retrieval,
    explain_labels,
    fit,
    fit_relevance,
    moderate,
    similar,
    train,
)

Float32 = npt.NDArray[np.float32]


def visual_search(clip: ClipEmbedder, vectors: Float32, column: pa.ChunkedArray[Any]) -> None:
    """Images, vectors and columns go in, indices and scores come out."""
    found = assert_type(similar(clip, ["a.jpg"], vectors, unlike=[b"image"], diversity=0.5), Matches)
    assert_type(found.scores, Float32)
    assert_type(list(found), list[tuple[int, float]])
    assert_type(duplicates(clip, column, threshold=0.9), Duplicates)
    assert_type(duplicates(clip, column).extra, tuple[int, ...])
    assert_type(diverse(clip, vectors.astype(np.float64), 5), Matches)


def labels(clip: ClipEmbedder, vectors: Float32) -> None:
    """Words for each label, a label for none, a report on phrasing."""
    found = clip.classify(vectors, {"car": ["car", "auto"], "cat": "cat"}, other="rest", multi=True)
    assert_type(found.above(0.5), list[tuple[str, ...]])
    assert_type(explain_labels(clip, ["a.jpg"], ["car", "cat"], templates="many"), LabelReport)


def moderation(clip: ClipEmbedder, vectors: Float32) -> None:
    """A policy, its thresholds from examples, and decisions."""
    policy = ModerationPolicy((Category("fire", shows=("a fire",), against=("a candle",)),))
    fitted = assert_type(calibrate(clip, policy, vectors, ["fire", "", ["fire"]], precision=0.9), Calibration)
    assert_type(moderate(clip, ["a.jpg"], fitted.policy), list[Decision])


def retrieval(clip: ClipEmbedder, vectors: Float32) -> None:
    """One caption or several for each image, and captions of none."""
    found = evaluate_retrieval(clip, ["a.jpg", "b.jpg"], ["a", ["b", "c"]], distractors=vectors)
    assert_type(assert_type(found, Retrieval).right_caption(2), float)


def few_shot(clip: ClipEmbedder, vectors: Float32) -> None:
    """Labels are learned, kept and used as zero-shot ones are."""
    learned = assert_type(fit(clip, vectors, ["a", "b"], method="mean", folds=3), Classifier)
    assert_type(learned.accuracy, Accuracy)
    learned.save("x.classifier")
    assert_type(Classifier.load("x.classifier").predict(clip, ["a.jpg"]), Classification)


def relevance(clip: ClipEmbedder, vectors: Float32) -> None:
    """Percentiles have the shape of scores."""
    fitted = assert_type(fit_relevance(clip, vectors), Relevance)
    assert_type(fitted.rate(clip, vectors, ["a", "b"]), Float32)
    assert_type(fitted.find(clip, vectors, "a", least=95), Matches)
    assert_type(Relevance.from_json(fitted.to_json()), Relevance)


def training(pairs: list[tuple[str | Path, str]]) -> None:
    """Pairs of file and caption go in, a folder and two recalls come out."""
    found = assert_type(
        train("model", pairs, "folder", held_out=0.2, progress=lambda epoch, recall: None), Training
    )
    assert_type(found.after - found.before, float)
