"""Vectors of the images that Parquet files list, by polars.

    python examples/polars_files.py files vectors.parquet

`files` is a folder of Parquet files with a column "path". `clip_embed_polars` has the same as verbs on
frames, and keeps the stamp that says which model made the vectors; here it is dropped, and reading them
warns.
"""

import sys

import polars as pl

from clip_embed import ClipEmbedder
from clip_embed.arrow import embed_images

clip = ClipEmbedder("offline")


def embed(frame: pl.DataFrame) -> pl.DataFrame:
    """Embed one batch."""
    vectors, errors = embed_images(frame["path"].to_arrow(), clip)
    return frame.with_columns(embedding=pl.Series(vectors), embedding_error=pl.Series(errors))


files = pl.scan_parquet(sys.argv[1]).select("path")
schema = {"path": pl.String, "embedding": pl.Array(pl.Float32, clip.dim), "embedding_error": pl.String}
files.map_batches(embed, schema=schema, streamable=True).sink_parquet(sys.argv[2])
