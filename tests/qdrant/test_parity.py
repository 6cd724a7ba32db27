"""Edge and the client's engine, the one in front of which a server stands, rank alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from qdrant_client import QdrantClient
from qdrant_wire import serve

from clip_embed import ClipEmbedder
from clip_embed.testing import FakeModel
from clip_embed_qdrant import ImageStore

COUNT = 400


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ImageStore]]:
    """The same images in Edge, in memory, and behind gRPC and HTTP."""
    images: list[Any] = [(f"{number:03}", picture(number), payload(number)) for number in range(COUNT)]
    clip = ClipEmbedder(FakeModel(dim=64))
    folder: Path = tmp_path_factory.mktemp("parity")
    client = QdrantClient(":memory:")
    with serve() as wire:
        made = [
            ImageStore(folder / "s.clip", embedder=clip),
            ImageStore(client=client, collection="photos", embedder=clip),
            ImageStore(wire.url, collection="grpc", grpc_port=wire.grpc_port, embedder=clip),
            ImageStore(wire.url, collection="http", grpc_port=None, embedder=clip),
        ]
        for store in made:
            assert store.ingest(images).written == COUNT
        yield made
        for store in made:
            store.close()
    client.close()


def picture(number: int) -> npt.NDArray[np.uint8]:
    """Sixteen patches of colour: vectors that lie far apart, so that rounding decides no place."""
    patches = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return patches.repeat(8, axis=0).repeat(8, axis=1)


def payload(number: int) -> dict[str, object]:
    """What a filter may ask for."""
    taken = f"2024-01-{number % 28 + 1:02}"
    return {"n": number, "album": f"a{number % 7}", "scanned": number % 2 == 0, "taken": taken}


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"k": 30},
        {"where": {"scanned": True}},
        {"where": {"n": {"$gte": 50, "$lt": 300}, "album": ["a1", "a2", "a5"]}},
        {"where": {"$or": [{"taken": {"$gte": "2024-01-20"}}, {"$not": {"scanned": True}}]}},
        {"threshold": 0.2, "k": 50},
        {"diversity": 0.3},
        {"diversity": 0.9, "where": {"scanned": False}},
        {"like": ["003", "017"], "unlike": ["200"]},
        {"group_by": "album", "group_size": 2},
    ],
    ids=str,
)
def test_rankings_are_the_same(asked: dict[str, Any], stores: list[ImageStore]) -> None:
    """The same keys in the same order, and scores that differ by the rounding to 16 bits alone."""
    rng = np.random.default_rng(1)
    for _ in range(4):  # in the fifth two images are 2e-5 apart, less than 16 bits tell
        vector = rng.standard_normal(64).astype(np.float32)
        edge, *others = (store.search(vector=vector, **asked) for store in stores)
        assert edge
        for hits in others:
            assert [hit.key for hit in hits] == [hit.key for hit in edge]
            scores, expected = ([hit.score for hit in each] for each in (hits, edge))
            assert scores == pytest.approx(expected, abs=1e-3)
