"""How good heads are: photos for selection, and the test sets that nothing is selected on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from features import BATCH, on_white
from held_out import stamps, validation_photos
from PIL import Image
from texts import encode

from clip_embed._types import Float32, UInt8
from clip_embed.demo import captions
from clip_embed.demo import photos as demo_photos
from clip_embed.offline import _vectors
from clip_embed.offline._colour import colour_parts
from clip_embed.offline._colour_words import parse_colours
from clip_embed.offline._heads import ConseHeads, LooksHeads
from clip_embed.offline._towers import ImageFeatures, ImageTower

DEPTHS = (1, 5, 10)
RESAMPLES = 2000
SCALES = range(5, 105, 5)
UNSEEN_PHRASES = (
    "show me {}", "I am looking for {}", "an old snapshot: {}", "is there any picture with {}?", "{}, please",
)  # fmt: skip
ImageHead = Callable[[ImageFeatures, Float32], Float32]
TextHead = Callable[[Float32], Float32]


@dataclass(frozen=True, slots=True)
class Scorer:
    """The whole model with some pair of heads, from what the towers gave."""

    image_head: ImageHead
    text_head: TextHead
    cache: Path
    with_looks: bool = True

    def images(self, pictures: Pictures) -> Float32:
        """(n, 1003)."""
        conse = ConseHeads()
        meanings = self.image_head(pictures.seen, conse.image(pictures.seen))
        looks = self.with_looks * LooksHeads().image(pictures.seen)
        return _vectors.image_vectors(meanings, looks, conse.topics(meanings), pictures.colours)

    def texts(self, texts: Sequence[str]) -> Float32:
        """(m, 1003)."""
        queries = [parse_colours(text) for text in texts]
        plain, conse = encode([query.rest for query in queries], self.cache), ConseHeads()
        colours = np.stack([query.colours for query in queries])
        names_object = [query.names_object for query in queries]
        meanings, looks = self.text_head(plain), self.with_looks * LooksHeads().text(plain)
        return _vectors.text_vectors(meanings, looks, conse.topics(plain), colours, names_object)


def untrained(cache: Path, *, with_looks: bool = False) -> Scorer:
    """ConSE and the bare text tower: the form that everything is compared with."""
    return Scorer(lambda _, conse: conse, lambda vectors: vectors, cache, with_looks)


@dataclass(frozen=True, slots=True)
class Pictures:
    """What the frozen parts give for some pictures."""

    seen: ImageFeatures
    colours: Float32


def look(pixels: UInt8, name: str, cache: Path) -> Pictures:
    """uint8 (n, 260, 260, 3), kept in the cache under the name."""
    file = cache / f"seen-{name}.npz"
    if not file.exists():
        tower = ImageTower("cpu")
        parts = [tower(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)]
        names = ("features", "focused", "logits", "activation")
        columns = {column: np.concatenate([getattr(part, column) for part in parts]) for column in names}
        np.savez(file, colours=colour_parts(pixels, columns["activation"]), **columns)
    kept = np.load(file)
    return Pictures(
        ImageFeatures(kept["features"], kept["focused"], kept["logits"], kept["activation"]), kept["colours"]
    )


def ranks(images: Float32, texts: Float32, relevant: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """(m,): place, from 0, of the best relevant image of each text; relevant is (m, n)."""
    scores = texts @ images.T
    best = np.where(relevant, scores, -np.inf).max(axis=1, keepdims=True)
    places: npt.NDArray[np.int64] = (scores > best).sum(axis=1)
    return places


def validation_scores(scorer: Scorer) -> tuple[Float32, npt.NDArray[np.int64]]:
    """(q, 36) and (q,): each query's scores of the validation photos, and the photo that it asks for."""
    pairs = validation_photos(scorer.cache)
    pictures = look(np.stack([on_white(photo) for photo, _ in pairs]), "validation", scorer.cache)
    queries = [(query, number) for number, (_, said) in enumerate(pairs) for query in said]
    scores = scorer.texts([query for query, _ in queries]) @ scorer.images(pictures).T
    return scores, np.array([number for _, number in queries])


