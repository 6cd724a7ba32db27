"""Image processors that are not known by name run by their own code in transformers, or are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clip_embed import ClipEmbedder, ModelUnsupported
from clip_embed._images.pixels import to_pixels
from clip_embed._models.model_folder import ModelFolder

EditJson = Callable[[Path, dict[str, object]], None]


@pytest.fixture
def photos(photo: Callable[..., Image.Image]) -> list[Image.Image]:
    """Photos of several shapes."""
    return [photo(*size, seed) for seed, size in enumerate([(320, 240), (90, 200), (192, 192), (64, 48)])]


@pytest.fixture
def with_processor(siglip_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Make a copy of the tiny SigLIP with another image processor: `with_processor(kind, size=…)`."""

    def make(kind: str, **configuration: object) -> Path:
        folder = shutil.copytree(siglip_folder, tmp_path / kind)
        size = {"size": {"height": 192, "width": 192}}
        config = {"image_processor_type": kind, **size, **configuration}
        (folder / "preprocessor_config.json").write_text(json.dumps(config))
        return folder

    return make


OWN: dict[str, dict[str, object]] = {
    "ViTImageProcessor": {"resample": 2, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]},
    "ViTImageProcessorFast": {},
    "DeiTImageProcessor": {
        "size": {"height": 256, "width": 256},
        "crop_size": {"height": 192, "width": 192},
        "do_center_crop": True,
    },
    "BlipImageProcessor": {"do_normalize": False},
}


@pytest.mark.parametrize("kind", OWN)
def test_its_own_code_gives_the_pixels(
    kind: str, with_processor: Callable[..., Path], photos: list[Image.Image]
) -> None:
    """What reaches the image tower is what transformers' processor gives, in every precision."""
    from transformers import AutoImageProcessor

    folder = with_processor(kind, **OWN[kind])
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    expected = np.concatenate([processor(image, return_tensors="np")["pixel_values"] for image in photos])
    model = ModelFolder(folder, "cpu")
    model.load()
    uint8 = np.stack([to_pixels(image, model.image_spec, (255, 255, 255)) for image in photos])
    np.testing.assert_allclose(model._normalised(uint8).numpy(), expected, atol=1e-5)
    with torch.inference_mode():
        rows = model._towers.get_image_features(pixel_values=torch.tensor(expected))
    unit = torch.nn.functional.normalize(getattr(rows, "pooler_output", rows)).numpy()
    for precision in ("exact", "fp32"):
        clip = ClipEmbedder(folder, device="cpu", precision=precision)
        np.testing.assert_allclose(clip.embed_images(photos), unit, atol=1e-5)


def test_its_configuration_is_part_of_the_space(
    with_processor: Callable[..., Path], edit_json: EditJson
) -> None:
    """Another filter, another space."""
    folder = with_processor("ViTImageProcessor", resample=2)
    before = ModelFolder(folder).space
    edit_json(folder / "preprocessor_config.json", {"resample": 3})
    assert ModelFolder(folder).space != before


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "NoSuchImageProcessor": ({}, "transformers cannot load it here"),
    "Siglip2ImageProcessor": ({}, "it gives no pixels of one image"),
    "LlavaNextImageProcessor": ({}, "it gives no pixels of one image"),
    "PoolFormerImageProcessor": (
        {"size": {"shortest_edge": 100}, "do_center_crop": False},
        r"the image tower takes whole numbers \(3, 192, 192\)",
    ),
    "BitImageProcessor": ({"size": {"shortest_edge": 192}, "do_center_crop": False}, "the image tower takes"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_gives_no_fixed_size_is_refused(kind: str, with_processor: Callable[..., Path]) -> None:
    """When the model is loaded, before any image of the user's is embedded."""
    configuration, message = REFUSED[kind]
    folder = with_processor(kind, **configuration)
    with pytest.raises(ModelUnsupported, match=f"image processor {kind} cannot be used: .*{message}"):
        ClipEmbedder(folder, device="cpu").load()


def test_code_that_comes_with_a_model_never_runs(with_processor: Callable[..., Path], tmp_path: Path) -> None:
    """Not the processor's, not the tokenizer's; nobody is asked whether it may."""
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w').close()\n"
    folder = with_processor("OwnProcessor", auto_map={"AutoImageProcessor": "own.OwnProcessor"})
    (folder / "own.py").write_text(code + "class OwnProcessor: ...\nclass OwnTokenizer: ...\n")
    with pytest.raises(ModelUnsupported, match="OwnProcessor is code that comes with the model"):
        ModelFolder(folder)
    config = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    folder = with_processor("SiglipImageProcessor")
    shutil.copy(tmp_path / "OwnProcessor" / "own.py", folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    clip = ClipEmbedder(folder, device="cpu")
    with pytest.raises(ModelUnsupported, match="its tokenizer OwnTokenizer is code that comes"):
        clip.load()
    assert not ran.exists()
