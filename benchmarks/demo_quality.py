"""How well the demo's captions find their photos.

    python benchmarks/demo_quality.py [MODEL]

Each caption of clip_embed/demo/photos/captions.csv, written before there was a model, is a query over all
photos; it is found at k if its own photo is among the best k. Real photos and composites or renders are
counted apart as queries; the photos searched are always all of them.
"""

from __future__ import annotations

import csv
import sys

import numpy as np

from clip_embed import ClipEmbedder
from clip_embed.demo import captions, photos


def main(model: str = "offline") -> None:
    """Print recall@1 and @5, with the number of queries and chance."""
    clip = ClipEmbedder(model)
    files = photos()
    scores = clip.scores(files, captions().values())
    ranks = (scores > np.diagonal(scores)).sum(axis=0)
    with (files[0].parent / "captions.csv").open(encoding="utf-8", newline="") as stream:
        kinds = {row["file"]: row["kind"] for row in csv.DictReader(stream)}
    real = np.array([kinds[path.name] == "photo" for path in files])
    print(f"{model}, {len(files)} photos; chance @1 {1 / len(files):.1%}, @5 {5 / len(files):.1%}")
    for name, chosen in (("all", real | True), ("real photos", real), ("composites, renders", ~real)):
        at_1, at_5 = (ranks[chosen] < 1).mean(), (ranks[chosen] < 5).mean()
        print(f"{name:20s} n = {chosen.sum():2d}   recall@1 {at_1:.1%}   recall@5 {at_5:.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
