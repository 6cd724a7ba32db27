"""Vectors of any number of photos to a Parquet file, in bounded memory, failures listed.

The column says which model made it: `clip_embed.arrow.read_vectors` refuses it for another one.

    python examples/folder_to_parquet.py PHOTOS vectors.parquet

CLIP_EMBED_MODEL chooses the model; without it the example takes `offline`.
"""

import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clip_embed import ClipEmbedder
from clip_embed.arrow import vector_type


def main(folder: str, target: str) -> int:
    """Write (path, vector) of all JPEG and PNG files below `folder`; return the number of failures."""
    clip = ClipEmbedder(os.environ.get("CLIP_EMBED_MODEL", "offline"))
    schema = pa.schema({"path": pa.string(), "vector": vector_type(clip)})
    files = (
        path for path in sorted(Path(folder).rglob("*")) if path.suffix.lower() in {".jpg", ".jpeg", ".png"}
    )
    failed = 0
    with (
        pq.ParquetWriter(target, schema) as writer,
        clip.stream_images((str(file), file) for file in files) as batches,
    ):
        for batch in batches:
            vectors = pa.FixedSizeListArray.from_arrays(
                pa.array(batch.vectors.reshape(-1)), type=schema.types[1]
            )
            writer.write_batch(pa.record_batch([pa.array(batch.keys, pa.string()), vectors], schema=schema))
            for failure in batch.failures:
                print(failure, file=sys.stderr)
            failed += len(batch.failures)
    return failed


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(1 if main(*sys.argv[1:]) else 0)
