"""The program of a decode process: reads, decodes and resizes what its parent names, chunk by chunk.

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
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageFile

from clip_embed._engine.cores import limit_torch
from clip_embed._images.pixels import decode_for, fit
from clip_embed._images.source import read_encoded
from clip_embed._types import ImagePolicy, ImageSpec, UInt8
from clip_embed.errors import ImageError

Failure: TypeAlias = tuple[str, bool]
"""The reason of an ImageError, and whether it may be tried again."""


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
    def shape(self) -> tuple[int, int, int]:
        """(height, width, 3) of a prepared image."""
        size = self.spec.crop or self.spec.size
        return (*((size, size) if isinstance(size, int) else size), 3)


@dataclass(frozen=True, slots=True)
class Request:
    """Images to be decoded, and the folder that relative paths are in, "" where it is gone."""

    sources: Sequence[object]
    folder: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of the images that were wanted: None where the pixels are there."""

    outcomes: list[Failure | None]
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
    shape = (task.chunk, *task.shape)
    pixels: UInt8 = np.frombuffer(mmap.mmap(memory, int(np.prod(shape))), np.uint8).reshape(shape)
    _warm_up(task)
    parent.send(None)  # ready
    while True:
        try:
            _answer(parent, pixels, task)
        except (EOFError, OSError):
            return


def _warm_up(task: Task) -> None:
    """Load what the first image would have to wait for."""
    picture = Image.new("RGB", (64, 48))
    fit(decode_for(picture, None, task.spec, task.policy, exact=task.exact), task.spec, task.policy)


def _answer(parent: Connection, pixels: UInt8, task: Task) -> None:
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
    outcomes: list[Failure | None] = []
    for place in wanted:
        outcomes.append(_decode(read[place], pixels[place], task, seconds))
        read[place] = b""  # one decoded image at a time is enough to hold
    parent.send(Reply(outcomes, (seconds[0], seconds[1], seconds[2])))


def _read(source: object, task: Task) -> bytes | Failure:
    try:
        encoded = read_encoded(source, task.policy)
    except ImageError as error:
        return str(error), error.retryable
    return encoded if encoded is not None else ("not an encoded image", False)


def _decode(read: bytes | Failure, into: UInt8, task: Task, seconds: list[float]) -> Failure | None:
    if not isinstance(read, bytes):
        return read
    start = time.perf_counter()
    try:
        decoded = decode_for(None, read, task.spec, task.policy, exact=task.exact)
        middle = time.perf_counter()
        np.copyto(into, fit(decoded, task.spec, task.policy))
    except ImageError as error:
        return str(error), error.retryable
    seconds[1] += middle - start
    seconds[2] += time.perf_counter() - middle
    return None


def pair() -> tuple[Connection, socket.socket]:
    """Return a connection for the parent, and its other end for the child."""
    ours, theirs = socket.socketpair()
    return Connection(ours.detach()), theirs
