"""The policy holds under races, on every kind of input, and quietly; texts stay texts."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from clip_embed import ClipEmbedder, ImageError, ImagePolicy, ImageSpec
from clip_embed._images.formats import FORMATS
from clip_embed._images.pixels import prepare_pixels
from clip_embed._images.source import decode, read_encoded
from clip_embed.testing import FakeModel

Photo = Callable[..., Image.Image]
Encode = Callable[..., bytes]
SPEC = ImageSpec(32, (32, 32))

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs symbolic links and pipes")


@posix
@pytest.mark.parametrize("swapped", ["file", "folder"])
@pytest.mark.parametrize("after", ["the path is resolved", "the file is looked at"])
def test_a_link_put_in_place_after_the_check_leads_nowhere(
    swapped: str, after: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody swaps the file, or the folder above it, for a link that leads out, at the worst moments."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder, content in ((root / "folder", "inside"), (outside, "secret")):
        folder.mkdir(parents=True)
        (folder / "a.png").write_text(content)
    place = root / "folder" / "a.png" if swapped == "file" else root / "folder"
    policy = ImagePolicy(roots=[root])
    assert read_encoded(root / "folder" / "a.png", policy) == b"inside"

    moments = iter([1])

    def swap_after(look: Callable[..., object]) -> Callable[..., object]:
        def looks(*arguments: object, **options: object) -> object:
            seen = look(*arguments, **options)
            ours = "dir_fd" in options or name == "resolve"  # resolve() looks at it as well
            if ours and "a.png" in str(arguments[0]) and next(moments, None):
                place.rename(tmp_path / "good")
                place.symlink_to(outside / "a.png" if swapped == "file" else outside)
            return seen

        return looks

    target, name = (Path, "resolve") if after == "the path is resolved" else (os, "stat")
    monkeypatch.setattr(target, name, swap_after(getattr(target, name)))
    try:
        found = read_encoded(root / "folder" / "a.png", policy)
    except ImageError as error:
        found = str(error).encode()
    # Where the folder was opened before the swap, it is still the good one.
    opened = after == "the file is looked at" and swapped == "folder"
    assert found == b"inside" if opened else b"Too many levels" in found or b"Not a directory" in found
    assert place.is_symlink()


@posix
def test_a_pipe_put_in_place_of_a_file_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the first look and the opening a file becomes a pipe: refused all the same, and at once."""
    target = tmp_path / "a.png"
    target.write_bytes(b"x")
    checked = target.stat()
    target.unlink()
    os.mkfifo(target)
    monkeypatch.setattr(Path, "stat", lambda _: checked)
    with pytest.raises(ImageError, match="not a regular file"):
        read_encoded(target, ImagePolicy())


