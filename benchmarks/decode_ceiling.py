"""How many images one process hands out, however many cores decode them: why a GPU is fed by processes.

    python benchmarks/decode_ceiling.py --cache ~/.cache/clip-embed-benchmarks

A model that answers at once, 640 × 480 JPEGs, no cache. With threads the decoder and the resizer are replaced
by waits of 0.8 and 0.4 ms that hold neither a core nor Python's lock: so a machine of two cores shows what
sixteen would be left with. With processes the decoders are real, and what counts is the CPU time that is left
to this process.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import image_sets
import numpy as np
import numpy.typing as npt

from clip_embed import ClipEmbedder, ImageSpec
from clip_embed._engine import decode_processes
from clip_embed._images import jpeg, pixels
from clip_embed.testing import FakeModel

UInt8 = npt.NDArray[np.uint8]
DECODE, RESIZE = 0.0008, 0.0004
BATCH = 256


class Quick(FakeModel):
    """A model of CLIP's shapes that answers at once."""

    lanes = 2

    def __init__(self) -> None:
        super().__init__(dim=512)
        self.image_spec = ImageSpec(224, (224, 224))

    def embed_images(self, pixels: UInt8, /) -> npt.NDArray[np.float32]:
        """Ones."""
        return np.ones((len(pixels), self.dim), np.float32)


def measure(title: str, clip: ClipEmbedder, paths: list[str]) -> None:
    """Print rate and CPU time of this process."""
    clip.embed_images(paths[:BATCH])
    wall, cpu = time.perf_counter(), time.process_time()
    clip.embed_images(paths)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    click.echo(f"{title:32}{len(paths) / wall:12,.0f} images/s{1e6 * cpu / len(paths):10.0f} µs CPU an image")


def wait_instead() -> None:
    """Replace decoder and resizer by waits."""
    whole: dict[tuple[int, int], UInt8] = {}
    small = np.zeros((224, 299, 3), np.uint8)

    def decode(_: bytes, size: tuple[int, int], scale: int) -> UInt8:
        time.sleep(DECODE)
        return whole.setdefault(size, np.zeros((size[1] // scale, size[0] // scale, 3), np.uint8))

    def resize(*_: object, **__: object) -> UInt8:
        time.sleep(RESIZE)
        return small

    patched: Any = jpeg
    patched._decode_strictly = decode
    patched = pixels
    patched.resize = resize


@click.command()
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="Folder for the images.")
@click.option("--images", default=3840, show_default=True)
def main(cache: Path, images: int) -> None:
    """Compare a process on its own with decode processes."""
    files = image_sets.files(image_sets.SETS["small"], 48, cache)
    paths = [str(path) for path in files * (images // len(files))]
    patched: Any = decode_processes
    patched.is_gpu, patched._FEW_CORES, patched._START_AFTER = lambda _: True, 4, 0
    clip = ClipEmbedder(Quick(), workers=4, batch_size=BATCH, cache=None, device="cpu")
    clip._with_torch = True
    processes = clip._through_cache().processes
    if processes is not None:
        processes.wait(120)
        measure("decode processes", clip, paths)
        processes.close()
    patched._FEW_CORES = 99
    wait_instead()
    for workers in (2, 8, 16, 32):
        clip = ClipEmbedder(Quick(), workers=workers, batch_size=BATCH, cache=None, device="cpu")
        clip._with_torch = True
        measure(f"{workers} threads, decoders that wait", clip, paths)


if __name__ == "__main__":
    main()
