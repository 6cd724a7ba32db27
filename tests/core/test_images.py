"""Every kind of image becomes the same upright RGB pixels, or one clear error."""

from __future__ import annotations

import gc
import io
import threading
import tracemalloc
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from PIL import Image

from clip_embed import ClipEmbedder, ImageBatchError, ImageError, ImagePolicy
from clip_embed._images.source import decode, read_encoded
from clip_embed.testing import FakeModel

Photo = Callable[..., Image.Image]
Encode = Callable[..., bytes]
UInt8 = npt.NDArray[np.uint8]

TRANSPOSED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def rgb(source: object, policy: ImagePolicy | None = None) -> UInt8:
    """Decode one image as the embedder does, to uint8 (height, width, 3)."""
    policy = policy or ImagePolicy()
    return np.asarray(decode(source, read_encoded(source, policy), policy))


@pytest.fixture
def png(tmp_path: Path, photo: Photo) -> Path:
    """A PNG file."""
    photo(40, 30).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize("kind", ["str", "Path", "bytes", "PIL", "array", "bytes+path", "no path", "path"])
def test_every_kind_of_image_gives_the_same_vector(kind: str, png: Path, clip: ClipEmbedder) -> None:
    """A path, bytes, a PIL image, an array and a mapping of one picture are one picture."""
    pixels = np.asarray(Image.open(io.BytesIO(png.read_bytes())))
    images: dict[str, object] = {
        "str": str(png),
        "Path": png,
        "bytes": png.read_bytes(),
        "PIL": Image.open(io.BytesIO(png.read_bytes())),
        "array": pixels,
        "bytes+path": {"bytes": png.read_bytes(), "path": "not/there.png"},
        "no path": {"bytes": png.read_bytes()},
        "path": {"bytes": None, "path": str(png)},
    }
    expected = clip.embed_images(pixels[None])
    np.testing.assert_array_equal(clip.embed_images([images[kind]]), expected)  # type: ignore[list-item]


def test_array_of_images(clip: ClipEmbedder, fake: FakeModel) -> None:
    """A uint8 array (n, height, width, 3) is n images in order."""
    images = np.random.default_rng(0).integers(0, 256, (5, 20, 24, 3), dtype=np.uint8)
    np.testing.assert_array_equal(clip.embed_images(images), clip.embed_images(list(images)))
    assert sum(fake.calls[0]) == 10


@pytest.mark.parametrize("kind", ["str", "Path", "bytes", "PIL", "array", "mapping"])
def test_a_single_image_is_refused(kind: str, png: Path, clip: ClipEmbedder) -> None:
    """One image in place of a list is a TypeError that says what to write, before anything is read."""
    image = Image.open(io.BytesIO(png.read_bytes()))
    single: Mapping[str, object] = {
        "str": str(png),
        "Path": png,
        "bytes": png.read_bytes(),
        "PIL": image,
        "array": np.asarray(image),
        "mapping": {"path": str(png)},
    }
    for call in (clip.embed_images, clip.stream_images):
        with pytest.raises(TypeError, match="wrap it in a list"):
            call(single[kind])  # type: ignore[operator]


@pytest.mark.parametrize("wrong", [7, None, np.zeros((2, 2)), np.zeros((1, 8, 8, 3)), np.zeros(3, np.uint8)])
def test_what_holds_no_images_is_refused(wrong: object, clip: ClipEmbedder) -> None:
    """Numbers and arrays of another shape or type are TypeErrors that say what is wanted."""
    with pytest.raises(TypeError, match="iterable of images or a uint8 array"):
        clip.embed_images(wrong)  # type: ignore[arg-type]