@posix
def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    """Neither a good file nor any refused one leaves a descriptor behind."""
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "a.png").write_bytes(b"x")
    (tmp_path / "in" / "large.png").write_bytes(b"x" * 99)
    os.mkfifo(tmp_path / "in" / "pipe")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for policy in (ImagePolicy(max_bytes=9), ImagePolicy(max_bytes=9, roots=[tmp_path / "in"])):
        for name in ("in/deep/a.png", "in/large.png", "in/pipe", "in/deep", "in/none/a.png", "x.png"):
            with suppress(ImageError):
                read_encoded(tmp_path / name, policy)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_that_grows_stays_within_max_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose size is stated as less than it is (as in /proc) is read to its end, or refused."""
    file = tmp_path / "a.bin"
    file.write_bytes(b"x" * 500)
    told = os.fstat

    def smaller(descriptor: int) -> os.stat_result:
        facts = list(told(descriptor))
        facts[6] = 0
        return os.stat_result(facts)

    monkeypatch.setattr(os, "fstat", smaller)
    assert read_encoded(file, ImagePolicy(max_bytes=500)) == b"x" * 500
    with pytest.raises(ImageError, match="bytes are more"):
        read_encoded(file, ImagePolicy(max_bytes=499))


@pytest.mark.parametrize("exact", [True, False])
def test_arrays_are_measured_too(exact: bool) -> None:
    """An array larger than the policy fails with the reason that a file of its size would have."""
    array = np.zeros((30, 40, 3), np.uint8)
    assert prepare_pixels(array, None, SPEC, ImagePolicy(max_pixels=1200), exact=exact).shape == (32, 32, 3)
    with pytest.raises(ImageError, match="40 × 30 pixels are more"):
        prepare_pixels(array, None, SPEC, ImagePolicy(max_pixels=1199), exact=exact)


def test_more_pixels_than_pillow_likes(encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy alone decides: an image beyond Pillow's own limit is embedded without a word."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for format_ in ("PNG", "JPEG", "BMP", "PPM"):
        file = encode(Image.new("RGB", (40, 30)), format_)
        assert prepare_pixels(file, file, SPEC, ImagePolicy()).shape == (32, 32, 3)


LARGE = """
import sys
sys.path.insert(0, sys.argv[1])
from attacks import _codestream, _gif_frame, _ico, _icns, _jpeg_lie, _png, _tiff
from clip_embed import ClipEmbedder
from clip_embed.testing import FakeModel
png = _png(9_500, 9_500, pixels=False)
strip = (273, 4, 1, 8), (278, 4, 1, 9_500), (279, 4, 1, 99)
images = [png, _ico(png), _icns(png), _gif_frame(), _jpeg_lie(9_500, 9_500), _tiff(9_500, 9_500, *strip)]
images.append(_codestream(9_500, 9_500, 9_500))
with ClipEmbedder(FakeModel()).stream_images(images) as stream:
    for batch in stream:
        print(*[failure.reason for failure in batch.failures], sep="\\n")
