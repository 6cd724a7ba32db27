"""What may be read as an image: files that are missing, forbidden, huge or hostile."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clip_embed import ClipEmbedder, ImageError, ImageFailure, ImagePolicy
from clip_embed._images.source import decode, read_encoded
from clip_embed.testing import FakeModel

Photo = Callable[..., Image.Image]
Encode = Callable[..., bytes]


def fails(source: object, policy: ImagePolicy | None = None) -> ImageFailure:
    """Embed one image that must fail, and return how."""
    with ClipEmbedder(FakeModel(), policy=policy).stream_images([source]) as stream:  # type: ignore[list-item]
        batch = next(stream)
    assert batch.vectors.shape == (0, 16)
    return batch.failures[0]


def reads(source: object, policy: ImagePolicy) -> bool:
    """Whether the policy lets an image be read and decoded."""
    return decode(source, read_encoded(source, policy), policy).width > 0


@pytest.fixture
def png(tmp_path: Path, photo: Photo) -> Path:
    """A PNG file in a folder of its own."""
    folder = tmp_path / "photos"
    folder.mkdir()
    photo(40, 30).save(folder / "photo.png")
    return folder / "photo.png"


@pytest.mark.parametrize("kind", [str, Path, lambda path: {"path": str(path)}])
def test_a_missing_file_may_be_tried_again(kind: Callable[[Path], object], tmp_path: Path) -> None:
    """The failure names the path and is retryable."""
    failure = fails(kind(tmp_path / "missing.jpg"))
    assert (failure.index, failure.source) == (0, str(tmp_path / "missing.jpg"))
    assert failure.reason == "no such file"
    assert failure.retryable
    assert str(failure) == f"image 0 ({tmp_path / 'missing.jpg'}): no such file"


def test_a_file_below_a_file_may_be_tried_again(png: Path) -> None:
    """A path through something that is no folder is a place that is not there."""
    assert fails(png / "below.jpg").retryable


def test_a_permission_may_be_tried_again(png: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that may not be read is retryable, and the reason is the system's."""

    def refuse(path: Path, flags: int) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.open", refuse)  # the mode of the file does not stop root
    failure = fails(png)
    assert (failure.reason, failure.retryable) == ("cannot read the file: Permission denied", True)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "the path is empty"),
        (".", "it is a folder"),
        ("~/a.jpg", "no such file; ~ is not expanded: give the whole path"),
        ("file:///a.jpg", "no such file; file: URLs are not read: give the path alone"),
        ("a\0b.jpg", "null byte"),
        ("x" * 5000, "cannot read the file: File name too long"),
        ("\ud800.jpg", "no such file|surrogates not allowed"),
        ("https://example.org/cat.jpg", "URLs are not read"),
        ("HTTP://example.org/cat.jpg", "URLs are not read"),
    ],
)
def test_names_that_are_no_file(
    name: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a failure with its reason, which no retry mends unless a file appears."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageError, match=reason) as caught:
        read_encoded(name, ImagePolicy())
    assert caught.value.retryable == (str(caught.value) == "no such file")
    assert fails(name).reason == str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    """Reading a pipe or a device may never end: refused without opening it."""
    os.mkfifo(tmp_path / "pipe.jpg")
    assert fails(tmp_path / "pipe.jpg").reason == "it is not a regular file"


def test_a_loop_of_links_is_a_failure(tmp_path: Path) -> None:
    """A symbolic link to itself is one failure, with and without roots."""
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    assert "cannot read the file" in fails(tmp_path / "loop.jpg").reason
    assert "cannot read the file" in fails(tmp_path / "loop.jpg", ImagePolicy(roots=[tmp_path])).reason


def test_roots_let_through_what_lies_below(png: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files below a root are read, however the path is written; bytes are not concerned."""
    policy = ImagePolicy(roots=[png.parent.parent / "else", png.parent])
    assert reads(png, policy)
    assert reads(str(png.parent / ".." / png.parent.name / png.name), policy)
    assert reads(png.read_bytes(), policy)
    monkeypatch.chdir(png.parent)
    assert reads(png.name, ImagePolicy(roots=["."]))


def test_roots_keep_out_what_lies_elsewhere(png: Path) -> None:
    """Neither `..`, nor a link that leads out, nor a sibling with the root's name in front gets through."""
    root = png.parent.parent / "photo"
    root.mkdir()
    (root / "link.png").symlink_to(png)
    for source in (png, root / ".." / "photos" / "photo.png", root / "link.png", {"path": str(png)}):
        assert fails(source, ImagePolicy(roots=[root])).reason == "the file lies outside the policy's roots"
    (png.parent / "inner.png").symlink_to(png)
    assert reads(png.parent / "inner.png", ImagePolicy(roots=[png.parent]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_pixels": "big"}, "max_pixels must be a whole number, not 'big'"),
        ({"max_bytes": 1.5}, "max_bytes must be a whole number, not 1.5"),
        ({"max_seconds": None}, "max_seconds must be a number, not None"),
        ({"background": "red"}, "background must be three whole numbers, not 'red'"),
    ],
)
def test_values_of_another_type_are_named(wrong: dict[str, Any], message: str) -> None:
    """The error says which value, and what it must be."""
    with pytest.raises(TypeError, match=message):
        ImagePolicy(**wrong)


def test_max_bytes_holds_for_files_and_bytes(png: Path) -> None:
    """One byte over the limit is refused, the limit itself is not."""
    size = png.stat().st_size
    for source in (png, png.read_bytes(), {"bytes": png.read_bytes()}):
        assert reads(source, ImagePolicy(max_bytes=size))
        reason = f"{size:,} bytes are more than the policy's max_bytes = {size - 1:,}"
        failure = fails(source, ImagePolicy(max_bytes=size - 1))
        assert (failure.reason, failure.retryable) == (reason, False)


def test_max_pixels_holds_for_every_kind(png: Path, photo: Photo) -> None:
    """An image with more pixels is refused, whatever it comes as."""
    for source in (png, png.read_bytes(), photo(40, 30)):
        assert reads(source, ImagePolicy(max_pixels=40 * 30))
        assert "40 × 30 pixels are more than" in fails(source, ImagePolicy(max_pixels=40 * 30 - 1)).reason


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that claims to be huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_500, 60_000, 2**31 - 1])
def test_a_decompression_bomb_is_refused(side: int) -> None:
    """A small file of huge dimensions is refused by its header, before anything is decoded."""
    with pytest.raises(ImageError, match=r"pixels|limit|decode"):
        reads(bomb(side, side), ImagePolicy())
    assert not fails(bomb(side, side)).retryable


MEMORY = """
import io, resource, sys
import numpy as np
from PIL import Image
from clip_embed import ImagePolicy
from clip_embed._images.pixels import prepare_pixels
from clip_embed._types import ImageSpec
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
spec = ImageSpec(224, (224, 224))
def run(width, height):
    image = Image.new("RGB", (width, height), (9, 99, 199))
    stream = io.BytesIO()
    image.save(stream, "JPEG" if max(width, height) < 65500 else "PNG", quality=95, subsampling=0)
    for exact in (True, False):
        for source, encoded in ((image, None), ("", stream.getvalue()), (np.asarray(image), None)):
            pixels = prepare_pixels(source, encoded, spec, ImagePolicy(), exact=exact)
            assert (abs(pixels.astype(int) - (9, 99, 199)) <= 2).all()
run(300, 200)
before = peak()
for size in ((1, 20_000), (20_000, 1), (1, 80_000), (3, 100_000)):
    run(*size)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs the module resource")
def test_a_line_of_pixels_costs_no_memory() -> None:
    """A 1 × 20,000 image, which the reference makes 224 × 4,480,000, stays below 100 MB."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)  # noqa: S603
    assert int(done.stdout) < 100e6  # the reference's resize alone takes 3 GB
