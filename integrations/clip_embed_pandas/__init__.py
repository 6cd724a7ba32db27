"""Query images by text in pandas: `df.clip.search("red car")`, or `search(df, "red car")`.

Importing this package gives every DataFrame and Series the accessor `clip`, which still is pandas' own
method when it is called, and its alias `clip_embed`. The functions here are the same verbs, typed.
"""

from clip_embed.errors import MissingExtra

try:
    import pandas as _pandas  # noqa: F401  # pyright: ignore[reportUnusedImport]
except ModuleNotFoundError as error:
    if error.name != "pandas":
        raise
    raise MissingExtra("pandas", "pandas", "clip_embed_pandas") from error

from clip_embed._frames.pictures import Scatter
from clip_embed._frames.session import use
from clip_embed_pandas._accessor import install
from clip_embed_pandas._files import read_parquet, to_parquet
from clip_embed_pandas._gallery import Gallery
from clip_embed_pandas._maps import plot, project
from clip_embed_pandas._vectors import to_numpy
from clip_embed_pandas._verbs import (
    classify,
    duplicates,
    embed,
    failures,
    gallery,
    probabilities,
    score,
    search,
    similar,
)

install()

__all__ = [
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
    "read_parquet",
    "score",
    "search",
    "similar",
    "to_numpy",
    "to_parquet",
    "use",
]
