"""Zero-shot classification: shares of labels, templates, temperature, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from clip_embed import ClipEmbedder, ImageBatchError, explain_labels
from clip_embed._templates import DEFAULT_TEMPLATES
from clip_embed.testing import FakeModel

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]
RED, BLUE = (np.full((8, 8, 3), colour, np.uint8) for colour in ((250, 10, 10), (10, 10, 250)))


class Colours(FakeModel):
    """Knows red and blue: their shares in the picture, and the words in a text."""

    dim = 3
    space = "colours"
    logit_scale = 10.0

    def __init__(self) -> None:
        super().__init__(dim=3)
        self.read: list[str] = []

    def embed_images(self, pixels: UInt8, /) -> Float32:
        """Mean colour; green stands for everything else."""
        mean: Float32 = pixels.mean(axis=(1, 2)).astype(np.float32)
        return mean + np.float32([0, 1, 0])

    def embed_texts(self, texts: Sequence[str], /) -> Float32:
        """Red, else, blue."""
        self.read += texts
        return np.array(
            [["red" in text, 0.2 + 0.1 * len(text) % 0.3, "blue" in text] for text in texts], np.float32
        )


def test_shares_of_the_labels() -> None:
    """Rows sum to 1 in input order; the best label and the top list agree with them."""
    found = ClipEmbedder(Colours()).classify([RED, BLUE, RED], ["blue", "red", "green"])
    assert found.labels == ("blue", "red", "green")
    assert found.probabilities.dtype == np.float32
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, atol=1e-6)
    assert found.best == ("red", "blue", "red")
    top = found.top(2)
    assert [row[0][0] for row in top] == list(found.best)
    second = np.sort(found.probabilities, axis=1)[:, 1]
    np.testing.assert_allclose([row[1][1] for row in top], second)
    assert {len(row) for row in top} == {2}
    assert top[0][0][1] == pytest.approx(found.probabilities[0, 1])


def test_the_models_temperature_decides_how_sure_it_is() -> None:
    """Probabilities are the softmax of the cosines times the model's own scale, 100 where it has none."""
    model = Colours()
    clip = ClipEmbedder(model)
    vectors = clip.embed_texts(["red", "blue"])
    cosines = clip.scores([RED], vectors)[0].astype(np.float64)
    for scale in (10.0, 3.0):
        model.logit_scale = scale
        expected = np.exp(scale * cosines) / np.exp(scale * cosines).sum()
        found = clip.classify([RED], ["red", "blue"], templates=["{}"])
        np.testing.assert_allclose(found.probabilities[0], expected, atol=1e-6)
    plain = ClipEmbedder(FakeModel())
    cosines = plain.scores([RED], ["a", "b"])[0].astype(np.float64)
    expected = np.exp(100 * (cosines - cosines.max()))
    found = plain.classify([RED], ["a", "b"], templates=["{}"])
    np.testing.assert_allclose(found.probabilities[0], expected / expected.sum(), atol=1e-5)


def test_templates_are_averaged_and_embedded_once() -> None:
    """A label is the mean direction of its sentences; a second call reads no text again."""
    model = Colours()
    clip = ClipEmbedder(model)
    first = clip.classify([RED], ["red", "blue {}"])
    assert sorted(model.read) == sorted(
        t.replace("{}", label) for label in ("red", "blue {}") for t in DEFAULT_TEMPLATES
    )
    second = clip.classify([BLUE, RED], ["red", "blue {}"])
    assert len(model.read) == 2 * len(DEFAULT_TEMPLATES)
    np.testing.assert_allclose(first.probabilities[0], second.probabilities[1], atol=1e-6)
    rows = clip.embed_texts(["red", "my red"])
    mean = rows.mean(axis=0) / np.linalg.norm(rows.mean(axis=0))
    one = clip.classify([RED], ["red", "blue"], templates=["{}", "my {}"])
    logits = 10 * clip.scores([RED], np.stack([mean, mean]))[0, 0]
    other = clip.embed_texts(["blue", "my blue"]).mean(axis=0)
    logits -= 10 * clip.scores([RED], other[None])[0, 0]
    assert one.probabilities[0, 0] == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-5)


def test_vectors_in_place_of_images() -> None:
    """A 2-D float array is taken as images that are embedded already; none give no rows."""
    clip = ClipEmbedder(Colours())
    expected = clip.classify([RED, BLUE], ["red", "blue"])
    found = clip.classify(clip.embed_images([RED, BLUE]), ["red", "blue"])
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-6)
    assert clip.classify([], ["red", "blue"]).probabilities.shape == (0, 2)


def test_a_bad_image_loses_nothing() -> None:
    """The others' vectors come with the error, as in `embed_images`."""
    with pytest.raises(ImageBatchError) as caught:
        ClipEmbedder(Colours()).classify([RED, b"no image"], ["red", "blue"])
    assert caught.value.batch.indices.tolist() == [0]


@pytest.mark.parametrize(
    ("labels", "templates", "error", "message"),
    [
        ("red", ["{}"], TypeError, "labels must be a list of texts"),
        (["red", "blue"], "a {}", TypeError, "templates must be a list of texts"),
        (["red"], ["{}"], ValueError, "at least two labels"),
        ([], ["{}"], ValueError, "at least two labels"),
        (["red", "blue", "red"], ["{}"], ValueError, "'red' stands twice"),
        (["red", " "], ["{}"], ValueError, "empty texts, as ' ' is"),
        ({"red": [], "blue": "blue"}, ["{}"], ValueError, "empty texts, as '' is"),
        (["red", 3], ["{}"], TypeError, "labels must be texts, not 3"),
        ({"red": ["red", None], "blue": "blue"}, ["{}"], TypeError, "labels must be texts, not None"),
        (["red", "blue"], [], ValueError, "at least one template"),
        (["red", "blue"], ["a photo"], ValueError, "'a photo' has no {} for the label"),
    ],
)
def test_what_is_refused(
    labels: Sequence[str], templates: Sequence[str], error: type[Exception], message: str
) -> None:
    """Labels and templates that cannot tell images apart are told, before anything is embedded."""
    model = Colours()
    with pytest.raises(error, match=message):
        ClipEmbedder(model).classify([RED], labels, templates=templates)
    assert model.read == []


