"""The traps of Edge 0.9: where one of these fails, Edge has changed; look at what was built around it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import qdrant_edge as edge

POINT = "00000000-0000-0000-0000-000000000001"
PARAMS = edge.EdgeVectorParams(size=4, distance=edge.Distance.Cosine)


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[edge.EdgeShard]:
    """An empty shard with vectors of 4 dimensions."""
    opened = edge.EdgeShard.create(str(tmp_path / "shard"), edge.EdgeConfig(vectors={"image": PARAMS}))
    yield opened
    opened.close()


def upsert(shard: edge.EdgeShard, *points: edge.Point) -> None:
    """Write points."""
    shard.update(edge.UpdateOperation.upsert_points(list(points)))


def test_trap_a_bool_is_matched_as_numpys_alone(shard: edge.EdgeShard) -> None:
    """MatchValue(True) matches nothing."""
    upsert(shard, edge.Point(POINT, {"image": [1.0, 0, 0, 0]}, {"flag": True}))

    def matched(value: object) -> int:
        condition = edge.FieldCondition("flag", match=edge.MatchValue(value))  # type: ignore[arg-type]
        return shard.count(edge.CountRequest(filter=edge.Filter(must=[condition])))

    assert (matched(True), matched(np.bool_(True)), matched(np.bool_(False))) == (0, 1, 0)


def test_trap_nan_and_zero_are_taken(shard: edge.EdgeShard) -> None:
    """Vectors without a direction are stored without a word, so they are refused before."""
    upsert(shard, edge.Point(POINT, {"image": [float("nan")] * 4}, {}))
    upsert(shard, edge.Point(2, {"image": [0.0] * 4}, {}), edge.Point(3, {}, {}))
    assert shard.count(edge.CountRequest()) == 3


def test_trap_a_failed_batch_is_not_atomic(tmp_path: Path) -> None:
    """A batch with one bad vector raises, but some of it is there, more once the log is read again."""
    config = edge.EdgeConfig(vectors={"image": PARAMS}, wal_enabled=True)
    shard = edge.EdgeShard.create(str(tmp_path / "shard"), config)
    rows = [[1.0] * (2 if number == 250 else 4) for number in range(500)]
    with pytest.raises(Exception, match="expected dim: 4, got 2"):
        upsert(shard, *(edge.Point(number, {"image": row}, {}) for number, row in enumerate(rows)))
    before = shard.count(edge.CountRequest())
    shard.close()
    again = edge.EdgeShard.load(str(tmp_path / "shard"))
    assert 0 < again.count(edge.CountRequest()) < 500  # in what order it takes them is up to chance
    assert before <= again.count(edge.CountRequest())
    again.close()


def test_trap_only_the_log_locks(tmp_path: Path) -> None:
    """Without the log a shard can be opened twice; with it, the second is told so by "WouldBlock"."""
    for logged in (True, False):
        path = str(tmp_path / str(logged))
        first = edge.EdgeShard.create(path, edge.EdgeConfig(vectors={"image": PARAMS}, wal_enabled=logged))
        if logged:
            with pytest.raises(Exception, match="WouldBlock"):
                edge.EdgeShard.load(path)
        else:
            edge.EdgeShard.load(path).close()
        first.close()


def test_trap_numbers_beyond_64_bits_are_taken(shard: edge.EdgeShard) -> None:
    """They lose digits without a word, so they are refused before."""
    upsert(shard, edge.Point(POINT, {"image": [1.0] * 4}, {"number": 2**70 + 1}))
    assert shard.retrieve([POINT], True, False)[0].payload != {"number": 2**70 + 1}


def test_trap_a_call_stops_every_thread(shard: edge.EdgeShard) -> None:
    """While one thread writes, another one does not run: a call holds the GIL for nearly all of its time."""
    rows = np.random.default_rng(0).standard_normal((20_000, 4)).tolist()
    points = [edge.Point(number, {"image": row}, {}) for number, row in enumerate(rows)]
    operation, took = edge.UpdateOperation.upsert_points(points), list[float]()

    def write() -> None:
        begun = time.perf_counter()
        shard.update(operation)
        took.append(time.perf_counter() - begun)

    writer, ticks = threading.Thread(target=write), [time.perf_counter()]
    writer.start()
    while writer.is_alive():
        ticks.append(time.perf_counter())
    assert max(np.diff([*ticks, time.perf_counter()])) > took[0] / 2


FORKED = """
import os, sys, time
import qdrant_edge as edge
params = edge.EdgeVectorParams(size=4, distance=edge.Distance.Cosine)
shard = edge.EdgeShard.create(sys.argv[1], edge.EdgeConfig(vectors={"image": params}))
shard.update(edge.UpdateOperation.upsert_points([edge.Point(1, {"image": [1.0] * 4}, {})]))
request = edge.QueryRequest(limit=1, query=edge.Query.Nearest([1.0] * 4, using="image"))
child = os.fork()
if not child:
    shard.query(request)
    os._exit(0)
time.sleep(1)
print(os.waitpid(child, os.WNOHANG)[0], len(shard.query(request)))
os.kill(child, 9)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX processes")
def test_trap_a_query_in_a_forked_child_hangs(tmp_path: Path) -> None:
    """The child is still busy after a second, while the parent is answered."""
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(tmp_path / "shard")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)  # noqa: S603
    assert done.stdout == "0 1\n"


def test_trap_a_shard_says_nothing_of_itself() -> None:
    """It has no metadata to note a model in, so that lies in a file beside it."""
    names = [*dir(edge.EdgeConfig), *dir(edge.EdgeShard)]
    assert not [name for name in names if "metadata" in name or "collection" in name]
