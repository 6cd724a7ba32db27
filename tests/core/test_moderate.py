"""Moderation: decisions, what is never passed, thresholds from examples, policies as data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_embed import (
    Category,
    ClipEmbedder,
    ModerationPolicy,
    calibrate,
    moderate,
)
from clip_embed._moderate import _threshold
from clip_embed._types import Float32, UInt8
from clip_embed.testing import FakeModel

RED, BLUE, GREEN = (np.full((8, 8, 3), c, np.uint8) for c in ((250, 0, 0), (0, 0, 250), (0, 250, 0)))
FEW = pytest.mark.filterwarnings("ignore:thresholds set from too few examples")
POLICY = ModerationPolicy(
    (Category("hot", ("red",), ("blue", "green")), Category("cold", ("blue",), ("red", "green")))
)


class Colours(FakeModel):
    """An image is its mean colour, a text the colours that it names."""

    space = "colours"
    logit_scale = 5.0

    def __init__(self) -> None:
        super().__init__(dim=3)

    def embed_images(self, pixels: UInt8, /) -> Float32:
        """Mean colour."""
        mean: Float32 = pixels.mean(axis=(1, 2)).astype(np.float32)
        return mean

    def embed_texts(self, texts: Sequence[str], /) -> Float32:
        """Red, green, blue, each 1 where the text has the word."""
        return np.array([[word in text for word in ("red", "green", "blue")] for text in texts], np.float32)


@pytest.fixture
def clip() -> ClipEmbedder:
    """An embedder that sees colours."""
    return ClipEmbedder(Colours())


def test_a_decision_for_each_image(clip: ClipEmbedder) -> None:
    """An image is flagged for the category it shows, with the reason and all scores; others pass."""
    red, green, blue = moderate(clip, [RED, GREEN, BLUE], POLICY)
    assert (red.verdict, red.reason) == ("flag", "hot")
    assert (blue.verdict, blue.reason) == ("flag", "cold")
    assert (green.verdict, green.reason) == ("pass", "")
    assert red.scores["hot"] == pytest.approx(1 / (1 + np.exp(-5)))
    assert red.scores["cold"] == pytest.approx(1 / (1 + np.exp(5)))


def test_what_cannot_be_read_never_passes(clip: ClipEmbedder) -> None:
    """A bad image keeps its place, unchecked and with the reason."""
    first, second, third = moderate(clip, [GREEN, b"junk", RED], POLICY)
    assert (first.verdict, third.verdict) == ("pass", "flag")
    assert second.verdict == "unchecked"
    assert "not an image" in second.reason
    assert second.scores == {}


def test_vectors_give_the_same_decisions(clip: ClipEmbedder) -> None:
    """Stored vectors are judged as their images are; none give none."""
    images = [RED, GREEN, BLUE]
    assert moderate(clip, clip.embed_images(images), POLICY) == moderate(clip, images, POLICY)
    assert moderate(clip, [], POLICY) == []


def mixtures(shares: Sequence[float]) -> Float32:
    """Unit vectors between green and red."""
    rows = np.array([[share, 1 - share, 0] for share in shares], np.float32)
    unit: Float32 = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


@FEW
def test_thresholds_from_examples(clip: ClipEmbedder) -> None:
    """The best threshold parts the examples; one without examples stays; figures are those of the flags."""
    vectors = mixtures([0.1, 0.2, 0.3, 0.4, 0.7, 0.8])
    found = calibrate(clip, POLICY, vectors, ["", "", "", "hot", "hot", ["hot"]])
    hot, cold = found.policy.categories
    flags = [decision.verdict for decision in moderate(clip, vectors, found.policy)]
    assert flags == ["pass"] * 3 + ["flag"] * 3
    assert (found.precision["hot"], found.recall["hot"], found.examples["hot"]) == (1, 1, 3)
    assert cold == POLICY.categories[1]
    assert np.isnan(found.recall["cold"])
    assert "hot" in str(found)
    assert hot.threshold < 0.5


def test_few_examples_are_warned_of(clip: ClipEmbedder) -> None:
    """The warning has the category and the number; none are no threshold, and no percentage either."""
    vectors = mixtures([0.1, 0.2, 0.8, 0.9])
    with pytest.warns(UserWarning, match=r"too few examples: 'hot' has 2; .* dozens") as told:
        found = calibrate(clip, POLICY, vectors, ["", "", "hot", "hot"])
    assert told[0].filename == __file__
    hot, cold = str(found).splitlines()[1:]
    assert hot.split() == ["hot", "2", f"{found.policy.categories[0].threshold:.3f}", "100.0%", "100.0%"]
    assert cold.split() == ["cold", "0", "0.500", "–", "–"]
    calibrate(clip, POLICY, mixtures([0.1, 0.5, 0.6, 0.7, 0.8, 0.9]), ["", *["hot"] * 5])


@FEW
def test_a_precision_that_is_asked_for(clip: ClipEmbedder) -> None:
    """The lowest threshold that reaches it, at the cost of recall; out of reach, nearly none is."""
    vectors = mixtures([0.1, 0.5, 0.6, 0.9])
    labels = ["", "hot", "", "hot"]
    assert calibrate(clip, POLICY, vectors, labels).recall["hot"] == 1
    strict = calibrate(clip, POLICY, vectors, labels, precision=1.0)
    assert (strict.precision["hot"], strict.recall["hot"]) == (1, 0.5)
    impossible = calibrate(clip, POLICY, vectors, ["hot", "", "", ""], precision=1.0)
    assert impossible.policy.categories[0].threshold == 1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from((0.0, 0.25, 0.5, 0.75, 1.0)) | st.floats(0, 1, width=32), st.booleans())
    ),
    st.none() | st.floats(0, 1),
)
def test_a_threshold_is_the_best_of_all(rows: list[tuple[float, bool]], precision: float | None) -> None:
    """No other flags a better set; it lies between two scores, so that rounding moves no example."""
    scores = np.array([score for score, _ in rows], np.float32)
    truth = np.array([right for _, right in rows], np.bool_)
    if not truth.any():
        return
    threshold = _threshold(scores, truth, precision)

    def quality(limit: float) -> tuple[float, float]:
        hits, flagged = (scores[truth] >= limit).sum(), (scores >= limit).sum()
        return hits / flagged, 2 * hits / (flagged + truth.sum())

    if precision is None:
        assert quality(threshold)[1] == max(quality(each)[1] for each in scores.tolist())
        return
    reaching = [each for each in scores.tolist() if quality(each)[0] >= precision]
    if reaching:
        assert (scores >= threshold).tolist() == (scores >= min(reaching)).tolist()
    else:
        assert threshold == 1


@FEW
def test_rounding_decides_about_no_example(clip: ClipEmbedder) -> None:
    """Scores that differ in the last digits, as those of another batch do, are judged alike."""
    vectors = mixtures([0.2, 0.4, 0.6, 0.8])
    hot, _ = calibrate(clip, POLICY, vectors, ["", "", "hot", "hot"]).policy.categories
    scores = [decision.scores["hot"] for decision in moderate(clip, vectors, POLICY)]
    assert scores[1] + 0.01 < hot.threshold < scores[2] - 0.01


@pytest.mark.parametrize(
    "text",
    [
        "[{}]",
        '[{"name": "a"}]',
        "3",
        "[1]",
        "[]",
        "{",
        '{"a": 1}',
        '[{"name": "a", "shows": "a photo", "against": ["b"], "threshold": 0.5}]',
        '[{"name": "a", "shows": [1], "against": ["b"], "threshold": 0.5}]',
        '[{"name": 1, "shows": ["a"], "against": ["b"], "threshold": 0.5}]',
        '[{"name": "a", "shows": ["a"], "against": ["b"], "threshold": "high"}]',
        '[{"name": "a", "shows": ["a"], "against": ["b"], "threshold": NaN}]',
    ],
)
def test_what_is_no_policy_is_told(text: str) -> None:
    """A single text is not taken letter by letter, nor a number for a text."""
    with pytest.raises(ValueError, match="this is no policy"):
        ModerationPolicy.from_json(text)


def test_policies_are_data() -> None:
    """A policy survives JSON."""
    assert ModerationPolicy.from_json(ModerationPolicy.starter().to_json()) == ModerationPolicy.starter()


def test_what_is_refused(clip: ClipEmbedder) -> None:
    """Empty texts, equal names, unknown labels and missing ones are errors that name them."""
    with pytest.raises(ValueError, match="'a': against must be a list of texts, none empty"):
        Category("a", ("x",), ())
    with pytest.raises(ValueError, match="between 0 and 1"):
        Category("a", ("x",), ("y",), 2)
    with pytest.raises(ValueError, match="name of its own"):
        ModerationPolicy((POLICY.categories[0], POLICY.categories[0]))
    with pytest.raises(ValueError, match="'warm' is no category of the policy; there are hot, cold"):
        calibrate(clip, POLICY, [RED], ["warm"])
    with pytest.raises(
        TypeError, match=r"must be a ModerationPolicy, not 'policy\.json': its from_json reads"
    ):
        moderate(clip, [RED], "policy.json")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"a label must be the name of a category, .* not None"):
        calibrate(clip, POLICY, [RED], [None])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="2 images need as many labels, not 1"):
        calibrate(clip, POLICY, [RED, BLUE], ["hot"])


def test_a_row_without_a_vector_is_unchecked(clip: ClipEmbedder) -> None:
    """NaN and zeros, which stand for images that failed, never pass; nor do they set thresholds."""
    vectors = np.stack([np.full(3, np.nan), np.zeros(3), [1, 0, 0]]).astype(np.float32)
    verdicts = [decision.verdict for decision in moderate(clip, vectors, POLICY)]
    assert verdicts == ["unchecked", "unchecked", "flag"]
    with pytest.raises(ValueError, match=r"image 0 has no vector: .* leave out such rows first"):
        calibrate(clip, POLICY, vectors, ["", "", "hot"])
