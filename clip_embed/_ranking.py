"""What is done with scores and unit vectors: the best, what is alike, what differs, a way in between."""

from __future__ import annotations

from numbers import Real
from operator import index
from typing import SupportsIndex

import numpy as np
import numpy.typing as npt

from clip_embed._types import Float32
from clip_embed._vectors import has_direction, unit_rows

Bools = npt.NDArray[np.bool_]
Places = npt.NDArray[np.intp]
LEAST_CANDIDATES = 100
"""Among how many of the best diversity chooses; four times what is asked for, where that is more."""
_BLOCK = 1024


def check_count(k: SupportsIndex) -> int:
    """Return how many are asked for, an int or one of numpy. Raises ValueError for anything else."""
    try:
        count = index(k)
    except TypeError:
        count = 0
    if count < 1:
        raise ValueError(f"k must be a whole number from 1, not {k!r}")
    return count


def best(scores: Float32, k: int) -> Places:
    """Return the places of the k largest of n scores, largest first; of equals the first, no NaN."""
    k = check_count(k)
    order = -scores
    least = np.partition(order, k - 1)[k - 1] if k < len(order) else np.nan
    places = np.flatnonzero(~np.isnan(order) if np.isnan(least) else order <= least)
    return places[np.argsort(order[places], kind="stable")][:k]


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
    if not isinstance(threshold, Real) or not -1 <= threshold <= 1:  # pyright: ignore[reportUnnecessaryIsInstance]
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


def steer(like: Float32, unlike: Float32) -> Float32:
    """Return the unit vector (d,) between those that are liked (a, d), away from others (b, d).

    It is the mean of what is liked; the mean of what is not is taken from twice that. Raises ValueError where
    they cancel each other out.
    """
    wanted = like.mean(axis=0) if len(like) else np.zeros(unlike.shape[1], np.float32)
    if len(unlike):
        wanted = 2 * wanted - unlike.mean(axis=0)
    unit: Float32 = unit_rows(wanted[None])[0]
    if not has_direction(unit):
        raise ValueError("what is liked and what is not cancel each other out")
    return unit


def diversify(units: Float32, scores: Float32, k: int, diversity: float) -> Places:
    """Choose k of n rows by maximal marginal relevance: good ones that differ from those before them.

    `diversity` from 0 (by the n scores alone) to 1 (what is least like the others) weighs the one against the
    other, as Qdrant does. The best comes first.
    """
    if not 0 <= diversity <= 1:
        raise ValueError(f"diversity must lie between 0 and 1, not {diversity}")
    gains = np.array(scores, np.float32)
    nearest = np.full(len(units), -np.inf, np.float32)
    chosen: list[int] = []
    for _ in range(min(k, len(units))):
        place = int(gains.argmax())
        chosen.append(place)
        nearest = np.maximum(nearest, units @ units[place])
        gains = (1 - diversity) * scores - diversity * nearest
        gains[chosen] = -np.inf
    return np.array(chosen, np.intp)


def cover(units: Float32, k: int) -> tuple[Places, Float32]:
    """Choose k of n rows that differ most, and the cosine of each to the nearest chosen before it.

    The first is the most typical one, each next the one least like those before; of equals the first.
    """
    chosen: list[int] = []
    cosines: list[float] = []
    nearest: Float32 = -(units @ units.mean(axis=0)) if len(units) else np.empty(0, np.float32)
    for _ in range(min(k, len(units))):
        place = int(nearest.argmin())
        cosines.append(float(nearest[place]) if chosen else np.nan)
        alike = units @ units[place]
        nearest = np.maximum(nearest, alike) if chosen else alike
        chosen.append(place)
        nearest[chosen] = np.inf
    return np.array(chosen, np.intp), np.array(cosines, np.float32)
