"""How far a job is, on a terminal or in a notebook."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeAlias

from clip_embed._progress import Progress, in_notebook
from clip_embed_qdrant._report import IngestReport

Show: TypeAlias = Callable[[IngestReport], object] | bool
"""What is called with the report so far; True for a bar where somebody sees it, False for nothing."""


@contextmanager
def shown(
    progress: Show, verb: str, total: Callable[[], int | None]
) -> Generator[Callable[[IngestReport], object] | None]:
    """Give what a job is to call; the total is asked for only if there is a bar."""
    if callable(progress):
        yield progress
    elif progress and (in_notebook() or (sys.stderr is not None and sys.stderr.isatty())):
        with Progress(verb, total()) as bar:
            yield lambda report: advance(bar, report)
    else:
        yield None


def advance(bar: Progress, report: IngestReport) -> None:
    """Bring a bar to where a job is."""
    done = report.skipped + report.written + len(report.failed)
    bar.add(done - bar.done, len(report.failed) - bar.failed)
