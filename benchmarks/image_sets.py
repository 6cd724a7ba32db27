"""Sets of JPEG files that cost a program what photos cost it.

    python benchmarks/image_sets.py --cache ~/.cache/clip-embed-benchmarks --images 48

What a JPEG costs to decode depends on its pixels and on its bytes, which are Huffman codes of the detail.
Plain colours, gradients and drawings decode far too fast, white noise far too slowly. So a file here

- begins as a part of one of the demo's photos, enlarged: its objects, edges, colours and flat skies;
- gets back the fine detail that enlarging does not give: noise whose power falls with the square of the
  frequency, as it does in nature, more of it where the photo has texture, and a little grain everywhere;
- is saved as cameras and web sites do, at a quality of 85 to 90 and with 4:2:0 chroma;
- has exactly as much detail as brings it to its size in bytes: the amount is searched for each file. Sizes
  vary by a quarter around the mean of the set, as they do in an album.

The means are those of photos: 1.5 bits per pixel (57 KB at 640 × 480, 2.2 MB at 12 megapixels), or 4 where
there is grass and leaves everywhere (150 KB). The seed is fixed, and no file of a set is like another, so
that no program gains by remembering content.
"""

from __future__ import annotations

import io
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from PIL import Image

from clip_embed.demo import photos

SEED = 20
RECIPE = "1"  # in the names of folders: count it up when a change gives other files
SPREAD = 0.25
TOLERANCE = 0.03
TRIALS = 12

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ImageSet:
    """What the files of a set have in common."""

    name: str
    width: int
    height: int
    mean_bytes: int
    evenness: float
    """Share of the detail that lies everywhere alike, rather than where the photo has texture."""
    images: int
    """How many files a benchmark takes unless told otherwise."""


SETS = {
    each.name: each
    for each in (
        ImageSet("small", 640, 480, 57_000, 0.3, images=48),
        ImageSet("small-rich", 640, 480, 150_000, 0.9, images=48),
        ImageSet("large", 4000, 3000, 2_200_000, 0.3, images=12),
    )
}


def files(image_set: ImageSet, count: int, cache: Path, processes: int = 1) -> list[Path]:
    """The first `count` files of a set below `cache`; what is missing is made, by so many processes."""
    folder = cache / f"{image_set.name}-{RECIPE}"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:05}.jpg" for index in range(count)]
    missing = [(index, path) for index, path in enumerate(paths) if not path.exists()]
    if missing and processes > 1:
        shares = [missing[start::processes] for start in range(min(processes, len(missing)))]
        with ProcessPoolExecutor(len(shares), multiprocessing.get_context("spawn")) as pool:
            list(pool.map(partial(_write, image_set), shares))
    elif missing:
        _write(image_set, missing)
    return paths


def _write(image_set: ImageSet, missing: list[tuple[int, Path]]) -> None:
    detail = natural_noise(image_set.width, image_set.height)
    for index, path in missing:
        part = path.with_suffix(".part")
        part.write_bytes(make(image_set, index, detail))
        part.replace(path)


def make(image_set: ImageSet, index: int, detail: Float32) -> bytes:
    """One JPEG file, the same for the same set and index."""
    rng = np.random.default_rng([SEED, image_set.width, image_set.mean_bytes, index])
    quality = int(rng.integers(85, 91))
    even = index * 0.618034 % 1  # the golden ratio: the mean holds for a dozen files too
    wanted = image_set.mean_bytes * (1 - SPREAD + 2 * SPREAD * even)
    share, place = rng.uniform(0.6, 1.0), rng.uniform(0, 1, 2)
    colour = rng.uniform(0.8, 1.1, 3).astype(np.float32)
    shift = (int(rng.integers(image_set.height)), int(rng.integers(image_set.width)))
    picture = enlarged(image_set, index, share, place) * colour
    while len(to_jpeg(picture, quality)) > 0.8 * wanted:  # a photo full of edges: enlarge it more
        share *= 0.8
        picture = enlarged(image_set, index, share, place) * colour
    detail = np.roll(detail, shift, axis=(0, 1)) * texture(picture, image_set.evenness)
    grain = rng.normal(0, 0.15, detail.shape).astype(np.float32)
    return of_size(picture, detail + grain, quality, wanted)


