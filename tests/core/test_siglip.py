"""SigLIP from a folder: pixels and vectors of the reference, and what of it must not be mistaken for CLIP.

The reference is transformers: its PIL image processor, texts padded to the full length, a float32
forward pass. On random weights all vectors are alike, so the mean is taken away before they are compared.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageOps

from clip_embed import ClipEmbedder, ModelUnsupported
from clip_embed._models import precision as _precision
from clip_embed._models.int8 import RowInt8Linear
from clip_embed._models.model_folder import ModelFolder
from clip_embed._models.precision import Capabilities, capabilities

Float32 = npt.NDArray[np.float32]
EditJson = Callable[[Path, dict[str, object]], None]

TEXTS = [
    "a red car",
    "the dog",
    "ein grünes Haus",
    "x",
    "photo of the dog ing er",
    "car " * 30,
    "red " * 200,
    "",
]
CENTRED = {"exact": 0.9999, "fp32": 0.9999, "bf16": 0.999, "int8": 0.99}
"""Smallest cosine to the float32 vectors on random weights, the mean of the set subtracted."""


@pytest.fixture(scope="module")
def photos(photo: Callable[..., Image.Image]) -> list[Image.Image]:
    """Photos of several shapes, larger and smaller than the model's input."""
    sizes = [(640, 480), (480, 640), (333, 500), (192, 192), (800, 300), (160, 120), (50, 400), (250, 250)]
    return [photo(*size, seed) for seed, size in enumerate(sizes)]


@pytest.fixture(scope="module")
def pixels(siglip_folder: Path, photos: list[Image.Image]) -> Float32:
    """What transformers' PIL image processor gives: (n, 3, 192, 192)."""
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    processor = SiglipImageProcessorPil.from_pretrained(siglip_folder)
    return np.concatenate([processor(image, return_tensors="np")["pixel_values"] for image in photos])


@pytest.fixture(scope="module")
def reference(siglip_folder: Path) -> Any:  # noqa: ANN401 - transformers' SiglipModel
    """transformers' own model in float32."""
    from transformers import SiglipModel

    return SiglipModel.from_pretrained(siglip_folder, dtype=torch.float32).eval()


@torch.inference_mode()
def text_reference(
    reference: Any,  # noqa: ANN401 - transformers' SiglipModel
    folder: Path,
    texts: list[str],
    *,
    padding: str | bool = "max_length",
    mask: bool = False,
) -> Float32:
    """Embed texts one by one, padded to 64 tokens and without a mask unless told otherwise."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    rows = []
    for text in texts:
        options = {"padding": padding, "truncation": True, "max_length": 64, "return_tensors": "pt"}
        tokens = tokenizer(text, return_attention_mask=True, **options)
        masked = {"attention_mask": tokens["attention_mask"]} if mask else {}
        rows.append(reference.get_text_features(input_ids=tokens["input_ids"], **masked))
    return unit(torch.cat([getattr(row, "pooler_output", row) for row in rows]))


@torch.inference_mode()
def image_reference(reference: Any, pixels: Float32) -> Float32:  # noqa: ANN401
    """Embed normalised pixels one by one."""
    rows = [reference.get_image_features(pixel_values=torch.tensor(each[None])) for each in pixels]
    return unit(torch.cat([getattr(row, "pooler_output", row) for row in rows]))


def unit(rows: torch.Tensor) -> Float32:
    """float32 rows of unit length."""
    return torch.nn.functional.normalize(rows).numpy()


def centred(got: Float32, expected: Float32) -> float:
    """The smallest cosine of two sets of rows after the mean of the second is taken away."""
    left, right = got - expected.mean(axis=0), expected - expected.mean(axis=0)
    return float(
        ((left * right).sum(axis=1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)).min()
    )


@pytest.fixture(scope="module")
def embedder(siglip_folder: Path) -> ClipEmbedder:
    """The tiny SigLIP in exact precision, without a cache."""
    return ClipEmbedder(siglip_folder, device="cpu", precision="exact", cache=None, batch_size=4)


def test_pixels_are_the_reference_bit_for_bit(
    embedder: ClipEmbedder, pixels: Float32, photos: list[Image.Image]
) -> None:
    """Resize to height × width without a crop, in the processor's filter; then (x / 255 - .5) / .5."""
    model = embedder.model
    assert isinstance(model, ModelFolder)
    assert (model.image_spec.size, model.image_spec.crop) == ((192, 192), None)
    from clip_embed._images.pixels import to_pixels

    uint8 = np.stack([to_pixels(image, model.image_spec, (255, 255, 255)) for image in photos])
    np.testing.assert_array_equal(uint8, np.rint((pixels * 0.5 + 0.5) * 255).transpose(0, 2, 3, 1))
    model.load()
    np.testing.assert_allclose(model._normalised(uint8).numpy(), pixels, atol=1e-6)


