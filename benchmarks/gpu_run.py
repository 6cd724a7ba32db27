"""What gpu.py measures with: a run of parts that share files and models, a clock, and a gauge of the GPU."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Self

import click
import image_sets
import random_clip

from clip_embed import ClipEmbedder
from clip_embed._engine.cores import usable_cores

_FILES = {"small": 512, "small-rich": 512, "large": 64}


@dataclass
class Run:
    """What is measured with, and what was found."""

    cache: Path
    device: str
    tiny: bool
    end: float
    rows: list[dict[str, Any]] = field(default_factory=list)
    ceilings: dict[str, float] = field(default_factory=dict)

    def note(self, part: str, contender: str, **figures: object) -> None:
        """Keep a row, and say it at once."""
        self.rows.append({"part": part, "contender": contender} | figures)
        click.echo(f"  {part}: {contender}: {figures}", err=True)

    def do(self, part: str, contender: str, work: Callable[[], object]) -> None:
        """Measure something while there is time; what it raises becomes its row, and the others go on."""
        if time.monotonic() > self.end:
            self.note(part, contender, note="left out: no time")
            return
        try:
            work()
        except Exception as error:  # noqa: BLE001 - a peer, a driver or a library may raise anything
            self.note(part, contender, note=f"failed: {type(error).__name__}: {error}".splitlines()[0])
        finally:
            release()

    def paths(self, name: str, count: int) -> list[str]:
        """So many paths of a set; the files come again and again."""
        files = 8 if self.tiny else _FILES[name]
        made = image_sets.files(image_sets.SETS[name], files, self.cache, usable_cores())
        return [str(path) for path in islice(cycle(made), count)]

    def embedder(self, shape: str, precision: Any = "auto") -> ClipEmbedder:  # noqa: ANN401
        """Open the model of a shape, loaded."""
        folder = random_clip.shaped_folder(self.cache, shape)
        clip = ClipEmbedder(folder, device=self.device, precision=precision, cache=None)
        clip.load()
        return clip


class Gauge:
    """How busy the GPU is, in per cent, asked twenty times a second; None where nothing tells."""

    def __enter__(self) -> Self:
        self._seen: list[int] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.busy = round(statistics.mean(self._seen)) if self._seen else None

    def _watch(self) -> None:
        import torch

        while not self._over.wait(0.05):
            try:
                self._seen.append(int(torch.cuda.utilization()))
            except (RuntimeError, AssertionError, ImportError):  # no GPU, or no nvidia-ml-py
                return


def release() -> None:
    """Give back what the GPU holds for a part that is over."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def timed(run: Callable[[], object], images: int) -> dict[str, object]:
    """Rate and GPU use of a run over so many images."""
    with Gauge() as gauge:
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
    return {"images_per_s": images / seconds, "gpu_percent": gauge.busy, "images": images}
