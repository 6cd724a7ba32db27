"""The fake model that users test their own code with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from clip_embed import ClipEmbedder, Model
from clip_embed.testing import FakeModel

COLOURS = ["red", "lime", "blue", "yellow", "black", "white"]


def test_it_is_a_model() -> None:
    """It has the protocol; its space tells its sizes apart."""
    assert isinstance(FakeModel(), Model)
    assert FakeModel(8).dim == 8
    assert len({FakeModel(*sizes).space for sizes in ((8, 32), (16, 32), (8, 16))}) == 3


def test_a_colour_is_nearest_to_its_images() -> None:
    """Of plain images each is best matched by the text that names its colour."""
    clip = ClipEmbedder(FakeModel())
    images = [Image.new("RGB", (20, 20), colour) for colour in COLOURS]
    scores = clip.scores(images, [f"a {colour} thing" for colour in COLOURS])
    assert scores.argmax(axis=1).tolist() == list(range(len(COLOURS)))
    assert scores.argmax(axis=0).tolist() == list(range(len(COLOURS)))


@pytest.mark.parametrize("dim", [8, 16, 512])
def test_it_is_deterministic_and_tells_apart(dim: int, photo: Callable[..., Image.Image]) -> None:
    """Equal inputs give equal vectors in every instance, different ones different vectors."""
    images = [photo(40, 30, seed) for seed in range(3)] + [Image.new("RGB", (9, 9), "grey")]
    texts = ["", "car", "cars", "\ud800"]
    first, second = ClipEmbedder(FakeModel(dim)), ClipEmbedder(FakeModel(dim))
    for embed, again, inputs in (
        (first.embed_images, second.embed_images, images),
        (first.embed_texts, second.embed_texts, texts),
    ):
        vectors = embed(inputs)  # type: ignore[operator]
        np.testing.assert_array_equal(vectors, again(inputs))  # type: ignore[operator]
        assert vectors.shape == (4, dim)
        assert len(np.unique(vectors.round(4), axis=0)) == 4


def test_it_counts_its_calls() -> None:
    """`calls` holds the rows of each call, images then texts."""
    model = FakeModel()
    clip = ClipEmbedder(model, batch_size=2, workers=1)
    clip.embed_images(np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8))
    clip.embed_texts(["a", "b", "a"])
    assert model.calls == ([2, 2, 1], [2])