def validation_ranks(scorer: Scorer) -> npt.NDArray[np.int64]:
    """Places of the validation photos for their queries."""
    scores, wanted = validation_scores(scorer)
    own = np.take_along_axis(scores, wanted[:, None], axis=1)
    places: npt.NDArray[np.int64] = (scores > own).sum(axis=1)
    return places


def best_scale(scorer: Scorer) -> int:
    """What `classify` should multiply cosines with: of SCALES, what makes photos' own queries likeliest."""
    scores, wanted = validation_scores(scorer)
    own = wanted[:, None] == np.arange(scores.shape[1])
    likelihood = {
        scale: float(np.log((softmax(scale * scores, axis=0) * own).sum(axis=0)).mean()) for scale in SCALES
    }
    return max(likelihood, key=lambda scale: likelihood[scale])


def softmax(values: Float32, axis: int) -> Float32:
    """Exponentials, divided by their sum along the axis."""
    grown = np.exp(values - values.max(axis=axis, keepdims=True))
    return np.asarray(grown / grown.sum(axis=axis, keepdims=True), dtype=np.float32)


def drawing_ranks(scorer: Scorer, pictures: Pictures, named: Sequence[str]) -> npt.NDArray[np.int64]:
    """Places of the validation drawings for their names, each name once."""
    said = sorted(set(named))
    relevant = np.array([[name == own for own in named] for name in said])
    return ranks(scorer.images(pictures), scorer.texts(said), relevant)


def stamp_ranks(scorer: Scorer, phrase: str = "{}") -> npt.NDArray[np.int64]:
    """Test set: places of the Tux Paint stamps for their captions, each caption once."""
    pairs = stamps(scorer.cache)
    said = sorted({caption for _, caption in pairs})
    relevant = np.array([[caption == own for _, own in pairs] for caption in said])
    pixels = _pixels([path for path, _ in pairs], "stamps", scorer.cache)
    queries = [phrase.format(caption if phrase == "{}" else _lowered(caption)) for caption in said]
    return ranks(scorer.images(look(pixels, "stamps", scorer.cache)), scorer.texts(queries), relevant)


def _lowered(caption: str) -> str:
    return (caption[:1].lower() + caption[1:]).rstrip(".")


def demo_ranks(scorer: Scorer) -> npt.NDArray[np.int64]:
    """Test set: places of the demo photos for their captions."""
    images = scorer.images(look(_pixels(demo_photos(), "demo", scorer.cache), "demo", scorer.cache))
    return ranks(images, scorer.texts(list(captions().values())), np.eye(len(images), dtype=bool))


def red_cars_first(scorer: Scorer) -> list[str]:
    """Test set: the demo photos, best first, for "red car"."""
    images = scorer.images(look(_pixels(demo_photos(), "demo", scorer.cache), "demo", scorer.cache))
    order = np.argsort(-(images @ scorer.texts(["red car"])[0]), kind="stable")
    return [demo_photos()[row].name for row in order]


def _pixels(paths: Sequence[Path], name: str, cache: Path) -> UInt8:
    if (cache / f"seen-{name}.npz").exists():
        return np.empty((0, 260, 260, 3), np.uint8)
    return np.stack([on_white(Image.open(path)) for path in paths])


def recalls(places: npt.NDArray[np.int64]) -> list[float]:
    """Share of the queries found among the first 1, 5 and 10."""
    return [float((places < depth).mean()) for depth in DEPTHS]


def reciprocal(places: npt.NDArray[np.int64]) -> float:
    """Mean reciprocal rank."""
    return float((1 / (1 + places)).mean())


def interval(values: npt.NDArray[np.floating | np.bool_]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over queries."""
    picks = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[picks].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def paired_p(before: npt.NDArray[np.floating], after: npt.NDArray[np.floating]) -> float:
    """Two-sided p-value of a sign-flip test on the queries' differences."""
    differences = after - before
    flips = np.random.default_rng(0).choice([-1, 1], size=(RESAMPLES * 5, len(differences)))
    reached = np.abs((flips * differences).mean(axis=1)) >= abs(differences.mean()) - 1e-12
    return float((reached.sum() + 1) / (len(reached) + 1))
