"""The verbs: functions that take a frame, or a column, first."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, TypeAlias, cast, overload

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from clip_embed import ClipEmbedder, SpaceMismatch
from clip_embed._classify import Labels
from clip_embed._frames.embedding import embed_images_of
from clip_embed._frames.session import image_vector, text_vector, the_embedder
from clip_embed._frames.vectors import Part, VectorColumn, flat_rows, measure, open_vectors
from clip_embed._images.source import ImageInput
from clip_embed._ranking import Places, group_alike
from clip_embed._templates import DEFAULT_TEMPLATES
from clip_embed._types import Float32, ImagePolicy
from clip_embed.arrow import stamp_vectors, vector_array
from clip_embed_pandas._columns import images_of, pick, vector_column
from clip_embed_pandas._gallery import Gallery, as_gallery

Data: TypeAlias = "pd.DataFrame | pd.Series[Any]"
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

    Raises ValueError where no or several columns hold images, TypeError for a column that cannot.
    """
    clip = the_embedder(embedder)
    if isinstance(data, pd.DataFrame):
        name, series = pick(data, column, "images")
        vectors, reasons = _embed_series(series, clip, f"column {name!r}")
        result = data.copy(deep=False)
        result[into] = vectors
        result[_error_column(into)] = pd.array(reasons, "string")
        return result
    return pd.Series(_embed_series(data, clip, "the column")[0], index=data.index, name=data.name)


