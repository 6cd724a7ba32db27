"""What a search of a column of vectors costs in pandas and polars, beside the bare product in numpy.

    python benchmarks/frames.py --rows 100000 --dim 512

Everything runs on the same vectors in one process, in rounds whose order alternates; the ratios are
medians of the ratios within the rounds. The text's vector is known, so that no model is in the figures. The
first search of a frame also measures the lengths of its vectors.
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
    valid = np.ones(rows, np.bool_)
    stamped = stamp_vectors(vector_array(matrix, valid), clip)
    names = pd.Series(np.arange(rows).astype(str))
    series = to_series("embedding", matrix, valid, clip)
    query = clip.embed_texts([TEXT])[0]

    def new_frame() -> Any:  # noqa: ANN401 - a DataFrame that was never searched
        column = pd.arrays.ArrowExtensionArray(pa.chunked_array([stamped]))
        return pd.DataFrame({"name": names, "embedding": column})

    def new_table() -> pl.DataFrame:
        return pl.DataFrame({"name": names.tolist()}).with_columns(series)

    def top() -> object:
        scores = matrix @ query
        return np.argpartition(-scores, 10)[:10]

    def first(make: Callable[[], Any], search: Callable[[Any, str], object]) -> Callable[[], object]:
        made = iter([make() for _ in range(rounds)])
        return lambda: search(next(made), TEXT)

    frame, table = new_frame(), new_table()
    clip_embed_pandas.search(frame, TEXT)
    clip_embed_polars.search(table, TEXT)
    contenders: dict[str, Callable[[], object]] = {
        "numpy, product and top 10": top,
        "pandas, search(frame, text)": lambda: clip_embed_pandas.search(frame, TEXT),
        "pandas, frame.clip.search(text)": lambda: frame.clip.search(TEXT),
        "pandas, score(frame, text)": lambda: clip_embed_pandas.score(frame, TEXT),
        "pandas, the first search of a frame": first(new_frame, clip_embed_pandas.search),
        "polars, search(frame, text)": lambda: clip_embed_polars.search(table, TEXT),
        "polars, the first search of a frame": first(new_table, clip_embed_polars.search),
    }
    bare: list[float] = []
    ratios: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in sorted(contenders, reverse=bool(number % 2)):
            bare.append(timed(lambda: matrix @ query))
            ratios[name].append(timed(contenders[name]) / bare[-1])
    click.echo(
        f"{rows:,} vectors of {dim}; the bare product takes {1000 * statistics.median(bare):.1f} ms "
        f"({1000 * min(bare):.1f} at best)"
    )
    for name, seen in ratios.items():
        click.echo(f"{name:36s}{statistics.median(seen):6.2f} × ({min(seen):.2f} to {max(seen):.2f})")
    same = frame["embedding"].array.__arrow_array__().chunk(0).values.buffers()[1].address
    click.echo(f"the column's own memory: {clip_embed_pandas.to_numpy(frame).ctypes.data == same}")


if __name__ == "__main__":
    main()
