"""Images of a column to rows of vectors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from clip_embed._embedder import ClipEmbedder
from clip_embed._frames.session import announce
from clip_embed._images.source import ImageInput
from clip_embed._progress import Progress
from clip_embed._types import Float32
from clip_embed._warn import warn_caller

_SHOWN = 3  # reasons in a warning
Bools = npt.NDArray[np.bool_]


def embed_images_of(
    items: Iterable[tuple[Sequence[int], ImageInput]], n: int, embedder: ClipEmbedder, *, warn: bool = True
) -> tuple[Float32, Bools, list[str | None]]:
    """Embed images as `embed_rows` does, with what people want to see: the model, a bar, failures."""
    announce(embedder)
    with Progress("Embedding", n) as progress:
        rows, valid, reasons = embed_rows(items, n, embedder, progress)
    failed = [reason for reason in reasons if reason is not None]
    if warn and failed:
        warn_caller(f"{len(failed):,} of {n:,} images failed ({_summed(failed)}): `failures` lists them")
    return rows, valid, reasons


def _summed(reasons: Sequence[str]) -> str:
    """Say why images failed, the commonest reasons first, with their numbers where there are several."""
    counts = Counter(reasons).most_common()
    if len(counts) == 1:
        return counts[0][0]
    shown = [f"{count:,} × {reason}" for reason, count in counts[:_SHOWN]]
    return "; ".join([*shown, *(["…"] if len(counts) > _SHOWN else [])])


def embed_rows(
    items: Iterable[tuple[Sequence[int], ImageInput]],
    n: int,
    embedder: ClipEmbedder,
    progress: Progress | None = None,
) -> tuple[Float32, Bools, list[str | None]]:
    """Embed images, each given with the rows of n that show it.

    Returns float32 (n, d), zeros where there is no vector; bool (n,), which rows have one; and why an
    image failed, None where it did not. `progress` is told how many rows are done.
    """
    progress = progress or Progress(enabled=False)
    rows = np.zeros((n, embedder.dim), np.float32)
    valid = np.zeros(n, np.bool_)
    reasons: list[str | None] = [None] * n
    with embedder.stream_images(items) as batches:
        for batch in batches:
            for key, vector in zip(batch.keys, batch.vectors, strict=True):
                places = cast("Sequence[int]", key)
                rows[places], valid[places] = vector, True
                progress.add(len(places))
            for failure in batch.failures:
                places = cast("Sequence[int]", failure.key)
                for place in places:
                    reasons[place] = failure.reason
                progress.add(len(places), len(places))
    return rows, valid, reasons
