"""Choose how colour enters the vectors, on recoloured renders only.

    pip install 'clip-embed[offline]'        # and npm
    python training/choose_colour_weight.py --cache ~/.cache/clip-embed-training

For every query "COLOUR OBJECT" over all pictures the wanted order is: the object in the colour, the object
in other colours, everything else. Objects that the model does not know in a drawing (their name not among
the three best of all names) are left out of the queries, because no colour part can find them.
Forms: "none" ignores colour, "kept" also leaves the colour word in the text; "sum" adds alone × colour;
"product" adds bound × topics × colour; "joined" adds both, which is what ships. Chosen is the best "both" of
those whose "order" is at least 0.8 on the vendors for selection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import torch
from emoji_sources import OBJECTS
from recoloured_renders import scenes

from clip_embed._types import Float32
from clip_embed.offline._colour import colour_parts
from clip_embed.offline._colour_words import COLOUR_TERMS
from clip_embed.offline._heads import ConseHeads, LooksHeads, TrainedHead
from clip_embed.offline._towers import ImageTower, TextTower
from clip_embed.offline._vectors import LOOKS

NAMES = tuple(OBJECTS)
SIMILAR = (
    {
        "car",
        "racing car",
        "taxi",
        "truck",
        "pickup truck",
        "bus",
        "minibus",
        "tractor",
        "motorcycle",
        "scooter",
    },
    {"train", "bus", "bicycle", "motorcycle", "scooter"},
    {"boot", "shoe", "sock"},
    {"bird", "parrot"},
    {"backpack", "handbag"},
    {"cup", "teapot"},
)
"""Objects that do not count as wrong for each other's names."""
SELECTION, HELD_OUT = ("fluent", "google"), ("twitter",)
SHARES = {"whole": None, "seen": 0.0, "seen-0.3": 0.3, "seen-0.6": 0.6}
"""Whose pixels count: the whole image's; by the activation map, less a share of those outside it."""
TRIALS = (
    ("none", "seen-0.3", ((0.0, 0.0),)),
    ("kept", "seen-0.3", ((0.0, 0.0),)),
    ("sum", "seen-0.3", ((0.0, 0.1), (0.0, 0.2), (0.0, 0.4))),
    ("product", "whole", ((1.0, 0.0),)),
    ("product", "seen", ((1.0, 0.0),)),
    ("product", "seen-0.3", ((0.5, 0.0), (0.75, 0.0), (1.0, 0.0), (1.5, 0.0))),
    ("product", "seen-0.6", ((1.0, 0.0),)),
    ("joined", "seen-0.3", tuple((bound, alone) for bound in (0.5, 1.0, 1.5) for alone in (0.1, 0.2, 0.3))),
)
"""Form, whose pixels count, weights (bound, alone)."""
COLUMNS = ("recolours", "within", "precision", "object", "both", "order", "tail")
LEGEND = """\
recolours  right colour first among the eleven recolours of one picture (chance 0.09)
within     average precision of the colour among all pictures of the object
precision  share of the first k that have object and colour, k = how many there are
object     average precision of the object over all pictures, whatever its colour
both       average precision of object and colour over all pictures
order      chance that the object in another colour beats another object in the colour asked for
tail       share of the object among the rows up to its last one"""


@dataclass(frozen=True, slots=True)
class Pictures:
    """All pictures of some vendors; arrays of n rows."""

    vendor: npt.NDArray[np.str_]
    name: npt.NDArray[np.str_]
    colour: npt.NDArray[np.int64]
    scene: npt.NDArray[np.int64]
    meaning: Float32
    looks: Float32
    shares: dict[str, Float32]

    def of(self, vendors: Sequence[str]) -> Pictures:
        """Those of the vendors."""
        rows = np.isin(self.vendor, vendors)
        shares = {kind: parts[rows] for kind, parts in self.shares.items()}
        labels = self.vendor[rows], self.name[rows], self.colour[rows], self.scene[rows]
        return Pictures(*labels, self.meaning[rows], self.looks[rows], shares)


def look(cache: Path) -> Pictures:
    """Make the pictures and run the image tower over them (minutes)."""
    tower, conse, trained, looks_heads = ImageTower("cpu"), ConseHeads(), TrainedHead.shipped(), LooksHeads()
    labels: list[tuple[str, str, int, int]] = []
    meanings: list[Float32] = []
    looks: list[Float32] = []
    shares: dict[str, list[Float32]] = {kind: [] for kind in SHARES}
    for number, scene in enumerate(scenes(cache)):
        labels += [(scene.vendor, scene.name, colour, number) for colour in scene.colours]
        seen = tower(scene.pixels)
        meanings.append(trained(seen, conse.image(seen)))
        looks.append(looks_heads.image(seen))
        for kind, share in SHARES.items():
            where = np.ones_like(seen.activation) if share is None else seen.activation
            shares[kind].append(colour_parts(scene.pixels, where, share or 0.0))
    vendor, name, colour, scene_of = (np.array(column) for column in zip(*labels, strict=True))
    joined = {kind: np.concatenate(parts) for kind, parts in shares.items()}
    return Pictures(vendor, name, colour, scene_of, np.concatenate(meanings), np.concatenate(looks), joined)