def test_images_are_the_reference(
    embedder: ClipEmbedder,
    reference: Any,  # noqa: ANN401
    pixels: Float32,
    photos: list[Image.Image],
) -> None:
    """Every vector agrees, in any order and batch; the mean is taken away."""
    expected = image_reference(reference, pixels)
    got = embedder.embed_images(photos)
    assert centred(got, expected) >= 0.9999
    np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_allclose(embedder.embed_images(photos[::-1])[::-1], expected, atol=1e-5)


WRONG_IMAGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "mirrored": ImageOps.mirror,
    "BGR": lambda image: Image.merge("RGB", image.split()[::-1]),
    "bilinear": lambda image: image.resize((192, 192), Image.Resampling.BILINEAR),
    "nearest": lambda image: image.resize((192, 192), Image.Resampling.NEAREST),
    "cropped as CLIP does": lambda image: ImageOps.fit(image, (192, 192), Image.Resampling.BICUBIC),
}


@pytest.mark.parametrize("wrong", WRONG_IMAGES)
def test_the_check_rejects_wrong_images(
    wrong: str,
    embedder: ClipEmbedder,
    reference: Any,  # noqa: ANN401
    pixels: Float32,
    photos: list[Image.Image],
) -> None:
    """What a wrong decoder, filter or crop would give fails the same bound."""
    got = embedder.embed_images([WRONG_IMAGES[wrong](image) for image in photos])
    assert centred(got, image_reference(reference, pixels)) < 0.9999


@pytest.mark.filterwarnings("ignore:1 of")
def test_texts_are_the_reference(embedder: ClipEmbedder, reference: Any, siglip_folder: Path) -> None:  # noqa: ANN401
    """Short and long, alone or beside others: texts are padded to 64 tokens as in training."""
    expected = text_reference(reference, siglip_folder, TEXTS)
    got = embedder.embed_texts(TEXTS)
    assert centred(got, expected) >= 0.9999
    np.testing.assert_allclose(got, expected, atol=1e-5)
    alone = np.concatenate([embedder.embed_texts([text]) for text in TEXTS[::-1]])
    np.testing.assert_allclose(alone[::-1], expected, atol=1e-5)


@pytest.mark.parametrize(("padding", "mask"), [(True, False), ("max_length", True), (True, True)])
@pytest.mark.filterwarnings("ignore:1 of")
def test_the_check_rejects_wrong_padding(
    padding: str | bool,
    mask: bool,
    embedder: ClipEmbedder,
    reference: Any,  # noqa: ANN401
    siglip_folder: Path,
) -> None:
    """Padding to the longest text, as for CLIP, or masking what is padded gives other vectors."""
    wrong = text_reference(reference, siglip_folder, TEXTS, padding=padding, mask=mask)
    assert centred(embedder.embed_texts(TEXTS), wrong) < 0.9


def test_capitals_and_punctuation_do_not_count(
    siglip_folder: Path, tmp_path: Path, edit_json: EditJson
) -> None:
    """As in training, also where tokenizer.json leaves that to the caller."""
    folder = shutil.copytree(siglip_folder, tmp_path / "own")
    edit_json(folder / "tokenizer.json", {"normalizer": None})
    for place in (siglip_folder, folder):
        clip = ClipEmbedder(place, device="cpu", precision="exact")
        vectors = clip.embed_texts(["a red car", "A  Red, CAR!\n"])
        np.testing.assert_allclose(vectors[1], vectors[0], atol=1e-6)


def test_a_gemma_tokenizer_keeps_punctuation(
    siglip_folder: Path, tmp_path: Path, edit_json: EditJson
) -> None:
    """SigLIP 2 has another tokenizer: only capitals go, and it is another space."""
    folder = shutil.copytree(siglip_folder, tmp_path / "own")
    edit_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    edit_json(folder / "tokenizer.json", {"normalizer": None})
    clip = ClipEmbedder(folder, device="cpu", precision="exact")
    capitals, dots, plain = clip.embed_texts(["A Red car", "a red. car", "a red car"])
    np.testing.assert_allclose(capitals, plain, atol=1e-6)
    assert np.abs(dots - plain).max() > 1e-3
    assert clip.space != ClipEmbedder(siglip_folder).space


def test_long_texts_warn_at_the_line_of_the_caller(embedder: ClipEmbedder) -> None:
    """More than 64 tokens are cut, and the warning points here, not into the library."""
    with pytest.warns(UserWarning, match=r"1 of 2 texts are longer than the 64 tokens") as caught:
        embedder.embed_texts(["red " * 65, "red " * 60])
    assert caught[0].filename == __file__


