"""One image on its way into a store: its key, its state, its payload."""

from __future__ import annotations

import hashlib
import json
import unicodedata
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias, cast

import numpy as np
from PIL import Image

from clip_embed._images.source import describe, read_encoded
from clip_embed._types import ImagePolicy, UInt8
from clip_embed.errors import ImageError
from clip_embed_qdrant._errors import StoreError
from clip_embed_qdrant._sink import OURS, Payload

EtagKind = Literal["stat", "sha256"]
# Of all ids of all stores: never to be changed.
_NAMESPACE = uuid.UUID("0c9f3a4e-5d8b-5b0e-9c52-7a3c1d6e8f40").bytes
_LARGEST = 2**63 - 1
_GROUP = 256
_GROUP_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a source, not read yet unless the source had to."""

    key: str
    image: object = None
    """What ClipEmbedder takes; None where `read` fetches it, or there is a problem."""
    state: str | None = None
    """Changes when the image does; None where only its content can tell."""
    payload: Payload = field(default_factory=dict[str, object])
    read: Callable[[], bytes] | None = None
    problem: str | None = None
    """Why there is no image."""
    retryable: bool = True
    """Whether the problem may be gone later."""
    name: str = ""
    """What it is called in messages, if not by its path."""
    is_file: bool = False
    """Whether it stands for the rest of a table or tar file that cannot be read further."""

    @property
    def source(self) -> str:
        """Its name in messages."""
        return self.name or describe(self.image)

    @property
    def held_bytes(self) -> int:
        """How much memory it holds."""
        return len(self.image) if isinstance(self.image, bytes) else 0


Locate: TypeAlias = Callable[[str], Entry]
"""Returns the image that a path in a table means; its key and payload are still to be set."""


@dataclass(frozen=True, slots=True)
class File:
    """A table or a tar file, on this machine or behind a URL."""

    name: str
    """Relative to the folder in which a pattern begins."""
    open: Callable[[], BinaryIO]
    locate: Locate
    folder: str | None = None
    """Where it lies, if it is on this machine."""


def damaged(file: File, error: Exception, *, retryable: bool) -> Entry:
    """Return what stands for the rest of a file that cannot be read further."""
    reason = f"it cannot be read further, and what follows in it is left out until it is mended: {error}"
    key = normal_key(file.name)
    return Entry(key, problem=reason, retryable=retryable, name=key, is_file=True)


@dataclass(frozen=True, slots=True)
class Source:
    """Where images come from."""

    name: str
    """What it is called in messages."""
    entries: Callable[[], Iterator[Entry]]
    total: Callable[[], int | None]
    """How many there are, if that is quickly said."""
    root: str | None = None
    """The folder or URL that keys are relative to, if they are."""
    repeatable: bool = True
    """Whether `entries` may be called again."""
    keys_differ: bool = False
    """Whether no key can occur twice."""


def normal_key(name: str) -> str:
    """Return a name as a key: NFC, and printable where it is no UTF-8."""
    if name.isascii():
        return name
    return unicodedata.normalize(
        "NFC", name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    )


def point_id(key: str) -> str:
    """Return the id of a key: uuid5 in the namespace of clip-embed."""
    digest = bytearray(hashlib.sha1(_NAMESPACE + key.encode(), usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def in_shard(key: str, index: int, of: int) -> bool:
    """Whether a key belongs to one of so many shares."""
    return zlib.crc32(key.encode()) % of == index


def etag(entry: Entry, kind: EtagKind, policy: ImagePolicy) -> str:
    """Return what tells a changed image from an unchanged one; reads the image where it must.

    Raises ImageError where it cannot be read.
    """
    if kind == "stat" and entry.state is not None:
        return entry.state
    if entry.read is not None:
        content = fetch(entry)
    elif isinstance(entry.image, Image.Image):
        content = f"{entry.image.mode}{entry.image.size}".encode() + entry.image.tobytes()
    elif isinstance(entry.image, np.ndarray):
        pixels = cast("UInt8", entry.image)  # pyright: ignore[reportUnknownMemberType]
        content = f"{pixels.shape}{pixels.dtype}".encode() + pixels.tobytes()
    else:
        content = read_encoded(entry.image, policy) or b""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def fetch(entry: Entry) -> bytes:
    """Read a remote file; ImageError where that fails."""
    if entry.read is None:
        raise ValueError(f"{entry.key} is not a remote file")
    try:
        return entry.read()
    except FileNotFoundError:
        raise ImageError("no such file", retryable=True) from None
    except Exception as error:  # a file system of the user's choice raises what it likes
        raise ImageError(f"cannot read it: {error}", retryable=True) from error


def all_or_nothing(source: Source) -> Source:
    """Return a source that raises StoreError where one of its tables or tar files cannot be read further."""

    def entries() -> Iterator[Entry]:
        for entry in source.entries():
            if entry.is_file:
                raise StoreError(f"{entry.source}: {entry.problem}; nothing was pruned")
            yield entry

    return replace(source, entries=entries)


def in_groups(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Yield entries in groups of which the store is asked at once, bounded in number and bytes."""
    group: list[Entry] = []
    held = 0
    for entry in entries:
        group.append(entry)
        held += entry.held_bytes
        if len(group) == _GROUP or held > _GROUP_BYTES:
            yield group
            group, held = [], 0
    if group:
        yield group


def local_entry(path: str, folder: str = "") -> Entry:
    """Return a file of this machine as an image, known by its size and time."""
    where = Path(folder, path)
    try:
        facts = where.stat()
    except (OSError, ValueError):
        return Entry("", where, "missing")
    return Entry("", where, file_state(facts.st_size, facts.st_mtime_ns))


def file_state(size: int, mtime_ns: int) -> str:
    """Return the state of a file."""
    return f"{size:x}-{mtime_ns:x}"


def plain_payload(given: Mapping[str, object]) -> Payload:
    """Return a payload in the types that both engines take: dates as ISO texts, arrays as lists.

    Raises ValueError that names the field where a value has no such form.
    """
    if reserved := given.keys() & OURS:
        raise ValueError(f"the payload field {min(reserved)!r} is reserved: give it another name")
    return {str(name): _plain(value, str(name)) for name, value in given.items()}


def payload_bytes(payload: Payload) -> int:
    """Return about how many bytes a payload is when it is sent."""
    return len(json.dumps(payload))


def _plain(value: object, where: str) -> object:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, np.generic):
        return _plain(cast("object", value.item()), where)
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if isinstance(value, int):
        if abs(value) > _LARGEST:
            raise ValueError(f"the payload field {where!r}: {value} has more than 64 bits; give it as a text")
        return value
    if isinstance(value, (float, Decimal)):
        number = float(value)
        if not np.isfinite(number):
            raise ValueError(
                f"the payload field {where!r} is {number}, which JSON has no form for: leave it out"
            )
        return number
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, np.ndarray):
        return _plain(cast("UInt8", value).tolist(), where)
    if isinstance(value, Mapping):
        fields = cast("Mapping[object, object]", value).items()
        return {str(name): _plain(part, f"{where}.{name}") for name, part in fields}
    if isinstance(value, (list, tuple)):
        return [_plain(part, where) for part in cast("list[object]", value)]
    if isinstance(value, (uuid.UUID, Path)):
        return str(value)
    raise ValueError(f"the payload field {where!r} is a {type(value).__name__}, which a payload cannot hold")
