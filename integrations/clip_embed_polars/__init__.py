"""Query images by text in polars: `df.clip_embed.search("red car")`, or `search(df, "red car")`.

Importing this package registers the namespace `clip_embed` on DataFrame, LazyFrame, Series and Expr. The
functions here are the same verbs, typed; those that give a frame take a LazyFrame too, and stay lazy.
"""

import signal

from clip_embed.errors import MissingExtra

try:
    import polars as _polars  # noqa: F401  # pyright: ignore[reportUnusedImport]
except ModuleNotFoundError as error:
    if error.name != "polars":
        raise
    raise MissingExtra("polars", "polars", "clip_embed_polars") from error

from clip_embed._frames.pictures import Scatter
from clip_embed._frames.session import use
from clip_embed_polars._namespaces import install
from clip_embed_polars._pictures import Gallery, gallery, plot
from clip_embed_polars._vectors import ClipVectors
from clip_embed_polars._verbs import (
    classify,
    duplicates,
    embed,
    failures,
    probabilities,
    project,
    score,
    search,
    similar,
)

install()
if hasattr(signal, "siginterrupt"):  # polars has Ctrl-C wait for a lock; Python would not, nor do we
    signal.siginterrupt(signal.SIGINT, True)

__all__ = [
    "ClipVectors",
    "Gallery",
    "Scatter",
    "classify",
    "duplicates",
    "embed",
    "failures",
    "gallery",
    "plot",
    "probabilities",
    "project",
    "score",
    "search",
    "similar",
    "use",
]
