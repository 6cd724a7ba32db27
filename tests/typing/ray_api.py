"""How users call clip_embed_ray; each line must type-check in mypy and pyright."""

from __future__ import annotations

from typing import assert_type

from ray.data import Dataset

from clip_embed import ClipEmbedder
from clip_embed_qdrant import IngestReport
from clip_embed_ray import embed, write_qdrant


def use(files: Dataset) -> None:
    """What a program does with a dataset of files."""
    assert_type(embed(files, "path", model="offline", concurrency=(1, 8)), Dataset)
    embed(files, "path", into="vector", model=ClipEmbedder("offline", precision="exact"), num_gpus=0.5)
    assert_type(write_qdrant(files, "http://localhost:6333", "photos", progress=print), IngestReport)
