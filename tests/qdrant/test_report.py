"""What an ingest tells: while it runs, and of every image that failed."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clip_embed import ClipEmbedder
from clip_embed.testing import FakeModel
from clip_embed_qdrant import Failures, ImageStore, IngestFailure


class Terminal(io.StringIO):
    """A terminal that keeps what is written to it."""

    def isatty(self) -> bool:
        """Be one."""
        return True


class Slow(FakeModel):
    """Takes its time."""

    def embed_images(self, pixels: Any, /) -> Any:  # noqa: ANN401
        """Wait first."""
        time.sleep(0.4)
        return super().embed_images(pixels)


def test_a_bar_on_a_terminal(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Share, images/s, time left and failures, from Python too; nothing with progress=False."""
    (pictures / "a.jpg").write_bytes(b"no picture")
    monkeypatch.setattr("clip_embed._progress._PATIENCE", 0.0)
    for wanted in (True, False):
        terminal = Terminal()
        with (
            monkeypatch.context() as patch,
            ImageStore(
                tmp_path / f"{wanted}.clip", embedder=ClipEmbedder(Slow(), batch_size=4, cache=None)
            ) as store,
        ):
            patch.setattr(sys, "stderr", terminal)
            store.ingest(pictures, progress=wanted)
        shown = terminal.getvalue()
        assert all(part in shown for part in ("Ingesting:", "/9 [", "images/s", "failed=1")) == wanted
        assert bool(shown) == wanted


def test_more_failures_than_fit_into_memory(tmp_path: Path) -> None:
    """They spill into a file, come back in order while more are added, and go into Parquet."""
    failures = Failures()
    odd = "line\nbreak, \udcff and \u00e9"
    for number in range(20_000):
        failures.add(IngestFailure(f"{number}", odd, "no such file " * 5, retryable=number % 2 == 0))
    assert failures._file._rolled  # type: ignore[attr-defined]
    first = iter(failures)
    assert next(first).key == "0"
    failures.add(IngestFailure("last", odd, "x", retryable=True))
    assert (next(first).key, len(failures)) == ("1", 20_001)
    assert [failure.key for failure in failures][-2:] == ["19999", "last"]
    failures.to_parquet(tmp_path / "f.parquet")
    table = pq.read_table(tmp_path / "f.parquet")
    assert (table.num_rows, table["key"][19_999].as_py()) == (20_001, "19999")
    assert sum(table["retryable"].to_pylist()) == 10_001
