"""How fast the offline model is beside CLIP ViT-B/32, and how long it takes from import to the first vector.

    python benchmarks/offline_speed.py --cache ~/.cache/clip-embed-benchmarks

Both see the demo photos, as files; weights of ViT-B/32 are random (random_clip.py), which does not change
its speed. The rounds alternate, so that a busy neighbour meets both; a ratio is the median over the rounds.
A cold start is a fresh interpreter that imports clip_embed, embeds one photo and prints.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import click
from random_clip import clip_folder

from clip_embed import ClipEmbedder
from clip_embed.demo import photos

STARTS = 5
COLD = "import clip_embed, sys; print(clip_embed.ClipEmbedder(sys.argv[1]).embed_images([sys.argv[2]]).shape)"


def seconds_of(clip: ClipEmbedder, files: list[Path]) -> float:
    """Wall time of one pass over the files."""
    start = time.perf_counter()
    clip.embed_images(files)
    return time.perf_counter() - start


def cold_start(model: str) -> float:
    """Wall time of a fresh interpreter up to the first vector."""
    start = time.perf_counter()
    command = [sys.executable, "-c", COLD, model, str(photos()[0])]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


@click.command()
@click.option(
    "--cache", type=click.Path(path_type=Path), required=True, help="Folder for the random weights."
)
@click.option("--rounds", default=5, show_default=True)
@click.option(
    "--precision", default="fp32", show_default=True, help="Of ViT-B/32; the offline model has fp32."
)
def main(cache: Path, rounds: int, precision: str) -> None:
    """Print images per second of both, their ratio, and the cold starts."""
    names = {"offline": "offline", "ViT-B/32": str(clip_folder(cache))}
    clips = {
        "offline": ClipEmbedder("offline", cache=None),
        "ViT-B/32": ClipEmbedder(names["ViT-B/32"], cache=None, precision=precision),
    }
    files = photos()
    for clip in clips.values():
        clip.embed_images(files)
    times: dict[str, list[float]] = {name: [] for name in clips}
    for _ in range(rounds):
        for name, clip in clips.items():
            times[name].append(seconds_of(clip, files))
    for name, found in times.items():
        print(f"{name:9s} {len(files) / statistics.median(found):6.1f} images/s")
    ratios = [theirs / ours for ours, theirs in zip(times["offline"], times["ViT-B/32"], strict=True)]
    print(
        f"offline: {statistics.median(ratios):.2f} times as fast as ViT-B/32 in {precision}, {rounds} rounds"
    )
    for name, model in names.items():
        starts = [cold_start(model) for _ in range(STARTS)]
        print(f"{name:9s} import to first vector: {statistics.median(starts):.1f} s, median of {STARTS}")


if __name__ == "__main__":
    main()
