"""Text scores over stored vectors in DuckDB, beside its own array_inner_product, and what int8 costs.

    python benchmarks/duckdb_stored.py      # a million vectors of 512 dimensions: 6 GB of memory
    python benchmarks/duckdb_stored.py --rows 100000

All contenders rank the same rows of one table and give the best five; they take turns, and a ratio is
the median of those within the rounds. `array_inner_product` compares with a vector that is computed once
(`clip_text`), and gives the order of the cosines because these vectors are of unit length; the functions
of clip-embed do not rely on that. Vectors are those of a random walk, so that rows have neighbours;
"outliers" are the same with two dimensions that are large in all rows, as in CLIP. Recall@10 is the
share of the ten best rows by float32 that the ten best by int8 have, over 100 queries.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import click
import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from clip_embed import ClipEmbedder
from clip_embed.testing import FakeModel
from clip_embed_duckdb import register
from clip_embed_duckdb._stored import Vectors, stored_form

BEST = 5
PEER = "array_inner_product"
CONTENDERS = {
    PEER: "SELECT id FROM v ORDER BY array_inner_product(emb, clip_text('red car')) DESC LIMIT 5",
    "array_cosine_similarity": "SELECT id FROM v ORDER BY array_cosine_similarity(emb, clip_text('red car')) "
    "DESC LIMIT 5",
    "clip_score": "SELECT id FROM v ORDER BY clip_score(emb, 'red car') DESC LIMIT 5",
    "clip_sim": "SELECT id FROM v ORDER BY clip_sim(emb, 'red car') LIMIT 5",
    "clip_search": "SELECT id FROM clip_search('v', 'emb', 'red car', k := 5)",
    "clip_score int8": "SELECT id FROM v ORDER BY clip_score(small, 'red car') DESC LIMIT 5",
    "clip_search int8, rescored": "SELECT id FROM clip_search('v', 'small', 'red car', k := 5, "
    "rescore := 'emb')",
}
Float32 = npt.NDArray[np.float32]


def walk(rows: int, dim: int, rng: np.random.Generator, *, outliers: bool = False) -> Float32:
    """Return unit vectors (rows, dim), each near the one before it."""
    steps = rng.standard_normal((rows, dim), dtype=np.float32)
    state = rng.standard_normal(dim).astype(np.float32)
    for row in steps:  # 0.8 of the last one, and what keeps the length
        state = 0.8 * state + 0.6 * row
        row[:] = state
    if outliers:
        steps[:, :2] += 20.0
    steps /= np.linalg.norm(steps, axis=1, keepdims=True)
    return steps


def column(vectors: Float32, type_: str) -> pa.Array:
    """Return vectors as materialize keeps them."""
    ones = np.ones(len(vectors), np.float32)
    return stored_form(Vectors(vectors, ones, np.ones(len(vectors), np.bool_)), type_)


def fill(con: duckdb.DuckDBPyConnection, rows: int, dim: int) -> None:
    """Make table v (id, emb FLOAT[dim], small TINYINT[dim])."""
    rng = np.random.default_rng(0)
    con.execute(f"CREATE TABLE v (id INT, emb FLOAT[{dim}], small TINYINT[{dim}])")
    for start in range(0, rows, 50_000):
        vectors = walk(min(50_000, rows - start), dim, rng)
        ids = np.arange(start, start + len(vectors), dtype=np.int32)
        part = pa.table({"id": ids, "emb": column(vectors, "FLOAT"), "small": column(vectors, "TINYINT")})
        con.register("part", part)
        con.execute("INSERT INTO v FROM part")
        con.unregister("part")


def timed(work: Callable[[], object]) -> float:
    """Seconds of wall time."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compare(con: duckdb.DuckDBPyConnection, threads: int, rounds: int) -> None:
    """Print the medians of all contenders with so many threads of DuckDB."""
    con.execute(f"SET threads = {threads}")
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    expected = con.execute(CONTENDERS[PEER]).fetchall()
    for name, query in CONTENDERS.items():
        plan = con.execute(f"EXPLAIN (FORMAT json) {query}").fetchall()[0][1]
        if '"TOP_N"' not in plan:
            raise click.ClickException(f"{name}: there is no Top N in its plan")
        found = con.execute(query).fetchall()
        if name != "clip_score int8" and found != expected:
            raise click.ClickException(f"{name}: {found} instead of {expected}")
    names = list(CONTENDERS)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            seconds[name].append(timed(lambda query=CONTENDERS[name]: con.execute(query).fetchall()))
    for name, values in seconds.items():
        ratios = [own / peer for own, peer in zip(values, seconds[PEER], strict=True)]
        middle, ratio = statistics.median(values), statistics.median(ratios)
        click.echo(f"  {name:28s}{1000 * middle:8.0f} ms  {ratio:5.2f} of {PEER}")


def recall(dim: int, *, outliers: bool, rows: int = 20_000, queries: int = 100) -> None:
    """Print what int8 finds of the ten best by float32, alone and with rescoring."""
    rng = np.random.default_rng(1)
    vectors = walk(rows, dim, rng, outliers=outliers)
    chosen = vectors[rng.choice(rows, queries, replace=False)]
    texts = chosen + 0.7 * rng.standard_normal(chosen.shape).astype(np.float32) / dim**0.5
    small = np.asarray(column(vectors, "TINYINT").flatten()).reshape(rows, dim).astype(np.float32)
    small /= np.linalg.norm(small, axis=1, keepdims=True)
    alone = rescored = 0
    for text in texts:
        exact = vectors @ text
        best = set(np.argsort(-exact)[:10].tolist())
        order = np.argsort(-(small @ text))
        candidates = order[:100]
        alone += len(best & set(order[:10].tolist()))
        rescored += len(best & set(candidates[np.argsort(-exact[candidates])[:10]].tolist()))
    kind = "random walk with outliers" if outliers else "random walk"
    alone, rescored = (found / queries / 10 for found in (alone, rescored))
    click.echo(f"  {kind:28s}int8 {alone:.3f}, int8 with rescoring of 10 × k {rescored:.3f}")


@click.command()
@click.option("--rows", default=1_000_000, show_default=True, type=click.IntRange(min=1000))
@click.option("--dim", default=512, show_default=True, type=click.IntRange(min=8))
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(min=1))
def main(rows: int, dim: int, rounds: int) -> None:
    """Rank stored vectors by a text with one thread and with two."""
    with duckdb.connect() as con:
        con.execute("SET enable_progress_bar = false")
        register(con, ClipEmbedder(FakeModel(dim)), progress=False)
        fill(con, rows, dim)
        for threads in (1, 2):
            click.echo(
                f"{rows:,} × {dim}, {threads} thread{'s'[: threads - 1]} of DuckDB {duckdb.__version__}"
            )
            compare(con, threads, rounds)
    click.echo("recall@10 against float32, 20,000 vectors, 100 queries")
    recall(dim, outliers=False)
    recall(dim, outliers=True)


if __name__ == "__main__":
    main()
