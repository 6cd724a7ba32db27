"""Which ids a source has listed, in eight bytes each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

_UInt64: TypeAlias = npt.NDArray[np.uint64]


class Seen:
    """Tells ids that come a second time; two that agree in half their bits count as the same."""

    def __init__(self) -> None:
        self._runs: list[_UInt64] = []  # sorted, each less than half as long as the one before

    def again(self, ids: Sequence[str]) -> list[bool]:
        """Note ids, and return for each whether it was noted before."""
        numbers = np.array([short_id(id_) for id_ in ids], np.uint64)
        fresh, first = np.unique(numbers, return_index=True)
        again = np.ones(len(numbers), np.bool_)
        again[first] = False
        for run in self._runs:
            again |= contains(run, numbers)
            fresh = fresh[~contains(run, fresh)]
        self._runs.append(fresh)
        while len(self._runs) > 1 and 2 * len(self._runs[-1]) >= len(self._runs[-2]):
            merged = np.concatenate([self._runs.pop(), self._runs.pop()])
            merged.sort()
            self._runs.append(merged)
        return again.tolist()


def short_id(id_: str) -> int:
    """Return the first half of the bits of an id."""
    return int(id_[:8] + id_[9:13] + id_[14:18], 16)


def contains(run: _UInt64, numbers: _UInt64) -> npt.NDArray[np.bool_]:
    """Return which of the numbers are in a sorted run."""
    places = np.searchsorted(run, numbers)
    inside = places < len(run)
    inside[inside] = run[places[inside]] == numbers[inside]
    return inside
