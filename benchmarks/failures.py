"""Where CLIP fails, an example of each way: for docs/limits.md, which benchmarks/uses.py fills in."""

from __future__ import annotations

import numpy as np
from pages import FILES, PLACE, Floats, Row, Section, shown, tags

from clip_embed import ClipEmbedder, explain_labels, similar

Failure = tuple[str, Row]  # a line, and a row of pictures


def misled(what: str, text: str, clip: ClipEmbedder, vectors: Floats) -> Failure:
    """What a text finds that no picture can show."""
    hits = similar(clip, vectors, clip.embed_texts([text]), k=6)
    names = ", ".join(FILES[place].stem for place, _ in hits)
    row = shown(hits.indices.tolist(), lambda rank: f"{hits.scores[rank]:.2f}")
    return f"{what}: “{text}” finds {names}", (f"{what}: “{text}”", row)


def counting(clip: ClipEmbedder, vectors: Floats) -> Failure:
    """What is said, and how many there are where that is wrong."""
    numbers = ("one animal", "two animals", "three animals", "four animals")
    truth = {"dogs_window": "two", "cat_ginger": "one", "panda": "one", "moose": "one"}
    found = clip.classify(vectors[[PLACE[name] for name in truth]], numbers)
    said = [f"{row[0][0].split()[0]} {row[0][1]:.2f}" for row in found.top(1)]
    tiles = [
        (FILES[PLACE[name]], words if words.startswith(right) else f"{words}, not {right}")
        for (name, right), words in zip(truth.items(), said, strict=True)
    ]
    return (
        "counting animals: " + "; ".join(f"{path.stem}: {words}" for path, words in tiles),
        ("counting animals", tiles),
    )


def fine_detail(clip: ClipEmbedder, vectors: Floats) -> Failure:
    """What is said about cars, and their kind where that is wrong."""
    kinds = {"saloon": "saloon car", "suv": "SUV", "pickup": "pickup truck", "taxi": "taxi"}
    cars = [path for path in FILES if path.stem.startswith("car_") and path.stem.split("_")[-1] in kinds]
    truth = [path.stem.split("_")[-1] for path in cars]
    said = clip.classify(vectors[[PLACE[path.stem] for path in cars]], list(kinds.values())).best
    tiles = [
        (path, words if words == kinds[kind] else f"{words}, not {kind}")
        for path, kind, words in zip(cars, truth, said, strict=True)
    ]
    wrong = [tile for tile in tiles if ", not " in tile[1]]
    return (
        f"fine detail: the kind of {len(cars)} cars, {len(kinds)} labels: {len(cars) - len(wrong)} right",
        ("fine detail: the kind of a car", (wrong + [tile for tile in tiles if tile not in wrong])[:6]),
    )


def phrasing(clip: ClipEmbedder, vectors: Floats) -> Failure:
    """The photos whose label hangs most on the sentence."""
    labels = sorted({each[0] for each in tags()})
    report = explain_labels(clip, vectors, labels, templates="many")
    worst = np.argsort(report.agreement, kind="stable")[:6].tolist()
    given = [len(set(report.alone[:, place].argmax(axis=1).tolist())) for place in worst]
    row = shown(worst, lambda rank: f"{given[rank]} labels, {report.agreement[worst[rank]]:.0%}")
    return (
        f"phrasing: {FILES[worst[0]].stem} has {given[0]} different labels over 80 sentences; one alone "
        f"agrees with all of them on {report.agreement.mean():.0%} of the photos",
        ("phrasing: labels over 80 sentences, and the share that agrees", row),
    )


def bias(clip: ClipEmbedder, vectors: Floats) -> Failure:
    """A verdict that no photo can show."""
    names = ("astronaut", "photographer", "panda")
    found = clip.classify(vectors[[PLACE[name] for name in names]], ("a lazy person", "a diligent person"))
    said = [f"{row[0][0].split()[1]} {row[0][1]:.2f}" for row in found.top(1)]
    tiles = [(FILES[PLACE[name]], words) for name, words in zip(names, said, strict=True)]
    return (
        "biased labels: " + "; ".join(f"{path.stem}: {words}" for path, words in tiles),
        ("biased labels: “a lazy person” or “a diligent person”", tiles),
    )


def limits(clip: ClipEmbedder, vectors: Floats) -> Section:
    """One example of each way to fail."""
    found = [
        misled("abstract", "a sense of justice", clip, vectors),
        misled("negation", "a street without any car", clip, vectors),
        *(example(clip, vectors) for example in (counting, fine_detail, phrasing, bias)),
    ]
    return Section("limits", [line for line, _ in found], [row for _, row in found])
