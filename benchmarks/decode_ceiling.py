"""How many images one process hands out, however many cores decode them: why a GPU is fed by processes.

    python benchmarks/decode_ceiling.py --cache ~/.cache/clip-embed-benchmarks

A model that answers at once, 640 × 480 JPEGs, no cache. With threads the decoder and the resizer are replaced
by waits of 0.8 and 0.4 ms that hold neither a core nor Python's lock: so a machine of two cores shows what
sixteen would be left with. With processes the decoders are real, and what counts is the CPU time that is left
to this process, and that of the processes: where a GPU resizes, a stand-in copies what it would be sent, and
answers at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import image_sets
import numpy as np
import numpy.typing as npt

from clip_embed import ClipEmbedder, ImagePolicy, ImageSpec
from clip_embed._engine import decode_processes
from clip_embed._engine.link import Link
from clip_embed._images import jpeg, pixels
from clip_embed._images.gpu_resize import GpuResize
from clip_embed._images.on_gpu import OnGpu, nothing_on_gpu
from clip_embed._images.pixels import Stored
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


class Sent(GpuResize):
    """A device that takes what it is sent, and answers at once."""

    def _fit(self, decoded: Sequence[Stored], link: Link) -> list[UInt8]:
        memory: UInt8 = vars(link).setdefault("pinned", np.zeros(16 * 1024 * 1024, np.uint8))
        end = 0
        for each in decoded:
            start, end = end, end + each.nbytes
            np.copyto(memory[start:end], np.asarray(each.picture).reshape(-1))
        return [np.zeros((224, 224, 3), np.uint8) for _ in decoded]


def measure(title: str, clip: ClipEmbedder, paths: list[str], others: Sequence[int] = ()) -> None:
    """Print rate and CPU time of this process, and of others together."""
    clip.embed_images(paths[:BATCH])
    wall, cpu, theirs = time.perf_counter(), time.process_time(), cpu_of(others)
    clip.embed_images(paths)
    wall, cpu, theirs = time.perf_counter() - wall, time.process_time() - cpu, cpu_of(others) - theirs
    each = 1e6 / len(paths)
    there = f"{each * theirs:10.0f} µs in decode processes" if others else ""
    click.echo(f"{title:36}{len(paths) / wall:10,.0f} images/s{each * cpu:10.0f} µs CPU an image{there}")


def cpu_of(processes: Sequence[int]) -> float:
    """Seconds of CPU time that processes have taken."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in processes]
    return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")


def wait_instead() -> None:
    """Replace decoder and resizer by waits."""
    whole: dict[tuple[int, int], UInt8] = {}
    small = np.zeros((224, 299, 3), np.uint8)

    def decode(_: bytes, size: tuple[int, int], scale: int, into: object) -> UInt8:
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
@click.option("--rounds", default=3, show_default=True, help="Of the decode processes.")
@click.option("--photos", type=click.Choice(list(image_sets.SETS)), default="small", show_default=True)
def main(cache: Path, images: int, rounds: int, photos: str) -> None:
    """Compare a process on its own with decode processes."""
    files = image_sets.files(image_sets.SETS[photos], 48, cache)
    paths = [str(path) for path in files * (images // len(files))]
    patched: Any = decode_processes
    patched.is_gpu, patched._FEW_CORES, patched._START_AFTER = lambda _: True, 4, 0
    clip = ClipEmbedder(Quick(), workers=4, batch_size=BATCH, cache=None, device="cpu")
    clip._with_torch = True
    processes = clip._through_cache().processes
    if processes is not None:
        processes.wait(120)
        pids = [process.pid for process in processes._state.processes]
        towers = clip._through_cache()
        resize = Sent(["cpu"], clip.model.image_spec, ImagePolicy())
        for _ in range(rounds):
            towers._on_gpu = nothing_on_gpu("left out here")
            measure("decode processes", clip, paths, pids)
            towers._on_gpu = OnGpu("left out here", resize)
            measure("decode processes, resize elsewhere", clip, paths, pids)
        processes.close()
    patched._FEW_CORES = 99
    wait_instead()
    for workers in (2, 8, 16, 32):
        clip = ClipEmbedder(Quick(), workers=workers, batch_size=BATCH, cache=None, device="cpu")
        clip._with_torch = True
        measure(f"{workers} threads, decoders that wait", clip, paths)


if __name__ == "__main__":
    main()
