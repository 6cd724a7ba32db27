"""The fast way from a file to the model's pixels stays close to the exact one.

Exact is the reference bit for bit (test_pixels.py, test_fidelity.py); here the fast way is held
against it, with and without simplejpeg. Bounds are mean differences in grey levels of 255.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from clip_embed import ImagePolicy, ImageSpec
from clip_embed._images.pixels import prepare_pixels

Photo = Callable[..., Image.Image]
Encode = Callable[..., bytes]
UInt8 = npt.NDArray[np.uint8]
Filter = Literal["bicubic", "bilinear"]

SPEC = ImageSpec(64, (64, 64))
SCALED = 0.7
"""Where JPEG is decoded smaller: the largest seen is 0.56; a margin of 1 gives up to 1.6."""
WHOLE = 0.3
"""Where it is not, and for other formats: rounding alone gives 0.004. Where hard edges overshoot, and the
two passes of the resize come in another order, the largest seen is 0.27."""
LARGE = [(520, 514), (700, 530), (260, 400), (1030, 517)]
SMALL = [(120, 90), (90, 70), (64, 64), (30, 50)]


@pytest.fixture(params=["as installed", "without simplejpeg", "without torch's kernels"])
def _installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with each set of parts that a machine may have."""
    if request.param == "without simplejpeg":
        monkeypatch.setattr("clip_embed._images.jpeg._codec", lambda: None)
    if request.param == "without torch's kernels":
        monkeypatch.setattr("clip_embed._images.resize._has_kernels", lambda: False)


def prepared(
    source: object, spec: ImageSpec = SPEC, policy: ImagePolicy | None = None, *, exact: bool = False
) -> UInt8:
    """Prepare one image as the embedder does."""
    encoded = source if isinstance(source, bytes) else None
    return prepare_pixels(source, encoded, spec, policy or ImagePolicy(), exact=exact)


def difference(left: UInt8, right: UInt8) -> float:
    """Mean difference in grey levels."""
    return float(np.abs(left.astype(int) - right).mean())


def off(source: object, spec: ImageSpec = SPEC, policy: ImagePolicy | None = None) -> float:
    """Tell how far the fast way is from the exact one."""
    return difference(prepared(source, spec, policy), prepared(source, spec, policy, exact=True))


@pytest.fixture(scope="module")
def large(photo: Photo, encode: Encode) -> list[bytes]:
    """JPEGs that are decoded smaller, of each quality and subsampling of colour."""
    variants = itertools.product(LARGE, (0, 1, 2), (75, 95), (False, True))
    return [
        encode(photo(*size, seed), "JPEG", subsampling=subsampling, quality=quality, progressive=progressive)
        for seed, (size, subsampling, quality, progressive) in enumerate(variants)
    ]


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
def test_large_jpegs_stay_within_the_bound(large: list[bytes], resample: Filter) -> None:
    """Every size, subsampling, quality, baseline and progressive."""
    assert max(off(file, ImageSpec(64, (64, 64), resample)) for file in large) <= SCALED
    assert max(off(file, ImageSpec((64, 64), None, resample)) for file in large) <= SCALED
    assert max(off(file, ImageSpec(64, pad=True, resample=resample)) for file in large) <= SCALED


@pytest.mark.usefixtures("_installed")
def test_large_grey_jpegs_stay_within_the_bound(photo: Photo, encode: Encode) -> None:
    """One component becomes three equal ones."""
    for size in LARGE:
        file = encode(photo(*size).convert("L"), "JPEG")
        assert off(file) <= SCALED
        assert (np.ptp(prepared(file), axis=2) == 0).all()


@pytest.mark.usefixtures("_installed")
def test_small_jpegs_differ_by_rounding(photo: Photo, encode: Encode) -> None:
    """What is less than 4 times as large as needed is decoded whole."""
    for size, subsampling in itertools.product(SMALL, (0, 2)):
        file = encode(photo(*size), "JPEG", subsampling=subsampling)
        assert off(file) <= WHOLE
        assert off(file, ImageSpec((40, 64))) <= WHOLE


def with_margin_one(file: bytes) -> UInt8:
    """Decode a JPEG just larger than the target, as Pillow's thumbnail() may."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clip_embed._images.jpeg._MARGIN", 1)
        return prepared(file)


WRONG: dict[str, Callable[[bytes], UInt8]] = {
    "mirrored": lambda file: prepared(file)[:, ::-1],
    "upside down": lambda file: prepared(file)[::-1],
    "BGR": lambda file: prepared(file)[..., ::-1],
    "nearest": lambda file: prepared(file, ImageSpec(64, (64, 64), "nearest")),
    "bilinear": lambda file: prepared(file, ImageSpec(64, (64, 64), "bilinear"), exact=True),
    "one pixel to the right": lambda file: np.roll(prepared(file), 1, axis=1),
    "decoded just larger than the target": with_margin_one,
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_bounds_reject_what_is_wrong(wrong: str, large: list[bytes]) -> None:
    """Not only the worst image, but their mean is beyond the bound."""
    assert np.mean([difference(WRONG[wrong](file), prepared(file, exact=True)) for file in large]) > SCALED


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(521, 386), (120, 91)])
@pytest.mark.parametrize(
    "spec", [SPEC, ImageSpec(64, (63, 41)), ImageSpec((50, 70)), ImageSpec(64, pad=True)]
)
def test_orientation(
    orientation: int, size: tuple[int, int], spec: ImageSpec, photo: Photo, encode: Encode
) -> None:
    """An image is turned after the resize, and lands on the same pixels; or is not, by the policy."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    bound = SCALED if max(size) > 200 else WHOLE
    for form in ("JPEG", "PNG"):
        file = encode(photo(*size), form, exif=exif)
        assert off(file, spec) <= bound
        assert off(file, spec, ImagePolicy(exif=False)) <= bound
        kept, turned = prepared(file, spec, ImagePolicy(exif=False)), prepared(file, spec)
        assert (difference(kept, turned) > SCALED) == (orientation != 1)


