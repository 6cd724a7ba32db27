"""One use, several places to call it from: they agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import clip_embed_pandas as cp
from clip_embed import ClipEmbedder, diverse, duplicates, similar
from clip_embed._types import Float32
from clip_embed._vectors import unit_rows
from clip_embed.arrow import stamp_vectors, vector_array
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
