"""Attacks on the policy, and what happens to each: a table, and exit code 1 where one gets through.

    python tests/fuzz/attacks.py

Files stay small; what they ask for is written beside them. Memory is the growth of the peak, so an
attack that costs less than one before it shows as 0. The policy is one of 4 million pixels.
"""

from __future__ import annotations

import io
import os
import re
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, features
from worker import peak

from clip_embed import ClipEmbedder, ImagePolicy
from clip_embed.testing import FakeModel

LIMITS = {"max_pixels": 4_000_000, "max_bytes": 30_000_000, "max_seconds": 2.0}
MAX_GROWTH = 200e6
Attack = tuple[str, object, str]  # what it is, the image, a pattern of what must come of it


def _encode(image: Image.Image, format: str, **options: object) -> bytes:  # noqa: A002 - Pillow's word
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def _zeros(size: int) -> bytes:
    """Many zeros, compressed."""
    packer = zlib.compressobj(9)
    blocks = [packer.compress(bytes(min(1 << 20, size - at))) for at in range(0, size, 1 << 20)]
    return b"".join(blocks) + packer.flush()


def _chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, *extra: bytes, pixels: bool = True) -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    data = _zeros(height * (width + 1)) if pixels else _zeros(99)
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + _chunk(b"IDAT", data) + _chunk(b"IEND")


def _tiff(width: int, height: int, *more: tuple[int, int, int, int], tail: bytes = b"") -> bytes:
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), *more]
    packed = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4) + tail


def _tiff_tile(side: int) -> bytes:
    """A TIFF of one pixel in a tile that is huge when it is unpacked."""
    data = _zeros(side * side)
    start = 8 + 2 + 12 * 9 + 4
    return _tiff(
        1, 1, (322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, start), (325, 4, 1, len(data)), tail=data
    )


def _tiff_nested() -> bytes:
    """A strip that unpacks to what unpacks again; only the first is ever done, as far as the strip needs."""
    data = zlib.compress(_zeros(50_000_000), 9)
    start = 8 + 2 + 12 * 8 + 4
    return _tiff(50, 50, (273, 4, 1, start), (278, 4, 1, 50), (279, 4, 1, len(data)), tail=data)


def _tags(count: int, size: int) -> bytes:
    """An EXIF block whose tags all name the same bytes."""
    return _tiff(1, 1, *((tag, 1, size, 8) for tag in range(30_000, 30_000 + count)), tail=bytes(size))


def _scans(width: int, height: int, count: int) -> bytes:
    """A progressive JPEG that goes over the whole image again and again."""
    file = _encode(Image.new("L", (width, height)), "JPEG", progressive=True)
    scan = file[file.rindex(b"\xff\xda") : -2]
    return file[:-2] + scan * count + b"\xff\xd9"


def _codestream(width: int, height: int, tile: int, precincts: int | None = None) -> bytes:
    file = bytearray(_encode(Image.new("L", (64, 64)), "JPEG2000", no_jp2=True, num_resolutions=1))
    struct.pack_into(">IIIIIIII", file, 8, width, height, 0, 0, tile, tile, 0, 0)
    if precincts is None:
        return bytes(file)
    at = file.index(b"\xff\x52")
    end = at + 2 + int.from_bytes(file[at + 2 : at + 4])
    coding = bytearray(file[at:end]) + bytes([precincts])
    coding[2:5] = (end - at - 1).to_bytes(2) + bytes([coding[4] | 1])
    return bytes(file[:at] + coding + file[end:])


def _jp2_lie() -> bytes:
    """Boxes that say 10 × 10, and a codestream of 60,000 × 60,000."""
    file = bytearray(_encode(Image.new("L", (10, 10)), "JPEG2000"))
    at = file.index(b"\xff\x4f\xff\x51")
    struct.pack_into(">IIIIIIII", file, at + 8, 60_000, 60_000, 0, 0, 60_000, 60_000, 0, 0)
    return bytes(file)


def _ico(inner: bytes) -> bytes:
    return b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22) + inner


def _icns(inner: bytes) -> bytes:
    return b"icns" + struct.pack(">I4sI", 16 + len(inner), b"ic07", 8 + len(inner)) + inner