def score(
    data: Data, text: str, *, column: Hashable | None = None, embedder: ClipEmbedder | None = None
) -> pd.Series[Any]:
    """Return the cosine similarity of each image and a text: a float32 Series "score", index as the frame.

    `column` holds images or vectors; left out, it is the only one with vectors, else the only one with
    images. NaN where there is no vector. Scores of one text can be compared, those of two texts cannot.
    Raises SpaceMismatch for vectors of another model, else as `embed`.
    """
    clip = the_embedder(embedder)
    query = text_vector(clip, text)
    cosines = compared(data, column, clip).cosines(query)
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

    `column` as in `score`. Equal scores keep the order of the frame; rows without a vector never match.
    """
    clip = the_embedder(embedder)
    found = compared(data, column, clip).most_alike(text_vector(clip, text), k)
    return _ranked(data, found, into, clip.policy)


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
    found = compared(data, column, clip).most_alike(image_vector(clip, image), k)
    return _ranked(data, found, into, clip.policy)


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
    vectors = compared(data, column, clip)
    found = clip.classify(vectors.units(), labels, templates=templates, multi=multi, other=other)
    codes = np.where(vectors.valid, found.probabilities.argmax(axis=1), -1)
    result = _frame(data)
    result["label"] = cast("Any", pd.Categorical).from_codes(codes, categories=list(found.labels))
    result["probability"] = np.where(vectors.valid, found.probabilities.max(axis=1), np.float32(np.nan))
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
    result = _frame(data).iloc[rows]
    result["group"], result["score"] = groups, cosines
    return as_gallery(result, score="score", texts=("group",), policy=clip.policy)


def failures(
    data: Data, column: Hashable | None = None, *, embedder: ClipEmbedder | None = None
) -> pd.DataFrame:
    """Return the rows whose image failed, with the `reason`; rows without an image did not fail.

    After `embed` the reasons stand in the frame, also after it was filtered, sorted or stored. For a column
    of images they are found by embedding it, which costs nothing for images that were embedded before.
    """
    frame = _frame(data)
    errors = _known_errors(frame, column)
    if errors is not None:
        reasons = frame[errors]
        frame = frame.drop(columns=[errors, errors.removesuffix(_error_column(""))], errors="ignore")
    else:
        name, series = pick(frame, column, "images")
        found = _embed_series(series, the_embedder(embedder), f"column {name!r}", warn=False)[1]
        reasons = pd.Series(pd.array(found, "string"), index=frame.index)
    failed = reasons.notna().to_numpy(bool)
    result = frame.iloc[np.flatnonzero(failed)].copy()
    result["reason"] = reasons.array[failed]
    return result


def gallery(data: Data, *, column: Hashable | None = None) -> Gallery:
    """Return what a notebook shows as the pictures of a frame, in order, with score, label and group.

    `column` names the images, and may be left out where only one column holds some. Pictures are small,
    and made when they are shown: those of the first 24 rows. Methods of it give plain frames again.
    """
    frame = _frame(data)
    name, _ = pick(frame, column, "images")
    score = next((name for name in ("score", "probability") if name in frame.columns), None)
    texts = [name for name in ("label", "group") if name in frame.columns]
    return as_gallery(frame, image=name, score=score, texts=texts)


def to_numpy(data: Data, column: Hashable | None = None) -> Float32:
    """Return a column of vectors as float32 (n, d): the memory of the column itself, read-only.

    Where the column has NA or came in parts (after `pd.concat`) it is a copy, with NaN for NA.
    """
    name, series = pick(_frame(data), column, "vectors")
    vectors: Any = vector_column(series)
    if vectors is None:
        raise TypeError(f"column {name!r} of {series.dtype} holds no vectors")
    array = vectors.chunk(0) if vectors.num_chunks == 1 else vectors.combine_chunks()
    if not (pa.types.is_fixed_size_list(array.type) and pa.types.is_float32(array.type.value_type)):
        array = _fixed_size(array, f"column {name!r}")
    rows = flat_rows(array)
    if not array.null_count:
        return rows
    return np.where(np.asarray(array.is_valid())[:, None], rows, np.float32(np.nan))


def compared(data: Data, column: Hashable | None, clip: ClipEmbedder) -> VectorColumn:
    """Return the vectors of a frame that are to be compared: those it has, or those of its images."""
    if isinstance(data, pd.DataFrame):
        name, series = pick(data, column, "vectors", "images")
        where = f"column {name!r}"
    else:
        series, where = data, "the column"
    vectors = vector_column(series)
    if vectors is not None:
        return open_vectors(vectors, clip, where)
    rows, valid, _ = embed_images_of(images_of(series, where), len(series), clip)
    return VectorColumn([Part(rows, valid)], clip.dim)


def _embed_series(
    series: Any,  # noqa: ANN401
    clip: ClipEmbedder,
    where: str,
    *,
    warn: bool = True,
) -> tuple[Any, list[str | None]]:
    """Return the stamped vectors of a column of images as a pandas array, and why each image failed."""
    rows, valid, reasons = embed_images_of(images_of(series, where), len(series), clip, warn=warn)
    vectors = pa.chunked_array([stamp_vectors(vector_array(rows, valid), clip)])
    measure(vectors)
    return pd.arrays.ArrowExtensionArray(vectors), reasons


def _ranked(data: Data, found: tuple[Places, Float32], into: str, policy: ImagePolicy) -> Gallery:
    places, cosines = found
    result = _frame(data).iloc[places]
    result[into] = cosines
    return as_gallery(result, score=into, policy=policy)


def _frame(data: Data) -> pd.DataFrame:
    """Return a frame that may be given more columns; the data stay where they are."""
    if isinstance(data, pd.DataFrame):
        return data.copy(deep=False)
    return data.to_frame("image" if data.name is None else data.name)


def _error_column(into: str) -> str:
    return f"{into}_error"


def _known_errors(frame: pd.DataFrame, column: Hashable | None) -> str | None:
    """Return the column with the reasons that `embed` wrote, None where there is none."""
    if column is not None:
        name = _error_column(str(column))
        return name if name in frame.columns else None
    names = [name for name in frame.columns if _error_column(str(name)) in frame.columns]
    found = [name for name in names if vector_column(frame[name]) is not None]
    return _error_column(str(found[0])) if len(found) == 1 else None


def _fixed_size(array: Any, where: str) -> Any:  # noqa: ANN401 - a pa.Array of lists
    lengths: list[int] = cast("Any", pc).list_value_length(array).drop_null().unique().to_pylist()
    if len(lengths) > 1:
        raise SpaceMismatch(f"{where}: the vectors have different dimensions: {sorted(lengths)}")
    return array.cast(pa.list_(pa.float32(), lengths[0] if lengths else 0))
