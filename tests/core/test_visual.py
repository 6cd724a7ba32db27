"""Visual search: likeness and its arithmetic, copies, selections that differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clip_embed import ClipEmbedder, ImageBatchError, SpaceMismatch, diverse, duplicates, similar
from clip_embed._ranking import cover, diversify
from clip_embed._types import Float32
from clip_embed._vectors import unit_rows
from clip_embed.arrow import stamp_vectors, vector_array
from clip_embed.testing import FakeModel

E = np.eye(16, dtype=np.float32)


@pytest.fixture
def clip() -> ClipEmbedder:
    """An embedder without weights, of 16 dimensions."""
    return ClipEmbedder(FakeModel())


def rows(count: int, seed: int) -> Float32:
    """Unit rows (count, 16)."""
    return unit_rows(np.random.default_rng(seed).standard_normal((count, 16)))


def colour(rgb: tuple[int, int, int]) -> Image.Image:
    """A picture of one colour."""
    return Image.new("RGB", (8, 8), rgb)


def test_images_like_an_image(clip: ClipEmbedder) -> None:
    """The image itself comes first, then what resembles it, with cosine similarities."""
    pictures = [colour((0, 0, 255)), colour((255, 0, 0)), colour((200, 30, 30))]
    found = similar(clip, pictures, [colour((255, 0, 0))], k=2)
    assert found.indices.tolist() == [1, 2]
    assert found.scores[0] == pytest.approx(1, abs=1e-6)
    assert [place for place, _ in found] == [1, 2]
    assert len(found) == 2


def test_unlike_leads_away(clip: ClipEmbedder) -> None:
    """What is not liked is taken from twice what is: (2a - b) decides the order."""
    images = unit_rows(np.stack([E[0] + E[1], E[0] - 0.4 * E[1], E[1]]))
    assert similar(clip, images, E[:1]).indices.tolist() == [1, 0, 2]
    assert similar(clip, images, E[:1], unlike=E[1:2]).scores[0] > 0.98
    assert similar(clip, images, E[1:2], k=1).indices.tolist() == [2]
    only_away = similar(clip, images, np.empty((0, 16), np.float32), unlike=E[1:2])
    assert only_away.indices.tolist() == [1, 0, 2]


def test_several_examples_count_alike_whatever_their_length(clip: ClipEmbedder) -> None:
    """The query is the mean of unit vectors."""
    images = rows(20, 0)
    plain = similar(clip, images, np.stack([images[3], images[4]]))
    scaled = similar(clip, images, np.stack([9 * images[3], images[4]]))
    assert plain.indices.tolist() == scaled.indices.tolist()
    np.testing.assert_allclose(plain.scores, scaled.scores, atol=1e-6)


def test_texts_and_sums_are_queries(clip: ClipEmbedder) -> None:
    """Vectors of texts, and sums of vectors, ask like images do."""
    pictures = [colour((250, 0, 0)), colour((0, 0, 250)), colour((250, 128, 128))]
    assert similar(clip, pictures, clip.embed_texts(["red"]), k=1).indices.tolist() == [0]
    both = clip.embed_images(pictures[:1]) + clip.embed_texts(["white"])
    assert similar(clip, pictures, both, k=1).indices.tolist() == [2]


def test_a_threshold_and_ties(clip: ClipEmbedder) -> None:
    """Nothing below the threshold comes out; of equals the first comes first."""
    images = np.stack([E[1], E[0], E[0]])
    assert similar(clip, images, E[:1], threshold=0.5).indices.tolist() == [1, 2]
    assert len(similar(clip, images, E[3:4], threshold=0.5)) == 0


def test_failures_are_listed_and_indices_stay_those_of_the_input(clip: ClipEmbedder) -> None:
    """A bad image stops nothing, is never chosen, and shifts no index."""
    pictures = [b"broken", colour((255, 0, 0)), Path("missing.jpg"), colour((255, 0, 0))]
    found = similar(clip, pictures, [colour((255, 0, 0))])
    assert found.indices.tolist() == [1, 3]
    assert [failure.index for failure in found.failures] == [0, 2]
    copies = duplicates(clip, pictures)
    assert copies.groups == ((1, 3),)
    assert len(copies.failures) == 2
    assert diverse(clip, pictures, 9).indices.tolist() == [1, 3]
    with pytest.raises(ImageBatchError, match="not an image"):
        similar(clip, pictures, [b"broken"])


def test_a_query_of_nothing_is_refused(clip: ClipEmbedder) -> None:
    """No example, a vector without a direction, and examples that cancel out are errors that say so."""
    images = rows(3, 0)
    with pytest.raises(ValueError, match="similar to what"):
        similar(clip, images, [])
    with pytest.raises(ValueError, match="all zeros"):
        similar(clip, images, np.zeros((1, 16), np.float32))
    with pytest.raises(ValueError, match="cancel each other"):
        similar(clip, images, np.stack([E[0], -E[0]]))
    with pytest.raises(ValueError, match="diversity must lie between"):
        similar(clip, images, images, diversity=2)
    with pytest.raises(ValueError, match="whole number from 1"):
        diverse(clip, images, 0)


def test_rows_without_a_direction_never_match(clip: ClipEmbedder) -> None:
    """Zeros and NaN among stored vectors are no neighbours, copies or examples of anything."""
    images = np.stack([np.zeros(16, np.float32), E[0], np.full(16, np.nan, np.float32), E[0]])
    with np.errstate(invalid="ignore"):
        assert similar(clip, images, -E[:1]).indices.tolist() == [1, 3]
        assert duplicates(clip, images).groups == ((1, 3),)
        assert sorted(diverse(clip, images, 4).indices.tolist()) == [1, 3]


def test_copies_come_in_groups(clip: ClipEmbedder) -> None:
    """Groups in input order, the first image first, with its cosine to the others; `extra` is the rest."""
    images = np.stack([E[0], E[1], unit_rows((E[0] + 0.1 * E[2])[None])[0], E[1], E[1], E[5]])
    found = duplicates(clip, images)
    assert found.groups == ((0, 2), (1, 3, 4))
    assert found.scores[0] == pytest.approx((1, 0.995), abs=1e-3)
    assert found.extra == (2, 3, 4)
    assert duplicates(clip, images, threshold=0.999).groups == ((1, 3, 4),)
    assert duplicates(clip, rows(5, 0)).groups == ()
    assert duplicates(clip, np.empty((0, 16), np.float32)).groups == ()
    for threshold in ("img", 2):
        with pytest.raises(ValueError, match="threshold is a cosine similarity from -1 to 1, not"):
            duplicates(clip, rows(5, 0), threshold=threshold)  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 999), st.floats(0, 1))
def test_diversity_is_maximal_marginal_relevance(n: int, k: int, seed: int, diversity: float) -> None:
    """Each choice is the best by (1 - diversity) × score - diversity × nearest; 0 is the plain order."""
    units, scores = rows(n, seed), rows(n, seed + 1)[:, 0]
    chosen = diversify(units, scores, k, diversity).tolist()
    assert len(set(chosen)) == len(chosen) == min(n, k)
    for place in range(1, len(chosen)):
        nearest = (units @ units[chosen[:place]].T).max(axis=1)
        gains = (1 - diversity) * scores - diversity * nearest
        gains[chosen[:place]] = -np.inf
        assert gains[chosen[place]] >= gains.max() - 1e-6
    assert diversify(units, scores, k, 0).tolist() == np.argsort(-scores, kind="stable")[:k].tolist()


def test_diversity_takes_one_of_each_kind(clip: ClipEmbedder) -> None:
    """Of three near copies and another match, the two that differ come first."""
    near = unit_rows(
        np.stack([E[0] + 0.01 * E[2], E[0] + 0.01 * E[3], E[0] + 0.01 * E[4], E[0] + 0.9 * E[1]])
    )
    assert similar(clip, near, E[:1], k=2).indices.tolist() == [0, 1]
    assert similar(clip, near, E[:1], k=2, diversity=0.6).indices.tolist() == [0, 3]


def test_a_selection_covers_what_there_is(clip: ClipEmbedder) -> None:
    """One of each cluster before a second of any; the typical one first, with no score."""
    images = unit_rows(np.repeat(E[[0, 1, 2]], [9, 3, 2], axis=0) + 0.01 * rows(14, 3))
    found = diverse(clip, images, 3)
    kinds = [0 if place < 9 else 1 if place < 12 else 2 for place in found.indices.tolist()]
    assert kinds[0] == 0
    assert sorted(kinds) == [0, 1, 2]
    assert np.isnan(found.scores[0])
    assert (found.scores[1:] < 0.1).all()
    assert cover(images, 99)[0].shape == (14,)
    assert len(diverse(clip, np.empty((0, 16), np.float32), 3)) == 0


def test_vectors_come_as_arrays_tensors_and_columns(clip: ClipEmbedder) -> None:
    """Numpy of any width, torch and Arrow give the same answer."""
    vectors = rows(12, 1)
    column = stamp_vectors(vector_array(vectors, np.ones(12, np.bool_)), clip)
    wanted = similar(clip, vectors, vectors[:1], k=4).indices.tolist()
    for given_ in (vectors.astype(np.float64), torch.tensor(vectors), column, pa.chunked_array([column])):
        assert similar(clip, given_, given_[:1], k=4).indices.tolist() == wanted
    np.testing.assert_allclose(clip.scores(column, torch.tensor(vectors)), vectors @ vectors.T, atol=1e-6)


def test_columns_of_another_model_are_refused(clip: ClipEmbedder) -> None:
    """A stamp of another space, another dimension and a row without a vector are errors."""
    other = FakeModel(size=4)
    column = stamp_vectors(vector_array(rows(3, 0), np.ones(3, np.bool_)), ClipEmbedder(other))
    with pytest.raises(SpaceMismatch, match="fake:16:4"):
        similar(clip, column, rows(1, 0))
    with pytest.raises(SpaceMismatch, match="4 dimensions"):
        duplicates(clip, torch.ones((2, 4)))
    holes = stamp_vectors(vector_array(rows(3, 0), np.array([True, False, True])), clip)
    with pytest.raises(ValueError, match="no vector in row 1"):
        diverse(clip, holes)