def test_words_for_a_label() -> None:
    """A label stands for all its words: their sentences are averaged as templates are."""
    clip = ClipEmbedder(Colours())
    found = clip.classify([RED, BLUE], {"warm": ["red", "reddish"], "cold": "blue"}, templates=["{}"])
    assert found.labels == ("warm", "cold")
    assert found.best == ("warm", "cold")
    mean = clip.embed_texts(["red", "reddish"]).mean(axis=0)
    vectors = np.stack([mean / np.linalg.norm(mean), clip.embed_texts(["blue"])[0]])
    logits = 10 * clip.scores([RED], vectors)[0].astype(np.float64)
    np.testing.assert_allclose(found.probabilities[0], np.exp(logits) / np.exp(logits).sum(), atol=1e-6)


def test_a_label_for_none_of_them() -> None:
    """`other` takes the images that no label fits, and stands last."""
    clip = ClipEmbedder(Colours())
    green = np.full((8, 8, 3), (10, 250, 10), np.uint8)
    found = clip.classify([RED, green], ["red", "blue"], other="neither")
    assert found.labels == ("red", "blue", "neither")
    assert found.best == ("red", "neither")
    with pytest.raises(ValueError, match="'red' stands twice"):
        clip.classify([RED], ["red", "blue"], other="red")


def test_several_labels_for_one_image() -> None:
    """With `multi` an image may have both labels, or none; another choice of labels changes nothing."""
    clip = ClipEmbedder(Colours())
    both = np.full((8, 8, 3), (200, 10, 200), np.uint8)
    green = np.full((8, 8, 3), (10, 250, 10), np.uint8)
    found = clip.classify([both, RED, green], ["red", "blue"], multi=True)
    assert found.above(0.9) == [("red", "blue"), ("red",), ()]
    alone = clip.classify([both, RED, green], ["blue"], multi=True)
    np.testing.assert_allclose(alone.probabilities[:, 0], found.probabilities[:, 1], atol=1e-6)


def test_none_of_several_labels() -> None:
    """With `multi` the label for none is as likely as that the likeliest of the others is not there."""
    clip = ClipEmbedder(Colours())
    green = np.full((8, 8, 3), (10, 250, 10), np.uint8)
    found = clip.classify([RED, green], ["red", "blue"], multi=True, other="neither")
    assert found.labels == ("red", "blue", "neither")
    assert found.above(0.8) == [("red",), ("neither",)]
    np.testing.assert_allclose(found.probabilities[:, 2], 1 - found.probabilities[:, :2].max(axis=1))
    plain = clip.classify([RED, green], ["red", "blue"], multi=True)
    np.testing.assert_array_equal(plain.probabilities, found.probabilities[:, :2])
    with pytest.raises(ValueError, match="at least two labels"):
        clip.classify([RED], [], multi=True, other="neither")


def test_named_sets_of_templates() -> None:
    """The set "many" is 80 different sentences; a name that is none lists those that are."""
    model = Colours()
    clip = ClipEmbedder(model)
    clip.classify([RED], ["red", "blue"], templates="many")
    assert len(set(model.read)) == 160
    assert all("red" in text or "blue" in text for text in model.read)
    with pytest.raises(ValueError, match="'most': give one of few, many"):
        clip.classify([RED], ["red", "blue"], templates="most")


def test_the_report_says_what_hangs_on_the_phrasing() -> None:
    """Templates that agree have no spread; one that names both labels is found out."""
    clip = ClipEmbedder(Colours())
    steady = explain_labels(clip, [RED, BLUE], ["red", "blue"], templates=["{}", "{}"])
    assert steady.agreement.tolist() == [1, 1]
    np.testing.assert_allclose(steady.spread, 0, atol=1e-6)
    torn = explain_labels(clip, [RED, BLUE], ["red", "blue"], templates=["{}", "red blue {}", "{}"])
    assert torn.alone.shape == (3, 2, 2)
    assert torn.agreement.max() == 1
    assert torn.spread.min() > 0.1
    assert "3 templates" in str(torn)
    with pytest.raises(ValueError, match="give some images"):
        explain_labels(clip, [], ["red", "blue"])
    vectors = clip.embed_images([RED, BLUE])
    again = explain_labels(clip, vectors, ["red", "blue"], templates=["{}", "red blue {}", "{}"])
    np.testing.assert_allclose(again.together, torn.together, atol=1e-6)


def test_a_real_models_temperature_is_read_without_a_warning(clip_folder: Path) -> None:
    """The scale that a CLIP has learned is a plain number: exp of its parameter."""
    assert ClipEmbedder(clip_folder, device="cpu").logit_scale == pytest.approx(np.exp(2.6592), rel=1e-4)


def test_a_vector_with_a_nan_gets_no_label() -> None:
    """The row of an image that failed is named, not given the first label."""
    clip = ClipEmbedder(FakeModel())
    vectors = np.stack([np.eye(clip.dim)[0], np.full(clip.dim, np.nan)]).astype(np.float32)
    with pytest.raises(ValueError, match="image 1 has a NaN"):
        clip.classify(vectors, ["cat", "dog"])
