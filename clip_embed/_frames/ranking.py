"""Rows of vectors in two dimensions."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal

import numpy as np

from clip_embed._frames.vectors import VectorColumn
from clip_embed._types import Float32
from clip_embed.errors import MissingExtra

Method = Literal["pca", "umap"]


def project_rows(vectors: VectorColumn, method: Method) -> Float32:
    """Return float32 (n, 2) that keeps neighbours together, NaN without a vector; equal in, equal out."""
    valid = vectors.valid
    places = np.full((len(valid), 2), np.nan, np.float32)
    units = vectors.units()[valid]
    if method == "pca":
        places[valid] = _pca(units)
    elif method == "umap":
        places[valid] = _umap(units)
    else:
        raise ValueError(f"method must be 'pca' or 'umap', not {method!r}")
    return places


def _pca(units: Float32) -> Float32:
    if len(units) < 2:
        return np.zeros((len(units), 2), np.float32)
    centred = units - units.mean(axis=0, dtype=np.float64).astype(np.float32)
    axes = np.linalg.eigh((centred.T @ centred).astype(np.float64))[1][:, :-3:-1]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    return np.asarray(centred @ (axes * signs).astype(np.float32), np.float32)


def _umap(units: Float32) -> Float32:
    try:
        umap: Any = import_module("umap")
    except ModuleNotFoundError as error:
        if error.name != "umap":
            raise
        raise MissingExtra("umap-learn", "umap", "method='umap'") from error
    if len(units) < 5:  # too few for neighbours
        return _pca(units)
    few = min(15, len(units) - 1)
    model = umap.UMAP(n_neighbors=few, metric="cosine", random_state=0, n_jobs=1)
    return np.asarray(model.fit_transform(units), np.float32)
