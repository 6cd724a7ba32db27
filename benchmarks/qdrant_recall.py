"""What a store in a folder gives back beside brute force in float32: recall@10 and scores.

    python benchmarks/qdrant_recall.py

Without an index, with one, and with vectors that were written after it was built.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import click
import numpy as np
from qdrant import DIM, Float32, Instant, empty_store

from clip_embed import ClipEmbedder
from clip_embed_qdrant import ImageStore
from clip_embed_qdrant._entries import point_id
from clip_embed_qdrant._sink import Points, Sink


@click.command()
@click.option("--vectors", "count", default=10_000, show_default=True)
def main(count: int) -> None:
    """recall@10 against brute force, and how far scores are off: before and after `optimize`, and later."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((200, DIM))
    rows = (centres[rng.integers(0, 200, count)] + rng.standard_normal((count, DIM))).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    queries = rows[:500] + 0.5 * rng.standard_normal((500, DIM)).astype(np.float32) / DIM**0.5
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    with tempfile.TemporaryDirectory() as folder:
        sink = empty_store(Path(folder) / "s.clip")
        _write(sink, rows)
        sink.close()
        with ImageStore(f"{folder}/s.clip", embedder=ClipEmbedder(Instant())) as store:
            _recall(store, rows, queries, "no index")
            store.optimize()
            _recall(store, rows, queries, f"{store.status().indexed:,} indexed")
            _write(store._sink, rows[: count // 5])
            _recall(store, rows, queries, f"{count // 5:,} rewritten")


def _write(sink: Sink, rows: Float32) -> None:
    for start in range(0, len(rows), 256):
        part = rows[start : start + 256]
        keys = [str(number) for number in range(start, start + len(part))]
        payloads = [{"_key": key, "_etag": "x"} for key in keys]
        sink.write(Points([point_id(key) for key in keys], part, payloads))


def _recall(store: ImageStore, rows: Float32, queries: Float32, name: str) -> None:
    found = 0
    worst = 0.0
    took = 0.0
    for query in queries:
        exact = rows @ query
        begun = time.perf_counter()
        hits = store.search(vector=query, k=10)
        took += time.perf_counter() - begun
        found += len({str(place) for place in np.argsort(-exact)[:10].tolist()} & {hit.key for hit in hits})
        worst = max(worst, *(abs(hit.score - float(exact[int(hit.key)])) for hit in hits))
    share = found / (10 * len(queries))
    click.echo(
        f"{name:16} recall@10 {share:.4f}, scores within {worst:.1e}, "
        f"{took / len(queries) * 1e3:.2f} ms a query"
    )


if __name__ == "__main__":
    main()
