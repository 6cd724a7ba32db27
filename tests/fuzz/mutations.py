"""Ways to damage an encoded image, from single bits to whole chunks with their checksums put right."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from random import Random

_EXTREMES = [0, 1, 2, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 2**24, 2**31 - 1, 2**31, 2**32 - 1]
_PNG = b"\x89PNG\r\n\x1a\n"


def _bits(data: bytearray, rng: Random) -> None:
    for _ in range(rng.choice([1, 1, 2, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _run(data: bytearray, rng: Random) -> None:
    at, length = rng.randrange(len(data)), rng.choice([1, 2, 4, 16, 64])
    filling = rng.choice([b"\0", b"\xff", None])
    data[at : at + length] = filling * length if filling else rng.randbytes(length)


def _cut(data: bytearray, rng: Random) -> None:
    del data[rng.randrange(1, len(data) + 1) :]


def _delete(data: bytearray, rng: Random) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice([1, 2, 7, 64])]


def _insert(data: bytearray, rng: Random) -> None:
    at = rng.randrange(len(data))
    data[at:at] = rng.randbytes(rng.choice([1, 2, 7, 64]))


def _repeat(data: bytearray, rng: Random) -> None:
    at, length = rng.randrange(len(data)), rng.choice([1, 4, 16, 64, 500])
    data[at:at] = data[at : at + length] * rng.choice([1, 3, 50])


def _number(data: bytearray, rng: Random) -> None:
    """Put an extreme number where a header may have one."""
    size = rng.choice([1, 2, 2, 4, 4, 8])
    at = rng.randrange(min(len(data), rng.choice([32, 64, 256, 2000])))
    value = rng.choice(_EXTREMES) & (2 ** (8 * size) - 1)
    data[at : at + size] = value.to_bytes(size, rng.choice(["big", "little"]))


def _jpeg_frame(data: bytearray, rng: Random) -> None:
    """Change the header of a JPEG's frame: size, components, sampling."""
    for marker in (b"\xff\xc0", b"\xff\xc2"):
        at = data.find(marker)
        if 0 <= at < len(data) - 19:
            place = at + rng.randrange(1, 19)
            data[place] = rng.choice([0, 1, 2, 3, 4, 0x11, 0x22, 0x41, 0xFF, rng.randrange(256)])


def _jpeg_segment(data: bytearray, rng: Random) -> None:
    """Repeat or remove a segment of a JPEG."""
    starts = [at for at in range(2, len(data) - 4) if data[at] == 0xFF and data[at + 1] >= 0xC0]
    if starts:
        at = rng.choice(starts)
        length = 2 + int.from_bytes(data[at + 2 : at + 4])
        if rng.random() < 0.3:
            del data[at : at + length]
        else:
            data[at:at] = data[at : at + length] * rng.choice([1, 2, 30])


def _tiff_entry(data: bytearray, rng: Random) -> None:
    """Change tag, type, count or value of an entry of a TIFF's directory."""
    order = "little" if data[:2] == b"II" else "big"
    start = int.from_bytes(data[4:8], order)
    count = int.from_bytes(data[start : start + 2], order)
    if data[:2] in (b"II", b"MM") and 0 < count < 100:
        at = start + 2 + 12 * rng.randrange(count)
        place, size = rng.choice([(0, 2), (2, 2), (4, 4), (8, 4), (8, 2)])
        value = rng.choice([*_EXTREMES, rng.randrange(len(data)), rng.randrange(1, 19)]) & (
            2 ** (8 * size) - 1
        )
        data[at + place : at + place + size] = value.to_bytes(size, order)


def _png_chunks(data: bytearray, rng: Random) -> None:
    """Damage, repeat, remove or swap chunks of a PNG and put the checksums right."""
    chunks: list[bytearray] = []
    at = 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        chunks.append(data[at + 4 : at + 8 + length])
        at += 12 + length
    if not chunks:
        return
    for _ in range(rng.choice([1, 1, 3])):
        place = rng.randrange(len(chunks))
        action = rng.randrange(6)
        if action == 0:
            chunks[place:place] = [chunks[place]] * rng.choice([1, 2, 40])
        elif action == 1 and len(chunks) > 1:
            del chunks[place]
        elif action == 2:
            other = rng.randrange(len(chunks))
            chunks[place], chunks[other] = chunks[other], chunks[place]
        elif action == 3 and chunks[place][:4] == b"IDAT":
            _recompress(chunks[place], rng)
        elif len(chunks[place]) > 4:
            body = chunks[place][4:]
            rng.choice([_bits, _number, _run])(body, rng)
            chunks[place] = chunks[place][:4] + body
    data[8:] = b"".join(
        (len(chunk) - 4).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4)
        for chunk in chunks
        if len(chunk) > 3
    )


def _recompress(chunk: bytearray, rng: Random) -> None:
    try:
        rows = bytearray(zlib.decompress(bytes(chunk[4:])))
    except zlib.error:
        return
    if rows:
        rng.choice([_bits, _run, _cut, _repeat])(rows, rng)
    chunk[4:] = zlib.compress(bytes(rows))


_ANY: list[Callable[[bytearray, Random], None]] = [
    _bits, _bits, _run, _cut, _delete, _insert, _repeat, _number, _number, _number,
]  # fmt: skip


def mutate(seed: bytes, seeds: Sequence[bytes], rng: Random) -> bytes:
    """Return a damaged image."""
    data = bytearray(seed)
    if rng.random() < 0.08:
        other = rng.choice(seeds)
        data = data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]
    ways = list(_ANY)
    if data.startswith(_PNG):
        ways += [_png_chunks] * 8
    elif data.startswith(b"\xff\xd8"):
        ways += [_jpeg_frame, _jpeg_segment] * 3
    elif data[:2] in (b"II", b"MM"):
        ways += [_tiff_entry] * 8
    for _ in range(rng.choice([1, 1, 2, 3])):
        if len(data):
            rng.choice(ways)(data, rng)
    return bytes(data)
