"""`clip_predict`: labels by a classifier that was learned from examples."""

from __future__ import annotations

from contextlib import closing
from typing import cast

import numpy as np
import pyarrow as pa

from clip_embed import Classifier
from clip_embed.errors import ClipEmbedError, ImageError
from clip_embed_duckdb._columns import Column, is_text, plain, sql_name
from clip_embed_duckdb._embed import Call
from clip_embed_duckdb._files import FileReader


def predict(call: Call, img: Column, name: Column) -> Column:
    """Return the likeliest label of each image, NULL for NULL and for an image that failed."""
    name = plain(name)
    if not (is_text(name.type) or pa.types.is_null(name.type)):
        raise TypeError(
            f"{call.name}: the classifier must be a VARCHAR (a name or a file), not {sql_name(name.type)}"
        )
    coded = name.cast(pa.string()).dictionary_encode()
    codes = np.asarray(coded.indices.fill_null(-1))
    names = cast("list[str]", coded.dictionary.to_pylist())
    classifiers = [_find(call, each) for each in names]
    images = call.images(img)
    units = images.units()
    labels: list[str | None] = [None] * len(codes)
    for code, (each, classifier) in enumerate(zip(names, classifiers, strict=True)):
        rows = np.flatnonzero((codes == code) & images.valid)
        try:
            found = classifier.predict(call.state.load(), units[rows]).best
        except ClipEmbedError as error:
            raise type(error)(f"{call.name}: {each!r}: {error}") from None
        for row, label in zip(rows.tolist(), found, strict=True):
            labels[row] = label
    return pa.array(labels, pa.string())


def _find(call: Call, name: str) -> Classifier:
    """Return the classifier of a name, or that in a file, read through DuckDB where it has changed."""
    known = call.slot.classifiers
    stamp, classifier = known.get(name, (b"", None))
    if stamp is None and classifier is not None:
        return classifier
    with closing(call.slot.open_connection()) as con:
        reader = FileReader(con, call.slot.search_path, call.state.embedder.policy)
        ((_, file),) = reader.find([name])
        if not isinstance(file, ImageError):
            if classifier is not None and stamp and file.stamp == stamp:
                return classifier
            ((_, content),) = reader.read([file])
            if not isinstance(content, ImageError):
                try:
                    classifier = Classifier.from_bytes(content, name)
                except ValueError as error:
                    raise ValueError(f"{call.name}: {error}") from None
                known[name] = file.stamp, classifier
                return classifier
            file = content
    raise ClipEmbedError(f"{call.name}: there is no classifier {name!r}, and as a file: {file}")
