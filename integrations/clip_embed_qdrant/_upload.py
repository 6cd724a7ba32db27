"""Writing points so that none is lost: back-off under a deadline, bisecting, several streams."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

from clip_embed_qdrant._errors import Rejected, StoreError, Unreachable
from clip_embed_qdrant._sink import KEY, Points

T = TypeVar("T")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 30.0  # seconds


class Patience:
    """Asks again while a store does not answer, for at most `seconds` in one go.

    Pauses double up to 30 s, with jitter; where the store says how long, that is waited for. `stop`
    ends all waiting.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._turn = threading.Lock()
        self._stopped = threading.Event()
        self.retries = 0

    def ask(self, request: Callable[[], T]) -> T:
        """Return what the request returns; StoreError where the store stays away for too long."""
        begun: float | None = None
        attempt = 0
        while True:
            try:
                return request()
            except Unreachable as error:
                now = time.monotonic()
                begun = now if begun is None else begun
                pause = _pause(attempt, error.retry_after)
                attempt += 1
                if now + pause > begun + self._seconds:
                    waited = f"given up after {attempt} tries in {now - begun:,.0f} s"
                    raise StoreError(f"{error} ({waited}; the limit is {self._seconds:,.0f} s)") from error
                with self._turn:
                    self.retries += 1
                if self._stopped.wait(pause):
                    raise StoreError(f"{error} (stopped while waiting for it)") from error

    def stop(self) -> None:
        """Wait no longer, anywhere."""
        self._stopped.set()


def _pause(attempt: int, wanted: float | None) -> float:
    if wanted is not None:
        return wanted * random.uniform(1.0, 1.1)  # noqa: S311 - jitter
    return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(attempt, 20)) * random.uniform(0.5, 1.0)  # noqa: S311


class Writable(Protocol):
    """What points are written to."""

    streams: int

    def write(self, points: Points) -> None:
        """Write points; Unreachable or Rejected where that fails."""
        ...


@dataclass(slots=True)
class Outcome:
    """What became of points: how many are written, and why others are not."""

    written: int = 0
    rejected: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """Key and reason."""


class Uploader:
    """Writes points in the background, a few requests at a time; what has become of them comes back in order.

    `done` is called for each request in the thread that submits.
    """

    def __init__(self, target: Writable, patience: Patience, done: Callable[[Outcome], None]) -> None:
        self._target = target
        self._patience = patience
        self._done = done
        self._pool = ThreadPoolExecutor(target.streams, "clip-embed-upload")
        self._under_way: deque[Future[Outcome]] = deque()

    def submit(self, points: Points) -> None:
        """Have points written; waits while more than enough are under way. Raises what a write raised."""
        while len(self._under_way) > self._target.streams:
            self._collect()
        self.look()
        self._under_way.append(self._pool.submit(self._write, points))

    def look(self) -> None:
        """Note what is done, without waiting. Raises what a write raised."""
        while self._under_way and self._under_way[0].done():
            self._collect()

    def drain(self) -> None:
        """Wait until all is written. Raises what a write raised, once the others are done."""
        failed: StoreError | None = None
        while self._under_way:
            try:
                self._collect()
            except StoreError as error:
                failed = failed or error
        if failed:
            raise failed

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True)

    def _collect(self) -> None:
        self._done(self._under_way.popleft().result())

    def _write(self, points: Points) -> Outcome:
        outcome = Outcome()
        waiting = [points]
        while waiting:
            part = waiting.pop()
            try:
                self._patience.ask(partial(self._target.write, part))
                outcome.written += len(part)
            except Rejected as error:
                if len(part) == 1:
                    outcome.rejected.append((part.payloads[0][KEY], str(error)))
                else:
                    middle = len(part) // 2
                    waiting += [part.part(middle, len(part)), part.part(0, middle)]
        return outcome


def split(sizes: Sequence[int], max_points: int, max_bytes: int) -> list[slice]:
    """Return slices of consecutive points, each within both limits, or of one point alone."""
    parts: list[slice] = []
    start = total = 0
    for place, size in enumerate(sizes):
        if place > start and (place - start >= max_points or total + size > max_bytes):
            parts.append(slice(start, place))
            start, total = place, 0
        total += size
    return [*parts, slice(start, len(sizes))] if sizes else parts
