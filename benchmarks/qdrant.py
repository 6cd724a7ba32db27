"""What an ingest into Qdrant costs beside the embedder, and what its stores give back.

    python benchmarks/qdrant.py throughput [--model offline] [--images 400]
    python benchmarks/qdrant.py instant
    python benchmarks/qdrant.py upload
    python benchmarks/qdrant.py resume
    python benchmarks/qdrant.py memory [--up-to 1000000]

Only the ratios within a run count. `throughput` holds ingest against the embedder alone, `instant` the same
with a model that answers at once against decoding and uploading alone; `upload` holds writing vectors against
the client's own `upload_collection`, same vectors, into a server on loopback (tests/qdrant/wire) that
throws them away; `resume` runs a finished ingest again; `memory` shows what grows with the number of images,
without a store and with Edge.
"""

from __future__ import annotations

import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from PIL import Image
from qdrant_client import QdrantClient, models

from clip_embed import ClipEmbedder
from clip_embed.testing import FakeModel
from clip_embed_qdrant import ImageStore, IngestReport
from clip_embed_qdrant._edge import EdgeSink
from clip_embed_qdrant._entries import point_id
from clip_embed_qdrant._ingest import Ingest
from clip_embed_qdrant._options import Options
from clip_embed_qdrant._place import Address, Place
from clip_embed_qdrant._sink import Meta, Points, Sink, Vectors
from clip_embed_qdrant._tables import iterable
from clip_embed_qdrant._target import Target
from clip_embed_qdrant._upload import Patience, Uploader

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

DIM = 512
ROUNDS = 3


class Instant:
    """A model that answers at once: the same vector for every image, of the dimension of ViT-B/32."""

    space = "instant"

    def __init__(self) -> None:
        self.dim = DIM
        self.image_spec = FakeModel(size=224).image_spec
        self._rows = np.random.default_rng(0).standard_normal((1024, DIM)).astype(np.float32)
        self.images = 0

    def embed_images(self, pixels: UInt8, /) -> Float32:
        """uint8 (n, 224, 224, 3) -> float32 (n, 512)."""
        self.images += len(pixels)
        return self._rows[: len(pixels)]

    def embed_texts(self, texts: Sequence[str], /) -> Float32:
        """m texts -> float32 (m, 512)."""
        return self._rows[: len(texts)]


@click.group()
def main() -> None:
    """Measure ingest and search."""


def photos(folder: Path, count: int, width: int, height: int) -> Path:
    """JPEGs of one scene with noise of their own, in folders of a thousand."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width]
    scene = np.stack([90 + 60 * np.sin(x / 37), 128 + 80 * np.cos(y / 23), (x + y) % 256], axis=2)
    for number in range(count):
        noisy = np.clip(scene + rng.normal(0, 6, (height, width, 1)), 0, 255).astype(np.uint8)
        place = folder / f"{number // 1000:03}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy).save(place / f"{number:06}.jpg", "JPEG", quality=85)
    return folder


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _embed(clip: ClipEmbedder, paths: list[Path]) -> None:
    with clip.stream_images(paths) as batches:
        for _ in batches:
            pass


def _ingest(clip: ClipEmbedder, source: object) -> None:
    with tempfile.TemporaryDirectory() as folder, ImageStore(f"{folder}/s.clip", embedder=clip) as store:
        store.ingest(source)


@main.command()
@click.option("--model", default="offline", show_default=True)
@click.option("--images", default=400, show_default=True)
def throughput(model: str, images: int) -> None:
    """Images/s of ingest into Edge, beside the embedder alone on the same files."""
    clip = ClipEmbedder(model, cache=None)
    with tempfile.TemporaryDirectory() as temporary:
        folder = photos(Path(temporary), images, 640, 480)
        paths = sorted(folder.rglob("*.jpg"))
        clip.stamp()
        _embed(clip, paths[:64])
        runs = (partial(_embed, clip, paths), partial(_ingest, clip, folder))
        pairs: list[tuple[float, float]] = []
        cpus: list[float] = []
        for _ in range(ROUNDS):
            marks = [time.process_time()]
            took: list[float] = []
            for each in runs:
                took.append(_seconds(each))
                marks.append(time.process_time())
            pairs.append((took[0], took[1]))
            cpus.append((marks[1] - marks[0]) / (marks[2] - marks[1]))
    for name, place in (("embedder alone", 0), ("ingest into Edge", 1)):
        click.echo(f"{name:18} {images / statistics.median(pair[place] for pair in pairs):9.1f} images/s")
    ratios = [pair[0] / pair[1] for pair in pairs]
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    click.echo(f"embedder's time / ingest's: wall {statistics.median(ratios):.3f} ({spread}), ", nl=False)
    click.echo(f"CPU {statistics.median(cpus):.3f}")


@main.command()
@click.option("--images", default=4_000, show_default=True)
def instant(images: int) -> None:
    """The same with a model that answers at once: against decoding alone plus uploading alone."""
    clip = ClipEmbedder(Instant(), cache=None)
    with tempfile.TemporaryDirectory() as temporary:
        folder = photos(Path(temporary), images, 320, 240)
        paths = sorted(folder.rglob("*.jpg"))
        clip.stamp()
        _embed(clip, paths[:500])
        walls: list[list[float]] = []
        cpus: list[list[float]] = []
        points = list(_batches(images))
        for _ in range(ROUNDS):
            with (
                tempfile.TemporaryDirectory() as place,
                ImageStore(f"{place}/t.clip", embedder=clip) as store,
            ):
                store.ingest([])
                sink = empty_store(Path(place) / "s.clip")
                marks = [time.process_time()]
                walls.append([])
                for work in (
                    partial(_embed, clip, paths),
                    partial(_upload, sink, points),
                    partial(store.ingest, folder),
                ):
                    walls[-1].append(_seconds(work))
                    marks.append(time.process_time())
                sink.close()
                cpus.append(np.diff(marks).tolist())
    for place, name in enumerate(("decode alone", "upload alone", "ingest")):
        wall, cpu = (statistics.median(each[place] for each in rows) for rows in (walls, cpus))
        click.echo(f"{name:14} {images / wall:9.0f} images/s  CPU {cpu / images * 1e6:7.0f} µs each")
    ratios = (statistics.median((each[0] + each[1]) / each[2] for each in rows) for rows in (walls, cpus))
    click.echo("(decode + upload) / ingest: wall {:.3f}, CPU {:.3f}".format(*ratios))


def empty_store(folder: Path) -> EdgeSink:
    """An empty store for vectors of ViT-B/32's dimension."""
    sink = EdgeSink(folder)
    sink.create(Meta(Vectors(ClipEmbedder(Instant()).stamp(), None, sink.vector)), DIM)
    return sink


