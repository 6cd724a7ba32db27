"""What a search of a column of vectors costs in pandas and polars, beside the bare product in numpy.

    python benchmarks/frames.py --rows 100000 --dim 512

Everything runs on the same vectors in one process, in rounds whose order alternates; the ratios are
medians of the ratios within the rounds. The text's vector is known, so that no model is in the figures.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa

import clip_embed_pandas
import clip_embed_polars
from clip_embed import ClipEmbedder
from clip_embed.arrow import stamp_vectors, vector_array
from clip_embed.testing import FakeModel
from clip_embed_polars._vectors import to_series

TEXT = "red"


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@click.command()
@click.option("--rows", default=100_000, show_default=True, type=click.IntRange(min=1000))
@click.option("--dim", default=512, show_default=True, type=click.IntRange(min=4))
@click.option("--rounds", default=15, show_default=True, type=click.IntRange(min=3))
def main(rows: int, dim: int, rounds: int) -> None:
    """Compare searches of precomputed vectors with the bare matrix product."""
    clip = ClipEmbedder(FakeModel(dim=dim))
    clip_embed_pandas.use(clip)
    matrix = np.random.default_rng(0).standard_normal((rows, dim), dtype=np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    stamped = stamp_vectors(vector_array(matrix, np.ones(rows, np.bool_)), clip)
    column = pd.arrays.ArrowExtensionArray(pa.chunked_array([stamped]))
    frame: Any = pd.DataFrame({"name": np.arange(rows).astype(str), "embedding": column})
    table = pl.DataFrame({"name": frame["name"].tolist()}).with_columns(
        to_series("embedding", matrix, np.ones(rows, np.bool_), clip)
    )
    query = clip.embed_texts([TEXT])[0]
    clip_embed_pandas.search(frame.head(10), TEXT)  # loads what there is to load
    first = timed(lambda: clip_embed_pandas.search(frame, TEXT))
    bare = statistics.median(timed(lambda: matrix @ query) for _ in range(rounds))
    click.echo(f"{rows:,} vectors of {dim}; the bare product takes {1000 * bare:.1f} ms")
    click.echo(f"the first search, which measures the vectors' lengths: {first / bare:.2f} ×")

    def top() -> object:
        scores = matrix @ query
        return np.argpartition(-scores, 10)[:10]

    contenders: dict[str, Callable[[], object]] = {
        "numpy, product and top 10": top,
        "pandas, search(frame, text)": lambda: clip_embed_pandas.search(frame, TEXT),
        "pandas, frame.clip.search(text)": lambda: frame.clip.search(TEXT),
        "pandas, score(frame, text)": lambda: clip_embed_pandas.score(frame, TEXT),
        "polars, search(frame, text)": lambda: clip_embed_polars.search(table, TEXT),
    }
    ratios: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in sorted(contenders, reverse=bool(number % 2)):
            around = timed(lambda: matrix @ query)
            ratios[name].append(timed(contenders[name]) / around)
    for name, seen in ratios.items():
        click.echo(f"{name:34s}{statistics.median(seen):6.2f} × ({min(seen):.2f} to {max(seen):.2f})")
    same = frame["embedding"].array.__arrow_array__().chunk(0).values.buffers()[1].address
    click.echo(f"the column's own memory: {clip_embed_pandas.to_numpy(frame).ctypes.data == same}")


if __name__ == "__main__":
    main()
