"""GPUs of a Ray cluster that only Ray believes in: how many actors there are, and with what."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

pytest.importorskip("ray", reason="needs the extra ray")

import ray

from clip_embed import ClipEmbedder
from clip_embed._types import Float32, UInt8
from clip_embed.testing import FakeModel
from clip_embed_ray import embed

pytestmark = [pytest.mark.stress, pytest.mark.filterwarnings("ignore")]


class SlowModel(FakeModel):
    """Takes its time, and leaves the number of its GPU where the test finds it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def embed_images(self, pixels: UInt8, /) -> Float32:
        """As FakeModel, but slowly."""
        (self.folder / os.environ["CUDA_VISIBLE_DEVICES"]).touch()
        time.sleep(0.01 * len(pixels))
        return super().embed_images(pixels)


@pytest.fixture
def node() -> Iterator[None]:
    """A node of 8 cores and two GPUs, as far as Ray knows."""
    ray.init("local", num_cpus=8, num_gpus=2, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


@pytest.mark.usefixtures("node")
def test_no_gpu_is_idle(tmp_path: Path) -> None:
    """Each GPU has an actor, though Ray keeps cores for the operator that writes."""
    (tmp_path / "seen").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    clip = ClipEmbedder(SlowModel(tmp_path / "seen"), cache=None)
    files = ray.data.from_arrow(pa.table({"path": [str(tmp_path / "red.png")] * 8000}))
    embed(files, "path", model=clip).write_parquet(str(tmp_path / "out"))
    assert {file.name for file in (tmp_path / "seen").iterdir()} == {"0", "1"}
    assert pq.read_table(tmp_path / "out").num_rows == 8000