def test_both_layouts_are_one_model(siglip_folder: Path, tmp_path: Path, photos: list[Image.Image]) -> None:
    """transformers' folder and the first module of a sentence-transformers folder: one space, one vector."""
    folder = tmp_path / "sentence"
    shutil.copytree(siglip_folder, folder / "0_Transformer")
    module = {
        "idx": 0,
        "name": "0",
        "path": "0_Transformer",
        "type": "sentence_transformers.models.Transformer",
    }
    (folder / "modules.json").write_text(json.dumps([module]))
    one, other = ClipEmbedder(siglip_folder, device="cpu"), ClipEmbedder(folder, device="cpu")
    assert (one.space, one.dim) == (other.space, other.dim)
    assert one.space.startswith("siglip:64:")
    np.testing.assert_allclose(one.embed_images(photos), other.embed_images(photos), atol=5e-3)


CHANGES: dict[str, tuple[str, dict[str, object]]] = {
    "image activation": ("config.json", {"vision_config.hidden_act": "gelu"}),
    "text heads": ("config.json", {"text_config.num_attention_heads": 2}),
    "epsilon": ("config.json", {"text_config.layer_norm_eps": 1e-5}),
    "text length": ("config.json", {"text_config.max_position_embeddings": 32}),
    "filter": ("preprocessor_config.json", {"resample": 2}),
    "deviation": ("preprocessor_config.json", {"image_std": [0.4, 0.5, 0.5]}),
    "padding": ("tokenizer_config.json", {"pad_token": "<pad>"}),
    "kind of tokenizer": ("tokenizer_config.json", {"tokenizer_class": "GemmaTokenizer"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_space_changes_with_what_moves_a_vector(
    change: str, siglip_folder: Path, tmp_path: Path, edit_json: EditJson
) -> None:
    """Tower flags, preprocessing and padding are each part of the space."""
    folder = shutil.copytree(siglip_folder, tmp_path / "own")
    assert ModelFolder(folder).space == ModelFolder(siglip_folder).space
    name, values = CHANGES[change]
    edit_json(folder / name, values)
    assert ModelFolder(folder).space != ModelFolder(siglip_folder).space


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "siglip2"}, "SigLIP 2 NaFlex, whose images have no one size"),
        ({"model_type": "jina_clip", "auto_map": {}}, r"auto_map.*never runs; what can be loaded: CLIP"),
        ({"vision_config.vision_use_head": False}, "no pooling head"),
        ({"text_config.projection_size": 32}, "vectors of 64 and of 32 numbers"),
        ({"vision_config.image_size": 256}, r"gives \(192, 192\), the image tower takes \(256, 256\)"),
    ],
)
def test_what_cannot_be_loaded(
    values: dict[str, object], message: str, siglip_folder: Path, tmp_path: Path, edit_json: EditJson
) -> None:
    """ModelUnsupported says why, from the configuration alone."""
    folder = shutil.copytree(siglip_folder, tmp_path / "own")
    edit_json(folder / "config.json", values)
    with pytest.raises(ModelUnsupported, match=message):
        ModelFolder(folder)


@pytest.mark.parametrize("precision", CENTRED)
def test_precisions(
    precision: str,
    siglip_folder: Path,
    reference: Any,  # noqa: ANN401
    pixels: Float32,
    photos: list[Image.Image],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The towers compute in bf16 and int8 as CLIP's do, within the same bounds, in the same space."""
    if precision == "int8" and not capabilities("cpu").int8:
        pytest.skip("this CPU has no int8 products, without which they overflow")
    monkeypatch.setattr(_precision, "capabilities", lambda _: Capabilities(bf16=True, int8=True))
    model = ModelFolder(siglip_folder, "cpu", precision)
    clip = ClipEmbedder(model, device="cpu", cache=None)
    assert centred(clip.embed_images(photos), image_reference(reference, pixels)) >= CENTRED[precision]
    texts = [text for text in TEXTS if len(text) < 200]
    assert centred(clip.embed_texts(texts), text_reference(reference, siglip_folder, texts)) >= 0.999
    layer = model._towers.vision_model.encoder.layers[0].mlp.fc1
    assert isinstance(layer, RowInt8Linear) == (precision == "int8")
    kept = torch.bfloat16 if precision == "bf16" else torch.float32
    assert next(iter(layer.state_dict().values())).dtype == kept
    assert model.space == ModelFolder(siglip_folder).space


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pad_token": None}, "names no token to pad texts with"),
        ({"tokenizer_class": "SiglipTokenizer"}, "SiglipTokenizer cannot be loaded here: .*"),
    ],
)
def test_what_a_tokenizer_lacks(
    changes: dict[str, object], message: str, siglip_folder: Path, tmp_path: Path, edit_json: EditJson
) -> None:
    """Without a padding token, or without tokenizer.json and the library for spiece.model: a clear error."""
    folder = shutil.copytree(siglip_folder, tmp_path / "own")
    edit_json(folder / "tokenizer_config.json", changes)
    if "tokenizer_class" in changes:
        (folder / "tokenizer.json").rename(folder / "spiece.model")
    with pytest.raises(ModelUnsupported, match=message):
        ClipEmbedder(folder, device="cpu").load()
