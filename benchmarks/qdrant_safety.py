"""What an ingest into Qdrant survives: kill -9 again and again, and whatever a server may do.

    python benchmarks/qdrant_safety.py kill9 [--files 20000] [--kills 20]
    python benchmarks/qdrant_safety.py faults

`kill9` fills a store in a folder from real PNG files and kills the process that does so at random moments.
The fast model in it takes down which images it saw, the store which ids it acknowledged. After each kill
every acknowledged id must be there; then a last run completes. `faults` runs one ingest for each fault
against real gRPC and HTTP sockets (tests/qdrant/wire) and counts what became of the images.
"""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from PIL import Image

from clip_embed import ClipEmbedder
from clip_embed.testing import FakeModel
from clip_embed_qdrant import ImageStore, IngestReport, IngestStopped, _upload
from clip_embed_qdrant._sink import Points

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

SIDE = 32
BATCH = 64


class Noting(FakeModel):
    """Appends the number of each image that it embeds, four bytes each, to a file; waits a little."""

    def __init__(self, log: Path, pause: float) -> None:
        super().__init__(size=SIDE)
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._pause = pause

    def embed_images(self, pixels: UInt8, /) -> Float32:
        """As FakeModel does, after a while."""
        time.sleep(self._pause)
        numbers = pixels[:, 0, 0].astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
        if pixels[0, 0, 1].tolist() == [1, 2, 3]:  # not those of the stamp
            os.write(self._log, numbers.astype("<u4").tobytes())
        return super().embed_images(pixels)


def picture(number: int) -> UInt8:
    """A picture with its number in the first pixel."""
    pixels = np.full((SIDE, SIDE, 3), number % 251, np.uint8)
    pixels[0, 0] = [number >> 16, number >> 8 & 255, number & 255]
    pixels[0, 1] = [1, 2, 3]
    pixels[1:4] = np.random.default_rng(number).integers(0, 256, (3, SIDE, 3))
    return pixels


@click.group()
def main() -> None:
    """Show what an ingest survives."""


@main.command(hidden=True)
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("work", type=click.Path(path_type=Path))
@click.argument("pause", type=float)
def child(folder: Path, work: Path, pause: float) -> None:
    """Ingest once, taking down what is acknowledged."""
    model = Noting(work / "embedded", pause)
    acknowledged = os.open(work / "acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with ImageStore(
        work / "photos.clip", embedder=ClipEmbedder(model, cache=None, batch_size=BATCH)
    ) as store:
        write = store._sink.write

        def noting(points: Points) -> None:
            write(points)
            os.write(acknowledged, "".join(f"{id_}\n" for id_ in points.ids).encode())

        store._sink.write = noting  # type: ignore[method-assign]
        click.echo(store.ingest(folder))


@main.command()
@click.option("--files", "count", default=20_000, show_default=True)
@click.option("--kills", default=20, show_default=True)
@click.option("--seed", default=0, show_default=True)
def kill9(count: int, kills: int, seed: int) -> None:
    """Kill an ingest again and again, then let it finish; print the tally."""
    chance = random.Random(seed)  # noqa: S311
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        folder = work / "photos"
        for number in range(count):
            place = folder / f"{number // 1000:03}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(number)).save(place / f"{number:06}.png", compress_level=1)
        share = count / (kills + 2) / BATCH  # batches between two kills
        pause = max(0.01, 1.5 / share)
        click.echo(f"{count:,} files, batches of {BATCH} taking {pause * 1000:.0f} ms")
        twice = 0
        for kill in range(1, kills + 1):
            after = _run_and_kill(folder, work, pause, chance)
            stored, lost = _look(work)
            twice_now = _twice(work)
            click.echo(
                f"{kill:4} {after:8.2f} {_lines(work):13,} {stored:13,} {lost:5} {twice_now - twice:15,}"
            )
            twice = twice_now
        done = subprocess.run(_command(folder, work, 0.0), capture_output=True, text=True, check=True)
        stored, lost = _look(work)
        click.echo(f"last run: {done.stdout.strip()}")
        window = _window()
        total = _twice(work)
        click.echo(
            f"in the store {stored:,} of {count:,}, acknowledged and lost {lost}, embedded again {total:,} "
            f"({total / kills:.0f} a kill; the window in flight is at most {window:,} images)"
        )
        sys.exit(0 if stored == count and not lost and total <= kills * window else 1)


def _command(folder: Path, work: Path, pause: float) -> list[str]:
    return [sys.executable, __file__, "child", str(folder), str(work), str(pause)]


