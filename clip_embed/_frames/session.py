"""The embedder that a verb works with, and the one line that says which it is."""

from __future__ import annotations

import logging
import sys
import warnings
import weakref
from dataclasses import replace
from typing import Any, cast

import numpy as np

from clip_embed._default import default_embedder
from clip_embed._embedder import ClipEmbedder
from clip_embed._images.folders import is_image_name
from clip_embed._images.source import ImageInput
from clip_embed._progress import in_notebook
from clip_embed._series import loaded
from clip_embed._types import Float32
from clip_embed._vectors import given_vectors, has_direction, unit_rows
from clip_embed.errors import ImageBatchError, SpaceMismatch

logger = logging.getLogger(__name__)

_chosen: ClipEmbedder | None = None
_announced = weakref.WeakSet[ClipEmbedder]()


def use(embedder: ClipEmbedder | None) -> None:
    """Take this embedder wherever none is given, in pandas and in polars; None goes back to the default.

    >>> from clip_embed import ClipEmbedder
    >>> from clip_embed_pandas import use
    >>> use(ClipEmbedder("offline"))

    The default is that of the model in CLIP_EMBED_MODEL, else of CLIP ViT-B/32. Raises TypeError for
    anything but a ClipEmbedder.
    """
    global _chosen
    _chosen = None if embedder is None else _checked(embedder)


def the_embedder(given: ClipEmbedder | None) -> ClipEmbedder:
    """Return the embedder that was given, else the one in use, else the default."""
    if given is not None:
        return _checked(given)
    return default_embedder() if _chosen is None else _chosen


def announce(embedder: ClipEmbedder) -> None:
    """Say once which model computes, and where: to people on a screen, and to the log.

    Programs whose output goes elsewhere get the line of the log only.
    """
    if embedder in _announced:
        return
    with warnings.catch_warnings():  # transformers' bars ask for widgets that a notebook may not have
        warnings.filterwarnings("ignore", message="IProgress not found")
        embedder.load()
    _announced.add(embedder)
    line = f"clip-embed: {embedder.name} on {embedder.device}, {embedder.precision}"
    logger.info(line)
    if in_notebook():
        print(line)
    elif sys.stderr is not None and sys.stderr.isatty():
        print(line, file=sys.stderr)


def check_text(text: object) -> None:
    """Raise TypeError for anything but a text, before images are embedded to compare them with it."""
    if isinstance(text, str):
        return
    several = isinstance(text, (list, tuple))
    hint = "call once for each text" if several else "for an image there is `similar`"
    raise TypeError(f"the text must be a str, not {type(text).__name__}; {hint}")


def text_vector(embedder: ClipEmbedder, text: str) -> Float32:
    """Return the vector of one text, float32 (d,)."""
    announce(embedder)
    vector: Float32 = embedder.embed_texts([text])[0]
    return vector


def image_vector(embedder: ClipEmbedder, image: object) -> Float32:
    """Return the vector of one image, float32 (d,), or the one that is given in its place."""
    rows = given_vectors(image, embedder)
    if rows is None:
        rows = _given_row(image, embedder)
    if rows is None:
        return _embedded(image, embedder)
    if len(rows) != 1:
        raise TypeError(
            f"{len(rows)} vectors are given: give a single one, such as df['embedding'].iloc[0]; "
            "for what is like several there is clip_embed.similar"
        )
    if not has_direction(rows[0]):
        raise ValueError("the vector is like no image: it is all zeros, or has a NaN or an infinity")
    first: Float32 = rows[0]
    return first


def _given_row(image: object, embedder: ClipEmbedder) -> Float32 | None:
    """Return numbers that stand for an image as a unit row (1, d), None for anything else."""
    numbers: Any = image
    if (scalar := loaded("pyarrow", image, "Scalar")) is not None:
        numbers = scalar.as_py()
    elif (tensor := loaded("torch", image, "Tensor")) is not None and tensor.is_floating_point():
        numbers = tensor.detach().cpu().float().numpy()
    elif hasattr(image, "to_numpy"):  # a row of a column of polars
        numbers = numbers.to_numpy()
    if not (isinstance(numbers, (list, tuple)) or (isinstance(numbers, np.ndarray) and numbers.ndim == 1)):
        return None
    try:
        vector: Float32 = np.asarray(numbers, np.float32)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"a {type(image).__name__} is neither an image nor a vector of numbers: give a single one, "
            "such as df['embedding'].iloc[0]"
        ) from error
    if vector.shape not in ((embedder.dim,), (1, embedder.dim)):
        raise SpaceMismatch(f"the vector has {vector.size} dimensions, those of this model {embedder.dim}")
    return unit_rows(vector.reshape(1, -1))


def _embedded(image: object, embedder: ClipEmbedder) -> Float32:
    announce(embedder)
    try:
        first: Float32 = embedder.embed_images([cast("ImageInput", image)])[0]
    except ImageBatchError as error:
        if isinstance(image, str) and not is_image_name(image):
            hint = "a text is taken for the path of an image here, for a text there is `search`"
            told = [replace(failure, reason=f"{failure.reason}; {hint}") for failure in error.failures]
            raise ImageBatchError(told, error.batch) from None
        raise
    return first


def _checked(embedder: object) -> ClipEmbedder:
    if not isinstance(embedder, ClipEmbedder):
        raise TypeError(
            f"the embedder must be a ClipEmbedder, not {type(embedder).__name__}: ClipEmbedder('offline')"
        )
    return embedder
