"""One filter form, the same answer from both engines."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any

import numpy as np
import pytest

from clip_embed import ClipEmbedder
from clip_embed_qdrant import ImageStore

ROWS: dict[str, dict[str, object]] = {
    "a": {"camera": "X100", "stars": 5, "good": True, "ratio": 1.5, "tags": ["x", "y"],
          "taken": "2024-05-01T12:00:00"},
    "b": {"camera": "X200", "stars": 3, "good": False, "ratio": 0.5, "tags": ["y"],
          "taken": "2023-01-01T00:00:00"},
    "c": {"camera": "", "stars": 0, "good": True, "ratio": 1.0, "taken": "2024-12-31T23:59:59", "tags": []},
    "d": {"stars": -1, "nested": {"deep": "yes"}},
}  # fmt: skip


CASES: list[tuple[dict[str, Any], str]] = [
    ({}, "abcd"),
    ({"camera": "X100"}, "a"),
    ({"camera": ["X100", "X200"]}, "ab"),
    ({"camera": {"$in": ("X100",)}}, "a"),
    ({"camera": {"$nin": ["X100"]}}, "bcd"),
    ({"camera": {"$ne": "X100"}}, "bcd"),
    ({"camera": None}, "d"),
    ({"camera": {"$exists": False}}, "d"),
    ({"tags": {"$exists": True}}, "ab"),
    ({"good": True}, "ac"),
    ({"good": False}, "b"),
    ({"good": np.bool_(True)}, "ac"),
    ({"stars": 1}, ""),
    ({"stars": np.int64(5)}, "a"),
    ({"stars": {"$gte": 3}}, "ab"),
    ({"stars": {"$gt": -1, "$lt": 5}}, "bc"),
    ({"ratio": 1.5}, "a"),
    ({"ratio": {"$lte": 1}}, "bc"),
    ({"taken": {"$gte": "2024-01-01"}}, "ac"),
    ({"taken": {"$gte": date(2024, 1, 1), "$lt": "2024-06-01"}}, "a"),
    ({"tags": "y"}, "ab"),
    ({"tags": ["x"], "good": True}, "a"),
    ({"nested.deep": "yes"}, "d"),
    ({"$or": [{"camera": "X100"}, {"stars": {"$lt": 0}}]}, "ad"),
    ({"$and": [{"good": True}, {"$not": {"camera": "X100"}}]}, "c"),
    ({"$not": {"$or": [{"good": True}, {"good": False}]}}, "d"),
]


def test_filters(open_store: Callable[..., ImageStore], embedder: ClipEmbedder) -> None:
    """Each form, a bool among them, picks the rows it says."""
    store = open_store(embedder)
    rng = np.random.default_rng(0)
    store.ingest([(key, rng.integers(0, 256, (4, 4, 3), dtype=np.uint8), row) for key, row in ROWS.items()])
    found = [
        (where, "".join(sorted(hit.key for hit in store.search(text="red", where=where))))
        for where, _ in CASES
    ]
    assert found == CASES


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"camera": {"$like": "X"}}, r"no \$like for 'camera'"),
        ({"$xor": []}, r"no \$xor"),
        ({"$or": []}, r"\$or takes a list"),
        ({"camera": {}}, "empty"),
        ({"camera": []}, "list of values"),
        ({"stars": {"$gte": "many"}}, "number or an ISO date"),
        ({"stars": {"$gte": 1, "$lt": "2024-01-01"}}, "numbers and dates at once"),
        ({"camera": object()}, "cannot be compared"),
    ],
    ids=str,
)
def test_wrong_filters(where: dict[str, Any], message: str) -> None:
    """What is wrong is named, and nothing is asked of a store."""
    from clip_embed_qdrant._filters import parse_where

    with pytest.raises(ValueError, match=message):
        parse_where(where)