def test_arrays_and_columns_of_paths(png: Path, clip: ClipEmbedder) -> None:
    """Numpy's arrays of objects or texts and Arrow's columns hold images like any list."""
    paths = [str(png), str(png)]
    wanted = clip.embed_images(paths)
    columns: list[Any] = [
        np.array(paths),
        np.array(paths, object),
        np.array([png, png.read_bytes()], object),
        pa.array(paths).dictionary_encode(),
        pa.chunked_array([paths[:1], paths[1:]]),
        pa.array([png.read_bytes()] * 2),
        pa.array([{"path": path} for path in paths]),
    ]
    for column in columns:
        np.testing.assert_array_equal(clip.embed_images(column), wanted)
    with pytest.raises(ImageBatchError, match="NoneType is not an image"):
        clip.embed_images(cast("Any", pa.array([str(png), None])))
    with pytest.raises(TypeError, match="a column of int64 holds no images"):
        clip.embed_images(cast("Any", pa.array([1])))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (np.zeros((8, 8, 3), np.float32), r"must be uint8 .*not float32 \(8, 8, 3\)"),
        (np.zeros((8, 8), np.uint8), r"must be uint8"),
        (np.zeros((8, 8, 4), np.uint8), r"must be uint8"),
        (np.zeros((0, 8, 3), np.uint8), r"must be uint8"),
        (7, "int is not an image"),
        (None, "NoneType is not an image"),
        (["a.jpg"], "list is not an image"),
        ({}, "neither 'bytes' nor a 'path'"),
        ({"bytes": None, "path": None}, "neither 'bytes' nor a 'path'"),
        ({"path": 7}, "neither 'bytes' nor a 'path'"),
    ],
)
def test_an_item_that_is_no_image(wrong: object, reason: str, photo: Photo, clip: ClipEmbedder) -> None:
    """Among good images it is one failure with its index; the others are embedded."""
    with pytest.raises(ImageBatchError, match=reason) as caught:
        clip.embed_images([photo(), wrong, photo(seed=1)])  # type: ignore[list-item]
    assert [failure.index for failure in caught.value.failures] == [1]
    assert caught.value.batch.indices.tolist() == [0, 2]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_exif_orientation(orientation: int, format: str, photo: Photo, encode: Encode) -> None:  # noqa: A002
    """A turned image comes out upright, unless the policy says otherwise."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(photo(40, 24), format, exif=exif)
    stored = rgb(encoded, ImagePolicy(exif=False))
    assert stored.shape == (24, 40, 3)
    np.testing.assert_array_equal(rgb(encoded), TRANSPOSED[orientation](stored))
    np.testing.assert_array_equal(rgb(Image.open(io.BytesIO(encoded))), TRANSPOSED[orientation](stored))


@pytest.mark.parametrize("background", [(255, 255, 255), (10, 200, 30)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_alpha_is_laid_over_the_background(mode: str, background: tuple[int, int, int], photo: Photo) -> None:
    """Each pixel is alpha × colour + (1 - alpha) × background, to one grey level."""
    colour = photo(32, 24).convert("L" if mode == "LA" else "RGB")
    alpha = Image.fromarray(np.linspace(0, 255, 32 * 24).astype(np.uint8).reshape(24, 32))
    if mode == "PA":
        image = colour.quantize(16).convert("PA")
        colour = image.convert("RGB")
    else:
        image = colour.convert(mode)
    image.putalpha(alpha)
    weight = np.asarray(alpha, np.float64)[..., None] / 255
    expected = weight * np.asarray(colour.convert("RGB")) + (1 - weight) * np.array(background)
    got = rgb(image, ImagePolicy(background=background))
    np.testing.assert_allclose(got, expected, atol=1.01)


@pytest.mark.parametrize("mode", ["P", "RGB", "L", "1"])
def test_transparent_colour_of_a_png(mode: str, encode: Encode) -> None:
    """The one colour that a tRNS chunk names is transparent, all others opaque."""
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 8:] = 255
    image = Image.fromarray(pixels).convert(mode)
    black = image.getpixel((0, 0))
    encoded = encode(image, "PNG", transparency=black)
    got = rgb(encoded, ImagePolicy(background=(10, 200, 30)))
    np.testing.assert_array_equal(got[:, :8], np.broadcast_to([10, 200, 30], (8, 8, 3)))
    np.testing.assert_array_equal(got[:, 8:], 255)


def test_palette_with_partial_transparency(encode: Encode) -> None:
    """A palette whose entries have alphas of their own is laid over the background too."""
    image = Image.fromarray(np.arange(4, dtype=np.uint8).reshape(1, 4), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    encoded = encode(image, "PNG", transparency=bytes([0, 128, 255, 255]))
    expected = [[255, 255, 255], [127, 255, 127], [0, 0, 255], [9, 9, 9]]
    np.testing.assert_allclose(rgb(encoded)[0], expected, atol=1)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV"])
def test_modes_without_alpha(mode: str, photo: Photo) -> None:
    """Other modes become RGB as Pillow converts them."""
    image = photo(32, 24).convert(mode)
    np.testing.assert_array_equal(rgb(image), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(format: str, encode: Encode) -> None:  # noqa: A002
    """16-bit grey 0..65,535 becomes 0..255, rounded to the nearest level."""
    values = np.linspace(0, 65535, 400).astype(np.uint16).reshape(20, 20)
    encoded = encode(Image.fromarray(values), format)
    expected = np.rint(values / 257).astype(np.uint8)[..., None].repeat(3, 2)
    np.testing.assert_array_equal(rgb(encoded), expected)


def test_floating_point_pixels_are_refused(encode: Encode) -> None:
    """Floats have no fixed range: a failure that says what to do."""
    encoded = encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    with pytest.raises(ImageError, match="convert the image to 8 bits first"):
        rgb(encoded)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_jpeg_and_tiff_modes(mode: str, format: str, photo: Photo, encode: Encode) -> None:  # noqa: A002
    """Grey, YCbCr and CMYK files decode to what Pillow decodes."""
    encoded = encode(photo(32, 24).convert(mode), format)
    expected = Image.open(io.BytesIO(encoded)).convert("RGB")
    np.testing.assert_array_equal(rgb(encoded), np.asarray(expected))


@pytest.mark.parametrize(("format", "options"), [("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats(format: str, options: dict[str, object], photo: Photo, encode: Encode) -> None:  # noqa: A002
    """BMP, TIFF and lossless WebP give the pixels that were written."""
    np.testing.assert_array_equal(rgb(encode(photo(32, 24), format, **options)), np.asarray(photo(32, 24)))


def test_an_animation_is_its_first_frame(photo: Photo, encode: Encode) -> None:
    """Of an animated GIF the first frame counts."""
    frames = [photo(32, 24, seed).quantize(64) for seed in range(3)]
    encoded = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(encoded)).n_frames == 3  # type: ignore[attr-defined]
    np.testing.assert_array_equal(rgb(encoded), np.asarray(frames[0].convert("RGB")))


@pytest.mark.parametrize(
    ("format", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("GIF", {}), ("TIFF", {})],
)
def test_a_truncated_file_is_never_a_partial_image(
    format: str,  # noqa: A002
    options: dict[str, object],
    photo: Photo,
    encode: Encode,
) -> None:
    """Cut anywhere, a file fails or, where only trailing bytes are gone, decodes completely."""
    whole = encode(photo(80, 60), format, **options)
    expected = rgb(whole)
    lengths = [*range(1, len(whole), len(whole) // 60), len(whole) - 2, len(whole) - 1]
    clip = ClipEmbedder(FakeModel(), cache=None)
    with clip.stream_images([(length, whole[:length]) for length in lengths]) as stream:
        failures = [failure for batch in stream for failure in batch.failures]
    assert len(failures) > 50
    assert not any(failure.retryable for failure in failures)
    for length in set(lengths) - {failure.key for failure in failures}:
        np.testing.assert_array_equal(rgb(whole[:length]), expected, err_msg=f"cut at {length}")


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (b"", "the file is empty"),
        (b"\xff\xd8\xff\xe0 this is no picture", "cannot decode|not an image"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "cannot decode|not an image"),
        (np.random.default_rng(0).bytes(5000), "not an image"),
        (b"a text file\n" * 9, "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    ],
)
def test_bytes_that_are_no_image(encoded: bytes, reason: str) -> None:
    """Junk is a failure of the content, which no retry mends."""
    with pytest.raises(ImageError, match=reason) as caught:
        rgb(encoded)
    assert not caught.value.retryable


def test_one_lazy_image_in_many_threads(photo: Photo, encode: Encode) -> None:
    """The same lazily opened PIL image many times in one list gives equal vectors."""
    encoded = encode(photo(300, 200), "JPEG")
    expected = ClipEmbedder(FakeModel(), precision="exact").embed_images([encoded])[0]
    for _ in range(20):
        lazy = Image.open(io.BytesIO(encoded))
        clip = ClipEmbedder(FakeModel(), precision="exact", batch_size=4, workers=8)
        got = clip.embed_images([lazy] * 24)
        np.testing.assert_allclose(got, np.tile(expected, (24, 1)), atol=1e-6)


def test_decode_from_many_threads_at_once(photo: Photo, encode: Encode) -> None:
    """Threads that start decoding one PIL image at the same moment do not disturb each other."""
    encoded = encode(photo(200, 150), "PNG")
    expected = rgb(encoded)
    lazy, start = Image.open(io.BytesIO(encoded)), threading.Barrier(6)

    def work(_: int) -> UInt8:
        start.wait()
        return rgb(lazy)

    with ThreadPoolExecutor(6) as pool:
        for got in pool.map(work, range(6)):
            np.testing.assert_array_equal(got, expected)


def test_a_closed_image_is_a_failure(photo: Photo, encode: Encode) -> None:
    """A PIL image whose file was closed before it was read is one failure, not a crash."""
    lazy = Image.open(io.BytesIO(encode(photo())))
    lazy.close()
    with pytest.raises(ImageError, match="cannot decode"):
        rgb(lazy)


def test_failures_do_not_keep_the_images_alive(clip: ClipEmbedder, photo: Photo, encode: Encode) -> None:
    """Neither the cache of failures nor waiting results hold on to the bytes that failed."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8))
    broken = encode(noise)[:-1000]
    clip.embed_images([photo()])
    tracemalloc.start()
    try:
        with clip.stream_images(broken + bytes([number]) for number in range(40)) as stream:
            failures = [failure for batch in stream for failure in batch.failures]
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(failures) == 40
    assert kept < 5 * len(broken)