sides = st.integers(1, 400)
targets = st.integers(32, 64)


@pytest.mark.usefixtures("_installed")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sides,
    sides,
    targets,
    targets,
    st.sampled_from(["bicubic", "bilinear"]),
    st.sampled_from(["crop", "pad"]),
)
def test_any_size_differs_by_rounding(
    photo: Photo, width: int, height: int, high: int, wide: int, resample: Filter, kind: str
) -> None:
    """Images that are not JPEGs: two grey levels at most where no filter overshoots."""
    image = photo(width, height).point(lambda level: 96 + level // 4)
    specs = {
        "crop": ImageSpec(high, (high, wide), resample),
        "pad": ImageSpec((high, wide), None, resample, pad=True),
    }
    for spec in (specs[kind], ImageSpec((high, wide), None, resample)):
        fast, exact = prepared(image, spec), prepared(image, spec, exact=True)
        np.testing.assert_allclose(fast.astype(int), exact.astype(int), atol=2)
        np.testing.assert_array_equal(prepared(np.asarray(image), spec), fast)


@pytest.mark.usefixtures("_installed")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sides, sides, targets, st.integers(0, 2), st.integers(1, 8))
def test_any_jpeg_stays_close(
    photo: Photo, encode: Encode, width: int, height: int, target: int, subsampling: int, orientation: int
) -> None:
    """Any size and orientation; on targets this small one drawn line more or less is 1 grey level."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encode(photo(width, height), "JPEG", subsampling=subsampling, quality=90, exif=exif)
    assert off(file, ImageSpec(target, (target, target))) <= 2


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize(
    ("form", "mode", "options"),
    [
        ("JPEG", "CMYK", {}),
        ("JPEG", "RGB", {"keep_rgb": True}),
        ("JPEG", "RGB", {"icc_profile": b"\0" * 200}),
        ("JPEG", "RGB", {"comment": "a comment"}),
        ("MPO", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("PNG", "LA", {}),
        ("PNG", "I;16", {}),
        ("GIF", "P", {}),
        ("TIFF", "CMYK", {}),
        ("WEBP", "RGBA", {}),
        ("AVIF", "RGB", {}),
        ("BMP", "RGB", {}),
        ("JPEG2000", "RGB", {}),
    ],
)
def test_formats_and_modes(
    form: str, mode: str, options: dict[str, object], photo: Photo, encode: Encode
) -> None:
    """Whatever Pillow reads comes out as on the exact way."""
    image = photo(300, 210)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif mode in ("RGBA", "LA"):
        image.putalpha(photo(300, 210, 1).convert("L"))
        image = image.convert(mode)
    else:
        image = image.convert(mode)
    if form == "GIF":
        options = {"save_all": True, "append_images": [photo(300, 210, 2).convert("P")]}
    file = encode(image, form, **options)
    assert off(file, policy=ImagePolicy(background=(9, 99, 199))) <= (
        SCALED if "JPEG" in form or form == "MPO" else WHOLE
    )


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("size", [(40, 4000), (4000, 40), (1, 5000), (520, 9000)])
def test_long_images(size: tuple[int, int], photo: Photo, encode: Encode) -> None:
    """Of an image longer than 8 times its width the same part is kept."""
    image = photo(*size)
    for source in (encode(image, "JPEG"), encode(image, "PNG"), np.asarray(image)):
        assert off(source) <= WHOLE


def test_pixels_of_unusual_arrays(photo: Photo) -> None:
    """Read-only, turned, strided arrays, and images that Pillow keeps in pieces, are as good as any."""
    pixels = np.array(photo(300, 200))
    frozen = pixels.copy()
    frozen.flags.writeable = False
    for array in (frozen, pixels[::-1], pixels[:, ::-1], pixels[::2, ::3], np.asfortranarray(pixels)):
        np.testing.assert_array_equal(prepared(array), prepared(np.ascontiguousarray(array)))
    huge = photo(2400, 1900)
    assert off(huge) <= WHOLE
    np.testing.assert_allclose(prepared(huge).astype(int), prepared(np.asarray(huge)), atol=2)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's list of threads")
def test_the_resize_starts_no_thread(photo: Photo) -> None:
    """Many decode threads resize at once, so none may have torch start a pool of its own."""
    image = photo(1600, 1200)
    counts: list[int] = []

    def work() -> None:
        for _ in range(2):
            counts.append(len(list(Path("/proc/self/task").iterdir())))
            prepared(image, ImageSpec(512, (512, 512)))
        counts.append(len(list(Path("/proc/self/task").iterdir())))

    prepared(image)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert counts == counts[:1] * 3


@pytest.mark.parametrize("spec", [ImageSpec(64, (64, 64), "nearest"), ImageSpec(64, (64, 64), "lanczos")])
def test_other_filters_are_the_reference(spec: ImageSpec, large: list[bytes]) -> None:
    """A filter that torch does not have takes the exact way, decode included."""
    assert off(large[0], spec) == 0


def test_own_preparation_sees_the_whole_image(large: list[bytes]) -> None:
    """A model with steps of its own is given every pixel."""
    sizes: list[tuple[int, int]] = []

    def prepare(image: Image.Image) -> UInt8:
        sizes.append(image.size)
        return np.asarray(image.resize((8, 8)))

    assert off(large[0], ImageSpec(8, prepare=prepare)) == 0
    assert sizes == [LARGE[0]] * 2
