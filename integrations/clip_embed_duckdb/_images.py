"""The images of one call, BLOBs and files, as work for the stream."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import duckdb
import numpy as np

from clip_embed._images.source import Encoded, ImageInput
from clip_embed._types import Float32
from clip_embed.errors import ImageError
from clip_embed_duckdb._columns import Column
from clip_embed_duckdb._files import File, FileReader
from clip_embed_duckdb._outcomes import Outcomes
from clip_embed_duckdb._slot import Slot, State
from clip_embed_duckdb._stored import Vectors

Fail = Callable[[list[int], "str | None", str], object]


@dataclass(frozen=True, slots=True)
class _Image:
    """One image of the call, which may stand in several rows."""

    rows: list[int]
    encoded: Encoded
    stamp: bytes = b""


class ImageColumn:
    """A chunk of images: a file is in memory only while it waits for its decoder.

    `fail` is told each failure as (rows, path, reason) and may raise; `outcomes` count all images.
    """

    def __init__(
        self,
        slot: Slot,
        state: State,
        length: int,
        blobs: Column | None,
        paths: Column | None,
        fail: Fail,
        outcomes: Outcomes | None = None,
    ) -> None:
        self.vectors = Vectors.none(length, slot.dim)
        self._slot = slot
        self._state = state
        self._blobs = blobs
        self._places: dict[str, list[int]] = {}
        self._tell_failure = fail
        self._outcomes = outcomes
        embedded = np.zeros(length, np.bool_) if blobs is None else np.asarray(blobs.is_valid())
        self._blob_rows: list[int] = np.flatnonzero(embedded).tolist()
        for row, path in enumerate(cast("list[str | None]", [] if paths is None else paths.to_pylist())):
            if path is not None and not embedded[row]:
                self._places.setdefault(path, []).append(row)
        self._path_of = {rows[0]: path for path, rows in self._places.items()}
        self.left = len(self._blob_rows) + len(self._places)

    def items(self) -> Generator[tuple[object, ImageInput]]:
        """Yield (key, image) for each image without an outcome; files that are known get theirs here."""
        for row in self._blob_rows:
            if not self._is_done(row) and self._blobs is not None:
                encoded = Encoded(self._blobs[row].as_py, f"the image in row {row}")
                yield _Image([row], encoded), encoded
        given: set[str] = set()
        while paths := [
            path for path, rows in self._places.items() if path not in given and not self._is_done(rows[0])
        ]:
            with suppress(duckdb.ConnectionException):  # closed by another thread: there may be a next one
                for image in self._read(paths):
                    given.add(image.encoded.name)
                    yield image, image.encoded

    def _read(self, paths: list[str]) -> Generator[_Image]:
        """Yield the files that have to be embedded; the others get their outcome."""
        with self._slot.open_connection() as con:
            reader = FileReader(con, self._slot.search_path, self._state.embedder.policy)
            for file, content in reader.read(self._unknown(reader.find(paths))):
                rows = self._places[file.path]
                if isinstance(content, ImageError):
                    self._fail(rows, str(content))
                    continue
                encoded = Encoded(_holder(content), file.path, len(content))
                del content
                yield _Image(rows, encoded, file.stamp)

    def embedded(self, key: object, vector: Float32) -> None:
        """Take the vector (d,) of an image."""
        image = cast("_Image", key)
        self._slot.digests.put(image.stamp, image.encoded.digest)
        self._succeed(image.rows, vector, image.encoded.digest)

    def failed(self, key: object, reason: str) -> None:
        """Note why an image failed; raises what the call makes of it."""
        image = cast("_Image", key)
        self._slot.digests.put(image.stamp, image.encoded.digest)
        self._fail(image.rows, reason, image.encoded.digest)

    def _unknown(self, found: Iterable[tuple[str, File | ImageError]]) -> Iterator[File]:
        """Yield the files that have to be read; the others get what is known of them."""
        for path, file in found:
            known = file if isinstance(file, ImageError) else self._recall(file)
            if isinstance(known, ImageError):
                self._fail(self._places[path], str(known))
            elif known is not None:
                self._succeed(self._places[path], known)
            elif isinstance(file, File):
                yield file

    def _recall(self, file: File) -> Float32 | ImageError | None:
        digest = self._slot.digests.get(file.stamp)
        return None if digest is None else self._state.embedder.remembered(digest)

    def _is_done(self, row: int) -> bool:
        return bool(self.vectors.valid[row]) or row in self.vectors.reasons

    def _succeed(self, rows: list[int], vector: Float32, digest: bytes = b"") -> None:
        for row in rows:
            self.vectors.rows[row] = vector
            self.vectors.valid[row] = True
        self._count(rows, digest, None)

    def _fail(self, rows: list[int], reason: str, digest: bytes = b"") -> None:
        self.vectors.reasons.update(dict.fromkeys(rows, reason))
        self._count(rows, digest, reason)
        self._tell_failure(rows, self._path_of.get(rows[0]), reason)

    def _count(self, rows: list[int], digest: bytes, reason: str | None) -> None:
        self.left -= 1
        self._slot.progress.add(len(rows))
        if self._outcomes is not None:
            path = self._path_of.get(rows[0])
            self._outcomes.add(path or digest or object(), path, reason)


def _holder(content: bytes) -> Callable[[], bytes]:
    return lambda: content
