"""What an ingest did, and every image that failed in it."""

from __future__ import annotations

import json
import tempfile
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

_IN_MEMORY = 1 << 20  # bytes; more goes to a temporary file
_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class IngestFailure:
    """One image that is not in the store, and why."""

    key: str
    source: str
    """Its path or URL, or what it was."""
    reason: str
    retryable: bool
    """True where the same image may work later: a missing file, a store that was full."""

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


class Failures:
    """The failures of an ingest, in order; those that do not fit into a megabyte wait in a temporary file.

    `len`, iteration and `to_parquet` are what it is for.
    """

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY, "w+", encoding="utf-8")  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._turn = threading.Lock()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[IngestFailure]:
        place = 0
        for _ in range(self._count):
            with self._turn:
                self._file.seek(place)
                line = self._file.readline()
                place = self._file.tell()
            yield IngestFailure(*json.loads(line))

    def __repr__(self) -> str:
        return f"<{self._count:,} failures>"

    def add(self, failure: IngestFailure) -> None:
        """Note one more."""
        row = (failure.key, failure.source, failure.reason, failure.retryable)
        with self._turn:
            self._file.seek(0, 2)
            self._file.write(json.dumps(row) + "\n")
            self._count += 1

    def to_parquet(self, file: str | Path) -> None:
        """Write them as a Parquet file with the columns key, source, reason and retryable."""
        import pyarrow.parquet as pq

        names = ("key", "source", "reason")
        fields: Any = [*((name, pa.string()) for name in names), ("retryable", pa.bool_())]
        schema = pa.schema(fields)
        with pq.ParquetWriter(file, schema) as writer:
            rows: list[dict[str, object]] = []
            for failure in self:
                row: dict[str, object] = {name: _text(getattr(failure, name)) for name in names}
                rows.append(row | {"retryable": failure.retryable})
                if len(rows) == _ROWS:
                    _write(writer, rows, schema)
                    rows = []
            _write(writer, rows, schema)


def _write(writer: Any, rows: list[dict[str, object]], schema: pa.Schema) -> None:  # noqa: ANN401 - of pyarrow
    table = pa.Table.from_pylist(rows, schema)
    writer.write_table(table)


def _text(value: str) -> str:
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What an ingest has done; `seen` = `skipped` + `written` + failures once it is over."""

    seen: int = 0
    """Images that the source listed."""
    skipped: int = 0
    """Unchanged since they were written, by their etag; neither read nor decoded."""
    embedded: int = 0
    """Vectors that were computed, or taken from the embedder's cache."""
    written: int = 0
    """Points that the store has acknowledged."""
    linked: int = 0
    """Images that took the vector of one with the same content (`on_duplicate="link"`)."""
    failed: Failures = field(default_factory=Failures)
    retries: int = 0
    """Requests that were sent again because the store did not answer or asked for patience."""
    seconds: float = 0.0
    job: object = field(default=None, repr=False, compare=False)
    """What `retry` needs."""

    def __str__(self) -> str:
        rate = f", {self.seen / self.seconds:,.0f} images/s" if self.seconds > 0 else ""
        return (
            f"{self.seen:,} seen, {self.skipped:,} skipped, {self.written:,} written, "
            f"{len(self.failed):,} failed, {self.retries:,} retries, {self.seconds:,.1f} s{rate}"
        )
