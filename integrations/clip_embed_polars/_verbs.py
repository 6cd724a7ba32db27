"""The verbs: functions that take a frame first, and give one of the same kind, lazy or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import polars as pl

from clip_embed import ClipEmbedder
from clip_embed._classify import Labels, read_labels
from clip_embed._frames.columns import ERROR, check_into, image_items, warn_replaced
from clip_embed._frames.embedding import embed_images_of
from clip_embed._frames.ranking import Method, project_rows
from clip_embed._frames.session import check_text, image_vector, text_vector, the_embedder
from clip_embed._frames.vectors import Part, VectorColumn
from clip_embed._ranking import check_count, group_alike
from clip_embed._templates import DEFAULT_TEMPLATES
from clip_embed._types import Float32
from clip_embed_polars._vectors import check_images, content, pick, to_series, to_vectors, vector_dtype

Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)


def embed(
    frame: Frame, column: str | None = None, into: str = "embedding", *, embedder: ClipEmbedder | None = None
) -> Frame:
    """Return the frame with two more columns: the images' vectors, and why an image failed.

    >>> import clip_embed_polars, polars as pl
    >>> df = pl.DataFrame({"img": ["car.jpg", "cat.jpg"]})
    >>> df = clip_embed_polars.embed(df)     # or df.clip_embed.embed(): adds embedding, embedding_error

    `column` names the images, and may be left out where only one column holds some: paths, binaries,
    Hugging Face structs, categorical, or objects such as PIL images. `into` is a column of `ClipVectors`, n
    vectors of d float32 of unit length; null for null and where an image failed. `into` + "_error" has the
    reason. A lazy frame is embedded when it is collected, in batches where `column` is given.

    Raises ValueError where no or several columns hold images, TypeError for a column that cannot.
    """
    clip = the_embedder(embedder)
    check_into(into, None)

    def work(batch: pl.DataFrame) -> pl.DataFrame:
        series = pick(batch, column, "images")
        check_into(into, None if content(series) == "vectors" else series.name)
        vectors, reasons = embed_series(series.alias(into), clip, f"column {series.name!r}")
        return batch.with_columns(vectors, reasons)

    adds = {into: vector_dtype(clip), into + ERROR: pl.String()}
    return _apply(frame, work, adds, into=True, streamable=column is not None)


def score(
    data: pl.DataFrame | pl.Series,
    text: str,
    *,
    column: str | None = None,
    embedder: ClipEmbedder | None = None,
) -> pl.Series:
    """Return the cosine similarity of each image and a text: a Float32 Series "score", in order.

    `column` holds images or vectors; left out, it is the only one with vectors, else the only one with
    images. Null where there is no vector. In a lazy frame write `pl.col("embedding").clip_embed.score(text)`.
    Raises SpaceMismatch for vectors of another model, else as `embed`.
    """
    clip = the_embedder(embedder)
    check_text(text)
    cosines = _compared(data, column, clip).cosines(text_vector(clip, text))
    return pl.Series("score", cosines, pl.Float32, nan_to_null=True)


def search(
    frame: Frame,
    text: str,
    k: int = 10,
    *,
    column: str | None = None,
    into: str = "score",
    embedder: ClipEmbedder | None = None,
) -> Frame:
    """Return the k rows that match a text best, best first, with their cosine similarity in `into`.

    `column` as in `score`. Equal scores keep the order of the frame; rows without a vector never match.
    """
    clip = the_embedder(embedder)
    check_text(text)
    return _rank(frame, lambda: text_vector(clip, text), k, (column, into, clip))


def similar(
    frame: Frame,
    image: object,
    k: int = 10,
    *,
    column: str | None = None,
    into: str = "score",
    embedder: ClipEmbedder | None = None,
) -> Frame:
    """Return the k rows whose images are most like one image, as `search` does for a text.

    `image` is a path, bytes, a PIL image, a uint8 array, a mapping, or a vector (d,) that is there already.
    Raises ImageBatchError where it cannot be used, ValueError for a vector without a direction.
    """
    clip = the_embedder(embedder)
    return _rank(frame, lambda: image_vector(clip, image), k, (column, into, clip))


def classify(
    frame: Frame,
    labels: Labels,
    *,
    templates: Sequence[str] | str = DEFAULT_TEMPLATES,
    multi: bool = False,
    other: str | None = None,
    column: str | None = None,
    embedder: ClipEmbedder | None = None,
) -> Frame:
    """Return the frame with the likeliest of the labels (`label`, an Enum) and its `probability`.

    Labels, templates, `multi`, `other` and probabilities as in `ClipEmbedder.classify`: the labels given
    share each image among them, whatever it shows, unless `other` names one for what is none of them; with
    `multi` each has its probability against none. `probabilities` gives those of all labels. Null where
    there is no vector. `column` as in `score`.
    """
    clip = the_embedder(embedder)
    kind = pl.Enum(list(read_labels(labels, other, multi=multi)))

    def work(batch: pl.DataFrame) -> pl.DataFrame:
        vectors = _compared(batch, column, clip)
        found = clip.classify(vectors.units(), labels, templates=templates, multi=multi, other=other)
        shares = np.where(vectors.valid, found.probabilities.max(axis=1), np.float32(np.nan))
        names = [name if known else None for name, known in zip(found.best, vectors.valid, strict=True)]
        return batch.with_columns(
            pl.Series("label", names, kind), pl.Series("probability", shares, pl.Float32, nan_to_null=True)
        )

    return _apply(frame, work, {"label": kind, "probability": pl.Float32()})


def probabilities(
    data: pl.DataFrame | pl.Series,
    labels: Labels,
    *,
    templates: Sequence[str] | str = DEFAULT_TEMPLATES,
    multi: bool = False,
    other: str | None = None,
    column: str | None = None,
    embedder: ClipEmbedder | None = None,
) -> pl.DataFrame:
    """Return the probability of each label for each image: a Float32 column a label, rows in order.

    Arguments as in `classify`. Rows sum to 1 unless `multi`. Null where there is no vector.
    """
    clip = the_embedder(embedder)
    read_labels(labels, other, multi=multi)  # what is wrong with them is said before images are embedded
    vectors = _compared(data, column, clip)
    found = clip.classify(vectors.units(), labels, templates=templates, multi=multi, other=other)
    shares = np.where(vectors.valid[:, None], found.probabilities, np.float32(np.nan))
    return pl.DataFrame(
        [
            pl.Series(label, share, pl.Float32, nan_to_null=True)
            for label, share in zip(found.labels, shares.T, strict=True)
        ]
    )


def duplicates(
    frame: Frame,
    threshold: float = 0.95,
    *,
    column: str | None = None,
    embedder: ClipEmbedder | None = None,
) -> Frame:
    """Return the rows that look like another one, in groups: `group` from 0, `score` to its first row.

    In the frame's order each row joins the earliest group whose first row it has a cosine similarity of at
    least `threshold` to. Time grows with the square of the rows, memory does not.
    """
    clip = the_embedder(embedder)

    def work(batch: pl.DataFrame) -> pl.DataFrame:
        vectors = _compared(batch, column, clip)
        rows, groups, cosines = group_alike(vectors.units(), vectors.valid, threshold)
        return batch[rows].with_columns(
            pl.Series("group", groups, pl.Int64), pl.Series("score", cosines, pl.Float32)
        )

    return _apply(frame, work, {"group": pl.Int64(), "score": pl.Float32()})


def failures(
    frame: pl.DataFrame, column: str | None = None, *, embedder: ClipEmbedder | None = None
) -> pl.DataFrame:
    """Return the rows whose image failed, with the `reason`; rows without an image did not fail.

    After `embed` the reasons stand in the frame. For a column of images they are found by embedding it,
    which costs nothing for images that were embedded before.
    """
    names = [column] if column is not None else frame.columns
    found = [name for name in names if name + ERROR in frame.columns and content(frame[name]) == "vectors"]
    if len(found) == 1:
        reasons = frame[found[0] + ERROR]
        frame = frame.drop(found[0], found[0] + ERROR)
    else:
        series = pick(frame, column, "images")
        reasons = embed_series(series, the_embedder(embedder), f"column {series.name!r}", warn=False)[1]
    _warn_foreign(dict(frame.schema), {"reason": pl.String()}, into=False)
    return frame.with_columns(reasons.alias("reason")).filter(pl.col("reason").is_not_null())


def project(
    frame: Frame,
    *,
    method: Method = "pca",
    column: str | None = None,
    embedder: ClipEmbedder | None = None,
) -> Frame:
    """Return the frame with `x` and `y`, Float32: images that are alike lie close; null without a vector.

    `method` is "pca" or "umap" (extra `umap`). `column` as in `score`.
    """
    clip = the_embedder(embedder)

    def work(batch: pl.DataFrame) -> pl.DataFrame:
        x, y = points_of(batch, method, column, clip).T
        return batch.with_columns(
            pl.Series("x", x, pl.Float32, nan_to_null=True), pl.Series("y", y, pl.Float32, nan_to_null=True)
        )

    return _apply(frame, work, {"x": pl.Float32(), "y": pl.Float32()})


def points_of(frame: pl.DataFrame, method: Method, column: str | None, clip: ClipEmbedder) -> Float32:
    """Return the places of n images, float32 (n, 2), NaN without a vector."""
    return project_rows(_compared(frame, column, clip), method)


def embed_series(
    series: pl.Series, clip: ClipEmbedder, where: str, *, warn: bool = True
) -> tuple[pl.Series, pl.Series]:
    """Return the vectors of a column of images, under its name, and why each image failed."""
    items = image_items(check_images(series, where))
    rows, valid, reasons = embed_images_of(items, len(series), clip, warn=warn)
    return to_series(series.name, rows, valid, clip), pl.Series(series.name + ERROR, reasons, pl.String)


def _apply(
    frame: Frame,
    work: Callable[[pl.DataFrame], pl.DataFrame],
    adds: dict[str, Any],
    *,
    into: bool = False,
    streamable: bool = False,
) -> Frame:
    """Do it now, or when a lazy frame is collected; `adds` are the columns that it gets.

    Warns where they replace what is no earlier result; `into` says whether the caller may name them.
    """
    if isinstance(frame, pl.DataFrame):
        result = work(frame)
        _warn_foreign(dict(frame.schema), adds, into=into)
        return result
    _warn_foreign(dict(frame.collect_schema()), adds, into=into)
    schema = {**frame.collect_schema(), **adds}
    return frame.map_batches(work, schema=cast("Any", schema), streamable=streamable)


def _warn_foreign(columns: dict[str, Any], adds: dict[str, Any], *, into: bool = False) -> None:
    """Warn of columns that are replaced and are not of the type of our own, or whole numbers alone."""
    kept = [name for name in adds if name in columns]
    alone = len(kept) < len(adds)
    foreign = [
        name
        for name in kept
        if type(columns[name]) is not type(adds[name]) or (alone and columns[name].is_integer())
    ]
    warn_replaced(foreign, into=into)


def _rank(
    frame: Frame, query: Callable[[], Float32], k: int, names: tuple[str | None, str, ClipEmbedder]
) -> Frame:
    column, into, clip = names
    check_into(into, None)
    k = check_count(k)

    def work(batch: pl.DataFrame) -> pl.DataFrame:
        places, cosines = _compared(batch, column, clip).most_alike(query(), k)
        return batch[places].with_columns(pl.Series(into, cosines, pl.Float32))

    return _apply(frame, work, {into: pl.Float32()}, into=True)


def _compared(data: pl.DataFrame | pl.Series, column: str | None, clip: ClipEmbedder) -> VectorColumn:
    """Return the vectors that are to be compared: those that are there, or those of the images."""
    if isinstance(data, pl.Series):
        series = data
    else:
        series = pick(data, column, "vectors", "images", "numbers", dim=clip.dim)
    where = f"column {series.name!r}"
    vectors = to_vectors(series, clip, where, owner=data)
    if vectors is not None:
        return vectors
    items = image_items(check_images(series, where))
    rows, valid, _ = embed_images_of(items, len(series), clip)
    return VectorColumn([Part(rows, valid)], clip.dim)