"""


def test_pillows_warning_does_not_reach_the_terminal() -> None:
    """Of images that are too large by default nothing is printed; each is a failure with our reason."""
    command = [sys.executable, "-c", LARGE, str(Path(__file__).parents[1] / "fuzz")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stderr == ""
    assert done.stdout.count("pixels are more than the policy's max_pixels") == 7


@pytest.mark.filterwarnings("error")
def test_warnings_as_errors_are_failures_not_crashes(encode: Encode) -> None:
    """Where the user turns warnings into errors, a decoder's warning is one listed failure."""
    file = encode(Image.new("RGB", (40, 30)), "TIFF", compression="tiff_lzw")
    damaged = file.replace(bytes([0x11, 0x01]), bytes([0x11, 0x02]))
    with ClipEmbedder(FakeModel()).stream_images([damaged, file]) as stream:
        batch = next(stream)
    assert 1 in batch.indices


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a shell")
def test_no_decoder_runs_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An EPS would be given to Ghostscript; here it is not even opened, by path, bytes or PIL."""
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    file = tmp_path / "a.eps"
    Image.new("RGB", (9, 9)).save(file)
    with Image.open(file) as image:
        for source in (file, file.read_bytes(), image):
            with ClipEmbedder(FakeModel()).stream_images([source]) as stream:
                assert "not one of the formats that are read" in next(stream).failures[0].reason
    assert not (tmp_path / "ran").exists()


def test_a_pil_image_that_is_loaded_may_be_of_any_format(encode: Encode) -> None:
    """Whoever has loaded it has decided; one still in its file is read only where its format is."""
    file = encode(Image.new("RGB", (9, 9)), "SGI")
    with Image.open(io.BytesIO(file)) as image:
        with pytest.raises(ImageError, match="SGI is not one of the formats"):
            prepare_pixels(image, None, SPEC, ImagePolicy())
        image.load()
        assert prepare_pixels(image, None, SPEC, ImagePolicy()).shape == (32, 32, 3)


def test_the_page_on_safety_names_the_formats() -> None:
    """docs/safety.md lists what is read, and the error for anything else does."""
    page = Path(__file__).parents[2] / "docs" / "safety.md"
    with pytest.raises(ImageError) as caught:
        prepare_pixels(b"text", b"text", SPEC, ImagePolicy())
    for name in FORMATS:
        shown = {"JPEG2000": "JPEG 2000", "WEBP": "WebP", "HEIF": "HEIC"}.get(name, name)
        assert shown in page.read_text(), name
        assert name in ("MPO", "HEIF") or name in str(caught.value)


def test_a_decoder_that_keeps_reading_ends_in_time() -> None:
    """The time limit stops one that asks for more; the failure may be tried again and is not remembered."""
    file = b"qoif" + (3000).to_bytes(4) * 2 + b"\4\0" + bytes(9_000_000)
    clip = ClipEmbedder(FakeModel(), policy=ImagePolicy(max_seconds=0.05))
    for _ in range(2):
        with clip.stream_images([file]) as stream:
            failure = next(stream).failures[0]
        assert failure.reason == "decoding took longer than max_seconds = 0.05"
        assert failure.retryable


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {"compress_level": 0}),
        ("JPEG", {"progressive": True, "comment": b"x" * 60_000}),
        (
            "GIF",
            {"save_all": True, "append_images": [Image.new("L", (700, 500))] * 99, "comment": b"x" * 60_000},
        ),
        ("TIFF", {"compression": "tiff_lzw", "tiffinfo": {278: 1}}),
        ("JPEG2000", {"tile_size": (64, 64), "codeblock_size": (16, 16), "precinct_size": (64, 64)}),
        ("AVIF", {"save_all": True, "append_images": [Image.new("RGB", (700, 500))] * 3, "speed": 10}),
        ("AVIF", {"subsampling": "4:4:4", "exif": b"Exif\0\0II*\0\x08\0\0\0" + bytes(6), "speed": 10}),
        ("WEBP", {"save_all": True, "append_images": [Image.new("L", (700, 500))] * 20}),
    ],
)
def test_unusual_but_honest_images_pass(
    format: str,  # noqa: A002
    options: dict[str, object],
    photo: Photo,
    encode: Encode,
) -> None:
    """Many strips, small blocks, long comments, many frames: the limits are far from all of them."""
    file = encode(photo(700, 500), format, **options)
    assert prepare_pixels(file, file, SPEC, ImagePolicy()).shape == (32, 32, 3)


@pytest.mark.parametrize("limit", ["max_seconds", "max_bytes", "max_pixels"])
def test_a_limit_must_be_positive(limit: str) -> None:
    """0 is a ValueError that names it."""
    with pytest.raises(ValueError, match=limit):
        ImagePolicy(**{limit: 0})  # type: ignore[arg-type]


def test_exif_as_text_in_a_png_is_judged_too(encode: Encode) -> None:
    """The tags of a raw profile that name the same bytes again and again are refused, good ones turn it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for tags, turned in ((exif.tobytes(), True), (b"Exif\0\0" + _overlapping(2000, 100_000), False)):
        text = PngImagePlugin.PngInfo()
        text.add_text("Raw profile type exif", f"\nexif\n{len(tags)}\n{tags.hex()}\n", zip=True)
        block = encode(Image.new("RGB", (40, 20)), "PNG", pnginfo=text)
        if turned:
            assert decode(block, block, ImagePolicy()).size == (20, 40)
        else:
            with pytest.raises(ImageError, match="its tags name"):
                decode(block, block, ImagePolicy())


def _overlapping(count: int, size: int) -> bytes:
    """An EXIF block whose tags all name the same bytes."""
    tags = b"".join(struct.pack("<HHII", 30_000 + tag, 1, size, 8) for tag in range(count))
    return b"II*\0" + struct.pack("<IH", 8, count) + tags + bytes(4 + size)


def test_a_name_in_a_failure_is_not_megabytes_long() -> None:
    """A data: URL given as a string fails with the beginning of it as its name."""
    url = "data:image/png;base64," + "A" * 10**6
    with ClipEmbedder(FakeModel()).stream_images([url]) as stream:
        failure = next(stream).failures[0]
    assert failure.source.startswith("data:image/png;base64,AAAA")
    assert len(str(failure)) < 300
