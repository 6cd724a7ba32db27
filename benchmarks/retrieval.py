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
from clip_embed._embedder import Images
from clip_embed._vectors import Vectors
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


def measured(
    embedder: ClipEmbedder, images: Images | Vectors, captions: list[str] | Vectors, others: list[str]
) -> str:
    """Evaluate, and say what it took: processor time too, as other programs do not lengthen it much."""
    before, start, used = peak_mb(), time.perf_counter(), time.process_time()
    found = evaluate_retrieval(embedder, images, captions, distractors=others)
    took = f"{time.perf_counter() - start:.1f} s, {time.process_time() - used:.1f} s of the processor"
    return f"{took}, {peak_mb() - before:+.0f} MB to {peak_mb():.0f} MB\n{found}\n"


def peak_mb() -> float:
    """Peak resident memory of this process (Linux), in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="offline")
    parser.add_argument("--captions", type=int, default=32_768)
    options = parser.parse_args()
    vectors = np.random.default_rng(0).standard_normal((2, options.captions, 512), np.float32)
    vectors[1] += vectors[0] / 4
    print("random vectors:", measured(ClipEmbedder(FakeModel(dim=512)), *vectors, []), flush=True)

    files = photos()
    texts = [captions()[path.name] for path in files]
    clip = ClipEmbedder(options.model, cache=None)
    clip.load()
    print(f"{options.model}:", measured(clip, files, texts, made_captions(options.captions - len(texts))))


if __name__ == "__main__":
    main()
