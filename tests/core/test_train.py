"""Fine-tuning a tiny CLIP on coloured squares: what is learned, kept, measured and refused."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from clip_embed import (
    ClipEmbedder,
    ImageError,
    ImagePolicy,
    MissingExtra,
    ModelUnsupported,
    SpaceMismatch,
    evaluate_retrieval,
    train,
)
from clip_embed._stamp import check_stamp
from clip_embed._train import _libraries, _open, _split, _student, _vectors
from clip_embed.cli import main

COLOURS = {"red": (230, 20, 20), "green": (20, 200, 40), "blue": (20, 40, 230), "white": (250, 250, 250)}
Pair = tuple[Path, str]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    """Twenty squares in four shaded colours; captions that look like names of files."""
    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    found: list[Pair] = []
    for place in range(20):
        name = list(COLOURS)[place % 4]
        pixels = np.clip(np.array(COLOURS[name]) + rng.integers(-20, 20, (32, 32, 3)), 0, 255).astype(
            np.uint8
        )
        Image.fromarray(pixels).save(folder / f"{place}.png")
        found.append((folder / f"{place}.png", f"{name}.png"))
    return found


def test_training_raises_recall_in_a_space_of_its_own(
    clip_folder: Path, pairs: list[Pair], tmp_path: Path
) -> None:
    """Held-out squares find their colours; the folder loads, and the old model's vectors are refused."""
    pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    told: list[tuple[int, float]] = []
    found = train(
        clip_folder,
        pairs[4:],
        tmp_path / "learned",
        held_out=pairs[:4],
        epochs=4,
        batch_size=8,
        chunk_size=4,
        learning_rate=1e-3,
        device="cpu",
        progress=lambda epoch, recall: told.append((epoch, recall)),
    )
    assert found.after > found.before
    assert told[0] == (0, found.before)
    assert found.after == max(recall for _, recall in told)
    assert (found.pairs, found.held_out) == (16, 4)
    assert "16 pairs" in str(found)
    old, new = ClipEmbedder(clip_folder, device="cpu"), ClipEmbedder(tmp_path / "learned", device="cpu")
    assert new.space == found.space != old.space
    scores = new.scores([path for path, _ in pairs[:4]], [caption for _, caption in pairs[:4]])
    assert (scores.argmax(axis=1) == np.arange(4)).mean() >= found.before
    with pytest.raises(SpaceMismatch):
        check_stamp(old.stamp(), old.dim, new, "the store")


def test_captions_of_one_image_stay_together(clip_folder: Path, pairs: list[Pair], tmp_path: Path) -> None:
    """All captions of a held-out image are kept from training, and any of them counts as its own."""
    pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    twice = [(path, caption) for path, name in pairs for caption in (name, f"a picture, {name}")]
    for seed in range(5):
        learned, judged = _split(twice, 0.2, seed)
        assert len(judged) == 8
        assert len({path for path, _ in judged}) == 4
        assert not {path for path, _ in judged} & {path for path, _ in learned}
    held_out = [*twice[:8], *twice[:8]]  # equal captions of an image would be wrong for each other
    found = train(clip_folder, twice[8:], tmp_path / "x", held_out=held_out, epochs=1, learning_rate=1e-12)
    clip = ClipEmbedder(clip_folder, device="cpu", precision="exact")
    captions = [[caption for each, caption in held_out if each == path] for path, _ in pairs[:4]]
    expected = evaluate_retrieval(clip, [path for path, _ in pairs[:4]], captions)
    assert found.before == (expected.text_to_image(1) + expected.image_to_text(1)) / 2
    assert (found.held_out, found.chance) == (16, 1 / 4)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]  # nothing else is left there


def test_photos_are_held_in_the_size_of_the_model(
    clip_folder: Path, photo: Callable[..., Image.Image], tmp_path: Path
) -> None:
    """A batch of large photos takes no more memory than one of small ones, and has the embedder's pixels."""
    pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    spec = ClipEmbedder(clip_folder).model.image_spec
    photo(1200, 900).save(tmp_path / "large.jpg")
    seen = _open(tmp_path / "large.jpg", policy=ImagePolicy(), spec=spec)
    assert seen.size == (224, 224)
    clip = ClipEmbedder(clip_folder, device="cpu")
    student = _student(_libraries(), clip_folder, "cpu")
    vector = _vectors(student, [seen])[0]
    assert vector @ clip.embed_images([tmp_path / "large.jpg"])[0] > 0.9999


def test_an_end_in_the_middle_leaves_nothing(clip_folder: Path, pairs: list[Pair], tmp_path: Path) -> None:
    """Neither a half-written model nor what the trainer keeps on the way."""
    pytest.importorskip("datasets")
    pytest.importorskip("accelerate")

    def stop(epoch: int, _: float) -> None:
        if epoch:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(clip_folder, pairs, tmp_path / "new" / "x", progress=stop)
    assert not list((tmp_path / "new").iterdir())


def test_a_model_that_gains_nothing_stays_as_it_was(
    clip_folder: Path, pairs: list[Pair], tmp_path: Path
) -> None:
    """Without a gain what is saved is the model that was given: the same space."""
    pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    table = tmp_path / "pairs.csv"
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([("file", "caption"), *pairs])
    result = CliRunner().invoke(
        main,
        ["train", str(table), "--to", str(tmp_path / "same"), "--model", str(clip_folder), "--epochs", "1",
         "--learning-rate", "1e-12", "--batch-size", "16", "--chunk-size", "8"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "epoch 1: recall@1" in result.stderr
    assert "18 pairs, 1 epochs" in result.stdout
    assert ClipEmbedder(tmp_path / "same").space == ClipEmbedder(clip_folder).space


def test_what_cannot_be_trained_is_refused_before_it_begins(
    clip_folder: Path, pairs: list[Pair], tmp_path: Path
) -> None:
    """The offline model, a folder that is there, too few pairs, empty captions, broken images."""
    with pytest.raises(ModelUnsupported, match="offline"):
        train("offline", pairs, tmp_path / "x")
    with pytest.raises(FileExistsError, match="is there already"):
        train(clip_folder, pairs, tmp_path)
    pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    with pytest.raises(ValueError, match="1 images to learn from and 2 held out are too few"):
        train(clip_folder, pairs[:3], tmp_path / "x")
    with pytest.raises(ValueError, match="too few"):
        train(clip_folder, [(pairs[0][0], f"caption {place}") for place in range(9)], tmp_path / "x")
    with pytest.raises(ValueError, match=r"0\.png is to be learned from, and held out"):
        train(clip_folder, pairs, tmp_path / "x", held_out=[(pairs[0][0], "another"), pairs[1]])
    with pytest.raises(ValueError, match="share between 0 and 1"):
        train(clip_folder, pairs, tmp_path / "x", held_out=2)
    with pytest.raises(ValueError, match=r"the caption of .*0\.png is empty"):
        train(clip_folder, [(pairs[0][0], " "), *pairs[1:]], tmp_path / "x")
    (tmp_path / "bad.jpg").write_bytes(b"broken")
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        train(clip_folder, [*pairs, (tmp_path / "bad.jpg", "broken")], tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_missing_libraries_are_named(
    clip_folder: Path, pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without accelerate or datasets the error says which extra has them."""
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtra, match=r"accelerate.*clip-embed\[train\]"):
        train(clip_folder, pairs, tmp_path / "x")
