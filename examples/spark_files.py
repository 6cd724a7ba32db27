"""Vectors of the images that Parquet files list, computed by Spark.

    spark-submit examples/spark_files.py files vectors

`files` is a folder of Parquet files with a column "path": images that every worker can read. Needs Java,
and clip-embed on every worker. Spark has no lists of fixed size, and drops the stamp that says which
model made the vectors: reading them warns.
"""

import sys
from collections.abc import Iterator

import pyarrow as pa
from pyspark.sql import SparkSession

from clip_embed import ClipEmbedder
from clip_embed.arrow import embed_images

clip = ClipEmbedder("offline", workers=1)  # travels as settings: each Python worker loads it once


def embed(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Embed the batches of one task."""
    for batch in batches:
        vectors, errors = embed_images(batch["path"], clip)
        columns = [batch["path"], vectors.cast(pa.list_(pa.float32())), errors]
        yield pa.record_batch(columns, ["path", "embedding", "embedding_error"])


files = SparkSession.builder.getOrCreate().read.parquet(sys.argv[1])
schema = "path string, embedding array<float>, embedding_error string"
files.mapInArrow(embed, schema).write.parquet(sys.argv[2])
