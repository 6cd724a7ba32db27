"""From one store into another, vectors and all: nothing is embedded."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import numpy as np

from clip_embed import SpaceMismatch
from clip_embed._cli.signals import keeping
from clip_embed._stamp import MIN_COSINE
from clip_embed_qdrant._entries import payload_bytes
from clip_embed_qdrant._errors import IngestStopped, StoreError
from clip_embed_qdrant._report import Failures, IngestFailure, IngestReport
from clip_embed_qdrant._sink import ETAG, KEY, Found, Meta, Points, Sink
from clip_embed_qdrant._upload import Outcome, Patience, Uploader, split

_POINTS, _BYTES, _FLOAT_BYTES = 256, 16 * 1024 * 1024, 12
_WITHOUT_VECTOR = "it has no vector of the model in use: ingest it again first"


class Copy:
    """One run from a store into another; call `run` once."""

    def __init__(
        self,
        source: Sink,
        target: Sink,
        patience: float,
        progress: Callable[[IngestReport], object] | None,
    ) -> None:
        self._source = source
        self._target = target
        self._patience = Patience(patience)
        self._uploader = Uploader(target, self._patience, self._uploaded)
        self._progress = progress
        self._counts = IngestReport(failed=Failures())
        self._begun = time.monotonic()

    @property
    def report(self) -> IngestReport:
        """How far it is."""
        seconds = time.monotonic() - self._begun
        return replace(self._counts, retries=self._patience.retries, seconds=seconds)

    def run(self) -> IngestReport:
        """Copy what the target does not have in the same state. Raises IngestStopped with the report."""
        try:
            self._patience.ask(self._target.open_for_writing)
            for page in self._source.scroll(with_vectors=True):
                self._copy(page)
                if self._progress:
                    self._progress(self.report)
            self._uploader.drain()
            self._target.flush()
        except StoreError as error:
            self._settle()
            raise IngestStopped(str(error), self.report) from error
        except BaseException:
            self._settle()
            raise
        finally:
            self._uploader.close()
        return self.report

    def _settle(self) -> None:
        """Let the requests under way end, in no more than one try, and say how far it came."""
        self._patience.stop()
        with keeping(), suppress(StoreError):
            self._uploader.drain()
        if self._progress:
            self._progress(self.report)

    def _copy(self, page: list[Found]) -> None:
        ids = [point.id for point in page]
        stored = self._patience.ask(lambda: self._target.etags(ids)) if ids else {}
        absent = [
            point for point in page if point.id not in stored or stored[point.id] != point.payload.get(ETAG)
        ]
        wanted = [point for point in absent if point.vector is not None]
        for point in absent:
            if point.vector is None:
                key = str(point.payload.get(KEY, point.id))
                self._counts.failed.add(IngestFailure(key, key, _WITHOUT_VECTOR, retryable=True))
        sizes = [payload_bytes(point.payload) + _FLOAT_BYTES * len(_vector(point)) for point in wanted]
        for part in split(sizes, _POINTS, _BYTES):
            points = wanted[part]
            self._uploader.submit(
                Points(
                    [point.id for point in points],
                    np.stack([_vector(point) for point in points]),
                    [point.payload for point in points],
                )
            )
        counts = self._counts
        self._counts = replace(
            counts, seen=counts.seen + len(page), skipped=counts.skipped + len(page) - len(absent)
        )

    def _uploaded(self, outcome: Outcome) -> None:
        self._counts = replace(self._counts, written=self._counts.written + outcome.written)
        for key, reason in outcome.rejected:
            self._counts.failed.add(IngestFailure(key, key, reason, retryable=False))


def check_same_space(meta: Meta, other: Meta, where: str) -> None:
    """Raise SpaceMismatch unless the vectors of two stores may be compared."""
    if meta.stamp.space == other.stamp.space:
        return
    same = meta.stamp.probe.shape == other.stamp.probe.shape
    if not same or not float((meta.stamp.probe * other.stamp.probe).sum(axis=1).min()) >= MIN_COSINE:
        raise SpaceMismatch(
            f"{where} holds vectors of the space {other.stamp.space}, these are of {meta.stamp.space}: "
            "copy into another collection"
        )


def _vector(point: Found) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    if point.vector is None:
        raise ValueError(f"{point.id} has no vector")
    return point.vector.reshape(-1)
