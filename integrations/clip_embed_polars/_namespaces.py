"""`df.clip_embed`, `lf.clip_embed`, `s.clip_embed` and `pl.col(...).clip_embed`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import polars as pl

from clip_embed import ClipEmbedder
from clip_embed._frames.session import the_embedder
from clip_embed._series import EXTENSION
from clip_embed_polars import _pictures, _verbs
from clip_embed_polars._vectors import ClipVectors, vector_dtype

_NAMESPACE = "clip_embed"
_T = TypeVar("_T")


def _verb(function: Callable[..., _T]) -> Callable[..., _T]:
    """Return a verb as a method: its first parameter is what the namespace belongs to."""

    @functools.wraps(function)
    def method(self: Any, *args: Any, **kwargs: Any) -> _T:  # noqa: ANN401 - those of the verb
        return function(self._data, *args, **kwargs)

    return method


class LazyVerbs:
    """Query images by text: the verbs of clip_embed_polars for this lazy frame."""

    def __init__(self, data: pl.LazyFrame | pl.DataFrame) -> None:
        self._data = data

    embed = _verb(_verbs.embed)
    search = _verb(_verbs.search)
    similar = _verb(_verbs.similar)
    classify = _verb(_verbs.classify)
    duplicates = _verb(_verbs.duplicates)
    project = _verb(_verbs.project)


class FrameVerbs(LazyVerbs):
    """Query images by text: the verbs of clip_embed_polars for this frame."""

    score = _verb(_verbs.score)
    probabilities = _verb(_verbs.probabilities)
    failures = _verb(_verbs.failures)
    gallery = _verb(_pictures.gallery)
    plot = _verb(_pictures.plot)


class SeriesVerbs:
    """Query images by text: the verbs of clip_embed_polars for this column."""

    def __init__(self, data: pl.Series) -> None:
        self._data = data

    score = _verb(_verbs.score)

    def embed(self, *, embedder: ClipEmbedder | None = None) -> pl.Series:
        """Return the vectors of this column of images, under its name; null for null and for failures."""
        return _verbs.embed_series(self._data, the_embedder(embedder), "the column")[0]


class ExprVerbs:
    """Query images by text: the verbs of clip_embed_polars for this expression, also in a lazy frame."""

    def __init__(self, data: pl.Expr) -> None:
        self._data = data

    def embed(self, *, embedder: ClipEmbedder | None = None) -> pl.Expr:
        """Return the vectors of a column of images; null for null and for failures."""
        clip = the_embedder(embedder)
        return self._data.map_batches(
            lambda series: _verbs.embed_series(series, clip, f"column {series.name!r}")[0],
            return_dtype=vector_dtype(clip),
        )

    def score(self, text: str, *, embedder: ClipEmbedder | None = None) -> pl.Expr:
        """Return the cosine similarity of each image or vector and a text, Float32; null without a vector."""
        return self._data.map_batches(
            lambda series: _verbs.score(series, text, embedder=embedder).alias(series.name),
            return_dtype=pl.Float32(),
        )


def install() -> None:
    """Register the namespaces and the type of vectors; nothing happens the second time."""
    if hasattr(pl.DataFrame, _NAMESPACE):
        return
    pl.register_extension_type(EXTENSION, cast("Any", ClipVectors))
    pl.api.register_dataframe_namespace(_NAMESPACE)(FrameVerbs)
    pl.api.register_lazyframe_namespace(_NAMESPACE)(LazyVerbs)
    pl.api.register_series_namespace(_NAMESPACE)(SeriesVerbs)
    pl.api.register_expr_namespace(_NAMESPACE)(ExprVerbs)
