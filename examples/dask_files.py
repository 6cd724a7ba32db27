"""Vectors of the images that Parquet files list, computed by Dask.

    python examples/dask_files.py files vectors

`files` is a folder of Parquet files with a column "path": images that every worker can read. Threads of
one process share the model; with a `dask.distributed.Client` made first, each worker loads its own. The
stamp that says which model made the vectors stays with them.
"""

import sys

import dask.dataframe as dd
import pandas as pd
import pyarrow as pa

from clip_embed import ClipEmbedder
from clip_embed.arrow import embed_images, stamp_vectors

clip = ClipEmbedder("offline")


def embed(part: pd.DataFrame) -> pd.DataFrame:
    """Embed one partition."""
    paths = pa.array(part["path"], pa.string())
    vectors, errors = embed_images(paths, clip)
    table = pa.table([paths, stamp_vectors(vectors, clip), errors], ["path", "embedding", "embedding_error"])
    return table.to_pandas(types_mapper=pd.ArrowDtype).set_index(part.index)


files = dd.read_parquet(sys.argv[1], columns=["path"])
files.map_partitions(embed, meta=embed(files.head(0))).to_parquet(sys.argv[2])
