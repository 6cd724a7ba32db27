"""What is done with scores and unit vectors: the best, groups of duplicates, two dimensions."""

from __future__ import annotations

from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from clip_embed._frames.embedding import Bools
from clip_embed._types import Float32
from clip_embed.errors import MissingExtra

Places = npt.NDArray[np.intp]
Method = Literal["pca", "umap"]
_BLOCK = 1024


def best(scores: Float32, k: int) -> Places:
    """Return the places of the k largest of n scores, largest first; of equals the first, no NaN."""
    if not isinstance(k, int) or k < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"k must be a whole number from 1, not {k!r}")
    known = np.flatnonzero(~np.isnan(scores))
    values = scores[known]
    if k < len(values):
        least = np.partition(values, len(values) - k)[len(values) - k]
        above, equal = np.flatnonzero(values > least), np.flatnonzero(values == least)
        chosen = np.sort(np.concatenate([above, equal[: k - len(above)]]))
        known, values = known[chosen], values[chosen]
    return known[np.argsort(-values, kind="stable")]


def group_alike(units: Float32, valid: Bools, threshold: float) -> tuple[Places, Float32]:
    """Group rows that are alike: (n,) the place of the first row of each one's group, (n,) cosine to it.

    In order, each row joins the earliest first row that it has a cosine of at least `threshold` to, or
    else becomes one itself: no chain joins what is not alike. A row that is not valid is its own.
    """
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


def project_rows(units: Float32, method: Method) -> Float32:
    """Return float32 (n, 2) that keeps neighbours together; the same input gives the same output."""
    if method == "umap":
        return _umap(units)
    if method != "pca":  # pyright: ignore[reportUnnecessaryComparison]
        raise ValueError(f"method must be 'pca' or 'umap', not {method!r}")
    if len(units) < 2:
        return np.zeros((len(units), 2), np.float32)
    centred = units - units.mean(axis=0, dtype=np.float64).astype(np.float32)
    axes = np.linalg.eigh((centred.T @ centred).astype(np.float64))[1][:, :-3:-1]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    return (centred @ (axes * signs).astype(np.float32)).astype(np.float32)


def _umap(units: Float32) -> Float32:
    try:
        from umap import UMAP
    except ModuleNotFoundError as error:
        if error.name != "umap":
            raise
        raise MissingExtra("umap-learn", "umap", "method='umap'") from error
    few = max(2, min(15, len(units) - 1))
    points = UMAP(n_neighbors=few, metric="cosine", random_state=0, n_jobs=1).fit_transform(units)
    return cast("Float32", np.asarray(points, np.float32))
