"""What is handed to another process arrives: embedders as their settings, errors with everything."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_embed import ClipEmbedder, EmbeddingCache, ImagePolicy
from clip_embed.errors import ImageBatchError, ImageError, MissingExtra
from clip_embed.testing import FakeModel


def _sent(value: Any) -> Any:  # noqa: ANN401
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - our own


def test_an_embedder_gives_the_same_vectors_elsewhere() -> None:
    """A model of one's own travels with its embedder, and so does the policy."""
    clip = ClipEmbedder(FakeModel(dim=8), policy=ImagePolicy(max_pixels=50), batch_size=3, cache=None)
    again = _sent(clip)
    pixels = np.full((2, 5, 5, 3), 200, np.uint8)
    np.testing.assert_array_equal(again.embed_images(pixels), clip.embed_images(pixels))
    with pytest.raises(ImageBatchError, match="pixels"):
        again.embed_images(np.zeros((1, 9, 9, 3), np.uint8))


def test_a_model_is_loaded_once_for_all_copies(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of one embedder are one in the process they come to, found from any working directory."""
    monkeypatch.chdir(clip_folder.parent)
    clip = ClipEmbedder(clip_folder.name)
    sent = pickle.dumps(clip)
    monkeypatch.chdir("/")
    first, second = pickle.loads(sent), pickle.loads(sent)  # noqa: S301 - our own
    assert first is second
    assert first.space == clip.space
    assert _sent(ClipEmbedder(clip_folder, precision="exact")) is not first


def test_a_cache_file_is_shared_and_memory_is_not(tmp_path: Path) -> None:
    """A cache arrives with its file and its limits."""
    cache = EmbeddingCache(tmp_path / "vectors", max_bytes=2**21, memory_bytes=0)
    again = _sent(cache)
    assert again.path == cache.path
    cache.put(b"k", np.ones(4, np.float32))
    cache.commit()
    found = again.get([b"k"])
    assert found is not None
    assert found.tolist() == [1, 1, 1, 1]
    assert _sent(EmbeddingCache()).path is None


def test_errors_keep_what_they_carry() -> None:
    """Failures, vectors and names come along: a pool of processes hangs on an error that cannot travel."""
    clip = ClipEmbedder(FakeModel(), cache=None)
    with pytest.raises(ImageBatchError) as caught:
        clip.embed_images([b"no image", np.zeros((4, 4, 3), np.uint8)])
    again = _sent(caught.value)
    assert str(again) == str(caught.value)
    assert again.failures == caught.value.failures
    np.testing.assert_array_equal(again.batch.vectors, caught.value.batch.vectors)
    assert _sent(ImageError("gone", retryable=True)).retryable
    extra = _sent(MissingExtra("ray", "ray", "clip_embed_ray"))
    assert extra.name == "ray"
    assert "clip-embed[ray]" in str(extra)
