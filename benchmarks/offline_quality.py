"""Recall of the offline model on pictures that it was never tuned on: Debian's Tux Paint stamps.

    pip install 'clip-embed[offline]'        # on Debian or Ubuntu: apt-get and dpkg-deb fetch the pictures
    python benchmarks/offline_quality.py --cache ~/.cache/clip-embed-benchmarks

Each distinct description is a query over all pictures; it is found at k if a picture with that description
is among the best k. Chance is 1 ÷ pictures × k for a description of one picture. This is a test set: no
weight, rule or threshold is ever chosen on it, and its pictures (GPL-2+ and others) are never shipped.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from clip_embed._types import Float32
from clip_embed.offline import OfflineModel

PACKAGE = "tuxpaint-stamps-default"
SIDE = 260
BATCH = 8
DEPTHS = (1, 5, 10)


def fetch(cache: Path) -> Path:
    """The folder with the unpacked Debian package, downloaded once."""
    folder = cache / PACKAGE
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", PACKAGE], cwd=cache, check=True)
        archive = next(cache.glob(f"{PACKAGE}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", archive, folder], check=True)
    return folder


def captioned(folder: Path) -> list[tuple[Path, str]]:
    """(picture, first line of its description), sorted by path."""
    pairs: list[tuple[Path, str]] = []
    for description in sorted(folder.rglob("*.txt")):
        caption = description.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip()
        pictures = [description.with_suffix(suffix) for suffix in (".png", ".jpg")]
        pairs += [(picture, caption) for picture in pictures if caption and picture.exists()]
    return pairs


def prepared(path: Path) -> npt.NDArray[np.uint8]:
    """uint8 (260, 260, 3): laid over white, padded to a square with white, resized bicubically."""
    drawing = Image.open(path).convert("RGBA")
    side = max(drawing.size)
    square = Image.new("RGBA", (side, side), (255, 255, 255, 255))
    square.alpha_composite(drawing, ((side - drawing.width) // 2, (side - drawing.height) // 2))
    return np.asarray(square.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def recalls(images: Float32, texts: Float32, relevant: npt.NDArray[np.bool_]) -> list[float]:
    """Share of the texts with a relevant image among the best k, for each of DEPTHS; relevant is (m, n)."""
    order = np.argsort(-(texts @ images.T), axis=1, kind="stable")
    ranked = np.take_along_axis(relevant, order, axis=1)
    return [float(ranked[:, :depth].any(axis=1).mean()) for depth in DEPTHS]


@click.command()
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="Folder for the download.")
def main(cache: Path) -> None:
    """Print recall@1, @5 and @10 from text to image."""
    torch.set_num_threads(1)
    pairs = captioned(fetch(cache))
    captions = sorted({caption for _, caption in pairs})
    model = OfflineModel()
    batches = [pairs[start : start + BATCH] for start in range(0, len(pairs), BATCH)]
    images = np.concatenate(
        [model.embed_images(np.stack([prepared(path) for path, _ in batch])) for batch in batches]
    )
    relevant = np.array([[caption == own for _, own in pairs] for caption in captions])
    print(f"{model.space}: {len(pairs)} images, {len(captions)} captions, text to image")
    for depth, recall in zip(DEPTHS, recalls(images, model.embed_texts(captions), relevant), strict=True):
        print(f"recall@{depth:<3} {recall:6.1%}   chance {depth / len(pairs):6.2%}")


if __name__ == "__main__":
    main()
