"""Builds the index of a shard: `python -m clip_embed_qdrant._optimize FOLDER`, in a process of its own."""

from __future__ import annotations

import sys

import qdrant_edge

if __name__ == "__main__":
    shard = qdrant_edge.EdgeShard.load(sys.argv[1])
    shard.optimize()
    shard.flush()
    shard.close()