def enlarged(image_set: ImageSet, index: int, share: float, place: npt.NDArray[np.float64]) -> Float32:
    """A part of a photo in the size of the set: float32 (height, width, 3), no finer than the photo."""
    sources = photos()
    with Image.open(sources[index % len(sources)]) as opened:
        photo = opened.convert("RGB")
    width = min(photo.width, photo.height * image_set.width / image_set.height) * share
    height = width * image_set.height / image_set.width
    left, top = place * (photo.width - width, photo.height - height)
    size = (image_set.width, image_set.height)
    part = photo.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    return 16 + 0.88 * np.asarray(part, np.float32)  # room for the detail at both ends


def natural_noise(width: int, height: int) -> Float32:
    """Noise (height, width) of mean 0 and deviation 1 whose power falls with the square of the frequency."""
    rng = np.random.default_rng([SEED, width, height])
    spectrum = np.fft.rfft2(rng.standard_normal((height, width), np.float32))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    # The photo itself has what is larger than some 20 pixels.
    spectrum *= np.where(frequency > 1 / 20, 1 / np.maximum(frequency, 1e-9), 0)
    noise = np.fft.irfft2(spectrum, (height, width)).astype(np.float32)
    return noise / noise.std()


def texture(picture: Float32, evenness: float) -> Float32:
    """How much detail a place bears, (height, width) with mean 1: little in a sky, much in grass."""
    luma = Image.fromarray(np.clip(picture.mean(axis=2), 0, 255).astype(np.uint8))
    coarse = np.asarray(luma.resize((64, 48), Image.Resampling.BOX), np.float32)
    steps = np.abs(np.gradient(coarse)).sum(axis=0) + 2
    weight = Image.fromarray(steps.astype(np.float32)).resize(luma.size, Image.Resampling.BICUBIC)
    weights = np.asarray(weight, np.float32)
    weights = np.clip(weights / weights.mean(), 0.2, 3)
    return evenness + (1 - evenness) * weights / weights.mean()


def of_size(picture: Float32, detail: Float32, quality: int, wanted: float) -> bytes:
    """The JPEG file of the picture with so much of the detail that it has the wanted bytes."""
    low, high = 0.0, 64.0
    encoded = b""
    for _ in range(TRIALS):
        amount = (low + high) / 2
        encoded = to_jpeg(picture + (amount * detail)[..., None], quality)
        if abs(len(encoded) - wanted) <= TOLERANCE * wanted:
            return encoded
        low, high = (amount, high) if len(encoded) < wanted else (low, amount)
    raise ValueError(f"no amount of detail gives {wanted:.0f} bytes, the last gave {len(encoded)}")


def to_jpeg(pixels: Float32, quality: int) -> bytes:
    """Encode float32 (height, width, 3) with 4:2:0 chroma."""
    buffer = io.BytesIO()
    image = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def describe(image_set: ImageSet, paths: list[Path]) -> dict[str, object]:
    """What there is to say about the files: count, size, bytes, bits per pixel."""
    sizes = [path.stat().st_size for path in paths]
    pixels = image_set.width * image_set.height
    return {
        "images": len(paths),
        "width": image_set.width,
        "height": image_set.height,
        "mean_bytes": round(sum(sizes) / len(sizes)),
        "bytes": [min(sizes), max(sizes)],
        "bits_per_pixel": round(8 * sum(sizes) / len(sizes) / pixels, 2),
        "jpeg": "4:2:0, quality 85-90",
    }


@click.command()
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="Folder for the files.")
@click.option("--images", type=click.IntRange(1), help="Files of each set; default: each set's own count.")
@click.argument("names", nargs=-1, type=click.Choice(list(SETS)))
def main(cache: Path, images: int | None, names: tuple[str, ...]) -> None:
    """Make the image sets NAMES, all of them by default, and describe them."""
    for name in names or SETS:
        paths = files(SETS[name], images or SETS[name].images, cache)
        click.echo(f"{name:12s} {describe(SETS[name], paths)}")


if __name__ == "__main__":
    main()
