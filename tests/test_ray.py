"""Embedding as a stage of Ray datasets, on a real local cluster."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

pytest.importorskip("ray", reason="needs the extra ray")
pytest.importorskip("qdrant_client", reason="needs the extra qdrant")

import ray

from clip_embed import ClipEmbedder
from clip_embed.arrow import embed_images, read_vectors, stamp_vectors
from clip_embed.testing import FakeModel
from clip_embed_qdrant import ImageStore, IngestStopped
from clip_embed_ray import embed, write_qdrant

COLOURS = ("red", "green", "blue", "yellow", "white", "black", "cyan", "magenta")
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning:ray", "ignore::ResourceWarning"
)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One node with two cores, in processes of its own."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Eight pictures of one colour, and one that is none."""
    paths: list[str] = []
    for colour in COLOURS:
        Image.new("RGB", (6, 4), colour).save(tmp_path / f"{colour}.png")
        paths.append(str(tmp_path / f"{colour}.png"))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    return [*paths, str(tmp_path / "broken.png")]


def _rows(dataset: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    return sorted(dataset.take_all(), key=lambda row: str(row["path"]))


def test_vectors_are_those_of_one_process(files: list[str], tmp_path: Path) -> None:
    """Two actors give what one embedder gives; null and failed rows are there, with the reason."""
    clip = ClipEmbedder(FakeModel())
    table = pa.table({"path": [*files, None], "n": range(len(files) + 1)})
    done = embed(ray.data.from_arrow(table), "path", model=FakeModel(), concurrency=2)
    done.write_parquet(str(tmp_path / "out"))
    stored = pq.read_table(tmp_path / "out")
    order = np.argsort(stored["n"].to_numpy())
    rows, valid = read_vectors(stored["embedding"], clip)  # pytest fails on the warning of a lost stamp
    expected, errors = embed_images(table["path"], clip)
    np.testing.assert_allclose(rows[order], read_vectors(stamp_vectors(expected, clip), clip)[0], atol=1e-6)
    assert valid[order].tolist() == [True] * 8 + [False] * 2
    assert [stored["path"][row].as_py() for row in order] == table["path"].to_pylist()
    assert [stored["embedding_error"][row].as_py() for row in order] == errors.to_pylist()
    assert "not an image" in errors[8].as_py()


@pytest.mark.parametrize("kind", ["bytes", "struct", "decoded"])
def test_images_by_value(files: list[str], kind: str) -> None:
    """Encoded bytes, Hugging Face's structs and what `read_images` has decoded give the same vectors."""
    good = files[:8]
    if kind == "decoded":
        dataset, column = ray.data.read_images(good, include_paths=True), "image"
    elif kind == "bytes":
        dataset, column = ray.data.read_binary_files(good, include_paths=True), "bytes"
    else:
        structs = [{"bytes": Path(file).read_bytes(), "path": None} for file in good]
        dataset, column = ray.data.from_arrow(pa.table({"path": good, "image": structs})), "image"
    rows = _rows(embed(dataset, column, model=ClipEmbedder(FakeModel(), cache=None), into="v"))
    expected = ClipEmbedder(FakeModel()).embed_images([row["path"] for row in rows])
    np.testing.assert_allclose(np.stack([row["v"] for row in rows]), expected, atol=1e-6)
    assert {row["v_error"] for row in rows} == {None}


def test_long_lists_of_paths_are_shared_out(files: list[str]) -> None:
    """A table of paths is cut into pieces that several actors can take."""
    dataset = ray.data.from_arrow(pa.table({"path": files[:1] * 1000}))
    assert embed(dataset, "path", model=FakeModel(), concurrency=2).materialize().num_blocks() >= 4


def test_a_gpu_is_asked_for(files: list[str]) -> None:
    """An actor with a GPU takes blocks as they are, which Ray's own map_batches refuses."""
    dataset = ray.data.from_arrow(pa.table({"path": files}))
    with pytest.raises(ValueError, match="batch_size"):
        dataset.map_batches(lambda batch: batch, batch_size=None, num_gpus=1)
    assert "MapBatches" in repr(embed(dataset, "path", model=FakeModel(), num_gpus=1))


_ONE_CORE = """
import sys, pyarrow as pa, ray
from clip_embed.testing import FakeModel
from clip_embed_ray import embed
ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
done = embed(ray.data.from_arrow(pa.table({"path": sys.argv[1:]})), "path", model=FakeModel())
print(sum(row["embedding"] is not None for row in done.take_all()))
"""


def test_a_cluster_of_one_core(files: list[str]) -> None:
    """The actor leaves it to what reads; a job that waits for ever is cut off."""
    command = [sys.executable, "-c", _ONE_CORE, *files]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)  # noqa: S603
    assert done.stdout.splitlines()[-1] == "8"


def test_an_unknown_column_is_named_with_those_there_are(files: list[str]) -> None:
    """A wrong name fails before anything runs."""
    with pytest.raises(ValueError, match="no column 'img'; there are path"):
        embed(ray.data.from_arrow(pa.table({"path": files})), "img", model=FakeModel())


def test_a_collection_is_filled_and_filled_again(files: list[str], qdrant: Any) -> None:  # noqa: ANN401
    """Every image is a point, the failure is listed, and the second run embeds nothing."""
    table = pa.table({"path": files, "image": files, "album": ["a"] * 5 + ["b"] * 4})
    where: dict[str, Any] = {"model": FakeModel(), "grpc_port": qdrant.grpc_port, "concurrency": 2}
    report = write_qdrant(ray.data.from_arrow(table), qdrant.url, "photos", **where)
    assert (report.seen, report.written, len(report.failed)) == (9, 8, 1)
    assert next(iter(report.failed)).key.endswith("broken.png")
    with ImageStore(
        qdrant.url,
        collection="photos",
        grpc_port=qdrant.grpc_port,
        embedder=ClipEmbedder(FakeModel()),
    ) as store:
        assert store.status().points == 8
        (hit,) = store.search(text="red", k=1)
        assert (hit.key, hit.payload["album"]) == (files[0], "a")
    again = write_qdrant(ray.data.from_arrow(table), qdrant.url, "photos", **where)
    assert (again.seen, again.skipped, again.embedded, again.written) == (9, 8, 0, 0)


def test_a_server_that_is_gone_ends_the_job(files: list[str], qdrant: Any) -> None:  # noqa: ANN401
    """A collection that cannot be written is an error with the report, not a dataset of failures."""
    table = pa.table({"path": files, "image": files})
    write_qdrant(
        ray.data.from_arrow(table.slice(0, 1)), qdrant.url, "photos", model=FakeModel(), grpc_port=None
    )
    qdrant.faults.append(sys.modules["qdrant_wire"].Fault("full"))
    with pytest.raises(IngestStopped):
        write_qdrant(
            ray.data.from_arrow(table),
            qdrant.url,
            "photos",
            model=FakeModel(),
            grpc_port=None,
            patience=0.1,
        )


def test_a_folder_is_no_place_for_several_machines(tmp_path: Path) -> None:
    """A store in a folder has one writer; the error says what to give."""
    with pytest.raises(ValueError, match="server"):
        write_qdrant(
            ray.data.from_arrow(pa.table({"path": [""]})), str(tmp_path), "photos", model=FakeModel()
        )
