"""Embedding as a stage of a Ray dataset: `embed(dataset, "path")`, and `write_qdrant` as its end."""

from clip_embed.errors import MissingExtra

try:
    import ray.data as _data  # noqa: F401  # pyright: ignore[reportUnusedImport]
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "ray":
        raise
    raise MissingExtra("ray[data]", "ray", "clip_embed_ray") from error

from clip_embed_ray._embed import embed
from clip_embed_ray._write import write_qdrant

__all__ = ["embed", "write_qdrant"]
