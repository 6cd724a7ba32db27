"""What can go wrong between a job and its store, by what is to be done about it.

::

    ClipEmbedError
    └── StoreError          the store cannot do what was asked; trying again changes nothing
        ├── StoreLocked     another process has it open for writing
        ├── IngestStopped   an ingest ended early; `.report` says how far it came
        ├── Unstamped       nothing says which model made the vectors
        ├── Unreachable     it may work a little later
        └── Rejected        the store refuses what was sent, though not the sender
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clip_embed.errors import ClipEmbedError

if TYPE_CHECKING:
    from clip_embed_qdrant._report import IngestReport


class StoreError(ClipEmbedError, RuntimeError):
    """The store cannot do what was asked of it."""


class StoreLocked(StoreError):
    """Another process has the store open for writing."""


class IngestStopped(StoreError):
    """An ingest ended before its source did; what was written stays, and `report` says what that is.

    Call `ingest` again once the cause is gone: what is stored already is skipped.
    """

    def __init__(self, reason: str, report: IngestReport) -> None:
        self.reason = reason
        self.report = report
        super().__init__(f"{reason}\nUntil then: {report}. Run it again to go on from there.")


class Unstamped(StoreError):
    """Nothing in a collection says which model made its vectors."""


class Unreachable(StoreError):
    """The store did not answer, or asked to be asked later; `retry_after` is in seconds, if it said."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Rejected(StoreError):
    """The store refuses one of the records that were sent, or their size."""