def _batches(count: int) -> Iterator[Points]:
    rng = np.random.default_rng(1)
    for start in range(0, count, 256):
        numbers = range(start, min(count, start + 256))
        rows = rng.standard_normal((len(numbers), DIM)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        payloads = [{"path": f"{n}.jpg", "size": n, "_key": f"{n}.jpg", "_etag": f"{n:x}"} for n in numbers]
        yield Points([point_id(f"{n}.jpg") for n in numbers], rows, payloads)


def _upload(sink: Sink, points: list[Points]) -> None:
    uploader = Uploader(sink, Patience(60), lambda _: None)
    for batch in points:
        uploader.submit(batch)
    uploader.drain()
    sink.flush()
    uploader.close()


@main.command(hidden=True)
def serve() -> None:
    """Run the server of the tests, which throws points away, until the standard input ends."""
    from qdrant_safety import _wire

    with _wire().serve(keeps=False) as served:
        click.echo(f"{served.http_port} {served.grpc_port}")
        sys.stdin.read()


@main.command()
@click.option("--points", "count", default=20_000, show_default=True)
def upload(count: int) -> None:
    """Points/s of writing vectors into Edge and a server, beside the client's upload_collection."""
    batches = list(_batches(count))
    results: dict[str, list[tuple[float, float]]] = {}
    with _server() as (url, grpc):
        for number in range(ROUNDS):
            for kind, port in (("gRPC", grpc), ("HTTP", None)):
                name = f"c{number}{kind}"
                address = Address(url, name, None, None, 60, port, "image", False)
                place = Place(address, ClipEmbedder(Instant()), {}, adopt=False)
                place.prepare(None, "")
                _note(results, f"clip-embed, {kind}", partial(_upload, place.sink, batches))
                place.close()
                client = QdrantClient(
                    url=url, grpc_port=grpc, prefer_grpc=port is not None, check_compatibility=False
                )
                _note(results, f"upload_collection, {kind}", _by_client(client, name, batches))
                client.close()
            with tempfile.TemporaryDirectory() as folder:
                sink = empty_store(Path(folder) / "s.clip")
                _note(results, "clip-embed, Edge", partial(_upload, sink, batches))
                sink.close()
            client = QdrantClient(":memory:")
            cosine = models.VectorParams(size=DIM, distance=models.Distance.COSINE)
            client.create_collection("c", {"image": cosine})
            _note(results, "upload_collection, :memory:", _by_client(client, "c", batches))
            client.close()
    click.echo(f"{'':27} {'points/s':>9} {'CPU µs of the client':>21}")
    for name, rounds in results.items():
        wall, cpu = (statistics.median(each[place] for each in rounds) for place in (0, 1))
        click.echo(f"{name:27} {count / wall:9,.0f} {cpu / count * 1e6:21.1f}")


@contextmanager
def _server() -> Iterator[tuple[str, int]]:
    """Run `serve` in a process of its own; yield its URL and its port for gRPC."""
    command = [sys.executable, __file__, "serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        if server.stdin is None or server.stdout is None:
            raise OSError("the server has no pipes")
        http, grpc = map(int, server.stdout.readline().split())
        yield f"http://127.0.0.1:{http}", grpc
        server.stdin.close()


def _by_client(client: QdrantClient, name: str, batches: list[Points]) -> Callable[[], object]:
    """Return what uploads the same points by the client's own means."""
    return partial(
        client.upload_collection,
        name,
        {"image": np.concatenate([batch.vectors for batch in batches])},
        payload=[payload for batch in batches for payload in batch.payloads],
        ids=[id_ for batch in batches for id_ in batch.ids],
        batch_size=256,
        wait=True,
    )


def _note(results: dict[str, list[tuple[float, float]]], name: str, work: Callable[[], object]) -> None:
    cpu = time.process_time()
    wall = _seconds(work)
    results.setdefault(name, []).append((wall, time.process_time() - cpu))


@main.command()
@click.option("--images", default=50_000, show_default=True)
def resume(images: int) -> None:
    """Run a finished ingest of real files again: images/s skipped, and how many were decoded."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "photos"
        for number in range(images):
            place = folder / f"{number // 1000:03}"
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number & 255, number >> 8, 0)).save(buffer := io.BytesIO(), "PNG")
            (place / f"{number:06}.png").write_bytes(buffer.getvalue())
        model = FakeModel(dim=DIM, size=8)
        clip = ClipEmbedder(model, cache=None)
        with ImageStore(f"{temporary}/s.clip", embedder=clip) as store:
            click.echo(f"first run:  {store.ingest(folder)}")
        calls = sum(model.calls[0])
        for _ in range(ROUNDS):
            with ImageStore(f"{temporary}/s.clip", embedder=clip) as store:
                cpu = time.process_time()
                report = store.ingest(folder)
                rate = images / (time.process_time() - cpu)
            decoded = sum(model.calls[0]) - calls
            click.echo(f"second run: {report}; {rate:,.0f} per CPU second, {decoded} decoded")


class Nowhere:
    """A store that takes everything and keeps nothing."""

    where, streams = "nowhere", 1

    def open_for_writing(self) -> None:
        """Be ready."""

    def etags(self, ids: Sequence[str]) -> dict[str, str | None]:
        """Know nothing."""
        return {}

    def write(self, points: Points) -> None:
        """Take them."""

    def flush(self) -> None:
        """Do nothing."""


def resident_mb() -> float:
    """Resident memory of this process (Linux), in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _images(count: int) -> Iterator[tuple[str, UInt8, dict[str, object]]]:
    for number in range(count):
        pixels = np.full((8, 8, 3), number % 251, np.uint8)
        pixels[0, 0] = [number >> 16, number >> 8 & 255, number & 255]
        yield f"folder/{number:08}.png", pixels, {"size": number}


@main.command()
@click.option("--at-least", default=10_000, show_default=True)
@click.option("--up-to", default=100_000, show_default=True)
def memory(at_least: int, up_to: int) -> None:
    """How much memory stays behind for each 100,000 images: of ours, and of the shard."""
    clip = ClipEmbedder(FakeModel(dim=DIM, size=8), cache=None, batch_size=64)
    click.echo(
        f"{'images':>9} {'store':>8} {'MB at start':>12} {'at end':>8} {'per 100,000':>12} {'µs each':>8}"
    )
    for count in [each for each in (10_000, 100_000, 1_000_000) if at_least <= each <= up_to]:
        for name in ("nowhere", "Edge"):
            with tempfile.TemporaryDirectory() as folder:
                sink: Any = Nowhere() if name == "nowhere" else empty_store(Path(folder) / "s.clip")
                marks = list[tuple[int, float]]()
                source = iterable(_images(count), ("image", "path", None))
                job = Ingest(Target(sink), clip, source, Options(), partial(_mark, marks))
                took = _seconds(job.run)
                if name == "Edge":
                    sink.close()
            settled = marks[len(marks) // 10 :]
            slope = np.polyfit([mark[0] for mark in settled], [mark[1] for mark in settled], 1)[0] * 100_000
            click.echo(
                f"{count:9,} {name:>8} {marks[0][1]:12.1f} {marks[-1][1]:8.1f} {slope:12.2f} "
                f"{took / count * 1e6:8.0f}"
            )


def _mark(marks: list[tuple[int, float]], report: IngestReport) -> None:
    marks.append((report.written, resident_mb()))


if __name__ == "__main__":
    main()
