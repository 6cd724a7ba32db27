"""What is done with unit vectors: groups of duplicates, two dimensions."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal

import numpy as np

from clip_embed._frames.embedding import Bools
from clip_embed._frames.vectors import Places, VectorColumn
from clip_embed._types import Float32
from clip_embed.errors import MissingExtra

Method = Literal["pca", "umap"]
_BLOCK = 1024


def group_alike(units: Float32, valid: Bools, threshold: float) -> tuple[Places, Places, Float32]:
    """Find rows (k,) that are like another: their places, their groups from 0, the cosines to the first.

    In order, each row joins the earliest first row of a group that it has a cosine of at least `threshold`
    to, or else may become one itself: no chain joins what is not alike. Rows come group by group.
    """
    heads, cosines = _heads(units, valid, threshold)
    alike = np.flatnonzero(np.bincount(heads, minlength=len(heads))[heads] > 1)
    rows = alike[np.argsort(heads[alike], kind="stable")]
    return rows, np.unique(heads[rows], return_inverse=True)[1], cosines[rows]


def _heads(units: Float32, valid: Bools, threshold: float) -> tuple[Places, Float32]:
    """Return the place of the first row of each one's group, its own where it is alone, and the cosine."""
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold is a cosine similarity from -1 to 1, not {threshold!r}")
    heads = np.arange(len(units))
    cosines = np.ones(len(units), np.float32)
    leads = valid.copy()
    for start in range(0, len(units), _BLOCK):
        block = slice(start, min(start + _BLOCK, len(units)))
        for left in range(0, start, _BLOCK):
            alike = units[block] @ units[left : left + _BLOCK].T
            _join(alike, left, block, threshold, (heads, cosines, leads))
        within = units[block] @ units[block].T
        for row in range(block.start, block.stop):
            if leads[row]:
                later = within[row - start, row - start + 1 :]
                joined = row + 1 + np.flatnonzero((later >= threshold) & leads[row + 1 : block.stop])
                heads[joined], cosines[joined] = row, later[joined - row - 1]
                leads[joined] = False
    return heads, np.clip(cosines, -1, 1)


def _join(
    alike: Float32, left: int, block: slice, threshold: float, state: tuple[Places, Float32, Bools]
) -> None:
    """Let rows of a block join the first rows among earlier ones, of which `alike` has the cosines."""
    heads, cosines, leads = state
    found = (alike >= threshold) & leads[left : left + alike.shape[1]]
    places = found.argmax(axis=1)
    rows = np.flatnonzero(found.any(axis=1) & leads[block])
    joined = rows + block.start
    heads[joined], cosines[joined] = left + places[rows], alike[rows, places[rows]]
    leads[joined] = False


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
