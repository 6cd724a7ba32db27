"""The vectors are the reference's: transformers' PIL image processor and a float32 forward pass.

On random weights the cosine alone proves little, for all vectors are alike. So the preprocessed
pixels are compared, and the vectors after their common mean is taken away, and the same checks
must reject what a wrong decoder or resizer would give.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageOps

from clip_embed import ClipEmbedder
from clip_embed._models.model_folder import ModelFolder

Float32 = npt.NDArray[np.float32]
Wrong = Callable[[Image.Image], Image.Image]


@dataclass
class Measured:
    """What one way of embedding gives."""

    pixels: Float32
    """(n, 3, 224, 224), normalised as the image tower takes them."""
    vectors: Float32
    """(n, d), unit rows."""


@pytest.fixture(scope="module")
def files(photo: Callable[..., Image.Image], encode: Callable[..., bytes]) -> list[bytes]:
    """JPEG and PNG files in the shapes of photos, large and small."""
    sizes = [(640, 480), (480, 640), (1200, 800), (333, 500), (224, 224), (250, 250), (800, 300), (160, 120)]
    images = [photo(*size, seed) for seed, size in enumerate(sizes * 2)]
    return [encode(image, "PNG" if n % 4 == 3 else "JPEG", quality=90) for n, image in enumerate(images)]


@pytest.fixture(scope="module")
def reference(clip_folder: Path, files: list[bytes]) -> Measured:
    """What transformers gives, one image at a time."""
    from transformers import CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil.from_pretrained(clip_folder)
    model = CLIPModel.from_pretrained(clip_folder, dtype=torch.float32).eval()
    images = [Image.open(io.BytesIO(file)) for file in files]
    pixels = torch.cat([processor(image, return_tensors="pt")["pixel_values"] for image in images])
    with torch.inference_mode():
        outputs = [model.get_image_features(pixel_values=each[None]) for each in pixels]
    rows = torch.cat([getattr(output, "pooler_output", output) for output in outputs])
    return Measured(pixels.numpy(), torch.nn.functional.normalize(rows).numpy())


@pytest.fixture(scope="module")
def measure(clip_folder: Path) -> Callable[[list[bytes] | list[Image.Image]], Measured]:
    """Embed as a user does, and keep the pixel values that reach the image tower."""
    model = ModelFolder(clip_folder, "cpu")
    forward = model._towers.get_image_features
    seen: list[Float32] = []

    def spy(pixel_values: torch.Tensor) -> object:
        seen.append(pixel_values.numpy().copy())
        return forward(pixel_values=pixel_values)

    def run(images: list[bytes] | list[Image.Image]) -> Measured:
        seen.clear()
        clip = ClipEmbedder(model, precision="exact", cache=None)
        vectors = [clip.embed_images([image]) for image in images]  # one by one: batches come in any order
        return Measured(np.concatenate(seen), np.concatenate(vectors))

    model._towers.get_image_features = spy
    return run


def pixels_agree(got: Measured, reference: Measured) -> bool:
    """No normalised value is off by more than 1/255."""
    return float(np.abs(got.pixels - reference.pixels).max()) <= 1 / 255


def vectors_agree(got: Measured, reference: Measured) -> bool:
    """Every cosine is at least 0.9999 after the reference's mean vector is taken away."""
    mean = reference.vectors.mean(axis=0)
    left, right = got.vectors - mean, reference.vectors - mean
    cosine = (left * right).sum(axis=1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    return bool(cosine.min() >= 0.9999)


def test_exact_is_the_reference(
    files: list[bytes], reference: Measured, measure: Callable[..., Measured]
) -> None:
    """Pixels and vectors of whole files agree with transformers'."""
    got = measure(files)
    assert pixels_agree(got, reference)
    assert vectors_agree(got, reference)
    np.testing.assert_allclose(got.vectors, reference.vectors, atol=1e-5)


def prepared_with(resample: Image.Resampling) -> Wrong:
    """Return a resize and centre crop to 224 × 224 with another filter."""
    return lambda image: ImageOps.fit(image, (224, 224), resample)


WRONG: dict[str, Wrong] = {
    "mirrored": ImageOps.mirror,
    "upside down": ImageOps.flip,
    "BGR": lambda image: Image.merge("RGB", image.split()[::-1]),
    "nearest": prepared_with(Image.Resampling.NEAREST),
    "bilinear": prepared_with(Image.Resampling.BILINEAR),
    "half size first": lambda image: image.resize((image.width // 2, image.height // 2)),
    "blue a little darker": lambda image: image.point([*range(512), *(max(0, n - 3) for n in range(256))]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_check_rejects_what_is_wrong(
    wrong: str, files: list[bytes], reference: Measured, measure: Callable[..., Measured]
) -> None:
    """The same two checks fail on inputs as a wrong decoder or resizer would give them."""
    images = [WRONG[wrong](Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
    got = measure(images)
    assert not pixels_agree(got, reference)
    assert not vectors_agree(got, reference)