def _jpeg_lie(width: int, height: int) -> bytes:
    file = bytearray(_encode(Image.new("RGB", (16, 16)), "JPEG"))
    at = file.index(b"\xff\xc0")
    file[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(file)


def _two_frames() -> bytes:
    """A JPEG with the header of a small image behind that of a large one."""
    file = _encode(Image.new("RGB", (16, 16)), "JPEG")
    at = file.index(b"\xff\xc0")
    frame = bytearray(file[at : at + 19])
    frame[5:9] = struct.pack(">HH", 65_000, 65_000)
    return file[:at] + frame + file[at:]


def _webp_lie() -> bytes:
    file = bytearray(
        _encode(Image.new("RGBA", (16, 16), (1, 2, 3, 9)), "WEBP", lossless=True, exif=b"Exif\0\0x")
    )
    file[24:30] = (16_383 - 1).to_bytes(3, "little") * 2
    return bytes(file)


def _avif_lie() -> bytes:
    file = bytearray(_encode(Image.new("RGB", (16, 16)), "AVIF"))
    at = file.index(b"ispe") + 8
    file[at : at + 8] = struct.pack(">II", 60_000, 60_000)
    return bytes(file)


def _avif_small() -> bytes:
    """Boxes that say 10 × 10 around AV1 data of more pixels than the policy allows."""
    file = bytearray(_encode(Image.new("RGB", (2_100, 2_100)), "AVIF", speed=10))
    at = file.index(b"ispe") + 8
    file[at : at + 8] = struct.pack(">II", 10, 10)
    return bytes(file)


def _bombs() -> Iterator[Attack]:
    too_many = "pixels are more than the policy"
    yield "PNG of 60,000 × 60,000", _png(60_000, 60_000, pixels=False), too_many
    yield "PNG of 9,000 × 9,000 in 90 KB", _png(9_000, 9_000), too_many
    yield "PNG of 1 × 500,000,000", _png(1, 500_000_000, pixels=False), too_many
    yield "PNG of 1 × 3,900,000", _png(1, 3_900_000), "no side may be longer"
    yield "PNG of 1 × 900,000", _png(1, 900_000), "vector"
    yield "PNG of 900,000 × 4", _png(900_000, 4), "vector"
    yield "JPEG of 65,500 × 1", _encode(Image.new("RGB", (65_500, 1)), "JPEG"), "vector"
    yield "JPEG that says 65,000 × 65,000", _jpeg_lie(65_000, 65_000), too_many
    yield "JPEG that says 1,900 × 1,900, has 16 × 16", _jpeg_lie(1_900, 1_900), "vector|cannot decode"
    yield "JPEG with two frames", _two_frames(), "cannot decode|pixels"
    yield "JPEG with 20,000 scans", _scans(1_500, 1_500, 20_000), "more than 100 scans"
    yield "JPEG with 3 million segments", b"\xff\xd8" + b"\xff\xe5\0\2" * 3_000_000, "1,000 segments"
    yield (
        "PNG text that unpacks to 200 MB",
        _png(9, 9, _chunk(b"zTXt", b"k\0\0" + _zeros(200 << 20))),
        "too large",
    )
    yield "PNG ICC profile of 200 MB", _png(9, 9, _chunk(b"iCCP", b"k\0\0" + _zeros(200 << 20))), "too large"
    yield "PNG with 2 million chunks", _png(9, 9, _chunk(b"prIv") * 2_000_000), "tiny chunks"
    yield "GIF, frame of 65,535 × 65,535", _gif_frame(), too_many
    yield "GIF comment of 10 million blocks", _gif_comment(), "blocks before its first frame"
    yield "WebP canvas of 16,383 × 16,383", _webp_lie(), too_many + "|cannot decode"
    if features.check("avif"):
        yield "AVIF that says 60,000 × 60,000", _avif_lie(), too_many + "|cannot decode|not an image"
        yield "AVIF of 2,100 × 2,100 that says 10 × 10", _avif_small(), too_many
    yield "TIFF pixel in a tile of 30,000 × 30,000", _tiff_tile(30_000), "tiles of 30000"
    yield "TIFF, zip within zip", _tiff_nested(), "vector|cannot decode"
    yield (
        "TIFF with 10 million strips",
        _tiff(9, 9, (273, 4, 10_000_000, 8), (278, 4, 1, 1)),
        "strips or tiles",
    )
    yield "TIFF, 40 GB of tags in 2 MB", _tags(20_000, 2_000_000), "its tags name"
    exif = b"Exif\0\0" + _tags(20_000, 2_000_000)
    yield "WebP, 40 GB of EXIF in 2 MB", _encode(Image.new("RGB", (9, 9)), "WEBP", exif=exif), "its tags name"
    yield "JPEG 2000 of 65,000 tiles", _codestream(1_900, 1_900, 7), "tiles, more than"
    yield "JPEG 2000 in blocks of 2 × 2", _codestream(1_900, 1_900, 1_900, 0x11), "blocks in a tile"
    yield "JP2 around a larger codestream", _jp2_lie(), too_many
    yield "ICO around a PNG of 9,000 × 9,000", _ico(_png(9_000, 9_000)), too_many
    yield "ICNS around a PNG of 9,000 × 9,000", _icns(_png(9_000, 9_000)), too_many
    yield "ICNS around a JPEG 2000 bomb", _icns(_codestream(1_900, 1_900, 1_900, 0x11)), "blocks in a tile"
    yield "array of 3,000 × 3,000", np.zeros((3_000, 3_000, 3), np.uint8), too_many
    yield "PIL image of 3,000 × 3,000", Image.new("L", (3_000, 3_000)), too_many
    yield "PIL image, 1 × 2,000,000", Image.new("L", (1, 2_000_000)), "no side may be longer"


def _gif_frame() -> bytes:
    return b"GIF89a\1\0\1\0\0\0\0," + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0) + b"\x08\0;"


