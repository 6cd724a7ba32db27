"""Decode processes: what a GPU wants to be fed with, once the threads of one process no longer suffice.

Python lets one thread of a process run at a time, and an image takes some 0.1 to 0.2 ms of that beside the
decoders, which do without it: some thousands a second are all that a process hands out, on however many
cores (docs/gpu.md). So on large machines each two cores get a process of their own. A decode thread of
the parent that finds a connection to one free sends a chunk of images there and takes the pixels out of
memory that both share; one that finds none decodes here, as without processes. Nothing depends on
them: one that dies is done without, and its chunk is decoded here.

They are started by `subprocess`, not by multiprocessing, which would run the user's main module again.
They get no signals of a terminal, and end with the connection, so also where the parent is killed. The shared
memory has no name (memfd), so nothing of it can be left behind. Linux only; elsewhere threads do it all.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

from PIL import Image, ImageFile

from clip_embed._engine.decode_worker import Failure, Reply, Request, Task, Whole, pair
from clip_embed._engine.device import is_gpu
from clip_embed._engine.fork import outlive_forks
from clip_embed._engine.pipeline import AT_ONCE
from clip_embed._engine.towers import Towers
from clip_embed._images.gpu_resize import GpuResize
from clip_embed._images.pixels import Stored
from clip_embed._images.source import Encoded
from clip_embed._types import ImagePolicy, UInt8
from clip_embed.errors import ImageError

logger = logging.getLogger(__name__)

_THREADS = 2  # of a process: with four they waited for the lock of its Python (docs/gpu.md)
_FEW_CORES = 8  # below, one process is not the limit
_START_AFTER = 1024  # images: a process takes seconds to start
_CODE = """
import json, sys
path, control, connections, memories = json.loads(sys.argv[1])
sys.path[:] = path
from clip_embed._engine.decode_worker import main
main(control, connections, memories)
"""


@dataclass(eq=False, slots=True)
class _Channel:
    """A connection to one thread of a process, and the memory it answers into."""

    connection: Connection
    prepared: UInt8
    """(chunk, height, width, 3): the images that were resized there."""
    room: UInt8
    """Flat: those that were not."""
    ready: bool = False


@dataclass(eq=False, slots=True)
class _State:
    """What has to be closed, apart from its owner: a finalizer may not hold that."""

    processes: list[subprocess.Popen[bytes]] = field(default_factory=list["subprocess.Popen[bytes]"])
    controls: list[Connection] = field(default_factory=list[Connection])
    channels: list[_Channel] = field(default_factory=list[_Channel])


@dataclass(frozen=True, slots=True)
class Chunk:
    """What came back of a chunk, one entry an image."""

    hashes: list[bytes | Failure]
    """SHA-256 of each file, or why it could not be read; empty where nobody asked."""
    known: list[object]
    """What the caller had for it already; None where it was decoded."""
    pixels: list[UInt8 | Failure | None]
    """uint8 (height, width, 3), or why there are none; None where it was known."""
    seconds: tuple[float, float, float]
    """Time for reading, decoding and resizing, in the other process."""


class DecodeProcesses:
    """Processes that decode for one embedder. They start with the first chunk, in the background."""

    def __init__(self, task: Task, processes: int) -> None:
        self.count = processes
        self._task = task
        self._state = _State()
        self._stop = weakref.finalize(self, _stop, self._state)  # at the latest at exit
        self.begin_child()
        outlive_forks(self)

    def begin_child(self) -> None:
        """Leave the processes to the parent; there are none in the child of a fork."""
        self._lock = threading.Lock()
        self._started = False
        self._asked = 0
        for channel in self._state.channels:
            channel.connection.close()
        for control in self._state.controls:
            control.close()
        for process in self._state.processes:
            process.returncode = 0  # not the child's to wait for
        self._state.channels, self._state.controls, self._state.processes = [], [], []

    def close(self) -> None:
        """End the processes and wait for them; idempotent."""
        self._stop()

    def decode(
        self, sources: Sequence[object], known: Callable[[bytes], object], resizer: GpuResize | None = None
    ) -> Chunk | None:
        """Decode a chunk elsewhere; None where no process is free, or it holds what cannot be sent.

        `known` is asked with the SHA-256 of each file, where the task says so; what it gives for one
        stands for its pixels. What is for the `resizer` is resized by it.
        """
        if not all(isinstance(source, (str, Path, bytes, Mapping, Encoded)) for source in sources):
            return None
        channel = self._take(len(sources))
        if channel is None:
            return None
        try:
            sent = [_as_sent(source) for source in sources]
        except BaseException as error:
            self._give_back(channel)
            if isinstance(error, ImageError):  # which one it is shows where they are decoded one by one
                return None
            raise
        try:
            chunk = self._ask(channel, sent, known, resizer)
        except (EOFError, OSError) as error:
            self._lost(channel, error)
            return None
        except BaseException:
            channel.connection.close()  # in the middle of a conversation: it cannot be picked up again
            raise
        self._give_back(channel)
        return chunk

    def _ask(
        self,
        channel: _Channel,
        sources: Sequence[object],
        known: Callable[[bytes], object],
        resizer: GpuResize | None,
    ) -> Chunk:
        hashes: list[bytes | Failure] = []
        found: list[object] = [None] * len(sources)
        channel.connection.send(Request(sources, _folder(), resizer is not None))
        if self._task.hashed:
            hashes = channel.connection.recv()
            found = [known(each) if isinstance(each, bytes) else None for each in hashes]
            channel.connection.send([place for place, have in enumerate(found) if have is None])
        reply: Reply = channel.connection.recv()
        outcomes = iter(reply.outcomes)
        pixels: list[UInt8 | Failure | None] = []
        whole: dict[int, Stored] = {}
        for place, have in enumerate(found):
            outcome = next(outcomes) if have is None else None
            pixels.append(outcome if isinstance(outcome, tuple) else None)
            if isinstance(outcome, Whole):
                whole[place] = outcome.stored(channel.room)
            elif have is None and outcome is None:
                pixels[place] = channel.prepared[place].copy()
        read, decoded, resized = reply.seconds
        if resizer is not None and whole:
            start = time.perf_counter()
            for place, row in zip(whole, resizer.fit(list(whole.values())), strict=True):
                pixels[place] = row
            resized += time.perf_counter() - start
        return Chunk(hashes, found, pixels, (read, decoded, resized))

    def _take(self, images: int) -> _Channel | None:
        with self._lock:
            self._asked += images
            if self._asked > _START_AFTER:
                self._start()
            free = (each for each in self._state.channels if each.ready or each.connection.poll())
            if (channel := next(free, None)) is None:
                return None
            self._state.channels.remove(channel)
        try:
            if not channel.ready:
                channel.connection.recv()
                channel.ready = True
        except (EOFError, OSError) as error:
            self._lost(channel, error)
            return None
        return channel

    def _give_back(self, channel: _Channel) -> None:
        with self._lock:
            self._state.channels.append(channel)

    def wait(self, seconds: float) -> None:
        """Start now, and wait until all are ready, at most so long."""
        with self._lock:
            self._start()
            channels = list(self._state.channels)
        end = time.monotonic() + seconds
        for channel in channels:
            if not channel.ready and not channel.connection.closed:
                channel.connection.poll(max(0.0, end - time.monotonic()))

    def _lost(self, channel: _Channel, error: Exception) -> None:
        channel.connection.close()
        logger.warning("a decode process is gone (%r); its images are decoded here", error)

    def _start(self) -> None:
        if self._started:
            return
        self._started = True
        try:
            for _ in range(self.count):
                self._start_one()
        except OSError as error:
            logger.warning("no decode process could be started (%s); images are decoded here", error)

    def _start_one(self) -> None:
        control, their_control = pair()
        memories = [os.memfd_create("clip-embed") for _ in range(_THREADS)]
        theirs: list[socket.socket] = []
        with contextlib.ExitStack() as stack:
            stack.callback(their_control.close)
            channels: list[_Channel] = []
            for memory in memories:
                stack.callback(os.close, memory)
                os.ftruncate(memory, self._task.bytes_shared)
                ours, end = pair()
                theirs.append(end)
                stack.callback(end.close)
                shared = mmap.mmap(memory, self._task.bytes_shared)
                channels.append(_Channel(ours, *self._task.divide(shared)))
            ends = [end.fileno() for end in theirs]
            arguments = json.dumps([sys.path, their_control.fileno(), ends, memories])
            process = subprocess.Popen(  # noqa: S603 - this Python, with code of ours
                [sys.executable, "-c", _CODE, arguments],
                stdin=subprocess.DEVNULL,
                env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
                pass_fds=(their_control.fileno(), *ends, *memories),
                start_new_session=True,
            )
        self._state.processes.append(process)
        self._state.controls.append(control)
        self._state.channels += channels
        control.send(self._task)


def _as_sent(source: object) -> object:
    """Return an image as it is named to another process: a path, encoded bytes, or a mapping with them."""
    if isinstance(source, Encoded):
        return source.keep()
    if isinstance(source, Mapping):
        mapping = cast("Mapping[str, object]", source)
        return {name: mapping.get(name) for name in ("bytes", "path")}
    return source


def _folder() -> str:
    try:
        return str(Path.cwd())
    except OSError:
        return ""


def _stop(state: _State) -> None:
    """Close the connections, which ends the processes, and wait until they are gone."""
    for channel in state.channels:
        channel.connection.close()
    for control in state.controls:
        control.close()
    for process in state.processes:
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    state.channels, state.controls, state.processes = [], [], []


def processes_for(
    towers: Towers, policy: ImagePolicy, workers: int, *, exact: bool, hashed: bool
) -> DecodeProcesses | None:
    """Return the processes that a model on a GPU is worth with `workers` cores to decode; None for threads.

    `hashed` as in `Task`. A model's own preprocessing need not be fit to travel: it stays here.
    """
    spec = towers.model.image_spec
    if workers < _FEW_CORES or spec.prepare or not hasattr(os, "memfd_create") or not is_gpu(towers.device):
        return None
    limits = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    return DecodeProcesses(Task(spec, policy, exact, hashed, AT_ONCE, *limits), workers // _THREADS)
