"""HEIC: read by pillow-heif, or a failure that names the extra."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from clip_embed import ClipEmbedder, ImageError, ImagePolicy, ImageSpec
from clip_embed._images.pixels import prepare_pixels
from clip_embed.testing import FakeModel

Photo = Callable[..., Image.Image]
SPEC = ImageSpec(64, (64, 64))

needs_heif = pytest.mark.skipif(find_spec("pillow_heif") is None, reason="the extra 'heic' is not installed")


def heic(image: Image.Image, **options: object) -> bytes:
    """Encode as HEIC."""
    from pillow_heif import from_pillow

    buffer = io.BytesIO()
    from_pillow(image).save(buffer, quality=90, **options)
    return buffer.getvalue()


@needs_heif
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_heic_is_read(mode: str, photo: Photo) -> None:
    """The picture comes out, on both ways, and Pillow is left as it was."""
    image = photo(300, 200)
    if mode == "RGBA":
        image.putalpha(255)
    file = heic(image.convert(mode))
    exact = prepare_pixels(file, file, SPEC, ImagePolicy(), exact=True)
    fast = prepare_pixels(file, file, SPEC, ImagePolicy())
    plain = image.convert("RGB").convert("L").convert("RGB") if mode == "L" else image.convert("RGB")
    expected = prepare_pixels(plain, None, SPEC, ImagePolicy(), exact=True)
    assert np.abs(exact.astype(int) - expected).mean() < 4  # the codec's own loss
    assert np.abs(fast.astype(int) - exact).mean() < 0.3
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(file))


@needs_heif
def test_a_turned_heic_comes_out_upright_once(photo: Photo) -> None:
    """The container and the EXIF block both say how it is turned; it is turned once."""
    image = photo(300, 200)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = heic(image, exif=exif.tobytes())
    upright = image.transpose(Image.Transpose.ROTATE_270)
    expected = prepare_pixels(upright, None, SPEC, ImagePolicy(), exact=True)
    got = prepare_pixels(file, file, SPEC, ImagePolicy())
    assert np.abs(got.astype(int) - expected).mean() < 4


@needs_heif
def test_a_truncated_heic_fails(photo: Photo) -> None:
    """Never half an image, and no larger one than the policy allows."""
    file = heic(photo(300, 200))
    for end in range(len(file) // 10, len(file) - 1, len(file) // 10):
        with pytest.raises(ImageError, match="cannot decode"):
            prepare_pixels(file[:end], file[:end], SPEC, ImagePolicy())
    with pytest.raises(ImageError, match="300 × 200 pixels"):
        prepare_pixels(file, file, SPEC, ImagePolicy(max_pixels=100))


def test_without_the_extra_the_failure_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One failure, which goes away when the extra is installed; the others are embedded."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    header = b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + b"\0" * 40
    images: list[bytes | np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = [
        header,
        np.zeros((8, 8, 3), np.uint8),
    ]
    with ClipEmbedder(FakeModel()).stream_images(images) as stream:
        batch = next(stream)
    assert batch.indices.tolist() == [1]
    assert batch.failures[0].reason == "HEIC needs pillow-heif: pip install 'clip-embed[heic]'"
    assert batch.failures[0].retryable