class Ranking:
    """Scores and measures over one set of pictures."""

    def __init__(self, pictures: Pictures, texts: TextTower, heads: ConseHeads) -> None:
        self.pictures = pictures
        plain, looks = heads.text(texts(NAMES)), LooksHeads()
        self._topics = heads.topics(pictures.meaning) @ heads.topics(plain).T

        def alike(vectors: Float32) -> Float32:
            return pictures.meaning @ vectors.T + LOOKS**2 * pictures.looks @ looks.text(vectors).T

        self._plain = alike(plain)
        coloured = [texts([f"{colour} {name}" for name in NAMES]) for colour in COLOUR_TERMS]
        self._coloured = np.stack([alike(vectors) for vectors in coloured])
        self._known = self._known_pictures()
        self.names = [name for name in NAMES if np.sum(self._known & (pictures.name == name)) >= 22]

    def _known_pictures(self) -> npt.NDArray[np.bool_]:
        """(n,): the pictures of the scenes in which the object's name is among the three best of all."""
        known = np.zeros(len(self.pictures.name), dtype=bool)
        for number in np.unique(self.pictures.scene):
            rows = self.pictures.scene == number
            name = self.pictures.name[rows][0]
            best = np.argsort(-self._plain[rows].mean(axis=0))[:3]
            known[rows] = name in [NAMES[position] for position in best]
        return known

    def scores(self, form: str, kind: str, weights: tuple[float, float], name: str, colour: int) -> Float32:
        """(n,): how well each picture fits "colour name"."""
        column, named = NAMES.index(name), self.pictures.shares[kind][:, colour]
        if form == "kept":
            return self._coloured[colour, :, column]
        bound, alone = weights
        asked = bound * self._topics[:, column] + alone
        return np.asarray(self._plain[:, column] + asked * named, dtype=np.float32)

    def measure(self, form: str, kind: str, weights: tuple[float, float]) -> npt.NDArray[np.float64]:
        """(7,): the mean of each of COLUMNS over all queries."""
        rows: list[tuple[float, ...]] = []
        for name in self.names:
            same = self._known & (self.pictures.name == name)
            near = {name}.union(*(group for group in SIMILAR if name in group))
            candidates = same | ~np.isin(self.pictures.name, list(near))
            for colour in range(len(COLOUR_TERMS)):
                scores = self.scores(form, kind, weights, name, colour)
                hues, scene = self.pictures.colour[candidates], self.pictures.scene[candidates]
                rows.append(measures(scores[candidates], same[candidates], hues == colour, scene))
        means: npt.NDArray[np.float64] = np.mean(rows, axis=0)
        return means


def measures(
    scores: Float32, same: npt.NDArray[np.bool_], asked: npt.NDArray[np.bool_], scene: npt.NDArray[np.int64]
) -> tuple[float, ...]:
    """COLUMNS for one query; all arrays (n,): score, is the object, has the colour, scene number."""
    order = np.argsort(-scores, kind="stable")
    both, wanted = same & asked, int(np.sum(same & asked))
    pictures = [np.flatnonzero(same & (scene == number)) for number in np.unique(scene[same])]
    first_right = [asked[rows[np.argmax(scores[rows])]] for rows in pictures]
    rivals = np.sort(scores[~same & asked])
    beaten = np.searchsorted(rivals, scores[same & ~asked]) / max(1, len(rivals))
    return (
        float(np.mean(first_right)),
        average_precision(scores[same], asked[same]),
        float(both[order[:wanted]].mean()),
        average_precision(scores, same),
        average_precision(scores, both),
        float(beaten.mean()),
        float(same.sum() / (np.flatnonzero(same[order])[-1] + 1)),
    )


def average_precision(scores: Float32, relevant: npt.NDArray[np.bool_]) -> float:
    """Mean precision at each relevant row, best score first; at least one row is relevant."""
    ranked = relevant[np.argsort(-scores, kind="stable")]
    return float((np.cumsum(ranked)[ranked] / (np.flatnonzero(ranked) + 1)).mean())


@click.command()
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="Folder for the downloads.")
def main(cache: Path) -> None:
    """Print the measures of every form and weight."""
    torch.set_num_threads(1)
    pictures, texts, heads = look(cache), TextTower("cpu"), ConseHeads()
    print(LEGEND)
    for title, vendors in (("selection", SELECTION), ("held out", HELD_OUT)):
        ranking = Ranking(pictures.of(vendors), texts, heads)
        print(f"\n{title} ({', '.join(vendors)}): {len(ranking.pictures.name)} pictures, ", end="")
        print(f"{len(ranking.names)} objects × {len(COLOUR_TERMS)} colours")
        print(f"{'form':8} {'shares':9} bound alone " + " ".join(f"{column:>9}" for column in COLUMNS))
        for form, kind, pairs in TRIALS:
            for weights in pairs:
                figures = " ".join(f"{figure:9.3f}" for figure in ranking.measure(form, kind, weights))
                print(f"{form:8} {kind:9} {weights[0]:5.2f} {weights[1]:5.2f} {figures}", flush=True)


if __name__ == "__main__":
    main()
