"""AVIF: the size that its boxes state, which Pillow tells, and the one that the AV1 data has."""

from __future__ import annotations

from collections.abc import Iterator

from clip_embed._images.hazards._limits import check_size
from clip_embed._types import ImagePolicy
from clip_embed.errors import ImageError

_CONTAINERS = (b"meta", b"moov", b"trak", b"mdia", b"minf", b"stbl")
_MAX_BOXES = 10_000
_MAX_UNITS = 10_000  # units of AV1 data that are looked at in one item
_SEQUENCE_HEADER = 1


def check_avif(encoded: bytes, policy: ImagePolicy) -> None:
    """Raise ImageError where the AV1 data is of images larger than the policy allows."""
    boxes = list(_boxes(encoded))
    for data in (*_items(encoded, boxes), *_chunks(encoded, boxes)):
        for header in _sequence_headers(data):
            check_size(*_frame_size(header), policy)


def _boxes(encoded: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of the content of every box, also of those in containers."""
    open_until = [(0, len(encoded))]
    count = 0
    while open_until:
        at, end = open_until.pop()
        while at + 8 <= end:
            length, kind = int.from_bytes(encoded[at : at + 4]), encoded[at + 4 : at + 8]
            start = at + 8
            if length == 1:
                length, start = int.from_bytes(encoded[at + 8 : at + 16]), at + 16
            stop = min(end, at + length) if length else end
            count += 1
            if stop < start or count > _MAX_BOXES:
                break
            yield kind, start, stop
            if kind in _CONTAINERS:
                open_until.append((start + 4 * (kind == b"meta"), stop))
            at = stop


def _items(encoded: bytes, boxes: list[tuple[bytes, int, int]]) -> Iterator[memoryview]:
    """Yield the data of each item that `iloc` places in the file or in `idat`."""
    inside = next((start for kind, start, _ in boxes if kind == b"idat"), 0)
    for kind, start, end in boxes:
        if kind == b"iloc":
            yield from _located(encoded, _Numbers(encoded[start:end]), inside)


def _located(encoded: bytes, box: _Numbers, inside: int) -> Iterator[memoryview]:
    version = box.take(1)
    box.take(3)
    sizes, more = box.take(1), box.take(1)
    long = 4 if version == 2 else 2
    whole, named = memoryview(encoded), 0
    for _ in range(min(box.take(long), _MAX_BOXES)):
        box.take(long)
        method = box.take(2) & 15 if version else 0
        box.take(2)
        base = box.take(more >> 4) + (inside if method == 1 else 0)
        parts: list[memoryview] = []
        for _ in range(min(box.take(2), 100)):
            box.take(more & 15 if version else 0)
            at, length = base + box.take(sizes >> 4), box.take(sizes & 15)
            parts.append(whole[at : at + length] if length else whole[at:])
            named += len(parts[-1])
            if named > 2 * len(encoded):
                raise ImageError("an AVIF whose items name the same bytes again and again")
        yield parts[0] if len(parts) == 1 else memoryview(b"".join(parts))


def _chunks(encoded: bytes, boxes: list[tuple[bytes, int, int]]) -> Iterator[memoryview]:
    """Yield the data from the beginning of each chunk of an animation's track."""
    for kind, start, end in boxes:
        width = {b"stco": 4, b"co64": 8}.get(kind)
        if width:
            box = _Numbers(encoded[start + 4 : end])
            for _ in range(min(box.take(4), 100)):
                yield memoryview(encoded)[box.take(width) :]


class _Numbers:
    """Reads big-endian numbers of whole bytes; 0 behind the end."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def take(self, size: int) -> int:
        self._at += size
        return int.from_bytes(self._content[self._at - size : self._at])


def _sequence_headers(data: memoryview) -> Iterator[bytes]:
    """Yield the sequence headers among the units of AV1 data; nothing for other data."""
    at = 0
    for _ in range(_MAX_UNITS):
        if at >= len(data) or data[at] & 0x81 or not data[at] & 2:  # no unit, or one without a size
            return
        kind = data[at] >> 3
        at += 2 if data[at] & 4 else 1
        size = shift = 0
        for _ in range(8):
            byte = data[at] if at < len(data) else 0
            size |= (byte & 127) << shift
            shift += 7
            at += 1
            if not byte & 128:
                break
        if kind == _SEQUENCE_HEADER:
            yield bytes(data[at : at + min(size, 1024)])
        at += size
    raise ImageError("an AVIF of very many units")


class _Bits:
    """Reads numbers of some bits; 0 behind the end."""

    def __init__(self, content: bytes) -> None:
        self._value = int.from_bytes(content)
        self._left = 8 * len(content)

    def take(self, bits: int) -> int:
        self._left -= bits
        value = self._value >> self._left if self._left >= 0 else 0
        return value & ((1 << bits) - 1)

    def skip_variable(self) -> None:
        """Skip a number that says its length by leading zeros."""
        zeros = 0
        while zeros < 32 and self._left > 0 and not self.take(1):
            zeros += 1
        self.take(zeros)


def _frame_size(header: bytes) -> tuple[int, int]:
    """Return the largest (width, height) that frames after a sequence header may have."""
    bits = _Bits(header)
    bits.take(4)  # profile, still picture
    if bits.take(1):  # the short form
        bits.take(5)
    else:
        _skip_operating_points(bits)
    across, down = bits.take(4) + 1, bits.take(4) + 1
    return bits.take(across) + 1, bits.take(down) + 1


def _skip_operating_points(bits: _Bits) -> None:
    delay = model = 0
    if bits.take(1):  # timing
        bits.take(64)
        if bits.take(1):
            bits.skip_variable()
        model = bits.take(1)
        if model:
            delay = bits.take(5) + 1
            bits.take(42)
    display = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if model and bits.take(1):
            bits.take(2 * delay + 1)
        if display and bits.take(1):
            bits.take(4)
