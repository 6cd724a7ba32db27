"""What a vector takes in Qdrant, and what is found again, by how it is stored.

    python benchmarks/quantization.py vectors.parquet

`vectors.parquet` is a file or folder as `clip-embed embed` or benchmarks/ray_stage.py --keep writes it.
Each way of storing fills a shard of Qdrant Edge, the engine of the server, and builds its index; the
bytes are those of its files, a part of memory each. Asked are 500 of the vectors, moved a little, as a
near-duplicate would be, against brute force in float32. "Rescored" takes three or ten times as many
candidates from the small vectors and compares them again by the stored ones. What a graph takes grows
with the collection, so it is measured once more over more vectors, which are made.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import qdrant_edge as edge
from report import about

Float32 = npt.NDArray[np.float32]

M = 16  # links of a vector in the graph: Qdrant's default
OVERSAMPLING = (3.0, 10.0)
QUERIES = 500
FLOAT16 = edge.VectorStorageDatatype.Float16
STORED: dict[str, tuple[edge.VectorStorageDatatype, Any]] = {
    "float32": (edge.VectorStorageDatatype.Float32, None),
    "float16": (FLOAT16, None),
    "int8": (FLOAT16, edge.ScalarQuantizationConfig(edge.ScalarType.Int8, quantile=0.99)),
    "binary": (FLOAT16, edge.BinaryQuantizationConfig()),
}


def read(file: Path, most: int) -> Float32:
    """The vectors of a file, float32 (n, d) of unit length; those that are not null."""
    column = pq.read_table(file, columns=["embedding"])["embedding"].drop_null().slice(0, most)
    rows = np.stack(column.combine_chunks().flatten().to_numpy().reshape(len(column), -1))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def made(count: int) -> Float32:
    """Vectors of 512 dimensions around chance centres, fifty to each: for the size of a graph."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((count // 50, 512)).astype(np.float32)
    rows = centres[rng.integers(0, len(centres), count)] + rng.standard_normal((count, 512), np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def nudged(rows: Float32) -> Float32:
    """Some of the rows, moved by a third of their length in a direction of chance."""
    rng = np.random.default_rng(0)
    chosen = rows[rng.permutation(len(rows))[:QUERIES]]
    moved = chosen + rng.standard_normal(chosen.shape).astype(np.float32) / (3 * rows.shape[1] ** 0.5)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def fill(folder: Path, rows: Float32, name: str) -> tuple[edge.EdgeShard, float]:
    """A shard with all rows and its index, and the CPU seconds that the index took."""
    datatype, quantization = STORED[name]
    vectors = edge.EdgeVectorParams(
        rows.shape[1], edge.Distance.Cosine, datatype=datatype, quantization_config=quantization
    )
    graph = edge.HnswIndexConfig(M, 100, 10)
    optimizers = edge.EdgeOptimizersConfig(default_segment_number=1, indexing_threshold=1)
    config = edge.EdgeConfig({"image": vectors}, hnsw_config=graph, optimizers=optimizers)
    shard = edge.EdgeShard.create(str(folder), config)
    for start in range(0, len(rows), 1000):
        part = rows[start : start + 1000]
        points = [edge.Point(start + place, {"image": row.tolist()}, {}) for place, row in enumerate(part)]
        shard.update(edge.UpdateOperation.upsert_points(points))
    started = time.process_time()
    shard.optimize()
    took = time.process_time() - started
    shard.flush()
    return shard, took


def bytes_of(folder: Path, count: int) -> dict[str, float]:
    """Bytes of a vector in the files of a shard, by what they hold."""
    sizes = {"vectors": 0, "quantized": 0, "graph": 0, "other": 0}
    for path in folder.rglob("*"):
        if not path.is_file() or "wal" in path.parts:
            continue
        inside = path.relative_to(folder).as_posix()
        if "quantized" in path.name:
            sizes["quantized"] += path.stat().st_size
        elif "vector_index" in inside:
            sizes["graph"] += path.stat().st_size
        elif "vector_storage" in inside:
            sizes["vectors"] += path.stat().st_size
        else:
            sizes["other"] += path.stat().st_size
    return {name: round(size / count, 1) for name, size in sizes.items()}


def recall(
    shard: edge.EdgeShard, queries: Float32, exact: list[set[int]], oversampling: float | None = None
) -> float:
    """The share of the ten nearest that is among the ten found, rescored from so many times as many."""
    quantization = edge.QuantizationSearchParams(rescore=oversampling is not None, oversampling=oversampling)
    params = edge.SearchParams(hnsw_ef=128, quantization=quantization)
    found = 0
    for query, nearest in zip(queries, exact, strict=True):
        request = edge.QueryRequest(
            limit=10, query=edge.Query.Nearest(query.tolist(), using="image"), params=params
        )
        found += len({int(point.id) for point in shard.query(request)} & nearest)
    return found / (10 * len(queries))


@click.command()
@click.argument("vectors", type=click.Path(exists=True, path_type=Path))
@click.option("--most", default=20_000, show_default=True, help="Vectors that are taken.")
@click.option("--graph", default=100_000, show_default=True, help="Vectors of the graph that is measured.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the result here, as JSON.")
def main(vectors: Path, most: int, graph: int, out: Path | None) -> None:
    """Print and keep bytes and recall of each way of storing."""
    rows = read(vectors, most)
    queries = nudged(rows)
    exact = [set(np.argpartition(-(rows @ query), 10)[:10].tolist()) for query in queries]
    found: dict[str, Any] = {}
    say: Callable[[str], None] = click.echo
    say(f"{len(rows):,} vectors of {rows.shape[1]} dimensions; bytes of one, recall@10\n")
    names = ("vector", "small", "graph", "other", "recall", "3 times", "10 times")
    say(" " * 8 + "".join(f" {name:>8s}" for name in names))
    for name in STORED:
        with tempfile.TemporaryDirectory() as folder:
            shard, _ = fill(Path(folder), rows, name)
            sizes = bytes_of(Path(folder), len(rows))
            plain = recall(shard, queries, exact)
            rescored = [recall(shard, queries, exact, times) for times in OVERSAMPLING]
            shard.close()
        found[name] = {"bytes": sizes, "recall": plain, "rescored": rescored}
        cells = " ".join(f"{size:8.1f}" for size in sizes.values())
        say(f"{name:8s} {cells} {plain:8.4f} {rescored[0]:8.4f} {rescored[1]:8.4f}")
    with tempfile.TemporaryDirectory() as folder:
        shard, took = fill(Path(folder), made(graph), "float16")
        shard.close()
        size = bytes_of(Path(folder), graph)["graph"]
    built = {"vectors": graph, "bytes": size, "index_cpu_ms": 1000 * took / graph}
    say(f"\ngraph of {graph:,}: {size} bytes and {built['index_cpu_ms']:.2f} CPU ms a vector")
    if out:
        result = {"about": about(), "vectors": len(rows), "dim": rows.shape[1], "stored": found}
        result["graph"] = built
        out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
