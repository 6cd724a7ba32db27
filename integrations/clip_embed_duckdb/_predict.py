"""`clip_predict` and `clip_moderate`: labels learned from examples, and decisions by a policy."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from clip_embed import Classifier, Decision, ModerationPolicy, moderate
from clip_embed.errors import ClipEmbedError
from clip_embed_duckdb._columns import Column
from clip_embed_duckdb._embed import Call
from clip_embed_duckdb._named import find, rows_by_name

_DECISION = pa.struct(
    [
        pa.field("verdict", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("scores", pa.map_(pa.string(), pa.float32())),
    ]
)


def predict(call: Call, img: Column, name: Column) -> Column:
    """Return the likeliest label of each image, NULL for NULL and for an image that failed."""
    wanted = rows_by_name(call, name, "classifier")
    classifiers = [find(call, each, "classifier", Classifier, Classifier.from_bytes) for each, _ in wanted]
    images = call.images(img)
    units = images.units()
    labels: list[str | None] = [None] * len(img)
    for (each, rows), classifier in zip(wanted, classifiers, strict=True):
        rows = rows[images.valid[rows]]
        try:
            found = classifier.predict(call.state.load(), units[rows]).best
        except ClipEmbedError as error:
            raise type(error)(f"{call.name}: {each!r}: {error}") from None
        for row, label in zip(rows.tolist(), found, strict=True):
            labels[row] = label
    return pa.array(labels, pa.string())


def decide(call: Call, img: Column, name: Column) -> Column:
    """Return the decision on each image, NULL for NULL; one that failed is "unchecked", with the reason."""
    wanted = [(_policy(call, each), rows) for each, rows in rows_by_name(call, name, "policy")]
    images = call.images(img)
    units = images.units()
    decisions: list[dict[str, Any] | None] = [None] * len(img)
    for policy, rows in wanted:
        found = moderate(call.state.load(), units[rows[images.valid[rows]]], policy)
        for row, decision in zip(rows[images.valid[rows]].tolist(), found, strict=True):
            decisions[row] = _struct(decision)
        for row in rows[~images.valid[rows]].tolist():
            if row in images.reasons:
                decisions[row] = _struct(Decision("unchecked", images.reasons[row], {}))
    return pa.array(decisions, _DECISION)


def _policy(call: Call, name: str) -> ModerationPolicy:
    """Return the policy that a text is, or names."""
    if name == "starter":
        return ModerationPolicy.starter()
    if name.lstrip().startswith("["):
        try:
            return ModerationPolicy.from_json(name)
        except ValueError as error:
            raise ValueError(f"{call.name}: {error}") from None
    if name.lstrip().startswith("{"):
        raise ValueError(
            f'{call.name}: a policy is a JSON list of categories, [{{"name": …, "shows": […], '
            f'"against": […], "threshold": …}}], or the name of a file with one, not {name!r}'
        )
    return find(call, name, "policy", ModerationPolicy, _read_policy)


def _read_policy(content: bytes, name: str) -> ModerationPolicy:
    try:
        return ModerationPolicy.from_json(content.decode())
    except ValueError as error:
        raise ValueError(f"{name!r}: {error}") from None


def _struct(decision: Decision) -> dict[str, Any]:
    scores = list(decision.scores.items())
    return {"verdict": decision.verdict, "reason": decision.reason, "scores": scores}
