"""From a decoded image to the model's pixels: beside transformers' own PIL image processor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from clip_embed import ClipEmbedder, ImageSpec
from clip_embed._images.pixels import to_pixels
from clip_embed.testing import FakeModel

Photo = Callable[..., Image.Image]
UInt8 = npt.NDArray[np.uint8]
Resample = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
KINDS: tuple[Resample, ...] = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
BLACK = (0, 0, 0)

sides = st.integers(1, 300)
targets = st.integers(16, 64)
small = settings(max_examples=60, deadline=None)


def noise(width: int, height: int) -> Image.Image:
    """An image of which no two neighbours are alike: what a resize gets wrong shows."""
    seed = width * 1000 + height
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def reference(image: Image.Image, size: object, crop: tuple[int, int] | None, resample: Resample) -> UInt8:
    """Resize and centre crop of transformers' CLIPImageProcessorPil, uint8 (height, width, 3)."""
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": size} if isinstance(size, int) else dict(zip(("height", "width"), size)),  # type: ignore[call-overload]  # noqa: B905
        crop_size=None if crop is None else {"height": crop[0], "width": crop[1]},
        do_center_crop=crop is not None,
        resample=Image.Resampling[resample.upper()],
        do_rescale=False,
        do_normalize=False,
    )
    values = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
    return values.transpose(1, 2, 0).astype(np.uint8)


@small
@given(sides, sides, targets, st.sampled_from(KINDS))
@example(33, 212, 60, "bicubic")
@example(1, 8, 64, "lanczos")
@example(1, 1, 16, "box")
def test_shorter_edge_and_square_crop(width: int, height: int, size: int, resample: Resample) -> None:
    """The pixels are the reference's, bit for bit, up to 8 times as long as wide."""
    assume(max(width, height) <= 8 * min(width, height))
    image = noise(width, height)
    got = to_pixels(image, ImageSpec(size, (size, size), resample), BLACK)
    np.testing.assert_array_equal(got, reference(image, size, (size, size), resample))


@small
@given(sides, sides, targets, targets, targets, st.sampled_from(KINDS))
def test_any_crop(
    width: int, height: int, size: int, crop_height: int, crop_width: int, resample: Resample
) -> None:
    """A crop smaller or larger than the resized image, in either direction, with zeros around it."""
    assume(max(width, height) <= 2 * min(width, height))
    image, crop = noise(width, height), (crop_height, crop_width)
    assume(size * size * 2 <= 8 * min(size, crop_height) * min(size, crop_width))
    got = to_pixels(image, ImageSpec(size, crop, resample), (255, 255, 255))
    np.testing.assert_array_equal(got, reference(image, size, crop, resample))


@pytest.mark.parametrize("resample", ["bilinear", "hamming", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(1, 300), (300, 1), (20, 300), (3000, 200)])
def test_long_images(size: tuple[int, int], resample: Resample, photo: Photo) -> None:
    """Of a very long image only the kept part is made: rounding apart, where nothing overshoots."""
    image = photo(*size).point(lambda level: 96 + level // 4)
    got = to_pixels(image, ImageSpec(46, (46, 46), resample), BLACK)
    expected = reference(image, 46, (46, 46), resample)
    np.testing.assert_allclose(got.astype(int), expected.astype(int), atol=2)


@small
@given(sides, sides, targets, targets, st.sampled_from(KINDS))
def test_both_edges_without_crop(width: int, height: int, high: int, wide: int, resample: Resample) -> None:
    """A (height, width) is taken as it is, aspect ignored, like SigLIP's."""
    image = noise(width, height)
    got = to_pixels(image, ImageSpec((high, wide), None, resample), BLACK)
    np.testing.assert_array_equal(got, reference(image, (high, wide), None, resample))


@pytest.mark.parametrize("size", [(640, 480), (481, 641), (224, 224), (1999, 333), (100, 80)])
def test_clips_own_preprocessing(size: tuple[int, int], photo: Photo) -> None:
    """224 × 224, bicubic, at the sizes of real photos."""
    image = photo(*size)
    got = to_pixels(image, ImageSpec(224, (224, 224)), BLACK)
    np.testing.assert_array_equal(got, reference(image, 224, (224, 224), "bicubic"))


@small
@given(sides, sides, targets, targets, st.sampled_from(KINDS))
def test_padding(width: int, height: int, high: int, wide: int, resample: Resample) -> None:
    """With `pad` all of the image is fitted in, aspect kept, centred on the background."""
    background = (10, 200, 30)
    image = Image.new("RGB", (width, height), (250, 20, 90))
    pixels = to_pixels(image, ImageSpec((high, wide), resample=resample, pad=True), background)
    inside = (pixels == (250, 20, 90)).all(axis=2)
    assert ((pixels == background).all(axis=2) | inside).all()
    scale = min(high / height, wide / width)
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    for found, length, full in ((rows, height, high), (columns, width, wide)):
        assert abs(len(found) - max(1, length * scale)) <= 0.5
        assert abs(found[0] - (full - 1 - found[-1])) <= 1
    assert inside.sum() == len(rows) * len(columns)


def test_padding_keeps_the_picture(photo: Photo) -> None:
    """What lies between the bars is the plain resize of the image."""
    image = photo(120, 60)
    pixels = to_pixels(image, ImageSpec(32, pad=True), (255, 255, 255))
    np.testing.assert_array_equal(pixels[8:24], np.asarray(image.resize((32, 16), Image.Resampling.BICUBIC)))
    np.testing.assert_array_equal(pixels[[*range(8), *range(24, 32)]], 255)


def test_own_preparation_replaces_all_steps(photo: Photo) -> None:
    """`prepare` is given the upright RGB image, and its pixels reach the model."""

    class Flipped(FakeModel):
        """A model that takes its images upside down."""

        def __init__(self) -> None:
            super().__init__(size=16)
            self.image_spec = ImageSpec(99, prepare=lambda image: np.asarray(image.resize((16, 16)))[::-1])

    image = photo(40, 40)
    upright = FakeModel(size=16).embed_images(np.asarray(image.resize((16, 16)))[::-1][None])
    got = ClipEmbedder(Flipped()).embed_images([image.convert("RGBA")])
    np.testing.assert_allclose(got, upright / np.linalg.norm(upright), atol=1e-6)
