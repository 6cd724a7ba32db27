"""Retrieval in both directions, and the right caption of up to 32,768, in bounded memory.

    python benchmarks/retrieval.py [--model offline] [--captions 32768]

The first table is of random vectors, a pair each, for what the evaluation itself costs: time, and how far
the process grows. The second is the demo's: 44 pairs of photo and caption, and captions of no photo to
choose among, made of the parts below, no two alike. Nearly all of its time goes into embedding those.
"""

from __future__ import annotations

import argparse
import resource
import time
from itertools import islice, product

import numpy as np

from clip_embed import ClipEmbedder, evaluate_retrieval
from clip_embed.demo import captions, photos
from clip_embed.testing import FakeModel

HOW = "old new small huge broken shiny dusty plain wet empty round painted"
WHAT = (
    "kettle trumpet cradle sundial ladder violin tractor umbrella lamp statue backpack piano tent anchor "
    "barrel carpet engine fence glove hammer island jar kite letter mirror needle oven parrot quilt rope "
    "saddle vase wheel yacht zebra candle"
)
WHERE = (
    "on a beach/in a kitchen/under a tree/at night/in the snow/on a shelf/in an empty street/by a river/"
    "behind a window/in a garden/on a wooden floor/in a museum/next to a wall/in fog/on a hill/in a market/"
    "near a church/in a workshop"
)
STYLE = "a photo of/a sketch of/a postcard with/a close look at/a view of/a poster of"


def made_captions(count: int) -> list[str]:
    """Captions of no photo, no two alike."""
    parts = product(WHAT.split(), WHERE.split("/"), HOW.split(), STYLE.split("/"))
    return list(islice((f"{style} a {how} {what} {where}" for what, where, how, style in parts), count))


def peak_mb() -> float:
    """Peak resident memory of this process (Linux), in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="offline")
    parser.add_argument("--captions", type=int, default=32_768)
    options = parser.parse_args()

    count = options.captions
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((2, count, 512), np.float32)
    vectors[1] += vectors[0] / 4
    clip = ClipEmbedder(FakeModel(dim=512))
    before, start = peak_mb(), time.perf_counter()
    found = evaluate_retrieval(clip, vectors[0], vectors[1])
    print(
        f"random vectors: {time.perf_counter() - start:.1f} s, {peak_mb() - before:+.0f} MB\n{found}\n",
        flush=True,
    )

    files = photos()
    texts = [captions()[path.name] for path in files]
    others = made_captions(count - len(texts))
    clip = ClipEmbedder(options.model, cache=None)
    start = time.perf_counter()
    found = evaluate_retrieval(clip, files, texts, distractors=others)
    print(f"{options.model}: {time.perf_counter() - start:.0f} s, {peak_mb():.0f} MB at most\n{found}")


if __name__ == "__main__":
    main()
