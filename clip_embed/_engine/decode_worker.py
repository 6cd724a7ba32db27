"""The program of a decode process: reads, decodes and resizes what its parent names, chunk by chunk.

Where a GPU resizes, it leaves that to the parent as far as the memory that they share has room.

Each of its threads serves one connection and answers into memory that it shares with the parent. It ends
when the parent does, however that ends: then the connections close.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
from PIL import Image, ImageFile

from clip_embed._engine.cores import limit_torch
from clip_embed._images.gpu_resize import is_for_gpu
from clip_embed._images.pixels import Stored, decode_for, fit
from clip_embed._images.source import read_encoded
from clip_embed._types import ImagePolicy, ImageSpec, UInt8
from clip_embed.errors import ImageError

Failure: TypeAlias = tuple[str, bool]
"""The reason of an ImageError, and whether it may be tried again."""

_ROOM = 16 * 1024 * 1024  # bytes of a memory for images that are not resized here


@dataclass(frozen=True, slots=True)
class Whole:
    """Where an image lies that was decoded and not resized, and what a `Stored` has besides."""

    start: int
    shape: tuple[int, ...]
    extent: tuple[float, float]
    size: tuple[int, int]
    turn: int

    def stored(self, room: UInt8) -> Stored:
        """Return the image over the memory that it lies in."""
        pixels = room[self.start : self.start + int(np.prod(self.shape))].reshape(self.shape)
        return Stored(pixels, self.extent, self.size, self.turn)


@dataclass(frozen=True, slots=True)
class Task:
    """How the images of one embedder are decoded."""

    spec: ImageSpec
    policy: ImagePolicy
    exact: bool
    hashed: bool
    """The parent asks what it knows already: a SHA-256 of each file comes first."""
    chunk: int
    """Images in one request at most."""
    max_image_pixels: int | None
    load_truncated: bool

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(chunk, height, width, 3) of the prepared images of a chunk."""
        size = self.spec.crop or self.spec.size
        return (self.chunk, *((size, size) if isinstance(size, int) else size), 3)

    @property
    def bytes_shared(self) -> int:
        """Bytes of the memory that a connection answers into."""
        return int(np.prod(self.shape)) + _ROOM

    def divide(self, memory: mmap.mmap) -> tuple[UInt8, UInt8]:
        """Return the memory as the prepared images of a chunk, and flat the room for whole ones."""
        flat: UInt8 = np.frombuffer(memory, np.uint8)
        prepared = int(np.prod(self.shape))
        return flat[:prepared].reshape(self.shape), flat[prepared:]


@dataclass(frozen=True, slots=True)
class Request:
    """Images to be decoded."""

    sources: Sequence[object]
    folder: str
    """That relative paths are in; "" where it is gone."""
    whole: bool
    """A GPU resizes what is for it."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of the images that were wanted: None where the prepared pixels are there."""

    outcomes: list[Failure | Whole | None]
    seconds: tuple[float, float, float]
    """Time for reading, decoding and resizing."""


def main(control: int, connections: Sequence[int], memories: Sequence[int]) -> None:
    """Serve until the parent is gone. The arguments are descriptors that were handed down."""
    parent = Connection(control)
    task: Task = parent.recv()
    Image.MAX_IMAGE_PIXELS = task.max_image_pixels
    ImageFile.LOAD_TRUNCATED_IMAGES = task.load_truncated
    Image.preinit()
    limit_torch(1)
    for connection, memory in zip(connections, memories, strict=True):
        threading.Thread(target=_serve, args=(Connection(connection), memory, task), daemon=True).start()
    try:
        parent.recv()
    except (EOFError, OSError):
        os._exit(0)  # at once, whatever a decoder is at


def _serve(parent: Connection, memory: int, task: Task) -> None:
    limit_torch(1)
    prepared, room = task.divide(mmap.mmap(memory, task.bytes_shared))
    _warm_up(task)
    parent.send(None)  # ready
    while True:
        try:
            _answer(parent, prepared, room, task)
        except (EOFError, OSError):
            return


def _warm_up(task: Task) -> None:
    """Load what the first image would have to wait for."""
    picture = Image.new("RGB", (64, 48))
    fit(decode_for(picture, None, task.spec, task.policy, exact=task.exact), task.spec, task.policy)


def _answer(parent: Connection, prepared: UInt8, room: UInt8, task: Task) -> None:
    request: Request = parent.recv()
    if request.folder and str(Path.cwd()) != request.folder:
        os.chdir(request.folder)
    start = time.perf_counter()
    read = [_read(source, task) for source in request.sources]
    seconds = [time.perf_counter() - start, 0.0, 0.0]
    wanted: Sequence[int] = range(len(read))
    if task.hashed:
        hashes = [hashlib.sha256(each).digest() if isinstance(each, bytes) else each for each in read]
        parent.send(hashes)
        wanted = parent.recv()
    outcomes: list[Failure | Whole | None] = []
    left = room if request.whole else room[:0]
    for place in wanted:
        outcome = _decode(read[place], prepared[place], left, task, seconds)
        if isinstance(outcome, Whole):
            outcome = replace(outcome, start=room.size - left.size)
            left = left[int(np.prod(outcome.shape)) :]
        outcomes.append(outcome)
        read[place] = b""  # one decoded image at a time is enough to hold
    parent.send(Reply(outcomes, (seconds[0], seconds[1], seconds[2])))


def _read(source: object, task: Task) -> bytes | Failure:
    try:
        encoded = read_encoded(source, task.policy)
    except ImageError as error:
        return str(error), error.retryable
    return encoded if encoded is not None else ("not an encoded image", False)


def _decode(
    read: bytes | Failure, prepared: UInt8, room: UInt8, task: Task, seconds: list[float]
) -> Failure | Whole | None:
    """Put an image where it belongs: whole where the room suffices and a GPU resizes it, else prepared."""
    if not isinstance(read, bytes):
        return read
    start = time.perf_counter()
    try:
        decoded = decode_for(None, read, task.spec, task.policy, exact=task.exact, into=room)
        middle = time.perf_counter()
        seconds[1] += middle - start
        if is_for_gpu(decoded, task.spec) and np.may_share_memory(picture := decoded.picture, room):
            shape = cast("UInt8", picture).shape
            return Whole(0, shape, decoded.extent, decoded.size, decoded.turn)
        np.copyto(prepared, fit(decoded, task.spec, task.policy))
    except ImageError as error:
        return str(error), error.retryable
    seconds[2] += time.perf_counter() - middle
    return None


def pair() -> tuple[Connection, socket.socket]:
    """Return a connection for the parent, and its other end for the child."""
    ours, theirs = socket.socketpair()
    return Connection(ours.detach()), theirs
