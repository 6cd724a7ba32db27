"""A cluster of several nodes that loses a worker and a node in the middle of a job."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

pytest.importorskip("ray", reason="needs the extra ray")
pytest.importorskip("qdrant_client", reason="needs the extra qdrant")

import ray

from clip_embed import ClipEmbedder
from clip_embed._types import Float32, UInt8
from clip_embed.arrow import read_vectors
from clip_embed.testing import FakeModel
from clip_embed_ray import embed, write_qdrant

pytestmark = [pytest.mark.stress, pytest.mark.filterwarnings("ignore")]
IMAGES = 3000


class SlowModel(FakeModel):
    """Takes its time, and leaves its process number where the test finds it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def embed_images(self, pixels: UInt8, /) -> Float32:
        """As FakeModel, but slowly."""
        (self.folder / str(os.getpid())).touch()
        time.sleep(0.002 * len(pixels))
        return super().embed_images(pixels)


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head that computes nothing, and two nodes of two cores each, every one with its own raylet."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        nodes.add_node(num_cpus=2)
    ray.init(address=nodes.address, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield nodes
    ray.shutdown()
    nodes.shutdown()


@pytest.fixture
def table(tmp_path: Path) -> pa.Table:
    """Many different pictures, by path; every hundredth is none."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    paths: list[str] = []
    for number in range(IMAGES):
        path = folder / f"{number:05}.png"
        if number % 100 == 99:
            path.write_bytes(b"no picture")
        else:
            Image.new("RGB", (8, 8), (number % 256, number // 256, 128)).save(path)
        paths.append(str(path))
    return pa.table({"path": paths, "image": paths})


def _workers(folder: Path) -> list[int]:
    """The other processes that have embedded something."""
    return [pid for path in folder.iterdir() if (pid := int(path.name)) != os.getpid()]


def _kill_a_worker(cluster: Any, seen: Path) -> str:  # noqa: ANN401
    pid = _workers(seen)[0]
    os.kill(pid, signal.SIGKILL)
    return f"worker {pid}"


def _remove_a_node(cluster: Any, seen: Path) -> str:  # noqa: ANN401
    node = cluster.list_all_nodes()[-1]
    cluster.remove_node(node, allow_graceful=False)
    return "a node"


def _once_it_runs(seen: Path, act: Callable[[], str], done: list[str]) -> threading.Thread:
    """Act as soon as a worker has embedded something."""

    def wait() -> None:
        deadline = time.monotonic() + 120
        while not _workers(seen) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        done.append(act())

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("act", [_kill_a_worker, _remove_a_node], ids=["worker", "node"])
def test_nothing_is_lost_from_a_dataset(cluster: Any, table: pa.Table, tmp_path: Path, act: Any) -> None:  # noqa: ANN401
    """Every row is there once, with the vector of one process, and the failures are listed."""
    seen, done = tmp_path / "seen", list[str]()
    seen.mkdir()
    killer = _once_it_runs(seen, lambda: act(cluster, seen), done)
    batches = list(
        embed(ray.data.from_arrow(table), "path", model=SlowModel(seen)).iter_batches(batch_format="pyarrow")
    )
    killer.join()
    found = pa.concat_tables(batches)
    order = np.argsort(np.asarray(found["path"].to_pylist()))
    assert [found["path"][row].as_py() for row in order] == table["path"].to_pylist()
    clip = ClipEmbedder(FakeModel())
    rows, valid = read_vectors(found["embedding"], clip)
    assert valid[order].tolist() == [number % 100 != 99 for number in range(IMAGES)]
    good = [path for number, path in enumerate(table["path"].to_pylist()) if number % 100 != 99]
    np.testing.assert_allclose(rows[order][valid[order]], clip.embed_images(good), atol=1e-5)
    print(
        f"\nkilled {done[0]}: {found.num_rows:,} rows, {int((~valid).sum())} failed, "
        f"{len(_workers(seen))} workers"
    )


@pytest.mark.parametrize("act", [_kill_a_worker, _remove_a_node], ids=["worker", "node"])
def test_nothing_is_lost_from_a_collection(cluster: Any, table: pa.Table, tmp_path: Path, act: Any) -> None:  # noqa: ANN401
    """Every image is one point, whatever was written twice, and a second run finds nothing to do."""
    wire_file = Path(__file__).parent / "qdrant" / "wire" / "__init__.py"
    spec = importlib.util.spec_from_file_location("qdrant_wire", wire_file)
    assert spec
    assert spec.loader
    wire = importlib.util.module_from_spec(spec)
    sys.modules["qdrant_wire"] = wire
    spec.loader.exec_module(wire)
    seen, done = tmp_path / "seen", list[str]()
    seen.mkdir()
    with wire.serve() as server:
        killer = _once_it_runs(seen, lambda: act(cluster, seen), done)
        where: dict[str, Any] = {"model": SlowModel(seen), "grpc_port": server.grpc_port}
        report = write_qdrant(ray.data.from_arrow(table), server.url, "photos", **where)
        killer.join()
        good = IMAGES - IMAGES // 100
        points = server.engine.count("photos").count
        again = write_qdrant(ray.data.from_arrow(table), server.url, "photos", **where)
    print(f"\nkilled {done[0]}: {points:,} points of {good:,}; first: {report}; second: {again}")
    assert points == good
    assert (again.seen, again.skipped, again.written, len(again.failed)) == (IMAGES, good, 0, IMAGES // 100)
