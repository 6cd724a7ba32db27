"""One store in each of its forms: Edge, the client's engine, gRPC, HTTP, a real server if there is one."""

from __future__ import annotations

import importlib.util
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("qdrant_client", reason="needs the extra qdrant")
pytest.importorskip("qdrant_edge", reason="needs the extra qdrant")

from qdrant_client import QdrantClient

from clip_embed import ClipEmbedder
from clip_embed.testing import FakeModel
from clip_embed_qdrant import ImageStore

_spec = importlib.util.spec_from_file_location("qdrant_wire", Path(__file__).with_name("wire.py"))
assert _spec
assert _spec.loader
wire = importlib.util.module_from_spec(_spec)
sys.modules["qdrant_wire"] = wire  # so that tests can import it
_spec.loader.exec_module(wire)

_NO_SERVER = "no real Qdrant: this runs where QDRANT_URL is set"
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "cyan", "magenta")
Open = Callable[..., ImageStore]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with eight pictures of one colour, half of them in a folder below."""
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    for number, colour in enumerate(COLOURS):
        place = folder / "below" if number % 2 else folder
        Image.new("RGB", (6, 4), colour).save(place / f"{colour}.png")
    return folder


@pytest.fixture(params=["edge", "memory", "grpc", "http", "real"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Open the one store of this test, again and again: `open_store(embedder=…)`."""
    with ExitStack() as stack:
        arguments = _arguments(request.param, tmp_path, stack)

        def open_it(embedder: ClipEmbedder | None = None, **options: Any) -> ImageStore:  # noqa: ANN401
            store = ImageStore(**arguments, **options, embedder=embedder)
            stack.callback(store.close)
            return store

        yield open_it


def _arguments(kind: str, folder: Path, stack: ExitStack) -> dict[str, Any]:
    if kind == "edge":
        return {"location": folder / "photos.clip"}
    if kind == "memory":
        client = QdrantClient(":memory:")
        stack.callback(client.close)
        return {"client": client, "collection": "photos"}
    if kind == "real":
        return {"location": _real_server(stack), "collection": f"clip-embed-{uuid.uuid4()}"}
    served = stack.enter_context(wire.serve())
    port = served.grpc_port if kind == "grpc" else None
    return {"location": served.url, "grpc_port": port, "collection": "photos", "timeout": 5}


def _real_server(stack: ExitStack) -> str:
    """Return the URL of a real Qdrant: QDRANT_URL, or a container."""
    if url := os.environ.get("QDRANT_URL"):
        return url
    docker = pytest.importorskip("docker", reason=f"{_NO_SERVER}, no docker SDK")
    try:
        client = docker.from_env()
        image = "qdrant/qdrant"
        container = client.containers.run(image, detach=True, ports={"6333/tcp": 6333, "6334/tcp": 6334})
    except docker.errors.DockerException as error:
        pytest.skip(f"{_NO_SERVER}, docker cannot start one: {error}")
    stack.callback(container.remove, force=True)
    return "http://localhost:6333"


@pytest.fixture
def embedder(fake: FakeModel) -> ClipEmbedder:
    """An embedder over `fake` without a cache, so that its calls are what was embedded."""
    return ClipEmbedder(fake, batch_size=4, workers=2, cache=None)
