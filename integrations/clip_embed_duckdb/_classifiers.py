"""Classifiers that `clip_predict` knows by a name."""

from __future__ import annotations

import duckdb

from clip_embed import Classifier
from clip_embed.errors import ClipEmbedError
from clip_embed_duckdb._register import find_slot


def add_classifier(con: duckdb.DuckDBPyConnection, name: str, classifier: Classifier) -> None:
    """Let `clip_predict(img, name)` use a classifier, in all connections of this database.

    >>> add_classifier(con, "birds", clip_embed.fit(clip, images, labels))
    >>> con.sql("SELECT clip_predict(img, 'birds') FROM photos")

    It is not saved in the database: `Classifier.save` writes a file, which `clip_predict(img, 'file')` reads.
    Raises ClipEmbedError where no embedder is registered.
    """
    if (slot := find_slot(con)) is None:
        raise ClipEmbedError("no embedder is registered: call clip_embed_duckdb.register(con) first")
    slot.named["classifier", name] = None, classifier
