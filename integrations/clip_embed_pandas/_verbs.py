"""The verbs: functions that take a frame, or a column, first."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeAlias, cast, overload

import numpy as np
import numpy.typing as npt
import pandas as pd

from clip_embed import ClipEmbedder
from clip_embed._classify import Labels, read_labels
from clip_embed._frames.columns import ERROR, check_into
from clip_embed._frames.session import check_text, image_vector, text_vector, the_embedder
from clip_embed._images.source import ImageInput
from clip_embed._ranking import check_count, group_alike
from clip_embed._templates import DEFAULT_TEMPLATES
from clip_embed._types import Float32
from clip_embed_pandas._columns import add, content, full_name, pick, vector_column
from clip_embed_pandas._gallery import Gallery, as_gallery
from clip_embed_pandas._vectors import Data, as_frame, compared, embed_series

Query: TypeAlias = "ImageInput | npt.NDArray[np.floating] | Sequence[float]"


@overload
def embed(
    data: pd.DataFrame,
    column: Hashable | None = None,
    into: str = "embedding",
    *,
    embedder: ClipEmbedder | None = None,
) -> pd.DataFrame: ...
@overload
def embed(
    data: pd.Series[Any],
    column: None = None,
    into: str = "embedding",
    *,
    embedder: ClipEmbedder | None = None,
) -> pd.Series[Any]: ...
def embed(
    data: Data,
    column: Hashable | None = None,
    into: str = "embedding",
    *,
    embedder: ClipEmbedder | None = None,
) -> Data:
    """Return the frame with two more columns: the images' vectors, and why an image failed.

    >>> import clip_embed_pandas, pandas as pd
    >>> df = pd.DataFrame({"img": ["car.jpg", "cat.jpg"]})
    >>> df = clip_embed_pandas.embed(df)          # or df.clip.embed(): adds embedding, embedding_error

    `column` names the images, and may be left out where only one column holds some: paths, bytes, PIL
    images, uint8 arrays (height, width, 3), Hugging Face structs, Arrow-backed, categorical or plain.
    `into` is an Arrow column of n lists of d float32 of unit length, stamped with the model; NA for NA and
    where an image failed. `into` + "_error" has the reason, NA where there is none; `failures` lists them.
    A column of images gives the column of vectors alone, under its own name and index.

    Raises ValueError where no or several columns hold images or `into` is that column, TypeError for a column
    that cannot.
    """
    clip = the_embedder(embedder)
    if isinstance(data, pd.DataFrame):
        name, series = pick(data, column, "images")
        check_into(into, None if content(series) == "vectors" else name)
        vectors, reasons = embed_series(series, clip, f"column {name!r}")
        result = data.copy(deep=False)
        add(result, {into: vectors, into + ERROR: pd.array(reasons, "string")}, into=True)
        return result
    return pd.Series(embed_series(data, clip, "the column")[0], index=data.index, name=data.name)


def score(
    data: Data, text: str, *, column: Hashable | None = None, embedder: ClipEmbedder | None = None
) -> pd.Series[Any]:
    """Return the cosine similarity of each image and a text: a float32 Series "score", index as the frame.

    `column` holds images or vectors; left out, it is the only one with vectors, else the only one with
    images. NaN where there is no vector. Scores of one text can be compared, those of two texts cannot.
    Raises SpaceMismatch for vectors of another model, else as `embed`.
    """
    clip = the_embedder(embedder)
    check_text(text)
    cosines = compared(data, column, clip).cosines(text_vector(clip, text))
    return pd.Series(cosines, index=data.index, name="score")


def search(
    data: Data,
    text: str,
    k: int = 10,
    *,
    column: Hashable | None = None,
    into: str = "score",
    embedder: ClipEmbedder | None = None,
) -> Gallery:
    """Return the k rows that match a text best, best first, with their cosine similarity in `into`.

    >>> df.clip.search("red car", k=5)    # a gallery in a notebook, else a DataFrame like any other

    `column` as in `score`, `into` is the name of the new column. Equal scores keep the order of the frame;
    rows without a vector never match.
    """
    clip = the_embedder(embedder)
    check_text(text)
    return _rank(data, lambda: text_vector(clip, text), k, (column, into, clip))


def similar(
    data: Data,
    image: Query,
    k: int = 10,
    *,
    column: Hashable | None = None,
    into: str = "score",
    embedder: ClipEmbedder | None = None,
) -> Gallery:
    """Return the k rows whose images are most like one image, as `search` does for a text.

    `image` is a path, bytes, a PIL image, a uint8 array, a mapping, or a vector (d,) that is there
    already: `df.clip.similar(df["embedding"].iloc[0])`. A row of the image itself comes first, with 1.
    Raises ImageBatchError where the image cannot be used, ValueError for a vector without a direction.
    """
    clip = the_embedder(embedder)
    return _rank(data, lambda: image_vector(clip, image), k, (column, into, clip))


def classify(
    data: Data,
    labels: Labels,
    *,
    templates: Sequence[str] | str = DEFAULT_TEMPLATES,
    multi: bool = False,
    other: str | None = None,
    column: Hashable | None = None,
    embedder: ClipEmbedder | None = None,
) -> Gallery:
    """Return the frame with the likeliest of the labels (`label`, categorical) and its `probability`.

    Labels, templates, `multi`, `other` and probabilities as in `ClipEmbedder.classify`: the labels given
    share each image among them, whatever it shows, unless `other` names one for what is none of them; with
    `multi` each has its probability against none. `probabilities` gives those of all labels. NA where there
    is no vector. `column` as in `score`.
    """
    clip = the_embedder(embedder)
    read_labels(labels, other, multi=multi)  # what is wrong with them is said before images are embedded
    vectors = compared(data, column, clip)
    found = clip.classify(vectors.units(), labels, templates=templates, multi=multi, other=other)
    codes = np.where(vectors.valid, found.probabilities.argmax(axis=1), -1)
    result = as_frame(data)
    labels_of = cast("Any", pd.Categorical).from_codes(codes, categories=list(found.labels))
    shares = np.where(vectors.valid, found.probabilities.max(axis=1), np.float32(np.nan))
    add(result, {"label": labels_of, "probability": shares})
    return as_gallery(result, score="probability", texts=("label",), policy=clip.policy)


def probabilities(
    data: Data,
    labels: Labels,
    *,
    templates: Sequence[str] | str = DEFAULT_TEMPLATES,
    multi: bool = False,
    other: str | None = None,
    column: Hashable | None = None,
    embedder: ClipEmbedder | None = None,
) -> pd.DataFrame:
    """Return the probability of each label for each image: a float32 column a label, index as the frame.

    >>> tags = df.clip.probabilities(["car", "person", "dog"], multi=True) > 0.5    # all that are in a photo

    Arguments as in `classify`. Rows sum to 1 unless `multi`. NaN where there is no vector.
    """
    clip = the_embedder(embedder)
    read_labels(labels, other, multi=multi)  # what is wrong with them is said before images are embedded
    vectors = compared(data, column, clip)
    found = clip.classify(vectors.units(), labels, templates=templates, multi=multi, other=other)
    shares = np.where(vectors.valid[:, None], found.probabilities, np.float32(np.nan))
    return pd.DataFrame(shares, index=data.index, columns=list(found.labels))


def duplicates(
    data: Data,
    threshold: float = 0.95,
    *,
    column: Hashable | None = None,
    embedder: ClipEmbedder | None = None,
) -> Gallery:
    """Return the rows that look like another one, in groups: `group` from 0, `score` to its first row.

    In the frame's order each row joins the earliest group whose first row it has a cosine similarity of at
    least `threshold` to: 0.95 finds copies, crops and bursts with CLIP, 0.9999 the same pixels. Time grows
    with the square of the rows, memory does not.
    """
    clip = the_embedder(embedder)
    vectors = compared(data, column, clip)
    rows, groups, cosines = group_alike(vectors.units(), vectors.valid, threshold)
    result = as_frame(data).iloc[rows]
    add(result, {"group": groups, "score": cosines})
    return as_gallery(result, score="score", texts=("group",), policy=clip.policy)


def failures(
    data: Data, column: Hashable | None = None, *, embedder: ClipEmbedder | None = None
) -> pd.DataFrame:
    """Return the rows whose image failed, with the `reason`; rows without an image did not fail.

    After `embed` the reasons stand in the frame, also after it was filtered, sorted or stored. For a column
    of images they are found by embedding it, which costs nothing for images that were embedded before.
    """
    frame = as_frame(data)
    known = _known_errors(frame, column)
    if known is not None:
        reasons = frame[known[1]]
        frame = frame.drop(columns=[name for name in known if name in frame.columns])
    else:
        name, series = pick(frame, column, "images")
        found = embed_series(series, the_embedder(embedder), f"column {name!r}", warn=False)[1]
        reasons = pd.Series(pd.array(found, "string"), index=frame.index)
    failed = reasons.notna().to_numpy(bool)
    result = frame.iloc[np.flatnonzero(failed)].copy()
    add(result, {"reason": reasons.array[failed]})
    return result


def gallery(data: Data, *, column: Hashable | None = None) -> Gallery:
    """Return what a notebook shows as the pictures of a frame, in order, with score, label and group.

    `column` names the images, and may be left out where only one column holds some. Pictures are small,
    and made when they are shown: those of the first 24 rows. Methods of it give plain frames again.
    """
    frame = as_frame(data)
    name, _ = pick(frame, column, "images")
    score = "score" if full_name(frame, "score") in frame.columns else "probability"
    return as_gallery(frame, image=name, score=score, texts=("label", "group"))


def _rank(
    data: Data, query: Callable[[], Float32], k: int, names: tuple[Hashable | None, str, ClipEmbedder]
) -> Gallery:
    """Return the k rows most like a unit vector; `names` are the column, where the score goes, and whose."""
    column, into, clip = names
    check_into(into, None)
    k = check_count(k)
    places, cosines = compared(data, column, clip).most_alike(query(), k)
    result = as_frame(data).iloc[places]
    add(result, {into: cosines}, into=True)
    return as_gallery(result, score=into, policy=clip.policy)


def _known_errors(frame: pd.DataFrame, column: Hashable | None) -> tuple[Hashable, Hashable] | None:
    """Return the columns with the vectors and the reasons that `embed` wrote, None where there are none."""
    names = list(frame.columns) if column is None else [column]
    pairs = [(name, _error_name(name)) for name in names if _error_name(name) in frame.columns]
    if column is None:
        pairs = [pair for pair in pairs if vector_column(frame[pair[0]]) is not None]
    return pairs[0] if len(pairs) == 1 else None


def _error_name(name: Hashable) -> Hashable:
    """Return the name of the column with the reasons that belongs to one of vectors."""
    if isinstance(name, tuple):  # one of a MultiIndex
        first, *others = cast("tuple[Hashable, ...]", name)
        return (f"{first}{ERROR}", *others)
    return f"{name}{ERROR}"
