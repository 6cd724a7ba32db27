"""One store in each of its forms: Edge, the client's engine, gRPC, HTTP, a real server if there is one."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
import time
import urllib.request
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
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

_spec = importlib.util.spec_from_file_location("qdrant_wire", Path(__file__).parent / "wire" / "__init__.py")
assert _spec
assert _spec.loader
wire = importlib.util.module_from_spec(_spec)
sys.modules["qdrant_wire"] = wire  # so that tests can import it
_spec.loader.exec_module(wire)

COLOURS = ("red", "green", "blue", "yellow", "white", "black", "cyan", "magenta")
Open = Callable[..., ImageStore]

_COMPOSE = Path(__file__).parents[2] / "examples" / "docker-compose.yml"
_PORTS = {"6333/tcp": ("127.0.0.1", None), "6334/tcp": ("127.0.0.1", None)}
_READY_WITHIN = 60.0  # seconds


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
        if request.param == "real":
            arguments = request.getfixturevalue("real_server") | {"collection": f"clip-embed-{uuid.uuid4()}"}
            stack.callback(_drop, **arguments)
        else:
            arguments = _arguments(request.param, tmp_path, stack)

        def open_it(embedder: ClipEmbedder | None = None, **options: Any) -> ImageStore:  # noqa: ANN401
            with _key_in_the_open():
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
    served = stack.enter_context(wire.serve())
    port = served.grpc_port if kind == "grpc" else None
    return {"location": served.url, "grpc_port": port, "collection": "photos", "timeout": 5}


def _drop(location: str, collection: str, **arguments: Any) -> None:  # noqa: ANN401
    """Leave nothing behind on a server that others use."""
    with (
        _key_in_the_open(),
        closing(QdrantClient(url=location, **arguments, check_compatibility=False)) as client,
    ):
        client.delete_collection(collection)


@contextmanager
def _key_in_the_open() -> Iterator[None]:
    """Let a server of one's own have a key without TLS: the client warns of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Api key is used with an insecure connection")
        yield


@pytest.fixture(scope="session")
def real_server() -> Iterator[dict[str, Any]]:
    """What opens a store on a real Qdrant: that of QDRANT_URL, or one in a container; skips without both."""
    if url := os.environ.get("QDRANT_URL"):
        port = int(os.environ.get("QDRANT_GRPC_PORT", "6334"))
        yield {"location": url, "grpc_port": port, "api_key": os.environ.get("QDRANT_API_KEY")}
        return
    with ExitStack() as stack:
        container = _started(stack)
        container.reload()
        http, grpc = (int(container.ports[port][0]["HostPort"]) for port in _PORTS)
        url = f"http://127.0.0.1:{http}"
        _wait_until_ready(url)
        yield {"location": url, "grpc_port": grpc}


def _started(stack: ExitStack) -> Any:  # noqa: ANN401 - a container
    neither = "no real Qdrant: QDRANT_URL is not set"
    docker = pytest.importorskip("docker", reason=f"{neither}, there is no docker SDK")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its socket open where nobody listens
        try:
            daemon = stack.enter_context(closing(docker.from_env()))
            container = daemon.containers.run(_image(), detach=True, ports=_PORTS)
        except docker.errors.DockerException as error:
            reason = f"{neither}, docker starts none: {error}"
        else:
            stack.callback(container.remove, force=True, v=True)
            return container
        gc.collect()
    pytest.skip(reason)


def _image() -> str:
    """The server of the compose file: its version is that of the client that is tested."""
    lines = _COMPOSE.read_text("utf-8").splitlines()
    return next(line.split()[1] for line in lines if "image: qdrant/qdrant" in line)


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + _READY_WITHIN
    while True:
        try:
            urllib.request.urlopen(f"{url}/readyz", timeout=2).close()  # noqa: S310
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


@pytest.fixture
def embedder(fake: FakeModel) -> ClipEmbedder:
    """An embedder over `fake` without a cache, so that its calls are what was embedded."""
    return ClipEmbedder(fake, batch_size=4, workers=2, cache=None)
