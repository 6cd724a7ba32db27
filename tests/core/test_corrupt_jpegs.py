"""A broken JPEG is the same failure, or the same image, on the fast way as on Pillow's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image

from clip_embed import ImageError, ImagePolicy, ImageSpec
from clip_embed._images.pixels import prepare_pixels

Photo = Callable[..., Image.Image]
Encode = Callable[..., bytes]

KINDS: dict[str, dict[str, object]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "restart markers": {"restart_marker_rows": 1},
    "RGB": {"keep_rgb": True},
}
WHOLE, HALVED = ImageSpec(16, (16, 16)), ImageSpec(8, (8, 8))


@pytest.fixture(params=["as installed", "without simplejpeg"], autouse=True)
def _installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test without the extra too."""
    if request.param == "without simplejpeg":
        monkeypatch.setattr("clip_embed._images.jpeg._codec", lambda: None)


@pytest.fixture(params=KINDS)
def jpeg(request: pytest.FixtureRequest, photo: Photo, encode: Encode) -> bytes:
    """A small JPEG of each kind; at HALVED it is decoded smaller."""
    return encode(photo(80, 60), "JPEG", **KINDS[request.param])


def verdict(encoded: bytes, spec: ImageSpec, *, exact: bool) -> str | float:
    """Return why an image fails, or the mean of its pixels."""
    try:
        return float(prepare_pixels(encoded, encoded, spec, ImagePolicy(), exact=exact).mean())
    except ImageError as error:
        return str(error)


def assert_same_verdict(broken: Iterator[bytes], spec: ImageSpec) -> tuple[int, int]:
    """Compare both ways, reason for reason; return how many failed and how many did not."""
    failed = succeeded = 0
    for encoded in broken:
        exact, fast = verdict(encoded, spec, exact=True), verdict(encoded, spec, exact=False)
        if isinstance(exact, str):
            assert fast == exact
            failed += 1
        else:
            assert isinstance(fast, float)
            succeeded += 1
    return failed, succeeded


@pytest.mark.parametrize("spec", [WHOLE, HALVED])
def test_cut_anywhere(jpeg: bytes, spec: ImageSpec) -> None:
    """A file without its end fails, at whatever byte it was cut: never half an image."""
    failed, succeeded = assert_same_verdict((jpeg[:end] for end in range(2, len(jpeg), 5)), spec)
    assert failed > 200
    assert succeeded == 0


@pytest.mark.parametrize("spec", [WHOLE, HALVED])
def test_cut_and_closed(jpeg: bytes, spec: ImageSpec) -> None:
    """A file whose end was put on again goes as Pillow takes it."""
    ends = range(2, len(jpeg), 23)
    failed, succeeded = assert_same_verdict((jpeg[:end] + b"\xff\xd9" for end in ends), spec)
    assert failed > 5
    assert succeeded > 20


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("spec", [WHOLE, HALVED])
def test_flipped_bytes(jpeg: bytes, spec: ImageSpec) -> None:
    """Some bytes anywhere, header or data, are others."""
    rng = np.random.default_rng(0)

    def broken() -> Iterator[bytes]:
        for _ in range(150):
            changed = bytearray(jpeg)
            for place in rng.integers(2, len(jpeg), rng.integers(1, 4)):
                changed[place] = rng.integers(0, 256)
            yield bytes(changed)

    failed, succeeded = assert_same_verdict(broken(), spec)
    assert failed > 3
    assert succeeded > 20


def test_bytes_around_the_image(jpeg: bytes) -> None:
    """What stands behind the end does no harm, what stands before the start does."""
    whole = verdict(jpeg, WHOLE, exact=False)
    assert verdict(jpeg + b"\0" * 100, WHOLE, exact=False) == whole
    assert verdict(jpeg + jpeg, WHOLE, exact=False) == whole
    assert verdict(b"\0" + jpeg, WHOLE, exact=False) == verdict(b"\0" + jpeg, WHOLE, exact=True)


def test_max_pixels_holds_before_anything_is_decoded(jpeg: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header alone decides."""

    def no_decoding(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("clip_embed._images.pixels.decode_jpeg", no_decoding)
    with pytest.raises(ImageError, match="80 × 60 pixels are more than"):
        prepare_pixels(jpeg, jpeg, WHOLE, ImagePolicy(max_pixels=80 * 60 - 1))
