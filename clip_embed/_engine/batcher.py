"""Rows from several threads, run through one tower in shared batches.

A thread that finds the model free runs what is waiting from all threads, its own rows first; the
others find their results when it is their turn. There is no thread, no timer and no waiting for
company: a batch is shared only where threads wait for the model anyway. All that is shared is the
lock of the model and a list of calls, and a call is changed only by the thread that holds the lock.
An interrupted thread lets go of the lock and takes its call along, so nobody waits for it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from clip_embed._types import Float32

logger = logging.getLogger(__name__)

Row = TypeVar("Row")
Outcome: TypeAlias = "Float32 | MemoryError"
Forward: TypeAlias = Callable[[Sequence[Row]], list[Outcome]]

# What torch, its libraries and its devices say where memory ends.
_OUT_OF_MEMORY = (
    "out of memory", "can't allocate memory", "not enough memory",
    "_status_alloc_failed", "host_allocation_failed",  # cuBLAS and cuDNN
    "invalid buffer size",  # MPS
    "error_out_of_device_memory", "error_out_of_host_memory", "error_out_of_resources",  # XPU
)  # fmt: skip


@dataclass(eq=False, slots=True)
class _Call(Generic[Row]):
    rows: Sequence[Row]
    outcomes: list[Outcome] | None = None
    """One of each row once it is served."""
    alone: bool = False
    """A batch that it shared has failed: whose fault that was shows when each runs alone."""


class Batcher(Generic[Row]):
    """Runs a tower over the rows of all threads.

    `forward` gives the outcome of each row, in order. `turn` is held while it runs; two batchers
    with one `turn` never run at once.
    """

    def __init__(self, forward: Forward[Row], turn: AbstractContextManager[object]) -> None:
        self._forward = forward
        self._turn = turn
        self._waiting: list[_Call[Row]] = []

    def embed(self, rows: Sequence[Row], *, batch_size: int) -> list[Outcome]:
        """Return the outcome of each row, in order.

        Rows of other threads join the batch as long as it stays within `batch_size`. Raises what
        `forward` raises for these very rows.
        """
        own = _Call(rows)
        try:
            self._waiting.append(own)
            with self._turn:
                if own.outcomes is None:
                    self._lead(own, batch_size)
        finally:
            if own in self._waiting:
                self._waiting.remove(own)
        assert own.outcomes is not None  # noqa: S101 - for the type checkers
        return own.outcomes

    def _lead(self, own: _Call[Row], batch_size: int) -> None:
        """Serve a call, and with it what is waiting; needs the turn."""
        batch = self._gather(own, batch_size)
        if len(batch) > 1:
            try:
                self._serve(batch)
            except Exception:  # noqa: BLE001 - raised again below, or in the thread whose rows did it
                for call in batch:
                    call.alone = True
            else:
                return
        self._serve([own])

    def _gather(self, own: _Call[Row], batch_size: int) -> list[_Call[Row]]:
        """Take the calls that fit into one batch with `own`, in order of arrival."""
        batch, room = [own], batch_size - len(own.rows)
        for call in list(self._waiting):
            waits = call is not own and call.outcomes is None and not call.alone
            if waits and len(call.rows) <= room:
                batch.append(call)
                room -= len(call.rows)
        return batch

    def _serve(self, calls: list[_Call[Row]]) -> None:
        outcomes = self._forward([row for call in calls for row in call.rows])
        start = 0
        for call in calls:
            call.outcomes = outcomes[start : start + len(call.rows)]
            start += len(call.rows)


class Halving(Generic[Row]):
    """Runs a tower over any number of rows; where memory runs out, over half as many at a time.

    `tower` takes rows and gives float32 (n, d). `emptied` is held while they are tried again: in it nothing
    else computes on the device, and nothing is kept there between calls. So what fails in it is too large,
    and has not only met others. What fitted is remembered for the next batches.
    """

    def __init__(
        self,
        tower: Callable[[Sequence[Row]], Float32],
        emptied: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._tower = tower
        self._emptied = emptied
        self._most = sys.maxsize

    def __call__(self, rows: Sequence[Row]) -> list[Outcome]:
        """Return the vector (d,) of each row, in order; MemoryError for a row that is too much alone."""
        outcomes: list[Outcome] = []
        most_before = self._most
        while len(outcomes) < len(rows):
            part = rows[len(outcomes) : len(outcomes) + self._most]
            found = self._try(part)
            if isinstance(found, str):
                with self._emptied():
                    found = self._halve(part, found)
            if isinstance(found, str):  # the size of the batch was not to blame
                found = [MemoryError(found)]
                self._most = most_before
            outcomes += found
        return outcomes

    def _halve(self, part: Sequence[Row], reason: str) -> list[Outcome] | str:
        """Return the outcomes of the first of these rows, of as many as fit, or why a single one does not."""
        size = len(part)
        while True:
            if size > 1:
                logger.warning("no memory for %d rows, going on with %d: %s", size, size // 2, reason)
                size //= 2
                self._most = min(self._most, size)
            found = self._try(part[:size])
            if size == 1 or not isinstance(found, str):
                return found
            reason = found

    def _try(self, rows: Sequence[Row]) -> list[Outcome] | str:
        """Return the outcomes of rows, or why memory did not suffice.

        The error itself ends here, and with it the frames that hold the failed pass in memory.
        """
        try:
            return list(self._tower(rows))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return str(error)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether a model failed because the memory of the device or the machine did not suffice."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, not imported
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)
