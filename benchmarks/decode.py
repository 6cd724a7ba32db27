"""What it costs to get from a JPEG's bytes to the pixels of CLIP ViT-B/32 (224 × 224), in CPU time.

    python benchmarks/decode.py

Prints CPU milliseconds per image, all threads counted, for 640 × 480 and for 12 megapixels:
Pillow as transformers' PIL processor uses it (`precision="exact"`), our fast way without and with
simplejpeg, and simplejpeg decoding alone, to the same size, as the ceiling. The ways take turns on
each file, so that a busy neighbour meets all of them, and the ratios are medians over the rounds.

Why the images are honest: what a decoder and a resize cost depends on the number of pixels and of
non-zero coefficients, not on what is seen. The images have the spectrum of photos (amplitude
1/frequency^1.2), hard edges and the noise of a sensor, so that their files are as large as a camera's
at that size and quality, which is printed; an image of smooth colours would be a third of that and
flatter everyone. They have 4:2:0 colour, as phones and the web have.
"""

from __future__ import annotations

import argparse
import io
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import PIL
import simplejpeg
import torch
from PIL import Image, ImageDraw

from clip_embed import ImagePolicy, ImageSpec
from clip_embed._images import jpeg as _jpeg
from clip_embed._images.pixels import prepare_pixels
from clip_embed._images.resize import _has_kernels

SPEC, POLICY = ImageSpec(224, (224, 224)), ImagePolicy()
SETS = {"640 × 480": ((640, 480), 85, 8, 5), "12 megapixels": ((4000, 3000), 85, 2, 1)}
"""Size, quality, how many files, how often each is taken in one round."""


def photo_like(width: int, height: int, seed: int) -> Image.Image:
    """An image with the spectrum, the edges and the noise of a photo."""
    rng = np.random.default_rng(seed)
    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    amplitude = np.maximum(np.hypot(down, across), 1 / width) ** -1.2
    shared = rng.standard_normal((height, width))  # the channels of photos are much alike
    channels: list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]] = []
    for _ in range(3):
        white = shared + 0.3 * rng.standard_normal((height, width))
        channel = np.fft.irfft2(np.fft.rfft2(white) * amplitude, s=(height, width))
        channels.append(128 + 45 * channel / channel.std())
    image = Image.fromarray(np.stack(channels, axis=2).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        left, top = rng.uniform(0, 0.9, 2) * (width, height)
        side = rng.uniform(0.02, 0.2) * width
        colour = tuple(int(level) for level in rng.integers(30, 226, 3))
        draw.ellipse((left, top, left + side, top + side), fill=colour)
    noisy = np.asarray(image) + rng.normal(0, 2.5, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def jpeg(width: int, height: int, quality: int, seed: int) -> bytes:
    """Encode one such image."""
    buffer = io.BytesIO()
    photo_like(width, height, seed).save(buffer, "JPEG", quality=quality, subsampling=2)
    return buffer.getvalue()


def with_pillow(file: bytes) -> object:
    """Prepare as the reference does."""
    return prepare_pixels(file, file, SPEC, POLICY, exact=True)


def ours(file: bytes) -> object:
    """Prepare as clip-embed does unless told to be exact."""
    return prepare_pixels(file, file, SPEC, POLICY)


def ours_without_simplejpeg(file: bytes) -> object:
    """Prepare as without the extra `fast`."""
    codec, _jpeg._codec = _jpeg._codec, lambda: None  # type: ignore[assignment]
    try:
        return prepare_pixels(file, file, SPEC, POLICY)
    finally:
        _jpeg._codec = codec


def decode_alone(file: bytes) -> object:
    """Decode as far as our way does, and stop there."""
    return simplejpeg.decode_jpeg(file, "RGB", min_height=448, min_width=448)


WAYS: dict[str, Callable[[bytes], object]] = {
    "Pillow, the reference": with_pillow,
    "clip-embed without simplejpeg": ours_without_simplejpeg,
    "clip-embed": ours,
    "simplejpeg decode alone": decode_alone,
}


def measure(files: list[bytes], repeats: int, rounds: int) -> dict[str, list[float]]:
    """CPU milliseconds per image of each way in each round."""
    costs: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds + 1):
        spent = dict.fromkeys(WAYS, 0.0)
        for file in files:
            for way, run in WAYS.items():
                start = time.process_time()
                for _ in range(repeats):
                    run(file)
                spent[way] += time.process_time() - start
        for way, seconds in spent.items():
            costs[way].append(1000 * seconds / len(files) / repeats)
    return {way: values[1:] for way, values in costs.items()}  # the first round warms up


def main() -> None:
    """Print one table for each set of images."""
    parser = argparse.ArgumentParser(description="CPU time of decode and resize.")
    parser.add_argument("--rounds", type=int, default=15)
    rounds: int = parser.parse_args().rounds
    print(
        f"{platform.machine()}, torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}), "
        f"Pillow {PIL.__version__}, simplejpeg {simplejpeg.__version__}; "
        f"resize by {'torch' if _has_kernels() else 'Pillow'}"
    )
    for name, ((width, height), quality, count, repeats) in SETS.items():
        files = [jpeg(width, height, quality, seed) for seed in range(count)]
        costs = measure(files, repeats, rounds)
        size = statistics.mean(len(file) for file in files) / 1000
        print(f"\n{name}, {count} files of {size:,.0f} kB on average, median of {rounds} rounds")
        print(f"{'':32s}{'CPU ms':>8s}{'× faster than Pillow':>22s}{'of the ceiling':>16s}")
        for way, values in costs.items():
            faster = statistics.median(
                a / b for a, b in zip(costs["Pillow, the reference"], values, strict=True)
            )
            ceiling = statistics.median(
                a / b for a, b in zip(costs["simplejpeg decode alone"], values, strict=True)
            )
            print(f"{way:32s}{statistics.median(values):8.2f}{faster:22.2f}{ceiling:16.0%}")


if __name__ == "__main__":
    main()
