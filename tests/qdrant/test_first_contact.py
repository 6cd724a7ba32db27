"""A server that is away when a job begins: an ingest waits for it, other commands say so at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from qdrant_wire import Fault, Wire, serve

from clip_embed import ClipEmbedder
from clip_embed.testing import FakeModel
from clip_embed_qdrant import ImageStore, StoreError

IMAGES = [(str(number), np.full((4, 4, 3), number, np.uint8)) for number in range(3)]


@pytest.fixture(params=["grpc", "http"])
def served(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Wire, int | None]]:
    """A server, and its port for gRPC if that is to be taken; the pauses between two tries are short."""
    monkeypatch.setattr("clip_embed_qdrant._upload._FIRST_PAUSE", 0.02)
    with serve() as wire:
        yield wire, wire.grpc_port if request.param == "grpc" else None


@pytest.mark.parametrize("operation", ["exists", "info", "create", "index"])
@pytest.mark.parametrize("kind", ["down", "error", "cut"])
def test_the_beginning_is_ridden_out(served: tuple[Wire, int | None], operation: str, kind: str) -> None:
    """The first question, the making of the collection and its indexes are asked again."""
    wire, port = served
    wire.faults.append(Fault(kind, 3, (operation,)))
    embedder = ClipEmbedder(FakeModel())
    with ImageStore(
        wire.url,
        collection="photos",
        grpc_port=port,
        timeout=5,
        embedder=embedder,
        indexes={"size": "integer"},
        patience=30,
    ) as store:
        assert store.ingest(IMAGES, patience=30, on_duplicate="link").written == 3


def test_without_patience_it_fails_at_once(served: tuple[Wire, int | None]) -> None:
    """A search does not wait."""
    wire, port = served
    wire.faults.append(Fault("down", operations=("exists",)))
    with pytest.raises(StoreError) as failed:
        ImageStore(wire.url, collection="photos", grpc_port=port, timeout=5)
    assert "given up" not in str(failed.value)


def test_patience_ends(served: tuple[Wire, int | None]) -> None:
    """A server that stays away is an error with the limit."""
    wire, port = served
    wire.faults.append(Fault("down", operations=("exists",)))
    with pytest.raises(StoreError, match="given up after"):
        ImageStore(wire.url, collection="photos", grpc_port=port, timeout=5, patience=0.3)
