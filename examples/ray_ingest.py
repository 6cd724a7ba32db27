"""A folder of photos into a collection of a Qdrant server or cluster, by a Ray cluster.

    python examples/ray_ingest.py PHOTOS http://qdrant:6333 photos

Runs on a node of the cluster, where RAY_ADDRESS or a running raylet says so; else on this machine alone.
Every node sees the photos under the same path. Run it again at any time: what is stored and unchanged is
skipped. CLIP_EMBED_MODEL chooses the model of a new collection.
"""

import sys
from pathlib import Path

import pyarrow as pa
import ray

from clip_embed_ray import write_qdrant

# Those of `clip-embed ingest`.
SUFFIXES = {
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".webp"),
}


def main(photos: str, url: str, collection: str) -> int:
    """Bring the collection up to date; return 1 where photos failed."""
    root = Path(photos)
    files = [path for path in sorted(root.rglob("*")) if path.suffix.lower() in SUFFIXES]
    keys = [path.relative_to(root).as_posix() for path in files]  # those of `clip-embed ingest PHOTOS`
    dataset = ray.data.from_arrow(pa.table({"path": keys, "image": [str(path) for path in files]}))
    report = write_qdrant(dataset, url, collection, progress=print)
    print(report)
    for failure in report.failed:
        print(failure)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
