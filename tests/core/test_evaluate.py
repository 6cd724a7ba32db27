"""Retrieval in both directions: ranks against brute force, ties, distractors, failures."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import clip_embed._evaluate as module
from clip_embed import ClipEmbedder, SpaceMismatch, evaluate_retrieval
from clip_embed._types import Float32
from clip_embed._vectors import unit_rows
from clip_embed.testing import FakeModel


@pytest.fixture
def clip() -> ClipEmbedder:
    """An embedder without weights, of 16 dimensions."""
    return ClipEmbedder(FakeModel())


def rows(count: int, seed: int) -> Float32:
    """Unit rows (count, 16)."""
    return unit_rows(np.random.default_rng(seed).standard_normal((count, 16)))


TIES = 2e-6
"""Scores this close may count as equal: a millionth by the rule, the rest by rounding."""


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(0, 20), st.integers(0, 2**20), st.integers(1, 5000))
@example(16, 0, 656, 1)  # two scores that differ by 7.6e-7
def test_ranks_are_those_of_all_scores(n: int, extra: int, seed: int, block: int) -> None:
    """For any sizes and any block, the ranks are those counted in the whole matrix of scores."""
    clip = ClipEmbedder(FakeModel())
    images, captions, more = rows(n, seed), rows(n, seed + 1), rows(extra, seed + 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_BYTES", block)
        found = evaluate_retrieval(clip, images, captions, distractors=more)
    scores = images @ np.concatenate([captions, more]).T
    own = np.diagonal(scores)
    for ranks, ahead in (
        (found.image_ranks, (scores[:, :n] - own).T),
        (found.caption_ranks, scores - own[:, None]),
    ):
        assert ((ahead > TIES).sum(axis=1) <= ranks).all()
        assert (ranks <= (ahead >= -TIES).sum(axis=1) - 1).all()  # the right one does not count
    assert found.other_captions.tolist() == [n - 1 + extra] * n


def test_the_right_of_some_is_the_mean_over_all_choices(clip: ClipEmbedder) -> None:
    """right_caption(3) equals counting over every pair of other captions."""
    images, captions = rows(7, 3), rows(7, 4)
    found = evaluate_retrieval(clip, images, captions)
    scores = images @ captions.T
    hits = [
        scores[i, i] > scores[i, list(pair)].max()
        for i in range(7)
        for pair in combinations([j for j in range(7) if j != i], 2)
    ]
    assert found.right_caption(3) == pytest.approx(np.mean(hits))
    assert found.right_caption(1) == 1
    assert found.right_caption(7) == pytest.approx(found.image_to_text(1))


def test_too_few_captions_to_choose_from(clip: ClipEmbedder) -> None:
    """Asking for more captions than there are is an error that says what to give."""
    found = evaluate_retrieval(clip, rows(4, 0), rows(4, 1))
    with pytest.raises(ValueError, match="4 captions to choose from, not 5: give distractors"):
        found.right_caption(5)


def test_equals_count_against_the_model(clip: ClipEmbedder) -> None:
    """Where all images are one, none is found first: a model that cannot tell gets no credit."""
    images = np.repeat(rows(1, 0), 5, axis=0)
    found = evaluate_retrieval(clip, images, rows(5, 1))
    assert found.image_ranks.tolist() == [4] * 5
    assert found.text_to_image(1) == 0
    assert found.text_to_image(5) == 1


def test_several_captions_for_an_image(clip: ClipEmbedder) -> None:
    """Captions of one image do not compete with each other; the best one stands for it."""
    texts = [["red", "a red thing"], ["blue"], ["green", "grass", "leaf"]]
    images = clip.embed_texts(["red", "blue", "leaf"])
    found = evaluate_retrieval(clip, images, texts)
    assert len(found.image_ranks) == 6
    assert found.image_to_text(1) == 1
    assert found.other_captions.tolist() == [4, 5, 3]


def test_failed_images_are_listed_and_left_out(clip: ClipEmbedder) -> None:
    """A bad image goes with its captions; the others keep theirs."""
    photos = [np.full((8, 8, 3), value, np.uint8) for value in (0, 255)]
    found = evaluate_retrieval(clip, [photos[0], b"junk", photos[1]], ["black", "nothing", ["white", "snow"]])
    assert [failure.index for failure in found.failures] == [1]
    assert (len(found.caption_ranks), len(found.image_ranks)) == (2, 3)
    assert "1 images failed" in str(found)
    expected = evaluate_retrieval(clip, photos, ["black", ["white", "snow"]])
    assert found.image_ranks.tolist() == expected.image_ranks.tolist()


@pytest.mark.parametrize(
    ("images", "captions"),
    [(3, ["a", "b"]), (2, ["a", "b", "c"]), (2, ["a", []]), (0, [])],
)
def test_every_image_needs_a_caption(clip: ClipEmbedder, images: int, captions: list[str]) -> None:
    """Another number of captions than of images, or none for one, is an error."""
    with pytest.raises(ValueError, match=r"need as many captions|no image is left"):
        evaluate_retrieval(clip, rows(images, 0), captions)


def test_vectors_of_another_model(clip: ClipEmbedder) -> None:
    """Vectors of another dimension are refused."""
    with pytest.raises(SpaceMismatch, match="3 dimensions"):
        evaluate_retrieval(clip, np.ones((2, 3), np.float32), ["a", "b"])


def test_a_single_text_is_no_list_of_captions(clip: ClipEmbedder) -> None:
    """One str is not taken letter by letter."""
    with pytest.raises(TypeError, match="captions must be a list"):
        evaluate_retrieval(clip, rows(3, 0), "abc")


@pytest.mark.parametrize("lost", [float("nan"), None, ["b", None], 3])
def test_what_is_no_caption_is_told_with_its_row(clip: ClipEmbedder, lost: object) -> None:
    """A missing cell is no caption."""
    with pytest.raises(TypeError, match=r"the caption of image 1 must be a text, .* not (nan|None|3)$"):
        evaluate_retrieval(clip, rows(3, 0), ["a", lost, "c"])  # type: ignore[list-item]


@pytest.mark.parametrize("empty", ["", " \n", ["b", ""]])
def test_an_empty_caption_does_not_lower_the_recall(clip: ClipEmbedder, empty: str | list[str]) -> None:
    """It is refused with its row, and not measured as if somebody had written it."""
    with pytest.raises(ValueError, match="a caption of image 1 is empty: leave it out"):
        evaluate_retrieval(clip, rows(3, 0), ["a", empty, "c"])


@pytest.mark.parametrize("bad", [0, np.nan, np.inf])
def test_a_row_without_a_vector_is_no_hit(clip: ClipEmbedder, bad: float) -> None:
    """NaN, which stands for an image that failed, would compare as if it came first: it is refused."""
    images, captions, broken = rows(4, 0), rows(4, 1), rows(4, 2)
    broken[2] = bad
    with pytest.raises(ValueError, match="image 2 has no vector"):
        evaluate_retrieval(clip, broken, captions)
    with pytest.raises(ValueError, match="caption 2 has no vector"):
        evaluate_retrieval(clip, images, broken)
    with pytest.raises(ValueError, match="distractor 2 has no vector"):
        evaluate_retrieval(clip, images, captions, distractors=broken)
