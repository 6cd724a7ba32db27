"""The embedder that integrations take where none is given."""

from __future__ import annotations

from functools import lru_cache

from clip_embed._embedder import ClipEmbedder
from clip_embed._models.opening import default_model


def default_embedder() -> ClipEmbedder:
    """Return that of the model in CLIP_EMBED_MODEL, else of CLIP ViT-B/32: one for all integrations."""
    return _embedder(default_model())


@lru_cache(maxsize=1)
def _embedder(model: str) -> ClipEmbedder:
    return ClipEmbedder(model)
