"""Images decoded on the CPUs of a Ray cluster, and embedded on its GPUs.

    python examples/ray_two_stages.py files vectors

`files` is a folder of Parquet files with a column "path": images that every worker can read. Worth it
where GPUs wait for decoding; an image on its way is 150 KB. Else `clip_embed_ray.embed` does both in one
actor.
"""

import sys

import pyarrow as pa
import pyarrow.compute as pc
import ray

from clip_embed import ClipEmbedder
from clip_embed.arrow import encode, prepare, stamp_vectors

clip = ClipEmbedder("offline", workers=1)  # travels as settings; decoding loads no weights


def decode(table: pa.Table) -> pa.Table:
    """Decode one batch; with `num_cpus=1` where there are CPUs."""
    return pa.table([table["path"], *prepare(table["path"], clip)], ["path", "pixels", "embedding_error"])


def embed(table: pa.Table) -> pa.Table:
    """Embed one batch; with `num_gpus=1` in `map_batches` where there are GPUs."""
    vectors, errors = encode(table["pixels"], clip)
    columns = [table["path"], stamp_vectors(vectors, clip), pc.coalesce(table["embedding_error"], errors)]
    return pa.table(columns, ["path", "embedding", "embedding_error"])


pixels = ray.data.read_parquet(sys.argv[1]).map_batches(decode, batch_format="pyarrow", batch_size=256)
pixels.map_batches(embed, batch_format="pyarrow", batch_size=256).write_parquet(sys.argv[2])