def _run_and_kill(folder: Path, work: Path, pause: float, chance: random.Random) -> float:
    """Start an ingest and kill it some time after its first vectors; return how long after."""
    before = _size(work / "embedded")
    running = subprocess.Popen(
        _command(folder, work, pause), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while _size(work / "embedded") == before and running.poll() is None:
        time.sleep(0.02)
    after = chance.uniform(0.05, 2.5)
    time.sleep(after)
    running.send_signal(signal.SIGKILL)
    running.wait()
    return after


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _lines(work: Path) -> int:
    return _size(work / "acknowledged") // 37


def _look(work: Path) -> tuple[int, int]:
    """Return how many points there are, and how many of the acknowledged ids are not."""
    ids = (work / "acknowledged").read_text().split() if (work / "acknowledged").exists() else []
    if not (work / "photos.clip" / "store.json").exists():
        return 0, len(ids)
    with ImageStore(work / "photos.clip", embedder=ClipEmbedder(FakeModel(size=SIDE))) as store:
        found = 0
        for start in range(0, len(ids), 1000):
            part = list(dict.fromkeys(ids[start : start + 1000]))
            found += len(part) - len(store._sink.etags(part))
        return store.status().points, found


def _twice(work: Path) -> int:
    """Return how many embeddings were not the first of their image."""
    seen = (
        Counter(np.fromfile(work / "embedded", "<u4").tolist())
        if _size(work / "embedded")
        else Counter[int]()
    )
    return sum(number - 1 for number in seen.values())


def _window() -> int:
    """How many images may be embedded, but not acknowledged: in the stream, in a request, waiting for one."""
    stream = 3 * BATCH + 2 * 4  # two forward passes and one behind, and what the workers hold
    return stream + 256 + BATCH + 3 * 256


class Counting(FakeModel):
    """Counts how often each image is embedded."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[bytes] = Counter()

    def embed_images(self, pixels: UInt8, /) -> Float32:
        """As FakeModel does."""
        self.seen.update(row.tobytes() for row in pixels)
        return super().embed_images(pixels)


@main.command()
@click.option("--images", "count", default=3_000, show_default=True)
def faults(count: int) -> None:
    """Run an ingest through each fault, by gRPC and by HTTP; print what became of the images."""
    wire = _wire()
    fault: Any = wire.Fault
    cases: dict[str, list[Any]] = {
        "none": [],
        "down for 5 requests": [fault("down", 5, after=3)],
        "slow, then times out but is applied": [fault("slow", 2, seconds=1.5, after=3)],
        "429 without Retry-After": [fault("rate", 4, after=3)],
        "429 with Retry-After: 1": [fault("rate", 2, seconds=1, after=3)],
        "500, five times": [fault("error", 5, after=3)],
        "connection cut in the middle": [fault("cut", 3, after=3)],
        "applied, then the answer is lost": [fault("applied", 3, after=3)],
        "questions fail, three times": [fault("down", 3, ("retrieve",), after=2)],
        "two poison payloads": [fault("poison", poison="<77>"), fault("poison", poison=f"<{count // 2}>")],
        "API key revoked": [fault("auth", after=3)],
        "storage full": [fault("full", after=3)],
        "down for good": [fault("down", after=3)],
    }
    _upload._FIRST_PAUSE = 0.05
    click.echo(f"{count:,} images in each run; the second run is without the fault")
    click.echo(
        f"{'fault':38} {'by':>4} {'written':>8} {'failed':>7} {'retries':>8} {'twice':>6}  {'ended':8} "
        f"{'second run':>10} {'in the store':>12}"
    )
    items = [(str(number), picture(number)[:8, :8], {"note": f"<{number}>"}) for number in range(count)]
    for name, chosen in cases.items():
        for kind in ("gRPC", "HTTP"):
            with wire.serve() as served:
                served.faults += [replace(each) for each in chosen]
                click.echo(f"{name:38} {kind:>4} {_through(served, kind, items)}")


def _through(served: Any, kind: str, items: list[Any]) -> str:  # noqa: ANN401
    model = Counting()
    port = served.grpc_port if kind == "gRPC" else None
    with ImageStore(
        served.url, collection="photos", grpc_port=port, timeout=1, embedder=ClipEmbedder(model, cache=None)
    ) as store:
        ended = "done"
        try:
            report: IngestReport = store.ingest(items, patience=3)
        except IngestStopped as stopped:
            report, ended = stopped.report, "stopped"
        twice = sum(number - 1 for number in model.seen.values())
        served.faults.clear()
        second = store.ingest(items)
        stored = store.status().points
    return (
        f"{report.written:8,} {len(report.failed):7} {report.retries:8} {twice:6}  {ended:8} "
        f"{second.written:10,} {stored:12,}"
    )


def _wire() -> Any:  # noqa: ANN401
    """The server of the tests."""
    file = Path(__file__).parents[1] / "tests" / "qdrant" / "wire" / "__init__.py"
    spec = importlib.util.spec_from_file_location("qdrant_wire", file)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["qdrant_wire"] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
