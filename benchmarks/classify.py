"""What templates do for zero-shot labels: one sentence, the small set, the set of 80.

    python benchmarks/classify.py [MODEL]

The demo's photos, each with the first of its tags (captions.csv, written before there was a model) as its
right label among all first tags. The report says how far the verdict hangs on one sentence.
"""

from __future__ import annotations

import csv
import sys

import numpy as np

from clip_embed import ClipEmbedder, explain_labels
from clip_embed.demo import photos


def main(model: str = "offline") -> None:
    """Print accuracy for each set of templates beside chance, then the report."""
    clip = ClipEmbedder(model)
    files = photos()
    with (files[0].parent / "captions.csv").open(encoding="utf-8", newline="") as stream:
        tags = {row["file"]: row["tags"].split()[0] for row in csv.DictReader(stream)}
    truth = [tags[path.name] for path in files]
    labels = sorted(set(truth))
    vectors = clip.embed_images(files)
    commonest = max(truth.count(label) for label in labels) / len(truth)
    print(f"{model}, {len(files)} photos, {len(labels)} labels: {', '.join(labels)}")
    print(f"{'chance':22}{1 / len(labels):6.1%}   the commonest label {commonest:.1%}")
    for name, templates in (("{} alone", ["{}"]), ("few", "few"), ("many", "many")):
        found = clip.classify(vectors, labels, templates=templates)
        print(f"{name:22}{np.mean([a == b for a, b in zip(found.best, truth, strict=True)]):6.1%}")
    for templates in ("few", "many"):
        report = explain_labels(clip, vectors, labels, templates=templates)
        right = report.alone.argmax(axis=2) == [labels.index(label) for label in truth]
        each = right.mean(axis=1)
        print(f"each of {templates!r} alone: {each.min():.1%} to {each.max():.1%}, mean {each.mean():.1%}")
    print(explain_labels(clip, vectors, labels))


if __name__ == "__main__":
    main(*sys.argv[1:])
