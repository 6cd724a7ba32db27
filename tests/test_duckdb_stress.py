"""Threads that share a database: no crash, no wrong value, whatever ends in the middle."""

from __future__ import annotations

import collections
import io
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path

import duckdb
import numpy as np
import pytest
from PIL import Image

from clip_embed import ClipEmbedder, ImageSpec
from clip_embed._images.source import ImageInput
from clip_embed._types import Float32, UInt8
from clip_embed.testing import FakeModel
from clip_embed_duckdb import register
from clip_embed_duckdb._stream import SharedStream

WORKER = Path(__file__).parent / "stress" / "duckdb_worker.py"


@pytest.mark.stress
def test_eight_threads() -> None:
    """Eight threads × 50 queries with interrupts, registrations and dying connections, 20 times over.

    CLIP_EMBED_STRESS_RUNS sets how often; `-s` shows the tally. A crash prints all threads' stacks.
    """
    total: collections.Counter[str] = collections.Counter()
    for _ in range(int(os.environ.get("CLIP_EMBED_STRESS_RUNS", "20"))):
        seed = secrets.randbelow(10**6)
        command = [sys.executable, "-X", "faulthandler", str(WORKER), str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)  # noqa: S603
        assert (done.returncode, done.stderr) == (0, ""), f"seed {seed}: {done.stderr[-4000:]}"
        tally = json.loads(done.stdout)
        print(json.dumps(tally))
        assert tally.pop("findings") == [], f"seed {seed}"
        total.update(tally)
        total["runs"] += 1
    del total["seed"]
    print(json.dumps(total))


class Slow:
    """Three images, whose last vector takes a moment to arrive."""

    def __init__(self) -> None:
        self.left = 3
        self.arrived: list[object] = []

    def items(self) -> Generator[tuple[object, ImageInput]]:
        """Yield small arrays."""
        for key in range(3):
            yield key, np.full((8, 8, 3), key, np.uint8)

    def embedded(self, key: object, vector: Float32) -> None:
        """Note it, the last one after more time than a call gives what is left when it ends."""
        time.sleep(1.0 if self.left == 1 else 0)
        self.left -= 1
        self.arrived.append((key, vector.shape))

    def failed(self, key: object, reason: str) -> None:
        """Nothing fails here."""
        raise AssertionError(f"{key}: {reason}")


def test_a_call_waits_for_its_last_image() -> None:
    """It looks around while the outcome is handed over, and must not take the image for missing."""
    work = Slow()
    SharedStream(ClipEmbedder(FakeModel(), batch_size=1)).run(work, lambda: None)
    assert len(work.arrived) == 3


def test_a_serving_thread_is_no_daemon() -> None:
    """Though DuckDB's thread that starts it is one: at the program's end it would be cut off, with noise."""

    class Asking(Slow):
        def embedded(self, key: object, vector: Float32) -> None:
            self.left -= 1
            self.arrived.append(threading.current_thread().daemon)

    work = Asking()
    stream = SharedStream(ClipEmbedder(FakeModel(), batch_size=1))
    caller = threading.Thread(target=stream.run, args=(work, lambda: None), daemon=True)
    caller.start()
    caller.join()
    assert work.arrived == [False] * 3


def test_a_connection_that_closes_while_others_read_through_it(tmp_path: Path) -> None:
    """Files of a query are read through a registered connection; when that closes, through the next."""
    began, closed = threading.Event(), threading.Event()

    def prepare(image: Image.Image) -> UInt8:
        began.set()
        assert closed.wait(60)
        return np.full((8, 8, 3), image.getpixel((0, 0)), np.uint8)

    for number in range(150):  # more than the groups that are read ahead
        out = io.BytesIO()
        Image.new("RGB", (9, 9), (number, 0, 0)).save(out, "PNG")
        (tmp_path / f"{number:03d}.png").write_bytes(out.getvalue())
    model = FakeModel(size=8)
    model.image_spec = ImageSpec(8, prepare=prepare)
    clip = ClipEmbedder(model, batch_size=2, workers=1, cache=None)
    with duckdb.connect() as con:
        first = con.cursor()
        register(first, clip)
        register(con, clip)
        con.execute(f"CREATE TABLE t AS SELECT file AS img FROM glob('{tmp_path}/*.png')")

        def close() -> None:
            assert began.wait(60)
            while True:
                try:
                    first.close()
                    break
                except duckdb.Error:  # a read is going on at this very moment
                    time.sleep(0.01)
            closed.set()

        closer = threading.Thread(target=close)
        closer.start()
        rows = con.execute("SELECT count(*), count(clip_score(img, 'red')) FROM t").fetchall()
        closer.join()
        assert rows == [(150, 150)]
