"""Vectors of the images that Parquet files list, computed by Daft.

    python examples/daft_files.py files vectors

`files` is a folder of Parquet files with a column "path": images that every worker can read. On a cluster
call `daft.set_runner_ray()` first. Daft drops the stamp that says which model made the vectors: reading
them warns.
"""

import sys

import daft
import pyarrow as pa
from daft import DataType

from clip_embed import ClipEmbedder
from clip_embed.arrow import embed_images

clip = ClipEmbedder("offline")
vector = DataType.fixed_size_list(DataType.float32(), clip.dim)
both = DataType.struct({"embedding": vector, "embedding_error": DataType.string()})


@daft.func.batch(return_dtype=both, unnest=True)
def embed(paths: daft.Series) -> pa.StructArray:
    """Embed one batch."""
    return pa.StructArray.from_arrays(embed_images(paths.to_arrow(), clip), ["embedding", "embedding_error"])


files = daft.read_parquet(sys.argv[1])
files.select("path", embed(files["path"])).write_parquet(sys.argv[2])
