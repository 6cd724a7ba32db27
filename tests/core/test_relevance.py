"""Relevance: percentiles against other texts, no good match, what is kept and refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_embed import ClipEmbedder, Relevance, SpaceMismatch, fit_relevance
from clip_embed._relevance import NULL_TEXTS, relevance_of
from clip_embed._types import Float32
from clip_embed._vectors import unit_rows
from clip_embed.testing import FakeModel

DIM = 64


@pytest.fixture
def clip() -> ClipEmbedder:
    """An embedder without weights."""
    return ClipEmbedder(FakeModel(dim=DIM))


def collection(count: int, seed: int = 0) -> Float32:
    """Unit rows (count, 64) around one direction, as images of a CLIP lie."""
    rng = np.random.default_rng(seed)
    return unit_rows(rng.standard_normal((count, DIM)) + 2 * np.eye(DIM)[0])


def test_other_texts_are_spread_evenly(clip: ClipEmbedder) -> None:
    """The best image's relevance for texts about something else is a percentile: half lie below 50."""
    images = collection(500)
    relevance = fit_relevance(clip, images)
    others = [f"unseen {place}" for place in range(300)]
    best = relevance.rate(clip, images, others).max(axis=0)
    assert 40 < np.median(best) < 60
    assert 0.04 < (best >= 90).mean() < 0.2
    assert relevance.rate(clip, images, others).min() < 1


def test_a_match_stands_out_and_a_text_without_one_does_not(clip: ClipEmbedder) -> None:
    """An image near its text gets about 100 and is found; where it is missing, there is no good match."""
    images = collection(300)
    match = unit_rows(images[:1] + 1.5 * clip.embed_texts(["a green bicycle"]))
    relevance = fit_relevance(clip, images)
    found = relevance.find(clip, np.concatenate([images, match]), "a green bicycle")
    assert found.indices[0] == 300
    assert found.scores[0] > 99
    assert (np.diff(found.scores) <= 0).all()
    assert (found.scores >= 90).all()
    assert len(relevance.find(clip, images, "a green bicycle", least=99.9)) == 0
    assert len(relevance.find(clip, images, "a green bicycle", least=0, k=4)) == 4


def test_texts_that_score_high_with_everything_gain_nothing(clip: ClipEmbedder) -> None:
    """What a text scores with the mean image does not count: a query near it is no better for that."""
    images = collection(400)
    relevance = fit_relevance(clip, images)
    general = unit_rows(clip.embed_texts(["thing"]) + 3 * relevance.centre[None])
    assert clip.scores(images, general).max() > clip.scores(images, ["thing"]).max() + 0.1
    assert relevance.rate(clip, images, general).max() < 99


def test_a_few_texts_that_are_in_the_collection_do_no_harm(clip: ClipEmbedder) -> None:
    """Pictures of some of the null texts leave the measure as it was."""
    images = collection(300)
    shown = unit_rows(images[:20] + 2 * clip.embed_texts(NULL_TEXTS[:20]))
    plain, mixed = fit_relevance(clip, images), fit_relevance(clip, np.concatenate([images, shown]))
    query = ["something else entirely"]
    assert mixed.rate(clip, images, query).max() == pytest.approx(
        plain.rate(clip, images, query).max(), abs=15
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(10, 200), st.integers(1, 300), st.integers(0, 99))
def test_blocks_do_not_matter(count: int, rows: int, seed: int) -> None:
    """A collection that comes in blocks of any size gives what it gives as a whole."""
    clip = ClipEmbedder(FakeModel(dim=DIM))
    images = collection(count, seed)
    whole = fit_relevance(clip, images)
    parts = relevance_of(clip, (images[start : start + rows] for start in range(0, count, rows)))
    np.testing.assert_allclose(parts.centre, whole.centre, atol=1e-6)
    assert (parts.middle, parts.spread) == pytest.approx((whole.middle, whole.spread), rel=1e-3, abs=1e-5)
    assert parts.images == count


def test_what_is_kept_rates_the_same(clip: ClipEmbedder) -> None:
    """JSON brings it back; anything else is refused, and so is another model."""
    images = collection(50)
    relevance = fit_relevance(clip, images)
    again = Relevance.from_json(relevance.to_json())
    np.testing.assert_array_equal(
        again.rate(clip, images, ["a cat"]), relevance.rate(clip, images, ["a cat"])
    )
    facts = json.loads(relevance.to_json())
    for bad in ("", "{}", "[1]", json.dumps(facts | {"spread": 0}), json.dumps(facts | {"centre": [1, 2]})):
        with pytest.raises(ValueError, match="no relevance that clip-embed fitted"):
            Relevance.from_json(bad)
    with pytest.raises(SpaceMismatch, match="the relevance"):
        again.rate(ClipEmbedder(FakeModel(dim=DIM, size=4)), images, ["a cat"])


def test_it_is_shown_in_a_line(clip: ClipEmbedder) -> None:
    """Its numbers, without the vector and the probe."""
    found = fit_relevance(clip, collection(50))
    assert repr(found) == f"Relevance(middle={found.middle!r}, spread={found.spread!r}, images=50)"


def test_too_little_is_refused(clip: ClipEmbedder) -> None:
    """A handful of images or texts tells nothing; rows without a direction and broken images do not count."""
    with pytest.raises(ValueError, match="at least 10 images, not 9"):
        fit_relevance(clip, np.concatenate([collection(9), np.zeros((5, DIM), np.float32)]))
    with pytest.raises(ValueError, match="at least 10 images, not 1"):
        fit_relevance(clip, [b"broken", np.zeros((8, 8, 3), np.uint8)])
    with pytest.raises(ValueError, match="at least 10 texts"):
        fit_relevance(clip, collection(50), null_texts=["a", "b"])


def test_all_texts_alike(clip: ClipEmbedder) -> None:
    """Where other texts do not differ at all, numbers stay numbers."""
    relevance = fit_relevance(clip, collection(20), null_texts=["the same"] * 10)
    assert np.isfinite(relevance.rate(clip, collection(20), ["x", "y"])).all()