def _gif_comment() -> bytes:
    return b"GIF89a\x09\0\x09\0\0\0\0!\xfe" + b"\1a" * 10_000_000 + b"\0"


def _programs() -> Iterator[Attack]:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/attack) (w) file\n"
    other = "not an image, or not one of the formats"
    yield "EPS, which Ghostscript would run", postscript, other
    yield "EPS opened by Pillow, not loaded", Image.open(io.BytesIO(postscript)), "EPS is not one of"
    yield (
        "WMF",
        b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<hhhhHIH", 0, 0, 9, 9, 72, 0, 0) + b"\1\0\x09\0" + bytes(60),
        other,
    )
    yield "SVG that names a file", b'<svg><image href="file:///etc/passwd"/></svg>', other
    yield "FITS", b"SIMPLE  =                    T" + b" " * 2850, other


def _files(folder: Path) -> Iterator[Attack]:
    root, secret = folder / "root", folder / "secret.png"
    root.mkdir()
    Image.new("RGB", (9, 9)).save(secret)
    (root / "link.png").symlink_to(secret)
    (root / "up").symlink_to(folder)
    os.mkfifo(root / "pipe.png")
    outside = "outside the policy's roots"
    yield "a path outside the roots", str(secret), outside
    yield "`..` out of the roots", f"{root}/../secret.png", outside
    yield "a link to a file outside", str(root / "link.png"), outside
    yield "a link to a folder outside", str(root / "up" / "secret.png"), outside
    yield "a sibling of a like name", str(folder / "root2.png"), outside
    yield "is there such a file outside?", "/no/such/file", outside
    yield "a pipe that nobody writes to", str(root / "pipe.png"), "not a regular file"
    yield "the folder itself", str(root), "it is a folder"
    yield "a null byte in the name", f"{root}/a.png\0.jpg", "null byte"


def _unrooted() -> Iterator[Attack]:
    yield "/dev/zero", "/dev/zero", "not a regular file"
    yield (
        "/dev/stdin",
        "/dev/stdin",
        "not a regular file|no such|cannot read|not an image|it is a folder|empty",
    )
    yield "/proc/self/environ", "/proc/self/environ", "not an image|no such file"


def _urls() -> Iterator[Attack]:
    inside = "not public"
    names = "127.0.0.1 2130706433 0.0.0.0 169.254.169.254 10.0.0.1 100.64.0.1"
    numbers = "[::1] [fe80::1] [::ffff:127.0.0.1] [64:ff9b::7f00:1] [2002:7f00:1::]"
    for host in f"{names} {numbers}".split():
        yield f"http://{host}/", f"http://{host}/", inside + "|cannot fetch"
    yield "a URL with a password", "http://me:secret@example.org/", "credentials"
    yield "a header smuggled into a URL", "http://example.org/\r\nX: y", "control characters"
    yield "data: URL", "data:image/png;base64,AAAA", "data: URLs are not read"
    yield "file: URL", "file:///etc/passwd", "no such file"
    yield "ftp: URL", "ftp://example.org/cat.png", "no such file"


def attacks(folder: Path) -> Iterator[tuple[Attack, ImagePolicy]]:
    """Yield each attack with the policy that it is tried on."""
    plain = ImagePolicy(**LIMITS)  # type: ignore[arg-type]
    yield from ((attack, plain) for attack in (*_bombs(), *_programs(), *_unrooted()))
    rooted = ImagePolicy(roots=[folder / "root"], **LIMITS)  # type: ignore[arg-type]
    yield from ((attack, rooted) for attack in _files(folder))
    slow = b"qoif" + struct.pack(">IIH", 2_000, 2_000, 1024) + bytes(3_999_000)
    yield ("QOI of 4 million single pixels", slow, "max_seconds"), ImagePolicy(max_seconds=0.1)
    yield ("http://example.org/ by default", "http://example.org/", "unless the policy says so"), plain
    yield from ((attack, ImagePolicy(urls=True)) for attack in _urls())


def outcome(image: object, policy: ImagePolicy) -> str:
    """Embed it as a user would, and say what came of it."""
    clip = ClipEmbedder(FakeModel(), policy=policy, cache=None, workers=1)
    with clip.stream_images([image]) as stream:  # type: ignore[list-item]
        batch = next(stream)
    return batch.failures[0].reason if batch.failures else "vector"


def main(say: Callable[[str], None] = print) -> int:
    """Print the table; 1 where an attack got through."""
    outcome(_png(9, 9), ImagePolicy())
    through = 0
    with tempfile.TemporaryDirectory() as folder:
        for (name, image, expected), policy in attacks(Path(folder)):
            before = peak()
            found = outcome(image, policy)
            growth = peak() - before
            well = bool(re.search(expected, found)) and growth < MAX_GROWTH
            through += not well
            say(f"{'  ' if well else '!!'} {name:42s} {growth / 1e6:4.0f} MB  {found[:90]}")
    say(f"through: {through}")
    return min(1, through)


if __name__ == "__main__":
    sys.exit(main())
