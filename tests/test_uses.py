"""One use, several places to call it from: they agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import polars as pl
import pytest

import clip_embed_pandas as cp
import clip_embed_polars as cpl
from clip_embed import (
    Category,
    ClipEmbedder,
    ModerationPolicy,
    SpaceMismatch,
    diverse,
    duplicates,
    fit,
    moderate,
    similar,
)
from clip_embed._types import Float32
from clip_embed._vectors import unit_rows
from clip_embed.arrow import stamp_vectors, vector_array
from clip_embed.demo import photos
from clip_embed.testing import FakeModel
from clip_embed_qdrant import ImageStore


@pytest.fixture
def clip() -> ClipEmbedder:
    """An embedder without weights, of 16 dimensions."""
    return ClipEmbedder(FakeModel())


def rows(count: int, seed: int) -> Float32:
    """Unit rows (count, 16)."""
    return unit_rows(np.random.default_rng(seed).standard_normal((count, 16)))


def test_likeness_and_diversity_are_those_of_qdrant(clip: ClipEmbedder, tmp_path: Path) -> None:
    """The core's order of k hits is that of Qdrant Edge, for examples liked, not liked, and MMR."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(60)]
    with ImageStore(tmp_path / "store.clip", embedder=clip) as store:
        store.ingest([(f"{place:02}", picture, {}) for place, picture in enumerate(pictures)])
        like, unlike = rows(2, 1), rows(1, 2)
        for diversity in (None, 0.0, 0.3, 0.9):
            hits = store.search(like=list(like), unlike=list(unlike), k=7, diversity=diversity)
            found = similar(clip, pictures, like, unlike=unlike, k=7, diversity=diversity)
            assert [int(hit.key) for hit in hits] == found.indices.tolist()


def test_copies_are_those_of_pandas(clip: ClipEmbedder) -> None:
    """The groups are those that the frame's verb gives."""
    vectors = np.concatenate([rows(20, 3), rows(20, 3)[::2], rows(5, 4)])
    column = stamp_vectors(vector_array(vectors, np.ones(len(vectors), np.bool_)), clip)
    frame = pd.DataFrame({"v": pd.array(column.to_pylist(), pd.ArrowDtype(column.type))})
    found = cp.duplicates(frame, 0.9, embedder=clip)
    groups = duplicates(clip, column, threshold=0.9).groups
    assert [tuple(part.index) for _, part in found.groupby("group")] == list(groups)
    assert len(groups) == 10
    assert len(set(diverse(clip, column, 25).indices.tolist()) - set(range(20)) - set(range(30, 35))) == 0


def frames(clip: ClipEmbedder) -> list[Any]:
    """The vectors of twelve pictures and again of two of them, as columns of pandas and of polars."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(12)]
    first = cp.embed(pd.DataFrame({"img": pictures}), embedder=clip)
    lazy = cpl.embed(pl.DataFrame({"img": pl.Series(pictures, dtype=pl.Object)}), embedder=clip)
    column = pd.concat([first, first.iloc[:2]])["embedding"]
    return [column, pl.concat([lazy["embedding"], lazy["embedding"][:2]])]


def test_columns_of_frames_stand_in_place_of_images(clip: ClipEmbedder) -> None:
    """Every function takes them, knows their stamp, and says which row has no vector."""
    policy = ModerationPolicy((Category("a", ("a dog",), ("a cat",)),))
    for column in frames(clip):
        assert duplicates(clip, column, threshold=0.9999).groups == ((0, 12), (1, 13))
        vectors = clip.scores(column, np.eye(16, dtype=np.float32))
        np.testing.assert_allclose((vectors**2).sum(axis=1), 1, atol=1e-5)
        assert moderate(clip, column, policy) == moderate(clip, vectors, policy)
        wanted = clip.classify(vectors, ["a", "b"]).best
        assert clip.classify(column, ["a", "b"]).best == wanted
        learned = fit(clip, column, ["x", "y"] * 7)
        assert learned.predict(clip, column).best == learned.predict(clip, vectors).best
        assert similar(clip, column, column[3:4], k=1).indices.tolist() == [3]
        gap = column.copy() if isinstance(column, pd.Series) else column.clone()
        gap = gap.where(np.arange(14) != 5) if isinstance(gap, pd.Series) else gap.shift(1)
        with pytest.raises(ValueError, match="no vector in row"):
            duplicates(clip, gap)
        other = ClipEmbedder(FakeModel(size=4))
        with pytest.raises(SpaceMismatch, match="fake:16:4"):
            other.scores(column, ["a"])


def test_a_column_of_two_models_is_refused(clip: ClipEmbedder) -> None:
    """As searches of the frame do: pandas joins such columns without a word."""
    pandas, polars = frames(clip)
    theirs = frames(ClipEmbedder(FakeModel(size=4)))[0]
    with pytest.raises(SpaceMismatch, match="fake:16:4"):
        duplicates(clip, pd.concat([pandas, theirs]))
    plain = pd.Series(list(polars.ext.storage().to_numpy()))
    for column in (plain, polars.ext.storage()):
        with pytest.warns(UserWarning, match="nothing says which model"):
            assert len(duplicates(clip, column, threshold=0.9999).groups) == 2


def test_a_frame_is_no_column_of_images(clip: ClipEmbedder) -> None:
    """Its columns are not taken for images: the error says how to give one, which is embedded."""
    path = str(photos()[0])
    for frame in (pd.DataFrame({"photo": [path]}), pl.DataFrame({"photo": [path]})):
        with pytest.raises(TypeError, match=r"one column, not a DataFrame: give df\['photo'\]"):
            clip.embed_images(cast("Any", frame))
        np.testing.assert_array_equal(clip.embed_images(frame["photo"]), clip.embed_images([path]))
