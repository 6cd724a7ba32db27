"""An image tower on GPUs: batches side by side in lanes, each fed from its own memory.

A lane has a link to one device. Where torch has CUDA (ROCm too) a batch of a shape that comes again is
recorded as a CUDA graph: one launch instead of some hundreds, which Python would have to make while its
decode threads want to run as well. Two lanes a device let one batch be copied while the other is computed.
Every graph is held against the plain pass on the batch that it was recorded with, and is not used where it
differs. Other devices, and a CPU in tests, take the plain pass.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from clip_embed._engine.batcher import is_out_of_memory
from clip_embed._engine.device import device_kind
from clip_embed._engine.link import CudaLink, Link
from clip_embed._types import Float32, UInt8
from clip_embed._vectors import unit_rows

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

Tower = Callable[["torch.Tensor"], "torch.Tensor"]
"""uint8 (n, height, width, 3) -> float32 (n, d), both on the device."""

_LANES = {"cuda": 2}  # of a device; of others one
_MAX_GRAPHS = 12  # of a lane: each holds the memory of its pass
MAX_RECORDED = 1e-4
"""Largest change of a component of a unit vector between the plain pass and its recording: the kernels are
the same, so rounding alone would do; a stale buffer or a missing dependency changes far more."""


def lanes_of(device: str) -> int:
    """Return how many batches one device takes side by side."""
    return _LANES.get(device_kind(device), 1)


class Lane:
    """The image tower on one device, for one thread at a time."""

    records = False
    """Whether a shape that comes again is recorded."""

    def __init__(self, tower: Tower, device: str) -> None:
        self.device = device
        self.notes: list[str] = []
        """What did not hold and is not used, with the figures."""
        self._link = Link(device)
        self._tower = tower
        self._recordings: dict[tuple[int, ...], Tower | None] = {}  # None: seen once
        self._plain_only = False

    def __call__(self, pixels: UInt8) -> Float32:
        """uint8 (n, height, width, 3) -> float32 (n, d). What the device raises names it in a note."""
        import torch

        try:
            with torch.inference_mode(), self._link.active():
                (staged,) = self._link.send([pixels])
                (rows,) = self._link.fetch([self._forward(staged)])
                return np.asarray(rows, np.float32)
        except RuntimeError as error:
            error.add_note(f"on device {self.device}")
            raise

    def make_room(self) -> None:
        """Let go of what is kept between batches; the lane must be at rest."""
        with self._link.active():
            self._clear()

    def _forward(self, staged: torch.Tensor) -> torch.Tensor:
        shape = tuple(staged.shape)
        if self.records and not self._plain_only:
            if recording := self._recordings.get(shape):
                return recording(staged)
            if shape not in self._recordings and len(self._recordings) < _MAX_GRAPHS:
                self._recordings[shape] = None
            elif shape in self._recordings:
                return self._record_checked(staged, shape)
        return self._tower(staged)

    def _record_checked(self, staged: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Return the plain pass's rows, and keep a recording that gives the same."""
        rows = self._tower(staged)
        try:
            recording = self._record(staged)
            recorded = recording(staged)
        except RuntimeError as error:
            # An end of memory may be hidden behind what ending the recording raised in turn.
            if is_out_of_memory(error) or is_out_of_memory(error.__context__):
                logger.info("no CUDA graph of %d rows on %s: no memory", len(staged), self.device)
                self._recordings[shape] = self._tower
            else:
                self._use_plain(f"recording the forward pass failed: {error}")
            return rows
        moved = _largest_change(rows, recorded)
        if moved <= MAX_RECORDED:  # False for NaN
            self._recordings[shape] = recording
        else:
            self._use_plain(f"a recorded forward pass moved a vector by {moved:.1e} (at most {MAX_RECORDED})")
        return rows

    def _use_plain(self, reason: str) -> None:
        note = f"no CUDA graphs on {self.device}: {reason.splitlines()[0]}"
        logger.warning(note)
        self.notes.append(note)
        self._plain_only = True
        self._recordings.clear()

    def _record(self, staged: torch.Tensor) -> Tower:
        raise NotImplementedError

    def _clear(self) -> None:
        self._recordings.clear()


class CudaLane(Lane):
    """A lane that records CUDA graphs."""

    records = True
    _recording = threading.Lock()  # CUDA minds what others allocate while a graph is recorded

    def __init__(self, tower: Tower, device: str) -> None:
        super().__init__(tower, device)
        self._link = self._cuda = CudaLink(device)
        self._pool: Any = None

    def _record(self, staged: torch.Tensor) -> Tower:
        import torch

        given = staged.clone()
        graph = torch.cuda.CUDAGraph()
        with self._recording:
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            torch.cuda.synchronize(self._cuda.stream.device)
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._cuda.stream, capture_error_mode="thread_local"
            ):
                rows = self._tower(given)

        def replay(staged: torch.Tensor) -> torch.Tensor:
            given.copy_(staged)
            graph.replay()
            return rows

        return replay

    def _clear(self) -> None:
        import torch

        super()._clear()
        self._pool = None
        with self._recording:
            torch.cuda.empty_cache()


class Lanes:
    """All lanes of one or several devices; a call takes the next that is free."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._lanes = lanes
        self._free: SimpleQueue[Lane] = SimpleQueue()
        for lane in lanes:
            self._free.put(lane)
        self._entry = threading.Lock()  # needed to take lanes, not to give them back
        self._own = threading.local()

    def __call__(self, pixels: UInt8) -> Float32:
        """uint8 (n, height, width, 3) -> float32 (n, d); waits where all lanes are busy."""
        own: Lane | None = getattr(self._own, "lane", None)  # of a thread in `emptied`
        if own is not None:
            return own(pixels)
        with self._entry:
            lane = self._free.get()
        try:
            return lane(pixels)
        finally:
            self._free.put(lane)

    @contextmanager
    def emptied(self) -> Generator[None]:
        """Hold all lanes, at rest and with nothing kept; what the calling thread runs meanwhile runs alone.

        Those of other devices are held as well: they rest for a batch or two, once or twice in a run.
        """
        held: list[Lane] = []
        with self._entry:
            try:
                while len(held) < len(self._lanes):
                    held.append(self._free.get())
                for lane in held:
                    lane.make_room()
                self._own.lane = held[0]
                yield
            finally:
                self._own.lane = None
                for lane in held:
                    self._free.put(lane)

    @property
    def notes(self) -> list[str]:
        """What did not hold and is not used."""
        return [note for lane in self._lanes for note in lane.notes]


def _largest_change(plain: torch.Tensor, recorded: torch.Tensor) -> float:
    left, right = (unit_rows(rows.float().cpu().numpy()) for rows in (plain, recorded))
    return float(np.abs(left - right).max())
